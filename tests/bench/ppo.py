"""`make bench-ppo`: our PPO and that of TRL 1.12.0 in turn, and what both took.

Each side is a process in its own virtual environment. They take turns, so that a busy machine is busy for both; the
ratio is that of medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.running.launch import KEEP_MEMORY

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
Result = dict[str, Any]


def main() -> None:
    """Measure and print."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    base = _base(args.precision)
    precision = args.trl_precision or args.precision
    sides = {
        "TRL 1.12.0": [args.trl, HERE / "ppo_trl.py", "--value", args.trl_value, "--precision", precision],
        "ours": [sys.executable, HERE / "ppo_align.py"],
    }
    layers = [] if args.top_layers is None else ["--top-layers", str(args.top_layers)]
    environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    found: dict[str, list[Result]] = {name: [] for name in sides}
    for turn in range(args.turns):
        for name, command in sides.items():
            out = args.out / f"{name.split()[0].lower()}-{turn}.json"
            words = [*command, "--base", base, "--out", out, "--rollouts", str(args.rollouts), *layers]
            subprocess.run([str(word) for word in words], check=True, env=environment)
            found[name].append(json.loads(out.read_text()))
            sys.stdout.write(_line(name, found[name][-1]) + "\n")
            sys.stdout.flush()
    sys.stdout.write(table(found) + "\n")


def table(found: Mapping[str, list[Result]]) -> str:
    """Medians of each side, and ours over theirs."""
    theirs, ours = (
        {name: _median(results, name) for name in ("episodes_per_second", "peak_rss_bytes")}
        for results in found.values()
    )
    lines = [_line(f"{name}, median", _middle(results)) for name, results in found.items()]
    lines.append(
        f"ours / TRL: {ours['episodes_per_second'] / theirs['episodes_per_second']:.2f} times the episodes a second, "
        f"{ours['peak_rss_bytes'] / theirs['peak_rss_bytes']:.2f} of the peak memory"
    )
    return "\n".join(lines)


def _median(results: list[Result], name: str) -> float:
    return statistics.median(result[name] for result in results)


def _middle(results: list[Result]) -> Result:
    return sorted(results, key=lambda result: result["episodes_per_second"])[len(results) // 2]


def _line(name: str, result: Result) -> str:
    shares = "  ".join(f"{phase} {share:.0%}" for phase, share in result["phase_shares"].items())
    speed = f"{result['episodes_per_second']:.3f} episodes/s  {result['completion_tokens_per_second']:.0f} tokens/s"
    peak = f"peak {result['peak_rss_bytes'] / 2**30:.2f} GiB  (load {result['load_average']:.1f})"
    return f"{name:20} {speed}  {shares}  {peak}"


def _base(dtype: str) -> Path:
    """SmolLM2-135M as the quickstart's base stage makes it, or made it."""
    recipe = ["pipelines/quickstart.yaml", f"base.dtype={dtype}"]
    command = [sys.executable, "-m", "flows.cli", "run", *recipe, "--until", "base", "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout)["stages"][0]["path"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", type=Path, default=ROOT / ".venv-trl/bin/python", help="Python with trl 1.12.0")
    parser.add_argument(
        "--trl-value", default="full", choices=("full", "lora"), help="what TRL trains of the value model"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=2, help="measured in each turn, after one to warm up")
    parser.add_argument("--top-layers", type=int, help="adapters on the last k layers only, on both sides")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of the base")
    parser.add_argument("--trl-precision", choices=("float32", "autocast", "bfloat16"), help="of TRL's, if another")
    parser.add_argument("--out", type=Path, default=ROOT / "build/bench-ppo")
    return parser.parse_args()


if __name__ == "__main__":
    main()
