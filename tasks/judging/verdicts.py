"""From answers to verdicts, and from verdicts to figures: the rules of the judge, and nothing that asks.

judge/win_rate           of `report` over `against`, ties half; _low and _high: 95%, bootstrap over the prompts
judge/pairs              pairs that this is over
judge/ties               the share of these that are ties
judge/identical          how many of these have two equal completions: ties that nobody was asked about
judge/nonsense           pairs left out since an answer was none of A, B and tie
judge/failed             pairs left out since an answer did not come
judge/position_bias      the share of "first" among answers that prefer one: 0.5 is fair
judge/agreement_reward   the share of decided pairs in which the reward model prefers the same completion, of those in
                         which it prefers one (_pairs of them; _low and _high: 95%, Wilson)
judge/agreement_check    the same for pairs of which one completion passes its check and the other does not
judge/tokens             what the endpoint says that it counted
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from tasks.judging.answers import Answer, Answers
from tasks.judging.pairs import Pair
from tasks.statistics import bootstrap_mean, share_interval

Verdict = Literal["win", "loss", "tie", "nonsense", "failed"]
VALUE = {"win": 1.0, "tie": 0.5, "loss": 0.0}
Judged = Sequence[tuple[Pair, Verdict]]
SEED = 0
"""Of the bootstrap, so that no verdict is bought again for another seed."""


def both_answers(pair: Pair, answers: Answers) -> tuple[Answer | None, Answer | None]:
    """What was said of the pair as it is, and of the pair swapped."""
    return answers.given.get((pair.row, False)), answers.given.get((pair.row, True))


def verdict(pair: Pair, answers: Answers) -> Verdict:
    """A win or a loss where both orders agree on it, else a tie; two equal completions are one without a question.

    A pair that lacks an answer has `failed`; one with an answer that can't be read is `nonsense`.
    """
    if pair.identical:
        return "tie"
    straight, swapped = both_answers(pair, answers)
    if straight is None or swapped is None:
        return "failed"
    choices = (straight.choice, swapped.choice)
    if None in choices:
        return "nonsense"
    return "win" if choices == ("A", "B") else "loss" if choices == ("B", "A") else "tie"


def figures(judged: Judged, answers: Answers, *, one_reward: bool) -> dict[str, float]:
    """The metrics of a judge stage; raises ZeroDivisionError where no pair has a verdict.

    `one_reward` says whether both reports have scores of the same reward model, so that they can be compared.
    """
    counted = [(pair, found) for pair, found in judged if found in VALUE]
    rate, low, high = bootstrap_mean([VALUE[found] for _, found in counted], SEED)
    metrics = {
        "judge/win_rate": rate, "judge/win_rate_low": low, "judge/win_rate_high": high,
        "judge/ties": sum(found == "tie" for _, found in counted) / len(counted),
        "judge/pairs": float(len(counted)), "judge/identical": float(sum(pair.identical for pair, _ in counted)),
        "judge/nonsense": float(sum(found == "nonsense" for _, found in judged)),
        "judge/failed": float(sum(found == "failed" for _, found in judged)),
    }  # fmt: skip
    picks = [said.choice for pair, _ in counted for said in both_answers(pair, answers) if said is not None]
    if decided := [choice == "A" for choice in picks if choice != "tie"]:
        metrics["judge/position_bias"] = sum(decided) / len(decided)
    if one_reward:
        metrics |= _agreement(counted, "score", "judge/agreement_reward")
    return metrics | _agreement(counted, "passed", "judge/agreement_check") | _tokens(answers)


def _agreement(counted: Judged, field: str, name: str) -> dict[str, float]:
    """How often a judge's win or loss is also what `field` of the completions says, with its interval and its number.

    Over the pairs that both decide; that number alone where it is 0.
    """
    agreed = [
        (pair.mine[field] > pair.other[field]) == (found == "win")
        for pair, found in counted
        if found != "tie" and _differ(pair, field)
    ]
    count = {f"{name}_pairs": float(len(agreed))}
    if not agreed:
        return count if any(field in pair.mine and field in pair.other for pair, _ in counted) else {}
    share, low, high = share_interval(agreed)
    return {name: share, f"{name}_low": low, f"{name}_high": high, **count}


def _differ(pair: Pair, field: str) -> bool:
    values: list[Any] = [pair.mine.get(field), pair.other.get(field)]
    return None not in values and values[0] != values[1]


def _tokens(answers: Answers) -> dict[str, float]:
    """What the endpoint says it counted."""
    counts = [answer.tokens for answer in answers.given.values() if answer.tokens is not None]
    return {"judge/tokens": float(sum(counts))} if counts else {}
