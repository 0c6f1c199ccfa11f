"""Faults of one stage, run as `python -m tasks job.json`."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import nullcontext, suppress
from pathlib import Path

from tests.faults.outcome import Outcome
from tests.faults.processes import left_over
from tests.faults.reference import SAVE_INTERVAL, Reference
from tests.faults.schedule import OTHERS, Trial
from tests.faults.work import MARK, NotStruckError, Work
from tests.left import left_in
from tests.small_disk import small_disk

BETWEEN_SAVES = {"at": (60, 16), "amid": (14, 2)}
"""How far `dying` counts: a save of the trainers is 30 to 38 events and 12 to 14 files, one of PPO 11 and 2."""
DISK_MIB = 64
ATTEMPTS = 5


def strike(reference: Reference, trial: Trial, folder: Path) -> Outcome:
    """One trial: struck so many times, then left to end, then compared."""
    outcome, work, standings = Outcome.of(trial), Work(reference, trial, folder), []
    disk = small_disk(work.draft, DISK_MIB) if trial.fault == "disk full" else nullcontext()
    with disk:
        for time in range(trial.times):
            if struck(work, trial.nth + time):
                outcome.injected += 1
                outcome.orphans += left_over(MARK, str(work.folder))
                standings.append(work.standing())
                outcome.allowed.append(allowed(trial))
        outcome.recovered = work.start().wait() == 0 and said_what_it_passed_over(work)
        outcome.repeated = [work.repeated(standing) for standing in standings]
        if not outcome.recovered:
            outcome.remarks.append(work.said()[-1500:])
            return outcome
        found, wanted = left_in(work.draft), left_in(reference.result(trial.stage))
    outcome.equal = (found.digests, found.samples, found.figures) == (wanted.digests, wanted.samples, wanted.figures)
    outcome.lost, outcome.doubled = found.lost(wanted), found.doubled(wanted)
    return outcome


def allowed(trial: Trial) -> int:
    """Steps that may be done twice: a save interval, which PPO counts in rollouts; twice that after damage."""
    interval = 0 if trial.stage in OTHERS else 1 if trial.stage == "ppo" else SAVE_INTERVAL
    return interval * (2 if trial.fault.startswith("checkpoint") else 1)


def struck(work: Work, nth: int) -> bool:
    """Start the stage and let the fault strike; False if it ended before that, however early it was to be."""
    for attempt in range(ATTEMPTS):
        with suppress(NotStruckError):
            FAULTS[work.trial.fault](work, nth, 0.6**attempt)
            return True
    return False


def killed(work: Work, nth: int, sooner: float) -> None:
    """SIGKILL at a moment of chance."""
    _signalled(work, sooner, signal.SIGKILL)


def asked_to_end(work: Work, nth: int, sooner: float) -> None:
    """SIGTERM at a moment of chance."""
    _signalled(work, sooner, signal.SIGTERM)


def _signalled(work: Work, sooner: float, number: int) -> None:
    process = work.start()
    try:
        process.wait(work.draw.uniform(0.05, 0.95) * work.seconds * sooner)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        if process.wait() != 0:
            return
    raise NotStruckError


def killed_between_files(work: Work, nth: int, sooner: float) -> None:
    """At the nth thing that is done to the files of a save, or of the output."""
    _dies(work, "at", nth, sooner)


def killed_amid_a_file(work: Work, nth: int, sooner: float) -> None:
    """With half of the nth file of a save on the disk."""
    _dies(work, "amid", nth, sooner)


def _dies(work: Work, how: str, nth: int, sooner: float) -> None:
    most = BETWEEN_SAVES[how][work.trial.stage == "ppo"]
    if work.start(how, str(1 + int(nth % most * sooner))).wait() != -signal.SIGKILL:
        raise NotStruckError


def checkpoint_torn(work: Work, nth: int, sooner: float) -> None:
    """The newest checkpoint has lost the end of a file."""
    path = _of_newest_checkpoint(work)
    os.truncate(path, work.draw.randrange(path.stat().st_size))


def checkpoint_flipped(work: Work, nth: int, sooner: float) -> None:
    """One bit of the newest checkpoint is another."""
    path = _of_newest_checkpoint(work)
    content = bytearray(path.read_bytes())
    content[work.draw.randrange(len(content))] ^= 1 << work.draw.randrange(8)
    path.write_bytes(content)


def _of_newest_checkpoint(work: Work) -> Path:
    """One of its files, once it is there, another is behind it, and the stage was killed."""
    before = _inodes(work)
    process = work.start()
    with suppress(NotStruckError):  # a stage that ended has left its checkpoints too
        work.wait(process, lambda: len(_inodes(work)) > 1 and _inodes(work)[-1:] != before[-1:])
    process.kill()
    process.wait()
    files = [path for path in sorted(work.checkpoints()[-1].rglob("*")) if path.is_file() and path.stat().st_size]
    return work.draw.choice(files)


def _inodes(work: Work) -> list[int]:
    """Of the checkpoints, the newest last."""
    return [path.stat().st_ino for path in work.checkpoints()]


def said_what_it_passed_over(work: Work) -> bool:
    """Whether a damaged checkpoint was named."""
    return not work.trial.fault.startswith("checkpoint") or "is passed over" in work.said()


def disk_full(work: Work, nth: int, sooner: float) -> None:
    """Once there is a checkpoint the disk fills, all but a little, until the stage has ended."""
    process, ballast = work.start(), work.draft / "ballast"
    left = work.draw.choice([0, 1 << 14, 1 << 18, 1 << 20, 1 << 21]) * (sooner == 1)
    work.wait(process, lambda: bool(work.checkpoints()))
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        free = os.statvfs(work.draft)
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    status = process.wait()
    ballast.unlink()
    if status == 0:
        raise NotStruckError
    if status != 1 or "the disk is full" not in work.said():
        raise AssertionError(f"a full disk ended it with {status}: {work.said()[-500:]}")


FAULTS = {
    "killed": killed, "asked to end": asked_to_end, "killed between files": killed_between_files,
    "killed amid a file": killed_amid_a_file, "checkpoint torn": checkpoint_torn,
    "checkpoint flipped": checkpoint_flipped, "disk full": disk_full,
}  # fmt: skip
