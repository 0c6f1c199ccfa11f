"""Direct preference optimisation: learn from pairs, with no reward model and no sampling.

Rafailov et al. 2023 (arXiv:2305.18290), equation 7. With pi the policy, pi_ref its frozen start, and for a completion y
of prompt x the implicit reward r(y) = beta (log pi(y|x) - log pi_ref(y|x)), log-probabilities summed over y's tokens:

    L = - log sigmoid(r(chosen) - r(rejected))

At the first step policy and reference agree, so both rewards are 0 and the loss is exactly ln 2. The gradient pushes
chosen up and rejected down, weighted by how wrongly the pair is ranked now; `beta` says how much a unit of log-ratio
is worth, and so how far the policy may go: small beta, far. Since only the difference counts, both completions may
become less likely; `sft_weight` holds the chosen one up with w times its mean negative log-likelihood a token (the
RPO loss, Pang et al. 2024, arXiv:2404.19733, equation 2).

TRL's DPOTrainer computes it, as `loss_type` and, with a weight, "sft". (Its `bco_pair` is left out: it keeps a running
mean that no checkpoint holds.)
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tasks.context import Context, Execution
from tasks.memory import rows as row_memory
from tasks.memory.parts import Memory
from tasks.memory.rows import Case
from tasks.parallel.settings import SHARDED, WHOLE, Modes
from tasks.settings import Training
from tasks.tuning import Paired

LossType = Literal[
    "sigmoid", "sigmoid_norm", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop",
]  # fmt: skip
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
ACROSS_PAIRS = ("aot", "aot_unpaired")
"""These sort the log-ratios of all pairs in a pass, so that its size changes the result."""


class DPO(Paired):
    """The policy starts as a copy of `policy`, and the reference is that start, frozen.

    Adapters of both are on one base in memory. Where all weights are trained, the reference is a second model.
    """

    modes: ClassVar[Modes] = (*WHOLE, *SHARDED)
    shown: ClassVar[tuple[str, ...]] = ("beta", "loss_type", "sft_weight", *Training.shown)

    beta: float = Field(0.1, gt=0)
    """Reward = beta times log-ratio: the smaller, the further the policy may move from the reference."""
    loss_type: LossType = "sigmoid"
    """`sigmoid` is equation 7; `sigmoid_norm` has log-ratios a token; what others put in its place, under TRL's names:
    `ipo` (arXiv:2310.12036), `hinge` (SLiC, 2305.10425), `robust` (2403.00409), `exo_pair` (2402.00856), `nca_pair`
    (2402.05369), `sppo_hard` (2405.00675), `aot` (2406.05882), `apo_zero` and `apo_down` (2408.06266), `discopop`
    (2406.08414)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """The share of pairs whose label is thought to be wrong, for `robust`, `exo_pair` and `aot`."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen completions' mean negative log-likelihood, added to the loss."""
    learning_rate: float = Field(5e-6, gt=0)
    """The highest, reached after the warm-up."""

    @model_validator(mode="after")
    def _smoothed_where_it_is_read(self) -> Self:
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise ValueError(f"label_smoothing is for loss_type {', '.join(SMOOTHED)} only, got {self.loss_type}")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair wants a label_smoothing above 0, such as 0.001")
        return self

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """For losses that sort or compare the pairs of a whole pass."""
        return self.micro_batch(execution) if self.loss_type in ACROSS_PAIRS else None

    def memory_of(self, case: Case) -> Memory:
        return row_memory.dpo(case)

    def run(self, ctx: Context) -> dict[str, float]:
        from datasets import Dataset as Rows
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]

        from tasks.parallel.sharing import SFT_TERM
        from tasks.training.logps import trunk_of
        from tasks.training.models import load_model
        from tasks.training.rows import load_rows, pair_ids, pair_length
        from tasks.training.shared_prompt import share_prompts
        from tasks.training.trainable import save_trained, trainable
        from tasks.training.trainer import arguments, fit, ids_only

        rows, tests = load_rows(self.data, "train"), load_rows(self.data, "test")[: self.eval_rows]
        lengths = [pair_length(row) for row in rows]
        model, tokenizer = trainable(self.policy, self.lora, ctx)
        losses: dict[str, Any] = {"loss_type": [self.loss_type], "label_smoothing": self.label_smoothing}
        if self.sft_weight:
            losses |= {"loss_type": [self.loss_type, SFT_TERM], "loss_weights": [1.0, self.sft_weight]}
        whole = not hasattr(model, "peft_config")
        reference = load_model(self.policy, ctx.device(), float32=True) if whole else None
        for one in filter(None, (model, reference)):
            share_prompts(trunk_of(one))  # both completions of a pair have one prompt: it is computed once
        # How many tokens each row has in TRL's figures that are means over tokens: so much a row counts there when the
        # means of several passes become one.
        chosen, rejected = ([len(row[f"{side}_ids"]) for row in rows] for side in ("chosen", "rejected"))
        both = [a + b for a, b in zip(chosen, rejected, strict=True)]
        counts = {"mean_token_accuracy": chosen, "entropy": both} | ({SFT_TERM: chosen} if self.sft_weight else {})
        # TRL's trainer, but it takes our token ids as they are and goes through them in our order.
        trainer = ids_only(DPOTrainer, lengths, self, ctx, counts)(
            model=model,
            ref_model=reference,
            args=arguments(DPOConfig, self, ctx, len(rows), len(tests), beta=self.beta, **losses),
            train_dataset=Rows.from_list([pair_ids(row) for row in rows]),
            eval_dataset=Rows.from_list([pair_ids(row) for row in tests]) if tests else None,
            processing_class=tokenizer,
        )
        metrics = fit(trainer, self, ctx, lengths)
        save_trained(model, self.policy, ctx)
        return metrics
