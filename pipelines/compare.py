"""Reports joined: a table of policies, paired differences, completions side by side, a chart. Pure, but for reading."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.evaluate import outcome, read_completions
from tasks.statistics import Interval, bootstrap_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    ("eval/check_rate", "check rate", "{:.1%}"),
    ("eval/win_rate", "win rate", "{:.1%}"),
    ("eval/score_mean", "score", "{:.2f}"),
    ("eval/preference_accuracy", "pref. acc.", "{:.1%}"),
    ("eval/loss", "loss", "{:.3f}"),
    ("eval/kl_to_reference", "KL", "{:.2f}"),
    ("eval/length_mean", "tokens", "{:.1f}"),
    ("eval/truncated_rate", "cut off", "{:.1%}"),
)
"""Metric, heading and format of the table's columns; a column without a figure is left out."""
SIDE_BY_SIDE = 24


@dataclass(frozen=True)
class Compared:
    """One policy's report and its completions."""

    name: str
    metrics: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    completions: list[dict[str, Any]]
    against: str | None
    """The key of the report over which it counted its wins."""
    key: str = ""

    @classmethod
    def read(cls, name: str, folder: Path) -> Compared:
        report = json.loads((folder / "report.json").read_text())
        manifest = json.loads((folder.parent / "manifest.json").read_text())
        completions = read_completions(folder)
        return cls(name, report["metrics"], report["by_kind"], completions, report["against"], manifest["key"])


def table(policies: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a figure with its 95% interval where the report has one."""
    columns = [column for column in COLUMNS if any(column[0] in policy.metrics for policy in policies)]
    rows = [[policy.name, *(_cell(policy.metrics, name, form) for name, _, form in columns)] for policy in policies]
    return ["policy", *(heading for _, heading, _ in columns)], rows


def _cell(metrics: Mapping[str, float], name: str, form: str) -> str:
    if name not in metrics:
        return "–"
    shown = form.format(metrics[name])
    if f"{name}_low" in metrics:
        low, high = form.format(metrics[f"{name}_low"]), form.format(metrics[f"{name}_high"])
        shown += f" [{low.removesuffix('%')}, {high}]"
    return shown


def markdown_table(policies: Sequence[Compared]) -> str:
    """The table as Markdown."""
    head, rows = table(policies)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def differences(policies: Sequence[Compared], seed: int = 0) -> list[str]:
    """Policies in pairs, prompt by prompt: the change in the judged outcome with its interval."""
    said = []
    for before, after in _pairs(policies):
        if (found := paired_difference(before, after, seed)) is not None:
            mean, low, high = found
            verdict = "ahead" if low > 0 else "behind" if high < 0 else "no clear difference"
            said.append(f"{after.name} - {before.name}: {mean:+.1%} [{low:+.1%}, {high:+.1%}], {verdict}")
    return said


def _pairs(policies: Sequence[Compared]) -> list[tuple[Compared, Compared]]:
    """Each policy with the one that its report names, or else the one before it; and with its branch's neighbour."""
    by_key = {policy.key: policy for policy in policies if policy.key}
    found: list[tuple[Compared, Compared]] = []
    last: dict[str, Compared] = {}
    for number, policy in enumerate(policies):
        before = by_key.get(policy.against or "") or (policies[number - 1] if number else None)
        if before is None:
            continue
        found.append((before, policy))
        if (sibling := last.get(before.name)) is not None:
            found.append((sibling, policy))
        last[before.name] = policy
    return found


def paired_difference(before: Compared, after: Compared, seed: int) -> Interval | None:
    """Mean difference of check outcomes on the prompts that both have, with a bootstrap interval over prompts."""
    earlier = {result["row"]: outcome(result) for result in before.completions if "passed" in result}
    pairs = [
        (outcome(result), earlier[result["row"]])
        for result in after.completions
        if "passed" in result and result["row"] in earlier
    ]
    gains = [mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None]
    return bootstrap_mean(gains, seed) if gains else None


def side_by_side(policies: Sequence[Compared], rows: int = SIDE_BY_SIDE) -> str:
    """Markdown: for the first held-out prompts, what each policy wrote and how it was judged."""
    lines = [
        f"| prompt | {' | '.join(policy.name for policy in policies)} |",
        "|---" * (len(policies) + 1) + "|",
    ]
    others = [{result["row"]: result for result in policy.completions} for policy in policies]
    for first in policies[0].completions[:rows]:
        cells = [_quoted(results.get(first["row"])) for results in others]
        lines.append(f"| {_escape(first['prompt'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _quoted(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "–"
    mark = {True: "✓ ", False: "✗ "}.get(result.get("passed"), "")  # type: ignore[arg-type]
    score = f" ({result['score']:.2f})" if "score" in result else ""
    return f"{mark}{_escape(result['completion'])}{score}"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")


def chart(policies: Sequence[Compared]) -> Figure | None:
    """Each policy's judged outcome with its interval, and beside it the check rate by kind; None without a figure."""
    metric = next((name for name in ("eval/check_rate", "eval/score_mean") if name in policies[-1].metrics), None)
    if metric is None:
        return None
    from matplotlib.figure import Figure

    shown = [policy for policy in policies if metric in policy.metrics]
    kinds = sorted({kind for policy in shown for kind in policy.by_kind})
    figure = Figure(figsize=(4 + (7 if kinds else 0), 4.2), layout="constrained")
    axes = figure.subplots(1, 2 if kinds else 1, squeeze=False, width_ratios=[1, 2.4] if kinds else [1])[0]
    _overall(axes[0], shown, metric)
    if kinds:
        _kinds(axes[1], shown, kinds)
    return figure


def _overall(axis: Any, shown: Sequence[Compared], metric: str) -> None:
    values = [policy.metrics[metric] for policy in shown]
    errors = [
        [policy.metrics[metric] - policy.metrics.get(f"{metric}_low", policy.metrics[metric]) for policy in shown],
        [policy.metrics.get(f"{metric}_high", policy.metrics[metric]) - policy.metrics[metric] for policy in shown],
    ]
    names = [policy.name for policy in shown]
    axis.bar(names, values, yerr=errors, capsize=5, color=[f"C{i}" for i in range(len(shown))])
    for position, value in enumerate(values):
        axis.annotate(
            f"{value:.0%}" if metric.endswith("rate") else f"{value:.2f}", (position, 0), (0, 4),
            textcoords="offset points", ha="center", color="white", weight="bold",
        )  # fmt: skip
    axis.set_title(f"held-out {metric.removeprefix('eval/').replace('_', ' ')}, 95% interval", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _kinds(axis: Any, shown: Sequence[Compared], kinds: Sequence[str]) -> None:
    width = 0.8 / len(shown)
    for number, policy in enumerate(shown):
        rates = [policy.by_kind.get(kind, {}).get("rate", 0.0) for kind in kinds]
        places = [place + (number - (len(shown) - 1) / 2) * width for place in range(len(kinds))]
        axis.bar(places, rates, width, label=policy.name, color=f"C{number}")
    axis.set_xticks(range(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=8)
    axis.set_ylim(0, 1.14)  # room for the legend above full bars
    axis.set_title("by kind of constraint", fontsize=10)
    axis.legend(frameon=False, fontsize=8, ncols=len(shown), loc="upper left", bbox_to_anchor=(0, 1.0))
    axis.spines[["top", "right"]].set_visible(False)
