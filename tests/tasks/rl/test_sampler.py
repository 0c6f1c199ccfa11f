"""Sampling draws from the policy's own distribution, each row by itself, and knows where a completion ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from artifacts.errors import ModelError
from tasks.rl import sampler as sampling
from tasks.rl.sampler import Sampled, Sampler, draw, row_draws
from tasks.rl.settings import stop_ids
from tasks.training.logps import hidden_states, label_logps, padded
from tasks.training.models import load_tokenizer
from tests.tasks.rl.runs import one_thread  # noqa: F401

pytestmark = pytest.mark.usefixtures("one_thread")
VOCABULARY, PAD, STOP = 11, 0, 2
BOTH = pytest.mark.parametrize("kind", ["llama", "gpt2"])
PROMPTS = [[5, 6, 7, 8, 9], [3], [PAD, 4, PAD], [STOP, STOP, 1], [9, 8, PAD], [10, 1, 2, 3, 4, 5, 6, 7], [4], [7, STOP]]
"""Of many lengths; PAD and the stop token are ordinary tokens here."""


def uneven(kind: str) -> Any:
    """A small model whose distribution is far from uniform: RoPE, or absolute positions."""
    config: Any
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.35,
        )  # fmt: skip
    else:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.35
        )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def sampled(
    model: Any, prompts: Sequence[list[int]], *, draws: Tensor | None = None, stops: Sequence[int] = (STOP,),
    temperature: float = 1.0, count: int = 8, batch_size: int = 32,
) -> list[Sampled]:  # fmt: skip
    sampler = Sampler(
        model, stop_ids=stops, pad=PAD, temperature=temperature, max_new_tokens=count, batch_size=batch_size
    )
    return sampler(prompts, row_draws(3, 0, range(len(prompts)), count) if draws is None else draws)


def plain_logps(model: Any, ids: list[int], temperature: float) -> Tensor:
    """Of every next token after every beginning of `ids`, without padding, cache or batch: (T, V)."""
    with torch.no_grad():
        return (model(torch.tensor([ids]), use_cache=False).logits[0] / temperature).log_softmax(-1)


# The distribution


def chi_square(tokens: list[int], probabilities: Tensor) -> float:
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY).double()
    expected = len(tokens) * probabilities.double()
    return float(((counts - expected) ** 2 / expected).sum())


HIGHEST = 29.6
"""A chi-square variable with 10 degrees of freedom is larger once in a thousand times."""


@BOTH
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_tokens_come_as_often_as_the_softmax_at_the_temperature_says(kind, temperature):
    model, prompt = uneven(kind), [5, 6, 7]
    rows = sampled(model, [prompt] * 3000, temperature=temperature, count=1, batch_size=1500)
    first = [row.ids[0] for row in rows]
    assert chi_square(first, plain_logps(model, prompt, temperature)[-1].exp()) < HIGHEST
    for other in {0.7, 1.0, 1.6} - {temperature}:
        assert chi_square(first, plain_logps(model, prompt, other)[-1].exp()) > HIGHEST


@BOTH
def test_later_tokens_too(kind):
    """What follows the most frequent first token, out of the cache, has that token's own distribution."""
    model, prompt = uneven(kind), [5, 6, 7]
    rows = sampled(model, [prompt] * 3000, stops=(), count=2, batch_size=1500)
    frequent = max(range(VOCABULARY), key=[row.ids[0] for row in rows].count)
    second = [row.ids[1] for row in rows if row.ids[0] == frequent]
    assert len(second) > 300
    assert chi_square(second, plain_logps(model, [*prompt, frequent], 1.0)[-1].exp()) < HIGHEST
    assert chi_square(second, plain_logps(model, prompt, 1.0)[-1].exp()) > HIGHEST


def test_a_token_is_the_one_whose_share_of_the_unit_interval_was_hit():
    logits = torch.tensor([[0.2, 0.3, 0.5]]).log().repeat(7, 1)
    numbers = torch.tensor([0.0, 0.1, 0.21, 0.49, 0.51, 0.9, 1 - 2**-53], dtype=torch.float64)
    tokens, logps = draw(logits, numbers, 1.0)
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert torch.allclose(logps, logits[0].log_softmax(-1)[tokens])


