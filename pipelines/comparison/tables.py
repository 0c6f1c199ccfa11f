"""The comparison as tables of text: headings and rows, of how good the policies are and of what they cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence

from pipelines.comparison.comparison import Comparison
from pipelines.comparison.lineage import MEMORY, SECONDS, TOKENS
from pipelines.comparison.methods import Method
from pipelines.comparison.policies import Compared

Rows = tuple[list[str], list[list[str]]]
"""Headings, and a row of cells for each policy or method."""
Shown = tuple[str, str, Callable[[float], str]]
"""A metric, its heading, and how it is written."""
NONE = "–"


def _form(form: str) -> Callable[[float], str]:
    return form.format


def gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB"


QUALITY: tuple[Shown, ...] = (
    ("eval/check_rate", "check rate", _form("{:.1%}")),
    ("eval/win_rate", "win rate", _form("{:.1%}")),
    ("eval/score_mean", "score", _form("{:.2f}")),
    ("eval/preference_accuracy", "pref. acc.", _form("{:.1%}")),
    ("eval/perplexity", "perplexity", _form("{:.2f}")),
    ("eval/kl_to_reference", "KL", _form("{:.2f}")),
)
WRITING: tuple[Shown, ...] = (
    ("eval/length_mean", "tokens", _form("{:.1f}")),
    ("eval/length_ratio", "length", _form("{:.2f}x")),
    ("eval/repetition", "repetition", _form("{:.1%}")),
    ("eval/truncated_rate", "cut off", _form("{:.1%}")),
)
COSTS: tuple[Shown, ...] = (
    ("model/trainable", "trainable", _form("{:,.0f}")),
    (SECONDS, "seconds", _form("{:,.0f}")),
    (f"{SECONDS}_before", "before it", _form("{:,.0f}")),
    (TOKENS, "trained on", _form("{:,.0f}")),
    (MEMORY, "peak", gib),
)
QUALITY_NOTE = (
    "Intervals are 95%. Perplexity is of the chosen completions. KL, in nats a completion, is the log-ratio on the "
    "completions written (a KL where they were sampled at temperature 1)."
)
COST_NOTE = (
    "length: mean tokens over those of what it is compared with. repetition: share of 3-grams that a completion has "
    "already had. seconds, peak memory and tokens (trained on) are those of the stage that trained it (of its last "
    "attempt, if it was resumed); `before it` is all that this stage needed first, each once:"
)


def policy_table(policies: Sequence[Compared]) -> Rows:
    """A row for each policy: its figures, with a 95% interval where the report has one."""
    columns = _measured_of(policies)
    rows = [[policy.name, *(_measured(policy.metrics, shown) for shown in columns)] for policy in policies]
    return ["policy", *(heading for _, heading, _ in columns)], rows


def quality(comparison: Comparison) -> Rows:
    """The same, with a row of means and standard deviations after policies that differ in seeds alone."""
    headings, lines = policy_table(comparison.policies)
    of_policy = {line[0]: line for line in lines}
    rows: list[list[str]] = []
    for method in comparison.methods:
        rows += [of_policy[policy.name] for policy in method.policies]
        if method.seeds > 1:
            means = (_mean(method, shown) for shown in _measured_of(comparison.policies))
            rows.append([over_seeds(method), *means])
    return headings, rows


def _measured_of(policies: Sequence[Compared]) -> list[Shown]:
    """The columns that any of them has a figure for."""
    return [shown for shown in QUALITY if any(shown[0] in policy.metrics for policy in policies)]


def quality_note(comparison: Comparison) -> str:
    """How to read the figures, and over whom each method's wins are counted and to what its KL is measured."""
    named = {
        key: method.name for method in comparison.methods for one in method.policies for key in (one.key, one.policy)
    }
    said: dict[str, list[str]] = {}
    for method in comparison.methods:
        policy, phrases = method.policies[0], []
        if policy.against and "eval/win_rate" in policy.metrics:
            phrases.append(f"win rate over {named.get(policy.against, policy.against[:12])}")
        if policy.reference:
            phrases.append(f"KL to {named.get(policy.reference, policy.reference[:12])}")
        said.setdefault(", ".join(phrases), []).append(method.name)
    return " ".join([QUALITY_NOTE, *(f"{', '.join(names)}: {phrase}." for phrase, names in said.items() if phrase)])


def over_seeds(method: Method) -> str:
    """What a row of means is called."""
    return f"{method.name}, {method.seeds} seeds"


def _measured(metrics: Mapping[str, float], shown: Shown) -> str:
    name, _, form = shown
    if name not in metrics:
        return NONE
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{form(low).removesuffix('%')}, {form(high)}]"
    return form(metrics[name]) + interval


def _mean(method: Method, shown: Shown) -> str:
    name, _, form = shown
    spread = method.spread(name)
    if name not in method.metrics or spread is None:
        return NONE
    return f"{form(method.metrics[name])}±{form(spread)}"


def costs(comparison: Comparison) -> Rows:
    """A row for each method, means over its seeds: how it writes, and what it took."""
    each = [figures(comparison, method) for method in comparison.methods]
    columns = [shown for shown in (*WRITING, *COSTS) if any(shown[0] in found for found in each)]
    rows = [
        [method.name, *(form(found[name]) if name in found else NONE for name, _, form in columns)]
        for method, found in zip(comparison.methods, each, strict=True)
    ]
    return ["policy", *(heading for _, heading, _ in columns)], rows


def figures(comparison: Comparison, method: Method) -> dict[str, float]:
    """A method's figures and costs, means over its seeds."""
    each = [comparison.histories[policy.name].costs for policy in method.runs]
    shared = set.intersection(*(set(one) for one in each))
    return {**method.metrics, **{name: statistics.fmean(one[name] for one in each) for name in shared}}


def before(comparison: Comparison) -> Iterator[str]:
    """What each method's training stage needed first: `ppo: reward 93 s, sft 137 s`; of several seeds, the first's."""
    for method in comparison.methods:
        if spent := comparison.history(method).before:
            first = ", first seed" if method.seeds > 1 else ""
            yield f"{method.name}{first}: {', '.join(f'{one.uses} {one.seconds:.0f} s' for one in spent)}"
