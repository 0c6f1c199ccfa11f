"""Merge: an adapter into its base, file by file, and verified before it counts.

The files are written from the equations (tasks/training/merging.py) and run as they stand there, one module at a time;
base plus adapter runs as it was trained. On real prompts, KL is measured from the tuned model to the merged one, and
to the same weights without the adapter: a merge that is not much nearer than those has lost the tuning, and is refused.

An adapter that was trained on a base in 4 bits can go into the unquantised weights, or into the 4-bit ones multiplied
out. It learned beside the errors of the 4-bit weights, so `dequantised` is what was trained, in a model as large as the
unquantised one; `original` is off by those errors, and may yet be the better model. Evaluate both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from artifacts.errors import DataError, StageError
from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset, Model, Quantized, unquantized
from tasks.context import Context
from tasks.lora import whole_modules_problem
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Memory
from tasks.memory.reading import merge
from tasks.shape import ModelShape
from tasks.stage import Stage, Terms

if TYPE_CHECKING:
    from tasks.training.divergence import Divergence
    from tasks.training.weight_files import Weights

EXACT, ACROSS = 0.05, 0.5
"""How much of the tuning may be lost by default: to rounding, and to the step from 4 bits to unquantised weights."""
NOTHING = 1e-12
"""KL in nats a token that float32 makes of nothing."""


class Merge(Stage):
    """Makes a checkpoint that loads with `AutoModelForCausalLM.from_pretrained`."""

    version: ClassVar[int] = 4  # 3 had another card; 2 compared row by row; 1 had peft merge and write the config
    seeded: ClassVar[bool] = False

    adapter: Adapter
    data: Dataset
    """Its held-out prompts are what the merge is verified on."""
    prompts: int = Field(16, ge=1)
    """How many of them."""
    into: Literal["original", "dequantised"] = "original"
    """For an adapter on a base in 4 bits: the weights from before, or the 4-bit ones multiplied out."""
    tolerance: float = Field(1e-3, gt=0)
    """Largest difference in a logit between the merge and base plus adapter, for a base in float32."""
    max_kl_share: float | None = Field(None, gt=0)
    """How much of the KL from the tuned model to the one without the adapter may remain after the merge. By default
    0.05, and 0.5 into the unquantised weights of a base in 4 bits."""

    @model_validator(mode="after")
    def _from_four_bits(self) -> Self:
        if self.into != "original" and not isinstance(self.adapter.base, Quantized):
            raise ValueError("into: the adapter's base is not quantised; leave it out")
        return self

    def output(self, key: str, path: Path) -> Artifact:
        return Checkpoint(key=key, path=path, like=unquantized(self.adapter.base))

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.adapter)
        if shape is None:
            return 1 << 30
        untied = shape.vocabulary * shape.hidden if whole_modules_problem(self.adapter) else 0
        return (shape.parameters + untied) * shape.bytes_each

    def loaded(self) -> Model | None:
        return self.adapter

    def memory(self, terms: Terms) -> Memory | None:
        shape, target = ModelShape.of(self.adapter), unquantized(self.adapter.base)
        adapted = Adapted.start(shape, self.adapter, None, terms.adapters) if shape else None
        lengths, whole = Lengths.of(self.data, terms.bounds), ModelShape.of(target)
        if shape is None or adapted is None or lengths is None or whole is None:
            return None
        in_4_bits = shape.weight_bytes if shape.in_4_bits else 0
        reads = 2 if self.into == "dequantised" else 1
        return merge(whole, adapted, terms.kind, self.prompts * lengths.longest_prompt, in_4_bits, reads)

    def run(self, ctx: Context) -> dict[str, float]:
        from tasks.training.merging import Merged, write_merged
        from tasks.training.models import check_base
        from tasks.training.quantized import Dequantised
        from tasks.training.rows import load_rows
        from tasks.training.trainable import load_config
        from tasks.training.weight_files import WeightFiles

        rows = (load_rows(self.data, "test") or load_rows(self.data, "train"))[: self.prompts]
        if not rows:
            raise DataError("the data has no rows to verify the merge on")
        check_base(self.adapter)
        base, target = self.adapter.base, unquantized(self.adapter.base)
        weights: Weights = WeightFiles(target.path)
        if isinstance(base, Quantized) and self.into == "dequantised":
            weights = Dequantised(base)
        write_merged(target, Merged(weights, self.adapter), ctx.out)
        merged, untuned = self._compare(weights, target, rows, ctx)
        metrics = {
            "merge/max_logit_difference": merged.max_logit, "merge/saved_max_logit_difference": merged.max_logit,
            "merge/kl_from_base": untuned.kl, "merge/kl_to_saved": merged.kl, "merge/agreement": merged.agreement,
        }  # fmt: skip
        ctx.say("  ".join(f"{name.removeprefix('merge/')} {value:.3g}" for name, value in metrics.items()))
        if not isinstance(base, Quantized) and str(load_config(target).dtype) == "torch.float32":
            self._require_equal(merged)
        self._require_tuned(merged, untuned)
        self._write_card(metrics, ctx)
        return metrics

    def _compare(
        self, weights: Weights, target: Checkpoint, rows: list[dict[str, Any]], ctx: Context
    ) -> tuple[Divergence, Divergence]:
        """Of what was written, and of the same weights without the adapter, from base plus adapter as trained."""
        import torch

        from tasks.training.divergence import divergence, outputs
        from tasks.training.models import base_tokenizer
        from tasks.training.streaming import streamed
        from tasks.training.weight_files import WeightFiles

        pad, device = base_tokenizer(self.adapter).pad_token_id, ctx.device()
        with torch.no_grad():
            tuned = outputs(*self._as_trained(device), rows, pad, device)
            found = []
            for done, which in enumerate((WeightFiles(ctx.out), weights), start=1):
                there = outputs(*streamed(target, which, device), rows, pad, device)
                found.append(divergence(tuned, there))
                ctx.progress(done, 2, "comparisons")
        return found[0], found[1]

    def _as_trained(self, device: str) -> tuple[Any, Any]:
        """Trunk and head of base plus adapter; a base in 4 bits is in memory, another one is read as it runs."""
        from tasks.training.logps import trunk_of
        from tasks.training.models import load_model
        from tasks.training.streaming import streamed
        from tasks.training.weight_files import WeightFiles

        base = self.adapter.base
        if not isinstance(base, Quantized):
            return streamed(base, WeightFiles(base.path), device, self.adapter)
        model = load_model(self.adapter, device)
        return trunk_of(model), model.get_output_embeddings()

    def _require_equal(self, merged: Divergence) -> None:
        """Raise StageError unless the merge is base plus adapter up to float32's rounding."""
        if merged.max_logit > self.tolerance:
            raise StageError(
                f"merged logits differ by {merged.max_logit:.3g} from base plus adapter, wanted at most "
                f"{self.tolerance:.3g}; the adapter may not belong to this base"
            )

    def _require_tuned(self, merged: Divergence, untuned: Divergence) -> None:
        """Raise StageError unless what was written kept the tuning."""
        across = isinstance(self.adapter.base, Quantized) and self.into == "original"
        share = self.max_kl_share or (ACROSS if across else EXACT)
        if untuned.kl < NOTHING:
            raise StageError("the adapter changes nothing: its logits are the base's; was it trained?")
        if merged.kl > share * untuned.kl:
            cause, remedy = (
                ("the step to the unquantised weights", "set `into: dequantised`") if across
                else ("rounding to the base's dtype", "take a base in float32")
            )  # fmt: skip
            raise StageError(
                f"{cause} lost the tuning: KL {merged.kl:.3g} of {untuned.kl:.3g} nats a token, wanted at most "
                f"{share:.0%}; {remedy}"
            )

    def _write_card(self, metrics: dict[str, float], ctx: Context) -> None:
        from tasks.card import model_card

        (ctx.out / "README.md").write_text(model_card(self.adapter, metrics))
        (ctx.out / "merge.json").write_text(json.dumps({"adapter": self.adapter.key}, sort_keys=True))
