"""The parts of a stage's memory, each beside a number made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from artifacts.kinds import Checkpoint, Demonstrations
from tasks.lora import LoRA
from tasks.memory import logits, online, reading, rows
from tasks.memory.activations import passing
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.online import Judge, Sampled
from tasks.memory.parts import ACCUMULATING, ONCE, Memory, fullest
from tasks.memory.rows import Case
from tasks.rl.best import SAMPLING_BATCH
from tasks.shape import ModelShape
from tasks.training.classifier import SCORING_BATCH
from tasks.training.divergence import LOGITS
from tasks.training.feedback_trainer import REFERENCE_BATCH
from tasks.training.logps import CHUNK
from tasks.training.model_files import SHARD

CONFIG: dict[str, Any] = {
    **LlamaConfig(
        vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
        intermediate_size=640, tie_word_embeddings=True,
    ).to_dict(),
    "dtype": "float32",
}  # fmt: skip
LAYER = 2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 640
"""Weights of a layer's linear modules."""
WEIGHTS = 1000 * 256 + 4 * (LAYER + 2 * 256) + 256
ADAPTER = 4 * 8 * (2 * 512 + 2 * 320 + 3 * 896)
"""Rank 8 on every linear module of four layers."""


def case(lora: LoRA | None = LoRA(rank=8), dtype: str = "float32", **more: Any) -> Case:  # noqa: B008  (immutable)
    shape = ModelShape.from_config({**CONFIG, "dtype": dtype})
    assert shape is not None
    fields: dict[str, Any] = {
        "shape": shape, "kind": "cuda", "adapted": lora and Adapted.fresh(shape, lora), "moment_bytes": 8, "micro": 4,
        "batch": 4, "lengths": Lengths(8, [20] * 8, [[10]] * 8), "checkpointing": False, "evaluates": False,
    }  # fmt: skip
    return Case(**{**fields, **more})


TOKEN = 2 * 64 * 4 * (4 + 1)
"""Bytes of a token's keys and values in four layers, and of one layer's copies while the cache grows."""
PAIRS = Lengths(8, [20] * 8, [[10, 6]] * 8)


def test_weights_adapters_and_moments() -> None:
    found = rows.sft(case())
    assert (found.weights, found.adapters, found.optimizer) == (4 * WEIGHTS, 4 * ADAPTER, 8 * ADAPTER)
    assert rows.sft(case(dtype="bfloat16")).weights == 2 * WEIGHTS
    assert rows.sft(case(moment_bytes=2)).optimizer == 2 * ADAPTER


def test_all_weights_train_in_float32_whatever_the_base_is() -> None:
    found = rows.sft(case(None, "bfloat16"))
    assert (found.weights, found.adapters, found.optimizer) == (4 * WEIGHTS, 0, 8 * WEIGHTS)
    assert rows.sft(case(None, moment_bytes=2)).optimizer == 2 * WEIGHTS + 6 * 256_000  # embeddings keep 8 bytes


def test_gradients_wait_only_where_several_passes_make_a_step() -> None:
    assert rows.sft(case()).gradients == 0
    assert rows.sft(case(micro=2)).gradients == 4 * ADAPTER
    whole = rows.sft(case(None, lengths=Lengths(8, [2] * 8, [[1]] * 8)))
    assert whole.gradients == 4 * WEIGHTS  # so short that the optimizer step is the fullest moment


def test_activations_follow_the_padded_rows_and_are_what_checkpointing_saves() -> None:
    one, two = rows.sft(case(micro=1)), rows.sft(case(micro=2))
    assert two.activations == 2 * one.activations
    assert rows.sft(case(micro=2, checkpointing=True)).activations < two.activations / 2
    top = rows.sft(case(LoRA(rank=8, top_layers=2), micro=2)).activations
    assert two.activations / 2 < top < 0.6 * two.activations


def test_logits_of_trls_head() -> None:
    """Four completions of ten tokens: on a GPU one tile of 40 x 32,768, and two copies of the states; on a CPU more."""
    assert rows.sft(case()).logits == 40 * 32_768 * 4 + 2 * 4 * 40 * 256
    assert rows.sft(case(kind="cpu")).logits == 40 * 32_768 * 4 + 40 * 1000 * 33 + 2 * 4 * 40 * 256
    trained = rows.sft(case(None, lengths=Lengths(8, [200] * 8, [[10]] * 8)))
    assert trained.logits == 40 * 32_768 * 4 + 2 * 4 * 40 * 256 + 4 * 256_000


