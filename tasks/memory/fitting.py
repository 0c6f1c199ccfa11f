"""Whether a stage fits a device, and in what micro-batches it would."""

from __future__ import annotations

from tasks.memory.devices import Device
from tasks.stage import Stage, Terms


def largest_micro_batch(stage: Stage, terms: Terms, device: Device) -> int | None:
    """The most rows of a pass with which the stage fits; 0 if none does, None without a choice or an estimate."""
    if (widest := stage.widest_pass()) is None:
        return None
    for rows in range(widest, 0, -1):
        execution = terms.execution.model_copy(update={"micro_batch": rows})
        if stage.execution_problem(execution) is not None:
            continue
        memory = stage.memory(terms._replace(execution=execution))
        if memory is None:
            return None
        if device.fits(memory.total):
            return rows
    return 0
