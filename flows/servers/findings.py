"""What `align doctor` finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    BROKEN = "broken"


OK, WARNING, BROKEN = Level


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    level: Level
    found: str
    do: str = ""
    """What helps, unless all is well."""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)

    def lines(self) -> str:
        return f"{self.level:8} {self.check:10} {self.found}" + (f"\n{'':20}-> {self.do}" if self.do else "")