def test_logits_of_our_head_never_take_more_than_512_positions() -> None:
    shape = case().shape
    assert logits.own(shape, 40) == 2 * 4 * 40 * 1000
    assert logits.own(shape, 5000) == 2 * 4 * 512 * 1000
    assert logits.own(shape, 40, trains=True) == 3 * 4 * 40 * 1000 + 2 * 4 * 256_000


def test_a_pair_is_packed_and_dpo_holds_its_start_beside_it() -> None:
    dpo, orpo = rows.dpo(case(lengths=PAIRS)), rows.pairs(case(lengths=PAIRS))
    assert dpo.reference == 4 * ADAPTER
    assert rows.dpo(case(None, lengths=PAIRS)).reference == 4 * WEIGHTS
    assert orpo.reference == 0
    one_row = rows.sft(case(lengths=Lengths(8, [20] * 8, [[16]] * 8)))
    assert dpo.activations == orpo.activations == one_row.activations  # prompt, chosen, rejected: 36 tokens
    assert orpo.logits == 2 * 4 * (4 * 16) * 1000


def test_kto_reads_sixteen_rows_for_its_reference_before_it_trains() -> None:
    trains = rows.feedback(case(micro=4, lengths=Lengths(8, [200] * 8, [[100]] * 8)))
    assert trains.logits == 2 * 4 * 400 * 1000
    reads = rows.feedback(case(micro=1))
    assert (reads.logits, reads.activations) == (2 * 4 * 512 * 1000, 16 * 30 * 4 * (4 * 256 + 3 * 640))


def test_a_reward_model_is_read_again_while_the_trained_one_is_there() -> None:
    head = case(lengths=PAIRS, head=256, micro=1, batch=1)
    assert rows.reward(head).logits == 0
    assert rows.reward(replace(head, kind="cpu")).reward == 4 * WEIGHTS
    assert rows.reward(replace(head, checkpointing=True)).reward == 4 * (WEIGHTS + ADAPTER)


def judge(shares: bool) -> Judge:
    reference = case()
    return Judge(reference.shape, reference.adapted, shares=shares)


def test_ppo_has_one_base_and_four_adapters() -> None:
    found = online.ppo(case(micro=2, batch=8), judge(shares=True), Sampled(8, 20, 300), None)
    assert (found.weights, found.adapters, found.reference) == (4 * WEIGHTS, 4 * ADAPTER, 4 * ADAPTER)
    assert (found.reward, found.optimizer) == (4 * ADAPTER, 8 * ADAPTER)
    assert found.value == 4 * ADAPTER + 8 * ADAPTER + 12 * 257
    assert found.gradients == 4 * ADAPTER  # of policy or value model, never of both
    assert found.logits == 2 * 4 * 512 * 1000


def test_ppo_samples_with_a_cache_and_a_copy_of_the_weights_under_the_adapter() -> None:
    found = online.ppo(case(micro=1, batch=64), judge(shares=True), Sampled(64, 20, 300), 1)
    assert found.kv_cache == 64 * 320 * 2 * 64 * 4 * (4 + 1)
    assert found.weights == 4 * WEIGHTS + 4 * 4 * LAYER
    half = online.ppo(case(micro=1, batch=64, dtype="bfloat16"), judge(shares=True), Sampled(64, 20, 300), 1)
    assert half.weights == 2 * WEIGHTS  # an adapter is never rounded into half precision


def test_ppo_with_top_layers_trains_and_keeps_less() -> None:
    whole, top = (
        online.ppo(case(micro=4, batch=4), judge(shares=True), Sampled(4, 20, 30), layers) for layers in (None, 1)
    )
    assert top.optimizer == whole.optimizer / 4
    assert top.total < whole.total


def test_groups_have_a_reward_model_beside_them() -> None:
    found = online.groups(case(micro=2, batch=8), judge(shares=False), Sampled(8, 20, 30), reference=7, validates=False)
    assert (found.reward, found.reference) == (4 * WEIGHTS + 4 * ADAPTER, 7)


