"""What the seeds of goodhart.py show, in words, a table and a picture; and no more than they show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.proofs.goodhart import METHODS, Point, Seed

FALL = 0.1
"""How far gold must be below its peak at the end, in standard deviations under the reference, to count as fallen."""
Curve = Sequence[Point]


def peak(curve: Curve) -> Point:
    """Where gold was highest."""
    return max(curve, key=lambda point: point.gold)


def over_optimised(curve: Curve) -> bool:
    """Whether, from gold's peak on, gold fell while the proxy rose."""
    best, last = peak(curve), curve[-1]
    return last.gold < best.gold - FALL and last.proxy > best.proxy


def gold_at(curve: Curve, kl: float) -> float:
    """Gold when the policy first came so far from the reference, between two checkpoints by a straight line."""
    for before, after in itertools.pairwise(curve):
        if before.kl <= kl <= after.kl:
            share = (kl - before.kl) / (after.kl - before.kl) if after.kl > before.kl else 0.0
            return before.gold + share * (after.gold - before.gold)
    raise ValueError(f"the curve ends before a KL of {kl}")


def matched(seed: Seed) -> tuple[float, float]:
    """A KL that both methods come to (the smaller of their largest), and PPO's gold there minus DPO's."""
    kl = min(max(point.kl for point in seed.curves[name]) for name in METHODS)
    ppo, dpo = (gold_at(seed.curves[name], kl) for name in METHODS)
    return kl, ppo - dpo


def sign_test(wins: int, count: int) -> float:
    """The chance of a split at least as uneven as this if both were equally good (two-sided)."""
    tail = sum(math.comb(count, k) for k in range(max(wins, count - wins), count + 1)) / 2**count
    return min(1.0, 2 * tail)


def write_report(seeds: Sequence[Seed], pairs: int, out: Path) -> str:
    """Writes `report.md` and `goodhart.png`; gives the report."""
    said = f"""# Over-optimisation in a world that can be listed

{len(seeds)} seeds; each draws the base, the gold reward, {pairs} noisily judged pairs and all training. All figures are
exact sums over every completion; rewards are in standard deviations under the reference, whose own are 0.

{_table(seeds)}

{chr(10).join(f"- {line}" for line in conclusions(seeds))}

![gold and proxy against KL](goodhart.png)
"""
    (out / "report.md").write_text(said)
    picture(seeds).savefig(out / "goodhart.png", dpi=120)
    return said


def conclusions(seeds: Sequence[Seed]) -> list[str]:
    """Sentences that count seeds."""
    lines = []
    for name in METHODS:
        curves = [seed.curves[name] for seed in seeds]
        fell, gained = sum(map(over_optimised, curves)), sum(peak(curve).gold > FALL for curve in curves)
        lost = mean(peak(curve).gold - curve[-1].gold for curve in curves)
        lines.append(
            f"{name.upper()}: gold rose at first in {gained} of {len(seeds)} seeds; from its peak on it fell by more "
            f"than {FALL} while the proxy rose in {fell} of {len(seeds)}; at the end it is {lost:.2f} below its peak "
            "in the mean."
        )
    pairs = [matched(seed) for seed in seeds]
    wins = sum(gain > 0 for _, gain in pairs)
    chance = sign_test(wins, len(seeds))
    verdict = "that is a difference" if chance < 0.05 else "so these seeds do not say which method is better"
    gains = ", ".join(f"{gain:+.2f} at {kl:.1f}" for kl, gain in pairs)
    lines.append(
        f"At the largest KL that both reach, PPO's gold minus DPO's is {gains}: PPO is ahead in {wins} of "
        f"{len(seeds)}; a split as uneven comes by chance with probability {chance:.2f}, {verdict}."
    )
    return lines


def _table(seeds: Sequence[Seed]) -> str:
    head = "| seed | proxy ranks as gold does |"
    rule = "|---|---|"
    for name in METHODS:
        head += f" {name.upper()}: gold at its peak (KL) | gold at the end (KL) | proxy at the end |"
        rule += "---|---|---|"
    rows = []
    for seed in seeds:
        row = f"| {seed.seed} | {seed.proxy_accuracy:.1%} |"
        for name in METHODS:
            best, last = peak(seed.curves[name]), seed.curves[name][-1]
            row += f" {best.gold:.2f} ({best.kl:.1f}) | {last.gold:.2f} ({last.kl:.1f}) | {last.proxy:.2f} |"
        rows.append(row)
    return "\n".join([head, rule, *rows])


def picture(seeds: Sequence[Seed]) -> Figure:
    """A panel for each method and seed: gold and proxy along training against KL, and the best gold there is."""
    figure = Figure(figsize=(1.2 + 2.5 * len(seeds), 5.4), layout="constrained")
    panels = figure.subplots(len(METHODS), len(seeds), squeeze=False, sharex=True, sharey=True)
    for row, name in zip(panels, METHODS, strict=True):
        for panel, seed in zip(row, seeds, strict=True):
            _draw(panel, seed, name)
        row[0].set_ylabel(f"{name.upper()}\nreward (sd under the reference)", fontsize=9)
    for panel, seed in zip(panels[0], seeds, strict=True):
        panel.set_title(f"seed {seed.seed}", fontsize=10)
    panels[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    figure.supxlabel("KL to the reference (nats), square-root scale", fontsize=9)
    figure.suptitle("Gold and proxy reward along training", fontsize=11)
    return figure


def _draw(panel: Axes, seed: Seed, name: str) -> None:
    curve, best = seed.curves[name], peak(seed.curves[name])
    end = max(point.kl for curves in seed.curves.values() for point in curves)
    possible = [point for point in seed.frontier if point.kl <= end]
    panel.set_xscale("function", functions=(lambda kl: abs(kl) ** 0.5, lambda root: root**2))
    panel.plot([p.kl for p in possible], [p.gold for p in possible], color="0.7", linewidth=1, label="best gold")
    panel.plot([p.kl for p in curve], [p.proxy for p in curve], color="C1", linestyle="--", label="proxy")
    panel.plot([p.kl for p in curve], [p.gold for p in curve], color="C0", linewidth=2, label="gold")
    panel.plot(best.kl, best.gold, "o", color="C0", markersize=5)
    panel.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    panel.set_xticks([0, 1, 2, 4, 8, 12])
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)
