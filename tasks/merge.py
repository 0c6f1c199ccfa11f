"""Merge: an adapter into its base, verified before it counts.

W' = W + (alpha / r) B A for each adapted module (rsLoRA and DoRA as tasks/settings.py has them), in float32, then
rounded to the base's dtype. Two comparisons on real prompts are reported, and either can refuse the result: the float32
merge against base plus adapter (an exact identity, so only rounding may differ), and the files as plain transformers
load them against base plus adapter (so a merge that loses the tuning in its rounding, or changes nothing, never passes
for one that keeps it).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from artifacts.errors import DataError, StageError
from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset
from tasks.context import Context
from tasks.shape import ModelShape
from tasks.stage import Stage


class Merge(Stage):
    """Makes a checkpoint that loads with `AutoModelForCausalLM.from_pretrained`."""

    seeded: ClassVar[bool] = False

    adapter: Adapter
    data: Dataset
    """Its held-out prompts are what the merge is verified on."""
    prompts: int = Field(16, ge=1)
    """How many of them."""
    tolerance: float = Field(1e-3, gt=0)
    """Largest difference in a logit between the float32 merge and base plus adapter."""
    max_kl_share: float = Field(0.05, gt=0)
    """Of the KL that the tuning moved the base, how much the saved merge may be away from it."""

    def output(self, key: str, path: Path) -> Artifact:
        return Checkpoint(key=key, path=path)

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.adapter)
        return (1 << 30) if shape is None else shape.parameters * shape.bytes_each

    def run(self, ctx: Context) -> dict[str, float]:
        import torch

        from tasks.training.models import base_tokenizer, load_checkpoint, load_model
        from tasks.training.rows import load_rows
        from tasks.training.trainable import save_whole

        rows = (load_rows(self.data, "test") or load_rows(self.data, "train"))[: self.prompts]
        if not rows:
            raise DataError("merge: the data has no rows to verify the merge on")
        pad = base_tokenizer(self.adapter).pad_token_id
        with torch.no_grad():
            model = load_model(self.adapter, ctx.device(), float32=True)
            tuned = logits_of(model, rows, pad, ctx)
            with model.disable_adapter():
                base = logits_of(model, rows, pad, ctx)
            merged = model.merge_and_unload()
            exact = logits_of(merged, rows, pad, ctx)
            save_whole(merged, self.adapter.base, ctx.out)
            del model, merged
            saved = logits_of(load_checkpoint(Checkpoint(key="", path=ctx.out), ctx.device()), rows, pad, ctx)
        metrics = {
            "merge/max_logit_difference": largest(tuned, exact),
            "merge/saved_max_logit_difference": largest(tuned, saved),
            "merge/kl_from_base": mean_kl(tuned, base),
            "merge/kl_to_saved": mean_kl(tuned, saved),
        }
        self._verify(metrics, ctx)
        self._write_card(metrics, ctx)
        return metrics

    def _verify(self, metrics: dict[str, float], ctx: Context) -> None:
        """Raise StageError unless the merge is exact and what was saved kept the tuning."""
        moved, lost = metrics["merge/kl_from_base"], metrics["merge/kl_to_saved"]
        ctx.say("  ".join(f"{name.removeprefix('merge/')} {value:.3g}" for name, value in metrics.items()))
        if (difference := metrics["merge/max_logit_difference"]) > self.tolerance:
            raise StageError(
                f"merge: merged logits differ by {difference:.3g} from base plus adapter, wanted at most "
                f"{self.tolerance:.3g}; the adapter may not belong to this base"
            )
        if moved <= 0:
            raise StageError("merge: the adapter changes nothing: its logits are the base's; was it trained?")
        if lost > self.max_kl_share * moved:
            raise StageError(
                f"merge: rounding to the base's dtype lost the tuning: KL {lost:.3g} of {moved:.3g} nats a token; "
                "take a base in float32"
            )

    def _write_card(self, metrics: dict[str, float], ctx: Context) -> None:
        from tasks.card import model_card

        (ctx.out / "README.md").write_text(model_card(self.adapter, metrics))
        (ctx.out / "merge.json").write_text(json.dumps({"adapter": self.adapter.key}, sort_keys=True))


def logits_of(model: Any, rows: list[dict[str, Any]], pad: int, ctx: Context) -> list[Any]:
    """The logits after each row's prompt tokens, one tensor (T, V) in float32 a row, without padding."""
    import torch

    found = []
    for done, row in enumerate(rows, start=1):
        ids = torch.tensor([row["prompt_ids"]], device=ctx.device())
        found.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
        ctx.progress(done, len(rows), "prompts compared")
    return found


def largest(first: list[Any], second: list[Any]) -> float:
    """The largest absolute difference between two lists of tensors."""
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def mean_kl(first: list[Any], second: list[Any]) -> float:
    """KL(first || second) a token in nats, over all positions; both are lists of logits (T, V)."""
    import torch

    total, count = 0.0, 0
    for a, b in zip(first, second, strict=True):
        p, q = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
        total += float((p.exp() * (p - q)).sum())
        count += len(a)
    return max(total / count, 0.0)
