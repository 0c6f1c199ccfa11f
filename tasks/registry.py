"""Every stage by the name that recipes use: one line each, and nothing else anywhere names a method."""

from __future__ import annotations

from importlib import import_module

from tasks.stage import Stage

STAGES: dict[str, str] = {
    "base": "tasks.base_model:BaseModelStage",
    "quantize": "tasks.quantize:Quantize",
    "data": "tasks.data:Data",
    "adopt": "tasks.adopt:Adopt",
    "sft": "tasks.sft:SFT",
    "reward": "tasks.reward:Reward",
    "ppo": "tasks.ppo:PPO",
    "dpo": "tasks.dpo:DPO",
    "kto": "tasks.kto:KTO",
    "simpo": "tasks.simpo:SimPO",
    "orpo": "tasks.orpo:ORPO",
    "rloo": "tasks.rloo:RLOO",
    "grpo": "tasks.grpo:GRPO",
    "best_of_n": "tasks.best_of_n:BestOfN",
    "merge": "tasks.merge:Merge",
    "evaluate": "tasks.evaluate:Evaluate",
    "judge": "tasks.judge:Judge",
}


def stage_class(uses: str) -> type[Stage]:
    """The class behind a name; raises KeyError for a name that is not registered."""
    module, name = STAGES[uses].split(":")
    cls = getattr(import_module(module), name)
    assert issubclass(cls, Stage)
    return cls
