"""What a transformers Trainer does differently as one of several processes.

Each goes through its own share of a step's rows. A loss of its rows counts by their part of the step's, so that the
sum over processes is the loss of one process that took all rows at once, and so do figures; nothing is averaged over
processes as if all had as much. Held-out rows are measured by every process, each all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.parallel.consolidating import shard_on_cpu
from tasks.parallel.processes import Processes
from tasks.parallel.shares import Share

if TYPE_CHECKING:
    from torch import Tensor

    Behind: Any
else:
    Behind = object  # the trainer, before which each class here is mixed in: what `super()` finds

Counts = Mapping[str, Sequence[int]]
"""For figures that are means over tokens, by name: how many of them each row has."""
SFT_TERM = "sft"


class Shared(Behind):
    """Mixed into a trainer before it; `share`, `processes` and `counts` are set on the class."""

    share: Share
    processes: Processes
    counts: Counts
    _passes: int
    """Passes of this step that are done."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._passes = 0
        # Each speaks of its own rows; they are brought together by what they weigh, once a step.
        self.accelerator.gather = self.accelerator.gather_for_metrics = _as_it_is

    def create_accelerator_and_postprocess(self: Any) -> None:
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.processes.sharding and state.distributed_type.name == "MULTI_CPU":
            shard_on_cpu(state)
            self.is_fsdp_enabled = True

    def get_train_dataloader(self: Any) -> Any:
        from torch.utils.data import DataLoader

        rows = self._remove_unused_columns(self.train_dataset, description="training")
        return DataLoader(
            rows, batch_sampler=self.share, collate_fn=self.data_collator, pin_memory=self.args.dataloader_pin_memory
        )

    def get_eval_dataloader(self: Any, eval_dataset: Any = None) -> Any:
        from torch.utils.data import DataLoader

        given = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = self._remove_unused_columns(given, description="evaluation")
        return DataLoader(
            rows, batch_size=self.args.eval_batch_size, collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )  # fmt: skip

    def measure_first(self: Any) -> None:
        """Once training has wrapped the model: accelerate never would one that it has evaluated before."""
        self.args.eval_on_start = True

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._passes = 0
        return super().get_batch_samples(*args, **kwargs)

    def has_rows(self: Any) -> bool:
        """Whether this process has rows of its own in this pass."""
        return bool(self.share.own(self.state.global_step)[self._passes])

    def counted(self: Any, name: str) -> list[float]:
        """What each pass of this step counts in the mean of a figure."""
        return self.share.weights(self.state.global_step, self.counts.get(name))


class SharedMeans(Shared):
    """For TRL's trainers: of each pass they give means over its own rows, or tokens, and note figures as such."""

    def _get_num_items_in_batch(self: Any, batch_samples: list[Any], device: Any) -> Any:
        """The labelled tokens of all processes, for the loss that is a mean over these."""
        import torch

        found = super()._get_num_items_in_batch(batch_samples, device)
        if found is None:
            return None
        rows = self.share.rows(self.state.global_step)
        return torch.tensor(sum(self.counts["loss"][row] for row in rows), device=device)

    def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, num_items_in_batch: Any = None, **kw: Any) -> Any:
        if not self.model.training:
            return super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kw)
        number = self._passes
        given = getattr(self, "loss_weights", None)
        if given is not None and self.has_rows():
            self.loss_weights = self._weighed_terms(given, number)
        loss = super().compute_loss(model, inputs, *args, num_items_in_batch=num_items_in_batch, **kw)
        if given is not None:
            self.loss_weights = given
        if num_items_in_batch is None:
            passes = self.current_gradient_accumulation_steps  # which the trainer divides by; DDP divides by processes
            loss = loss * (self.counted("rows")[number] * passes * self.processes.count)
        elif not self.has_rows():
            loss = loss * 0.0
        self._passes += 1
        if self._passes == len(self.share.own(self.state.global_step)):
            self._bring_together()
        return loss

    def _weighed_terms(self: Any, given: list[float], number: int) -> list[float]:
        """Beside means over rows TRL's DPO may have one over tokens, which must count by these."""
        tokens, rows = self.counted(SFT_TERM)[number], self.counted("rows")[number]
        more = (tokens / rows if name == SFT_TERM else 1.0 for name in self.loss_types)
        return [weight * factor for weight, factor in zip(given, more, strict=True)]

    def _bring_together(self: Any) -> None:
        """For this step's passes, each with its own mean: one value, over all rows of all processes."""
        noted, passes = self._metrics["train"], self._passes
        names = sorted(noted)
        own = [
            sum(weight * value for weight, value in zip(self.counted(name), noted[name][-passes:], strict=False))
            for name in names
        ]
        for name, value in zip(names, self.processes.sums(own), strict=True):
            noted[name][-passes:] = [value]


class SharedSums(Shared):
    """For our own losses, which are sums over rows divided by the rows of the whole step."""

    silent = False

    def losses(self: Any, model: Any, batch: Any) -> Tensor:
        """In training through the wrapper, and without a weight or a note where no row is left."""
        if not self.model.training:
            return super().losses(model, batch)
        self.silent = not self.has_rows()
        found = self.processes.wrapped(model, lambda inner: super(SharedSums, self).losses(inner, batch))
        factor = 0.0 if self.silent else float(self.processes.count)  # DDP divides by the processes
        self._passes += 1
        self.silent = False
        return found * factor

    def _get_num_items_in_batch(self: Any, batch_samples: list[Any], device: Any) -> Any:
        return len(self.share.rows(self.state.global_step))

    def note(self: Any, figures: Mapping[str, Tensor]) -> None:
        if not self.silent:
            super().note(figures)

    def totals(self: Any, noted: Mapping[str, list[float]]) -> Mapping[str, list[float]]:
        """In training over all processes; held-out rows are everybody's already."""
        if not self.model.training:
            return noted
        everybodys = self.processes.gathered(dict(noted))
        found: dict[str, list[float]] = {}
        for name, (total, count) in (item for one in everybodys for item in one.items()):
            before = found.get(name, [0.0, 0.0])
            found[name] = [before[0] + total, before[1] + count]
        return found

    def own_rows(self: Any, batches: list[Any]) -> list[Any]:
        """Those of a step's batches that hold rows of this process."""
        if not self.model.training:
            return batches
        own = self.share.own(self.state.global_step)
        return [batch for batch, rows in zip(batches, own, strict=True) if rows]

    def mean_of(self: Any, values: list[Tensor]) -> Tensor:
        """In training over the rows of all processes; held-out rows are everybody's already."""
        import torch

        own = torch.cat(values) if values else torch.zeros(0, device=self.args.device)
        return self.processes.mean(own) if self.model.training else own.mean()


def _as_it_is(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value
