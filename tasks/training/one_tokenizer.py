"""Ids are handed on as they are, so all that a stage brings together must have been made with one tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from artifacts.errors import ModelError
from artifacts.kinds import Artifact, Checkpoint, unquantized
from tasks.training.models import load_tokenizer

if TYPE_CHECKING:
    from tasks.stage import Stage


def require_one_tokenizer(stage: Stage) -> None:
    """Raise ModelError unless models, rows and reward models of a stage have one vocabulary.

    What comes from one base needs no look at it.
    """
    speaking = {name: base for name, artifact in stage.bound().items() if (base := _base(artifact)) is not None}
    if len({base.key for base in speaking.values()}) < 2:
        return
    (first, base), *others = speaking.items()
    vocabulary = load_tokenizer(base).get_vocab()
    for name, other in others:
        if other.key != base.key and load_tokenizer(other).get_vocab() != vocabulary:
            raise ModelError(f"{name}: its base has another tokenizer than {first} has; make both with the same one")


def _base(artifact: Artifact) -> Checkpoint | None:
    """The checkpoint whose tokenizer an artifact was made with; None for what holds no ids, or text beside them."""
    found = artifact if isinstance(artifact, Checkpoint) else getattr(artifact, "base", None)
    return None if found is None else unquantized(found)
