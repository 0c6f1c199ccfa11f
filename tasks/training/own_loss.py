"""A trainer for losses of ours: the mean over the rows of an optimizer step, and the means of figures beside it.

transformers' Trainer steps, schedules, saves and resumes; what is ours is what it minimises. A step's loss does not
depend on the micro-batch, also in an epoch's short last batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import Trainer

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, Any]
Noted = Mapping[str, list[float]]
"""The sum of a figure's values, and how many they are, by name."""


class OwnLoss(Trainer, ABC):
    """Subclasses say what a batch's losses are; figures are averaged over the rows since the last point."""

    loss_is_scaled_for_ga = True  # `compute_loss` divides by the rows of the whole step

    @abstractmethod
    def losses(self, model: Any, batch: Batch) -> Tensor:
        """The loss of each row (or pair), (B,); notes figures with `note`."""

    @abstractmethod
    def rows_in(self, batch: Batch) -> int:
        """Rows (or pairs) in a batch."""

    def note(self, figures: Mapping[str, Tensor]) -> None:
        """Values of figures, one for each row that has one; their mean goes into the next point."""
        for name, values in figures.items():
            total = self._noted[self._trains()][name]
            total[0] += float(values.detach().double().sum())
            total[1] += values.numel()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._noted: dict[bool, dict[str, list[float]]] = {
            training: defaultdict(lambda: [0.0, 0]) for training in (True, False)
        }
        super().__init__(*args, **kwargs)

    def totals(self, noted: Noted) -> Noted:
        """Sums and counts of figures as the next point has them."""
        return noted

    def own_rows(self, batches: list[Batch]) -> list[Batch]:
        """Those of a step's batches in which rows count."""
        return batches

    def mean_of(self, values: list[Tensor]) -> Tensor:
        """The mean over all rows, (N_i,) each, as a scalar."""
        import torch

        return torch.cat(values).mean()

    def _trains(self) -> bool:
        assert self.model is not None
        return bool(self.model.training)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        losses = self.losses(model, inputs)
        return losses.sum() / (num_items_in_batch or len(losses))

    def prediction_step(self, model: Any, inputs: Batch, *args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        noted = self._noted[self._trains()]
        means = {name: total / count for name, (total, count) in self.totals(noted).items() if count}
        if {"rewards/chosen", "rewards/rejected"} <= means.keys():
            means["rewards/margins"] = means["rewards/chosen"] - means["rewards/rejected"]
        prefix = "" if self._trains() else "eval_"
        logs |= {prefix + name: value for name, value in means.items()}
        noted.clear()
        super().log(logs, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[Batch], device: Any) -> Any:
        return sum(self.rows_in(batch) for batch in batch_samples)
