"""One evaluated policy: its report, its completions, and the figures that follow from these alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from artifacts.manifest import Manifest
from tasks.evaluate import read_completions
from tasks.statistics import Interval

NGRAM = 3


@dataclass(frozen=True)
class Compared:
    """A policy's report and its completions."""

    name: str
    metrics: dict[str, float]
    """Those of the report, and `eval/repetition` and `eval/length_ratio`, made here."""
    by_kind: dict[str, dict[str, float]]
    completions: list[dict[str, Any]]
    against: str | None = None
    """The key of the report over which it counted its wins."""
    key: str = ""
    policy: str = ""
    """The key of what was evaluated."""
    reference: str | None = None
    """The key of the model that its KL was measured against."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """The evaluation's inputs, as keys by field."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The evaluation's fields, defaults included, and its version."""

    @classmethod
    def read(cls, name: str, folder: Path) -> Compared:
        """The report in the output folder of an evaluation."""
        report = json.loads((folder / "report.json").read_text())
        manifest = Manifest.read(folder.parent)
        completions = read_completions(folder)
        metrics = {**report["metrics"], "eval/repetition": repetition(completions)}
        inputs = manifest.payload["inputs"]
        return cls(
            name, metrics, report["by_kind"], completions, report["against"], manifest.key, report["policy"],
            inputs.get("reference"), inputs, {"version": manifest.payload["version"], **manifest.fields},
        )  # fmt: skip

    @property
    def outcomes(self) -> dict[int, dict[str, Any]]:
        """The completions by the number of their row."""
        return {result["row"]: result for result in self.completions}

    def interval(self, metric: str) -> Interval:
        """A figure with the 95% interval that the report has for it, else itself; rounding leaves none outside."""
        value = self.metrics[metric]
        low, high = self.metrics.get(f"{metric}_low", value), self.metrics.get(f"{metric}_high", value)
        return value, min(low, value), max(high, value)

    def beside(self, others: Sequence[Compared]) -> Compared:
        """With its length ratio: mean tokens over those of the policy that it was compared against, or else of its
        reference, if that one's report is among `others`."""
        found = next((one for one in others if one.key == self.against), None)
        found = found or next((one for one in others if one.policy == self.reference), None)
        if found is None or not found.metrics.get("eval/length_mean"):
            return self
        ratio = self.metrics["eval/length_mean"] / found.metrics["eval/length_mean"]
        return replace(self, metrics={**self.metrics, "eval/length_ratio": ratio})


def repetition(completions: Sequence[Mapping[str, Any]]) -> float:
    """1 - distinct 3-grams / 3-grams of tokens in a completion, as a mean over those that have any; 0 where none has.

    seq-rep-n of Welleck et al. 2020, arXiv:1908.04319, equation 6, with n = 3 since completions may be short.
    """
    shares = []
    for completion in completions:
        ids = completion["completion_ids"]
        grams = [tuple(ids[at : at + NGRAM]) for at in range(len(ids) - NGRAM + 1)]
        if grams:
            shares.append(1 - len(set(grams)) / len(grams))
    return sum(shares) / len(shares) if shares else 0.0
