from __future__ import annotations

import pytest
import torch

from tasks.context import Context, Execution, MetricsLog, Progress
from tasks.training.classifier import score_rows
from tasks.training.logps import padded
from tasks.training.rows import load_rows
from tasks.training.scoring import load_reward, score


@pytest.fixture
def ctx(tmp_path):
    return Context(tmp_path, tmp_path, MetricsLog(tmp_path / "m"), Progress(events=False), 0, Execution(device="cpu"))


def test_a_score_depends_neither_on_the_batch_nor_on_padding(reward, pairs):
    rows = load_rows(pairs.handle, "test")[:6]
    model, head = load_reward(reward.handle, "cpu")

    def scores(chosen_rows, extra=0):
        completions = [row["chosen_ids"] for row in chosen_rows]
        batch = padded([row["prompt_ids"] for row in chosen_rows], completions, 0, "cpu")
        for name, filler in (("input_ids", 0), ("attention_mask", 0)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, extra), value=filler)
        with torch.no_grad():
            return score(model, head, batch)

    together = scores(rows)
    alone = torch.cat([scores([row]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, scores(rows, extra=17), atol=1e-5)


def test_held_out_chosen_completions_score_0_on_average(reward, pairs, ctx):
    scores = score_rows(reward.handle, load_rows(pairs.handle, "test"), "chosen_ids", ctx)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-5)


def test_the_reported_accuracy_is_that_of_the_files_it_leaves(reward, pairs, ctx):
    rows = load_rows(pairs.handle, "test")
    chosen, rejected = (score_rows(reward.handle, rows, f"{side}_ids", ctx) for side in ("chosen", "rejected"))
    wins = sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(rows)
    assert reward.metrics["eval/reward_accuracy"] == pytest.approx(wins, abs=1 / len(rows))
    longer = [len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in rows]
    by_hand = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in longer) / len(rows)
    assert reward.metrics["eval/length_baseline"] == pytest.approx(by_hand)


def test_training_on_pairs_that_can_be_told_apart_tells_them_apart(kitchen, base, tmp_path):
    rows = [f'{{"prompt": "say {i}", "chosen": "yes {i}", "rejected": "no no {i}"}}' for i in range(60)]
    (tmp_path / "easy.jsonl").write_text("\n".join(rows))
    data = kitchen.make(
        "data", base=base.handle, form="preferences", source=str(tmp_path / "easy.jsonl"), test_size=0.2
    )
    made = kitchen.make(
        "reward", base=base.handle, data=data.handle, learning_rate=5e-3, epochs=4, lora={"rank": 8}, eval_rows=0
    )
    assert made.metrics["eval/reward_accuracy"] > 0.9


def test_it_can_start_from_the_sft_adapter(kitchen, base, sft, pairs):
    made = kitchen.make(
        "reward", base=base.handle, data=pairs.handle, adapter=sft.handle, max_steps=1, learning_rate=1e-9, eval_rows=0
    )
    from safetensors.torch import load_file

    started, ended = (load_file(one.handle.path / "adapter_model.safetensors") for one in (sft, made))
    assert started.keys() == ended.keys()
    assert all(torch.allclose(started[name], ended[name], atol=1e-6) for name in started)


def test_a_fully_trained_reward_model_scores_too(kitchen, base, pairs, ctx):
    made = kitchen.make("reward", base=base.handle, data=pairs.handle, lora=None, max_steps=2, eval_rows=0)
    scores = score_rows(made.handle, load_rows(pairs.handle, "test"), "chosen_ids", ctx)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-5)
