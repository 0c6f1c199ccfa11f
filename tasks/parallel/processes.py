"""What the processes of one stage tell each other. A stage by itself asks the same of `Processes`, which knows only it.

So whoever trains says what he wants (a sum over all, what the first one decides) and never how many there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.parallel.settings import SHARDED, Mode

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class LeaveToTheFirst(BaseException):
    """All that was to be done together is done: this process ends well, and the first one goes on alone."""


class Processes:
    """This process alone."""

    rank = 0
    count = 1
    sharding = ""
    """How the weights are divided, for a checkpoint that holds them so; empty where each process has all of them."""

    @property
    def first(self) -> bool:
        """Whether this is the one that logs, saves and writes the output."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether it is so for any of them."""
        return flag

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each number summed over all processes, in float64."""
        return list(values)

    def maxima(self, values: Sequence[float]) -> list[float]:
        """The largest of each number over all processes."""
        return list(values)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all values (N,) of all processes, of which some may have none: a scalar."""
        return values.mean()

    def merge(self, tensors: Iterable[Tensor]) -> None:
        """Each tensor summed over all processes, in place."""

    def gathered(self, value: T) -> list[T]:
        """Everybody's value, by rank."""
        return [value]

    def decided(self, decide: Callable[[], T]) -> T:
        """What the first one decides; only there is `decide` called."""
        return decide()

    def done_by_the_first(self, act: Callable[[], Any]) -> None:
        """`act` in the first process, once all have come here; all go on when it is done."""
        act()

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """Each parameter's gradient becomes the sum of everybody's; one that nobody has stays None."""

    def leave_to_the_first(self) -> None:
        """Ends every process but the first, which works alone from here on."""

    def wrapped(self, model: Any, compute: Callable[[Any], T]) -> T:
        """`compute(the bare model)` as the forward pass of a model that may be wrapped."""
        return compute(model)


ALONE = Processes()


class Several(Processes):
    """One of several that `accelerate launch` has started; talks over gloo, whatever the tensors of training use."""

    def __init__(self, mode: Mode, *, cpu: bool) -> None:
        from accelerate import PartialState
        from torch import distributed

        PartialState(cpu=cpu)
        if mode == "deepspeed":  # which accelerate would pass over where it reads of a CPU; the device is decided now
            os.environ["ACCELERATE_USE_CPU"] = "false"
        self.rank, self.count = distributed.get_rank(), distributed.get_world_size()
        self.sharding = f"divided by {mode} among {self.count} processes" if mode in SHARDED else ""
        self._words = distributed.new_group(backend="gloo")

    def any(self, flag: bool) -> bool:
        return self.maxima([float(flag)])[0] > 0

    def sums(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, "SUM")

    def maxima(self, values: Sequence[float]) -> list[float]:
        return self._reduced(values, "MAX")

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        import torch
        from torch import distributed

        together = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(together, getattr(distributed.ReduceOp, how), group=self._words)
        found: list[float] = together.tolist()
        return found

    def mean(self, values: Tensor) -> Tensor:
        total, count = self.sums([float(values.double().sum()), float(values.numel())])
        return values.new_tensor(total / count)

    def merge(self, tensors: Iterable[Tensor]) -> None:
        from torch import distributed

        for tensor in tensors:
            distributed.all_reduce(tensor)

    def gathered(self, value: T) -> list[T]:
        from torch import distributed

        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value, group=self._words)
        return found

    def decided(self, decide: Callable[[], T]) -> T:
        from torch import distributed

        word: list[Any] = [decide() if self.first else None]
        distributed.broadcast_object_list(word, src=0, group=self._words)
        found: T = word[0]
        return found

    def done_by_the_first(self, act: Callable[[], Any]) -> None:
        self.gathered(None)
        self.decided(lambda: (act(), None)[1])

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        """In one flat tensor of a fixed layout, so that the order of a sum never hangs on what came before."""
        import torch

        every = list(parameters)
        given = self.sums([float(parameter.grad is not None) for parameter in every])
        trained = [parameter for parameter, times in zip(every, given, strict=True) if times]
        if not trained:
            return
        flat = torch.cat([_gradient(parameter).reshape(-1) for parameter in trained])
        self.merge([flat])
        pieces = flat.split([parameter.numel() for parameter in trained])
        for parameter, piece in zip(trained, pieces, strict=True):
            parameter.grad = piece.view_as(parameter).clone()

    def leave_to_the_first(self) -> None:
        self.gathered(None)
        if not self.first:
            raise LeaveToTheFirst

    def wrapped(self, model: Any, compute: Callable[[Any], T]) -> T:
        """The wrapper's own forward pass is what readies its reduction of gradients, so it must be gone through."""
        inner = getattr(model, "module", None)
        if inner is None:
            return compute(model)

        def forward() -> T:
            del inner.forward  # from here on the model's own again
            return compute(inner)

        inner.forward = forward
        found: T = model()
        return found


def _gradient(parameter: Any) -> Tensor:
    import torch

    found: Tensor = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return found
