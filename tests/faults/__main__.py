"""`make faults`: faults by a seeded schedule, until so many have struck; goes on where it was interrupted.

Each line is a piece of work that was struck so many times in a row and then left to end. The table at the end counts
faults. Exit status 1 if anything is not as promised.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from tests.faults import runs, stages
from tests.faults.outcome import Outcome, Outcomes, table
from tests.faults.reference import ROOT, Reference
from tests.faults.schedule import ON_A_STAGE, Trial, rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Inject, say, count."""
    args = _arguments(argv)
    folder = args.out / f"seed-{args.seed}"
    outcomes, reference = Outcomes(folder / "outcomes.jsonl"), Reference(folder)
    _say(f"seed {args.seed}: at least {args.faults} faults, in {folder}")
    reference.make(None)
    for trial in chain.from_iterable(rounds(args.seed)):
        if outcomes.injected >= args.faults:
            break
        if not outcomes.has(trial):
            outcomes.add(carry_out(reference, trial, folder / "work"))
            _say(outcomes.all[-1].line())
    text = table(outcomes.all)
    (folder / "table.txt").write_text(text + "\n")
    _say(text)
    return 0 if all(outcome.good for outcome in outcomes.all) else 1


def carry_out(reference: Reference, trial: Trial, folder: Path) -> Outcome:
    """One trial in a fresh folder, which stays if it did not go as promised."""
    place = folder / str(trial.number)
    if (place / "draft").is_mount():  # left by a harness that was killed
        subprocess.run(["umount", "-l", place / "draft"], check=True)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    started = time.monotonic()
    try:
        strike = stages.strike if trial.fault in ON_A_STAGE else runs.strike
        outcome = strike(reference, trial, place)
    except PermissionError as error:
        outcome = Outcome.of(trial)
        outcome.skipped = str(error)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        outcome = Outcome.of(trial)
        outcome.injected = 1
        outcome.remarks.append(f"{type(error).__name__}: {error}"[-2000:])
    outcome.seconds = time.monotonic() - started
    if outcome.good:
        shutil.rmtree(place)
    return outcome


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults ARGS=...", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the schedule (default 0)")
    parser.add_argument("--faults", type=int, default=200, help="at least so many (default 200)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults", help="default build/faults")
    return parser.parse_args(argv)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
