"""Every error that alignflow raises on purpose.

    AlignError                 exit status 1
    ├── UserError              exit status 2: what was given is wrong; nothing was trained
    │   ├── RecipeError        the recipe or an override
    │   ├── DataError          a data file or one of its rows
    │   ├── ModelError         a base model, its tokenizer or its chat template
    │   └── HomeError          no room, or no right to write, under $ALIGN_HOME
    ├── InterruptedStage       exit status 130: a stage was asked to end, and ended
    ├── ServerError            a server of `align up` did not start
    ├── FingerprintError       a value without a stable form was to be hashed
    └── StageError             a stage failed; run the same command again to go on
        ├── OutOfMemoryError   it needed more memory than there is
        └── NumberError        a loss, a gradient or a weight became infinite or no number, or exactly 0 from the start

All carry one message, so that they survive pickling and the trip from a trainer's process.
"""

from __future__ import annotations


class AlignError(Exception):
    """The root; `exit_status` is what the command line ends with."""

    exit_status = 1


class UserError(AlignError):
    """What the user gave is wrong: says where, what was wanted, what was got, what to do."""

    exit_status = 2


class RecipeError(UserError):
    """The recipe, or an override of it; the message lists every problem at once."""


class DataError(UserError):
    """A data file, or a row of one (named by file, row number and field)."""


class ModelError(UserError):
    """A base model that can't be used as it is."""


class HomeError(UserError):
    """`$ALIGN_HOME` has no room or can't be written."""


class FingerprintError(AlignError):
    """A value that has no stable form can't be part of a key."""


class InterruptedStage(AlignError):  # noqa: N818  (nothing went wrong)
    """A stage ended because it was asked to; running it again goes on."""

    exit_status = 130


class ServerError(AlignError):
    """A server that we started does not answer, or ended: the message has its last words."""


class StageError(AlignError):
    """A stage failed while it ran."""


class OutOfMemoryError(StageError):
    """A stage needed more memory than there is: the message says how much it had, and what to try."""


NO_MEMORY = ("can't allocate memory", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in errors that have no class of their own: its CPU allocator, the driver, cuBLAS."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether a library says that there is no memory left, on the GPU or beside it; no error of ours does."""
    if isinstance(error, AlignError):
        return False
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in NO_MEMORY)


class NumberError(StageError):
    """Training computes no numbers, or nothing at all: the message names the step and the rows."""


_BY_NAME: dict[str, type[AlignError]] = {
    cls.__name__: cls
    for cls in (
        UserError,
        RecipeError,
        DataError,
        ModelError,
        HomeError,
        FingerprintError,
        StageError,
        OutOfMemoryError,
        NumberError,
        InterruptedStage,
    )
}


def revive(name: str, message: str) -> AlignError:
    """The error that a trainer's process reported by `name`, or a StageError for anything unforeseen."""
    return _BY_NAME.get(name, StageError)(message)
