"""Direct preference optimisation: learn from pairs, with no reward model and no sampling.

Rafailov et al. 2023 (arXiv:2305.18290), equation 7. With pi the policy, pi_ref its frozen start, and for a completion y
of prompt x the implicit reward r(y) = beta (log pi(y|x) - log pi_ref(y|x)), log-probabilities summed over y's tokens:

    L = - log sigmoid(r(chosen) - r(rejected))

At the first step policy and reference agree, so both rewards are 0 and the loss is exactly ln 2. The gradient pushes
chosen up and rejected down, weighted by how wrongly the pair is ranked now; `beta` says how much a unit of log-ratio
is worth, and so how far the policy may go: small beta, far. Since only the difference counts, both completions may
become less likely; `sft_weight` holds the chosen one up with w times its mean negative log-likelihood a token (the
RPO loss, Pang et al. 2024, arXiv:2404.19733, equation 2).

TRL's DPOTrainer computes it, with `loss_type` "sigmoid" and, with a weight, "sft".
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset, Model, Preferences
from tasks.context import Context, Execution
from tasks.settings import LoRA, Training


class DPO(Training):
    """The policy starts as a copy of `policy`, and the reference is that copy frozen, on one base in memory."""

    policy: Model
    data: Preferences
    beta: float = Field(0.1, gt=0)
    """Worth of a unit of log-ratio; the smaller, the further from the reference."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen completions' mean negative log-likelihood, added to the loss."""
    learning_rate: float = Field(5e-6, gt=0)
    """The highest, reached after the warm-up."""
    lora: LoRA | None = None
    """For a `policy` that is a complete checkpoint: train a fresh adapter instead of all weights."""
    eval_rows: int = Field(64, ge=0)
    """Held-out pairs on which rewards are measured at the end; 0 for none."""

    @model_validator(mode="after")
    def _one_adapter(self) -> Self:
        if self.lora is not None and isinstance(self.policy, Adapter):
            raise ValueError("lora must be left out: `policy` is an adapter already, and goes on training as it is")
        return self

    def output(self, key: str, path: Path) -> Artifact:
        if isinstance(self.policy, Adapter):
            return Adapter(key=key, path=path, base=self.policy.base)
        assert isinstance(self.policy, Checkpoint)
        return Checkpoint(key=key, path=path) if self.lora is None else Adapter(key=key, path=path, base=self.policy)

    def dataset(self) -> Dataset:
        return self.data

    def start(self) -> Model:
        return self.policy

    def lora_settings(self) -> LoRA | None:
        return self.lora

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """None, even with dropout: TRL switches it off, since it would blur the log-ratios."""
        return None

    def run(self, ctx: Context) -> dict[str, float]:
        from datasets import Dataset as Rows
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

        from tasks.training.logps import trunk_of
        from tasks.training.models import load_model
        from tasks.training.rows import load_rows, pair_ids, pair_length
        from tasks.training.shared_prompt import share_prompts
        from tasks.training.trainable import save_trained, trainable
        from tasks.training.trainer import arguments, fit, ids_only

        rows, tests = load_rows(self.data, "train"), load_rows(self.data, "test")[: self.eval_rows]
        lengths = [pair_length(row) for row in rows]
        model, tokenizer = trainable(self.policy, self.lora, ctx)
        weights = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, self.sft_weight]} if self.sft_weight else {}
        whole = not hasattr(model, "peft_config")
        reference = load_model(self.policy, ctx.device(), float32=True) if whole else None
        for one in filter(None, (model, reference)):
            share_prompts(trunk_of(one))
        trainer = ids_only(DPOTrainer, lengths, ctx.seed)(
            model=model,
            ref_model=reference,
            args=arguments(DPOConfig, self, ctx, len(rows), len(tests), beta=self.beta, **weights),
            train_dataset=Rows.from_list([pair_ids(row) for row in rows]),
            eval_dataset=Rows.from_list([pair_ids(row) for row in tests]) if tests else None,
            processing_class=tokenizer,
        )
        metrics = fit(trainer, self, ctx, lengths)
        save_trained(model, self.policy, ctx.out)
        return metrics
