"""Which faults, in which order, on which stages: all of it follows from the seed."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

TRAINED = ("sft", "reward", "dpo", "ppo", "rloo", "grpo")
OTHERS = ("base", "pairs", "merge", "eval_dpo")
ON_A_STAGE = {
    "killed": 3, "killed between files": 5, "killed amid a file": 3, "checkpoint torn": 2, "checkpoint flipped": 2,
    "disk full": 2, "asked to end": 1,
}  # fmt: skip
"""Faults of one stage, `python -m tasks job.json`, and how often each strikes in a row, in the same work."""
ON_A_RUN = (
    "run: trainer killed", "run: flow killed", "run: both killed", "run: MLflow stopped", "run: two at once",
    "run: Prefect stopped",
)  # fmt: skip
"""Faults of `align run` with its flow."""
RUNS_IN_A_ROUND = 2
SAMPLE = (
    "killed between files", "killed amid a file", "checkpoint flipped", "disk full", "run: trainer killed",
    "run: Prefect stopped",
)  # fmt: skip
LONG = ("sft", "reward", "dpo", "ppo")
"""Stages that train long enough in a whole run for a fault to meet them."""


@dataclass(frozen=True)
class Trial:
    """One piece of work that is struck `times` times in a row and then left to end."""

    number: int
    fault: str
    stage: str
    times: int
    nth: int
    """For kills at files: how many of them there were before, so that a full run walks through a whole save."""
    seed: int
    """Of whatever else is drawn in it."""


def rounds(seed: int) -> Iterator[list[Trial]]:
    """Rounds without end; each has every fault of a stage once, and some of the faults of a run."""
    draw = random.Random(seed)
    trained, others, long = (_turns(draw, names) for names in (TRAINED, OTHERS, LONG))
    runs = _turns(draw, ON_A_RUN)
    walked: Counter[tuple[str, bool]] = Counter()
    number = itertools.count()
    while True:
        found = []
        for fault, times in ON_A_STAGE.items():
            stage = next(others) if fault == "killed" and draw.random() < 0.4 else next(trained)
            way = fault, stage == "ppo"  # PPO saves one file, the trainers many
            found.append(Trial(next(number), fault, stage, times, walked[way], draw.getrandbits(32)))
            walked[way] += times
        for _ in range(RUNS_IN_A_ROUND):
            found.append(Trial(next(number), next(runs), next(long), 1, 0, draw.getrandbits(32)))
        yield found


def sample(seed: int, stage: str) -> list[Trial]:
    """Three minutes' worth, once each: the faults that no other test has in this form."""
    draw = random.Random(seed)
    return [Trial(n, fault, stage, 1, draw.randrange(60), draw.getrandbits(32)) for n, fault in enumerate(SAMPLE)]


def _turns(draw: random.Random, names: tuple[str, ...]) -> Iterator[str]:
    """Each once, in an order of chance, again and again."""
    while True:
        yield from draw.sample(names, len(names))
