"""The classic table of the field, from measurements of one's own runs: reward needed, RL needed, stability, compute,
quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipelines.comparison.comparison import Comparison
from pipelines.comparison.lineage import MEMORY, SECONDS
from pipelines.comparison.methods import Method
from pipelines.comparison.pairs import Pair
from pipelines.comparison.tables import NONE, QUALITY, Rows, figures, gib

FIELD_NOTE = (
    "From the recipe's wiring and the measurements above: reward, what scored completions in the making; RL, whether "
    "completions were sampled from the policy while it was trained; spikes, losses that are by 6 deviations and by "
    "30% above the median of the 20 before."
)


def field(comparison: Comparison) -> Rows:
    """The classic table: is a reward needed, is RL, how stable, how much compute, how good."""
    rows = [_field_row(comparison, method) for method in comparison.methods]
    return ["method", "reward", "RL", "stability", "compute", "quality"], rows


def _field_row(comparison: Comparison, method: Method) -> list[str]:
    history = comparison.history(method)
    if history.own is None:
        return [method.name, *[NONE] * 4, _quality(method, comparison.pairs)]
    sampled = {"while training": "yes", "beforehand": "no, sampled before", "no": "no"}[history.sampling]
    return [
        method.name, " and ".join(history.rewards) or "none", sampled, stability(comparison, method),
        compute(figures(comparison, method)), _quality(method, comparison.pairs),
    ]  # fmt: skip


def stability(comparison: Comparison, method: Method) -> str:
    """Spread over seeds, and whatever happened in any of the trainings."""
    several = method.seeds > 1
    said = [f"{method.seeds} seeds{_spread(method)}" if several else "1 seed"]
    for policy in method.runs:
        found = comparison.histories[policy.name].stability
        if found and (phrases := found.phrases()):
            said.append((f"{policy.name}: " if several else "") + ", ".join(phrases))
    return "; ".join(said)


def _spread(method: Method) -> str:
    """How far its seeds are apart: standard deviation of the check rate, or else of the score."""
    if (rate := method.spread("eval/check_rate")) is not None:
        return f" ± {100 * rate:.1f} points"
    score = method.spread("eval/score_mean")
    return "" if score is None else f" ± {score:.2f}"


def compute(found: Mapping[str, float]) -> str:
    """Seconds of its own and before it, and memory."""
    seconds = [f"{found[name]:,.0f}" for name in (SECONDS, f"{SECONDS}_before") if name in found]
    return f"{' + '.join(seconds)} s" + (f", {gib(found[MEMORY])}" if MEMORY in found else "")


def _quality(method: Method, pairs: Sequence[Pair]) -> str:
    """Its first figure, and how it stands to what it is set against first."""
    metric, form = next(
        ((name, form) for name, _, form in QUALITY if name in method.metrics and name != "eval/win_rate"), (None, str)
    )
    figure = form(method.metrics[metric]) if metric else NONE
    pair = next((pair for pair in pairs if pair.after == method.name), None)
    return figure if pair is None else f"{figure}, {_stands(pair)}"


def _stands(pair: Pair) -> str:
    words = {"ahead": "ahead of", "behind": "behind", "no clear difference": "not told from"}
    return f"{words[pair.verdict]} {pair.before}"
