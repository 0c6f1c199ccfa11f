"""What a stage takes and makes: handles that say where an output is, and load nothing.

    Artifact
    ├── Model                 something that generates text
    │   ├── Checkpoint        complete weights with their tokenizer: a base, a full fine-tune, a merge
    │   │   └── Quantized     a checkpoint in 4 bits; knows the one it was made from
    │   └── Adapter           LoRA weights alone, relative to one base
    ├── RewardModel           adapter (or complete trunk), head and offset
    ├── Demonstrations        prompts with completions, rendered and tokenised
    ├── Preferences           prompts with a chosen and a rejected completion
    ├── Feedback              completions that were liked or not
    ├── Report                an evaluation of one policy
    └── Verdicts              what a judge says of two reports

A handle knows its key and its folder before the stage has run, because both follow from the plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Artifact(BaseModel):
    """A stage's output: the key it is stored under and the folder with its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str] = "artifact"
    made_by: ClassVar[str] = ""
    """For whoever lacks one: what in a recipe makes it."""
    key: str
    path: Path

    def digest(self) -> str:
        """The digest of the output's bytes, from the manifest beside it."""
        return str(json.loads((self.path.parent / "manifest.json").read_text())["digest"])


class Model(Artifact):
    """Something that generates text."""

    kind: ClassVar[str] = "model"


class Checkpoint(Model):
    """Complete weights in safetensors, with tokenizer and chat template; loads with plain transformers."""

    kind: ClassVar[str] = "checkpoint"
    like: Checkpoint | None = Field(None, exclude=True, repr=False)
    """Another one of its shape, for a plan to look at before this one is there. No part of a job."""
    bytes_each: int | None = Field(None, exclude=True, repr=False)
    """Of a weight, where that is not as in `like`. No part of a job either."""


class Quantized(Checkpoint):
    """A checkpoint whose linear layers are in 4 bits: adapters train on it, its own weights don't."""

    kind: ClassVar[str] = "quantized"
    original: Checkpoint


class Adapter(Model):
    """LoRA weights alone; `base` is the checkpoint they were trained on. Adapters never stack."""

    kind: ClassVar[str] = "adapter"
    base: Checkpoint


class RewardModel(Artifact):
    """Scores a completion. `base` is the checkpoint whose tokenizer it reads."""

    kind: ClassVar[str] = "reward_model"
    base: Checkpoint


class Dataset(Artifact):
    """Rows in one normalised form, rendered with the template of `base` and tokenised."""

    kind: ClassVar[str] = "dataset"
    base: Checkpoint

    def train_rows(self) -> int | None:
        """Training rows, from the report of the stage that made it; None before it has run, or if that is damaged."""
        return self._rows("train")

    def test_rows(self) -> int | None:
        """Held-out rows, likewise."""
        return self._rows("test")

    def _rows(self, split: str) -> int | None:
        try:
            return int(json.loads((self.path / "report.json").read_text())[split]["rows"])
        except (OSError, ValueError, KeyError):
            return None


class Demonstrations(Dataset):
    """Rows of prompt and completion."""

    kind: ClassVar[str] = "demonstrations"
    made_by: ClassVar[str] = "`form: demonstrations` of a data stage makes them"


class Preferences(Dataset):
    """Rows of prompt, chosen and rejected."""

    kind: ClassVar[str] = "preferences"
    made_by: ClassVar[str] = "`form: preferences` of a data stage makes them"


class Feedback(Dataset):
    """Rows of prompt, completion and label, true for a desirable one."""

    kind: ClassVar[str] = "feedback"
    made_by: ClassVar[str] = "`form: feedback` of a data stage makes it, of pairs with `split_pairs: true`"


class Report(Artifact):
    """An evaluation of one policy: figures and completions."""

    kind: ClassVar[str] = "report"


class Verdicts(Artifact):
    """A judge's verdicts on two policies' completions, prompt by prompt."""

    kind: ClassVar[str] = "verdicts"


def base_of(model: Model) -> Checkpoint:
    """The checkpoint that a model's forward pass starts from."""
    if isinstance(model, Adapter):
        return model.base
    assert isinstance(model, Checkpoint)
    return model


def unquantized(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint that a quantised one was made from; any other is its own. Both have the same tokenizer."""
    return checkpoint.original if isinstance(checkpoint, Quantized) else checkpoint


_KINDS: dict[str, type[Artifact]] = {
    cls.kind: cls
    for cls in (Checkpoint, Quantized, Adapter, RewardModel, Demonstrations, Preferences, Feedback, Report, Verdicts)
}
_RELATED = ("base", "original")
"""Fields of a handle that are handles themselves."""


def describe(artifact: Artifact) -> dict[str, Any]:
    """A handle as plain JSON values, with its kind."""
    plain: dict[str, Any] = {"kind": artifact.kind, "key": artifact.key, "path": str(artifact.path)}
    return plain | {name: describe(getattr(artifact, name)) for name in _RELATED if hasattr(artifact, name)}


def revive(plain: Mapping[str, Any]) -> Artifact:
    """The handle that `describe` wrote down."""
    fields = {name: value for name, value in plain.items() if name != "kind"}
    fields |= {name: revive(fields[name]) for name in _RELATED if name in fields}
    return _KINDS[plain["kind"]](**fields)
