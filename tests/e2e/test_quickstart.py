"""The quickstart's promise, on real weights: minutes, memory, and a gain that is there. Run by `make proofs`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.e2e]

MINUTES, GIB = 25, 6


def tree_bytes(root: int) -> int:
    """Resident memory of a process and all its descendants, in bytes."""
    parents: dict[int, int] = {}
    pages: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if (entry := path.name).isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry)], pages[int(entry)] = int(fields[1]), int(fields[21])
    found, todo = 0, [root]
    while todo:
        current = todo.pop()
        found += pages.get(current, 0)
        todo += [child for child, parent in parents.items() if parent == current]
    return found * os.sysconf("SC_PAGE_SIZE")


def test_the_quickstart_gains_at_every_step_within_minutes_and_memory(shop):
    process = shop.start("run", "pipelines/quickstart.yaml", "--json", "--quiet")
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            peak[0] = max(peak[0], tree_bytes(process.pid))

    threading.Thread(target=watch, daemon=True).start()
    started = time.monotonic()
    _, err = process.communicate(timeout=MINUTES * 60 * 2)
    minutes = (time.monotonic() - started) / 60
    done.set()
    assert process.returncode == 0, err
    compared = shop.align("compare", "last", "--json").json
    rates = {policy["name"]: policy["metrics"]["eval/check_rate"] for policy in compared["policies"]}
    print(  # noqa: T201
        f"{minutes:.1f} minutes, {peak[0] / 2**30:.2f} GiB, {rates}, {compared['differences']}"
    )
    assert rates["base"] < rates["sft"] < min(rates["dpo"], rates["ppo"])
    said = dict(line.split(": ") for line in compared["differences"])
    assert said["dpo - sft"].endswith("ahead") and said["ppo - sft"].endswith("ahead")
    assert all("eval/kl_to_reference" in policy["metrics"] for policy in compared["policies"][1:])
    assert compared["policies"][-1]["metrics"]["eval/prompts"] >= 200
    assert peak[0] < GIB * 2**30
    assert minutes < MINUTES
