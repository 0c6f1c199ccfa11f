"""A judge in memory: which of the two answers it finds likelier, read off its log-probabilities; nothing is sampled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from artifacts.errors import ModelError
from artifacts.kinds import Model, base_of
from tasks.context import Context
from tasks.judging.answers import Answer, Answers
from tasks.judging.pairs import Choice, Question
from tasks.rendering import Renderer, Template
from tasks.rows import Row

if TYPE_CHECKING:
    from torch import Tensor

LETTERS: tuple[Choice, Choice] = ("A", "B")


def ask_model(
    policy: Model, template: Template, questions: Sequence[Question], answers: Answers, size: int, ctx: Context
) -> None:
    """Answer each question with the letter that is likelier as the next token, in passes of `size` rows.

    A question that is longer than the model's context fails. The passes hold the same rows after an interruption, since
    padding may move the last bits.
    """
    from tasks.training.models import load_model
    from tasks.training.rows import batches

    if not answers.missing(questions):
        return
    renderer = Renderer(base_of(policy), template)
    asked = _fitting(policy, renderer, questions, answers)
    letters = [_letter_id(renderer, letter) for letter in LETTERS]
    model = load_model(policy, ctx.device())
    done = 0
    for batch in batches(asked, [len(ids) for _, ids in asked], size):
        if answers.missing([question for _, (question, _) in batch]):
            prompts = [ids for _, (_, ids) in batch]
            for (_, (question, _)), choice in zip(batch, _choices(model, renderer, prompts, letters, ctx), strict=True):
                answers.keep(question, Answer(choice, choice))
        done += len(batch)
        ctx.progress(done, len(asked), "answers")


def _fitting(
    policy: Model, renderer: Renderer, questions: Sequence[Question], answers: Answers
) -> list[tuple[Question, list[int]]]:
    """The questions that the model has positions for, as ids."""
    config = json.loads((base_of(policy).path / "config.json").read_text())
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    fitting = []
    for question in questions:
        ids = renderer.prompt_ids(Row(row=question.row, instruction=question.text))
        if positions and len(ids) > positions:
            answers.fail(question, f"it has {len(ids)} tokens, and the judge's context {positions}")
        else:
            fitting.append((question, ids))
    return fitting


def _letter_id(renderer: Renderer, letter: str) -> int:
    """The one token that a letter is where an answer begins; raises ModelError for a tokenizer that cuts otherwise."""
    row = Row(row=0, instruction="A or B?")
    prompt = renderer.prompt_ids(row)
    ids = list(renderer.tokenizer(renderer.prompt_text(row) + letter, add_special_tokens=False)["input_ids"])
    if ids[:-1] != prompt:
        raise ModelError(f"policy: its tokenizer makes no token of its own of {letter!r} where an answer begins")
    return int(ids[-1])


def _choices(
    model: Any, renderer: Renderer, prompts: list[list[int]], letters: list[int], ctx: Context
) -> list[Choice]:
    import torch

    from tasks.training.logps import padded

    batch = padded(prompts, [[] for _ in prompts], renderer.tokenizer.pad_token_id, ctx.device())
    with torch.no_grad():
        logps = letter_logps(model, batch, letters).tolist()
    return ["tie" if first == second else LETTERS[second > first] for first, second in logps]


def letter_logps(model: Any, batch: dict[str, Tensor], letters: Sequence[int]) -> Tensor:
    """log p of each letter as the token after each row's last one, in float32: (B, len(letters))."""
    import torch

    from tasks.training.logps import hidden_states, label_logps
    from tasks.training.scoring import last_states

    states = last_states(hidden_states(model, batch), batch["attention_mask"])
    head = model.get_output_embeddings()
    wanted = torch.tensor(letters, device=states.device).repeat(len(states), 1)
    return torch.stack([label_logps(head, states, labels) for labels in wanted.T], dim=1)