def test_a_token_without_probability_is_never_drawn_not_even_at_the_ends():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(4, 1)
    numbers = torch.tensor([0.0, 0.5 - 1e-12, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, numbers, 1.0)[0].tolist() == [1, 1, 3, 3]


def test_a_rows_random_numbers_are_its_own():
    draws = row_draws(7, 3, range(5), 20)
    assert torch.equal(draws[2:4], row_draws(7, 3, [2, 3], 20))
    assert torch.equal(draws[:, :6], row_draws(7, 3, range(5), 6))
    assert draws.min() >= 0 and draws.max() < 1 and len(draws.unique()) == 100
    for other in (
        row_draws(8, 3, range(5), 20),
        row_draws(7, 4, range(5), 20),
        row_draws(7, "validation", [0] * 5, 20),
    ):
        assert not (other == draws).any()


def test_sampling_leaves_the_global_random_stream_alone():
    model, before = uneven("llama"), torch.get_rng_state()
    sampled(model, PROMPTS)
    assert torch.equal(torch.get_rng_state(), before)


# Independence of the batch


@BOTH
def test_the_log_probabilities_are_those_of_a_row_alone_without_padding_or_cache(kind):
    model = uneven(kind)
    for prompt, row in zip(PROMPTS, sampled(model, PROMPTS, temperature=0.7), strict=True):
        wanted = plain_logps(model, prompt + row.ids, 0.7)[len(prompt) - 1 : -1]
        assert torch.allclose(
            torch.tensor(row.logps), wanted.gather(1, torch.tensor(row.ids)[:, None])[:, 0], atol=1e-5
        )


@BOTH
def test_the_log_probabilities_are_those_that_training_computes(kind):
    model = uneven(kind)
    rows = sampled(model, PROMPTS, temperature=0.7)
    batch = padded(PROMPTS, [row.ids for row in rows], PAD, "cpu")
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        states = hidden_states(model, batch)[:, :-1][labels != -100]
        trained = label_logps(model.get_output_embeddings(), states, labels[labels != -100], 0.7)
    assert torch.allclose(torch.tensor([x for row in rows for x in row.logps]), trained, atol=1e-4)


@BOTH
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_a_completion_does_not_depend_on_the_rows_beside_it(kind, batch_size):
    model, draws = uneven(kind), row_draws(3, 0, range(len(PROMPTS)), 8)
    together = sampled(model, PROMPTS, stops=(STOP, 6, 8))
    order = [6, 2, 7, 0, 5, 1, 4, 3]
    others = sampled(model, [PROMPTS[i] for i in order], draws=draws[order], batch_size=batch_size, stops=(STOP, 6, 8))
    assert [others[order.index(i)].ids for i in range(len(PROMPTS))] == [row.ids for row in together]
    assert len({len(row.ids) for row in together}) > 2, "the completions must be ragged for this to mean much"


@BOTH
def test_a_much_longer_neighbour_and_so_much_padding_changes_nothing(kind):
    model, draws = uneven(kind), row_draws(3, 0, range(2), 8)
    (alone,) = sampled(model, [[7, 3]], draws=draws[:1])
    beside, _ = sampled(model, [[7, 3], [5, 6] * 20], draws=draws)
    assert alone.ids == beside.ids
    assert alone.logps == pytest.approx(beside.logps, abs=1e-5)


@BOTH
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_when_finished_rows_leave_the_cache_changes_nothing(kind, share, monkeypatch):
    model = uneven(kind)
    wanted = sampled(model, PROMPTS)
    monkeypatch.setattr(sampling, "COMPACT_BELOW", share)
    found = sampled(model, PROMPTS)
    assert [(row.ids, row.truncated) for row in found] == [(row.ids, row.truncated) for row in wanted]


# The end


@BOTH
def test_a_completion_is_the_endless_one_up_to_and_with_its_first_stop_token(kind):
    model, prompts, stops = uneven(kind), PROMPTS * 40, (STOP, 6)
    endless, ended = sampled(model, prompts, stops=()), sampled(model, prompts, stops=stops)
    at_the_last = 0
    for whole, row in zip(endless, ended, strict=True):
        places = [place for place, token in enumerate(whole.ids) if token in stops]
        assert row.ids == whole.ids[: places[0] + 1 if places else 8]
        assert row.truncated == (not places), "whether it ended, and not how long it is, makes it truncated"
        assert len(row.logps) == len(row.ids)
        at_the_last += bool(places) and places[0] == 7
    assert at_the_last and {row.truncated for row in ended} == {True, False}


def test_without_a_stop_token_every_completion_is_as_long_as_may_be_and_truncated():
    rows = sampled(uneven("llama"), PROMPTS, stops=())
    assert all(len(row.ids) == 8 and row.truncated for row in rows)
    assert any(STOP in row.ids[:-1] for row in rows)


def test_a_limit_of_one_token_works():
    rows = sampled(uneven("llama"), PROMPTS * 10, count=1)
    assert all(len(row.ids) == 1 and row.truncated == (row.ids != [STOP]) for row in rows)
    assert {row.truncated for row in rows} == {True, False}


# The stop token by name


def test_eos_always_ends_a_completion_and_another_token_can_too(base):
    tokenizer = load_tokenizer(base.handle)
    eos = tokenizer.eos_token_id
    assert stop_ids(tokenizer, "eos") == [eos]
    assert stop_ids(tokenizer, None) == []
    assert stop_ids(tokenizer, ".") == sorted([eos, tokenizer.convert_tokens_to_ids(".")])
    assert stop_ids(tokenizer, "\n") == sorted([eos, *tokenizer("\n")["input_ids"]])
    assert stop_ids(tokenizer, tokenizer.eos_token) == [eos]


@pytest.mark.parametrize("wrong", ["end", "", "<|nothing|>", ".\n"])
def test_a_stop_token_that_is_not_one_token_is_refused_with_its_pieces(base, wrong):
    with pytest.raises(ModelError, match="stop_token: wanted `eos`, null or one token"):
        stop_ids(load_tokenizer(base.handle), wrong)


def test_a_tokenizer_without_eos_is_refused_unless_nothing_is_to_stop(base):
    tokenizer = load_tokenizer(base.handle)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no EOS"):
        stop_ids(tokenizer, "eos")
    assert stop_ids(tokenizer, None) == []