def test_evaluating_against_a_reference_has_two_models() -> None:
    shape, adapted = case().shape, case().adapted
    alone = reading.evaluate(shape, adapted, "cuda", Sampled(4, 2, 48), 50, None, None)
    assert alone.weights == 4 * WEIGHTS + 4 * 4 * LAYER  # while it writes, a copy of the weights under the adapter
    assert alone.kv_cache == 4 * 50 * TOKEN
    both = reading.evaluate(shape, None, "cuda", Sampled(4, 20, 30), 50, 4 * WEIGHTS, None)
    assert (both.weights, both.reference) == (4 * WEIGHTS, 4 * WEIGHTS)


def test_the_prompts_are_gone_when_the_cache_is_full() -> None:
    """A GPU has either, the prompts' pass or the last tokens; a CPU's allocator keeps what it had in both."""
    shape = case().shape
    first = online.writing(shape, None, Sampled(4, 20, 30), "cuda", merges=True)
    assert (first.kv_cache, first.logits, first.activations) == (4 * 20 * TOKEN, 0, 4 * 20 * passing(shape))
    last = online.writing(shape, None, Sampled(4, 2, 48), "cuda", merges=True)
    assert (last.kv_cache, last.logits, last.activations) == (4 * 50 * TOKEN, 4 * 1000 * 32, 0)
    both = online.writing(shape, None, Sampled(4, 20, 30), "cpu", merges=True)
    assert (both.kv_cache, both.logits, both.activations) == (4 * 50 * TOKEN, 4 * 1000 * 32, 4 * 20 * passing(shape))


def test_a_base_is_quantised_layer_by_layer_on_a_gpu() -> None:
    shape = replace(case().shape, bytes_each=2)
    four_bits = int(4.127 / 8 * 4 * LAYER) + 4 * (WEIGHTS - 4 * LAYER)
    assert reading.quantize(shape, "cuda").total == pytest.approx(four_bits + 4 * 256 * 640, abs=1)
    assert reading.quantize(shape, "cpu").weights == pytest.approx(2 * WEIGHTS + 4.127 / 8 * 4 * LAYER, abs=1)


def test_converting_takes_the_weights_in_float32_and_what_is_beside_them() -> None:
    whole, halved = case().shape, case(dtype="bfloat16").shape
    assert reading.convert(whole, 0, "cpu").weights == 4 * WEIGHTS
    assert reading.convert(halved, 0, "cpu").weights == (4 + 2) * WEIGHTS
    assert reading.convert(whole, 77, "cpu").weights == 2 * 4 * WEIGHTS + 77  # of a GGUF also its pages


def test_the_fullest_moment_counts_and_holes_are_a_cpus_alone() -> None:
    small, large = Memory(weights=5, activations=100), Memory(weights=5, gradients=200)
    assert fullest(small, large) is large
    assert large.total == sum(large.parts().values()) == 205
    assert small.with_holes("cuda") == small
    assert small.with_holes("cpu").allocator == int(100 * ONCE)


def test_what_lies_between_the_holes_makes_more_of_them() -> None:
    plain = case()
    assert plain.holes == ONCE
    assert replace(plain, micro=2).holes == ACCUMULATING
    assert replace(plain, shape=replace(plain.shape, in_4_bits=True)).holes == ACCUMULATING


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (logits.CHUNK, CHUNK),
        (rows.REFERENCE_ROWS, REFERENCE_BATCH),
        (rows.SCORED_ROWS, SCORING_BATCH),
        (reading.SAMPLING_BATCH, SAMPLING_BATCH),
        (reading.COMPARED, 8 * 8 * LOGITS),
    ],
)
def test_sizes_are_those_of_the_modules_that_import_torch(ours: int, theirs: int) -> None:
    assert ours == theirs


def test_rows_are_read_to_the_last_whatever_line_ends_their_texts_hold(tmp_path: Path) -> None:
    row = {"row": 0, "prompt": "a\u2028b", "prompt_ids": [1] * 7, "completion": "c", "completion_ids": [2] * 3}
    data = Demonstrations(key="d", path=tmp_path, base=Checkpoint(key="b", path=tmp_path))
    (tmp_path / "report.json").write_text('{"train": {"rows": 1}}')
    (tmp_path / "train.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    found = Lengths.of(data, {})
    assert found is not None and (found.longest_prompt, found.longest_row) == (7, 10)


def test_a_file_of_weights_is_as_large_as_they_are_written() -> None:
    assert f"{reading.SHARD // 10**9}GB" == SHARD


def test_tiles_are_trls() -> None:
    from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    assert logits.TILE == (TOKEN_CHUNK_SIZE, _CHUNKED_LOGPROB_CHUNK_SIZE)
