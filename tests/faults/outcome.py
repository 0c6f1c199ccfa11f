"""What became of the work that was struck, and the table of it all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from flows.tables import render
from tests.faults.schedule import Trial


@dataclass
class Outcome:
    """Of one trial."""

    number: int
    fault: str
    stage: str
    injected: int
    recovered: bool = False
    equal: bool = False
    """Every digest is that of the undisturbed run."""
    repeated: list[int] = field(default_factory=list)
    """Steps done twice, for each fault."""
    allowed: list[int] = field(default_factory=list)
    """One save interval, and one more where the newest checkpoint was damaged."""
    lost: int = 0
    doubled: int = 0
    orphans: int = 0
    remarks: list[str] = field(default_factory=list)
    """What was not as promised, in words."""
    skipped: str = ""
    """Why it could not be injected here."""
    seconds: float = 0.0

    @classmethod
    def of(cls, trial: Trial) -> Outcome:
        return cls(trial.number, trial.fault, trial.stage, 0)

    @property
    def good(self) -> bool:
        """Whether it is all that is promised."""
        within = all(did <= may for did, may in zip(self.repeated, self.allowed, strict=True))
        bad = self.lost or self.doubled or self.orphans or self.remarks
        return bool(self.skipped) or (self.recovered and self.equal and within and not bad)

    def line(self) -> str:
        """For whoever watches."""
        verdict = f"skipped: {self.skipped}" if self.skipped else "as promised"
        if not self.good:
            verdict = f"NOT as promised: {asdict(self)}"
        return f"{self.number:4d}  {self.fault:22s} {self.stage:9s} x{self.injected}  {self.seconds:5.0f} s  {verdict}"


class Outcomes:
    """A file of them, a line each: an interrupted run of the harness goes on after the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.all = [Outcome(**json.loads(line)) for line in lines]

    @property
    def injected(self) -> int:
        """How many faults have struck so far."""
        return sum(one.injected for one in self.all)

    def has(self, trial: Trial) -> bool:
        """Whether this one is over."""
        return any(one.number == trial.number for one in self.all)

    def add(self, outcome: Outcome) -> None:
        """Keep it."""
        self.all.append(outcome)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def table(outcomes: Iterable[Outcome]) -> str:
    """One row a fault."""
    by_fault: dict[str, list[Outcome]] = {}
    for one in outcomes:
        by_fault.setdefault(one.fault, []).append(one)
    shown = Table(box=None, pad_edge=False, header_style="none")
    shown.add_column("fault", no_wrap=True)
    for name in ("times", "recovered", "digests equal", "steps repeated", "points lost", "doubled", "orphans"):
        shown.add_column(name, justify="right")
    everything = [one for found in by_fault.values() for one in found]
    for fault, found in [*by_fault.items(), ("all", everything)]:
        shown.add_row(fault, *_figures(found))
    return render(shown)


def _figures(found: list[Outcome]) -> list[str]:
    times = sum(one.injected for one in found)
    recovered = sum(one.injected for one in found if one.recovered)
    equal = sum(one.injected for one in found if one.equal)
    repeated = [number for one in found for number in one.repeated]
    most = f"{sum(repeated)}, at most {max(repeated, default=0)}" if repeated else "-"
    return [str(times), str(recovered), str(equal), most, *(
        str(sum(getattr(one, name) for one in found)) for name in ("lost", "doubled", "orphans"))]  # fmt: skip
