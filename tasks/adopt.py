"""Adopt: what was tuned elsewhere, as the output of a stage, so that one's own SFT can be branched from.

Its bytes are its identity. It is held against the base tensor by tensor, so that nothing is missing, left over or of
another shape, and written as our own stages write what they train.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field

from artifacts.errors import ModelError
from artifacts.fingerprint import FileDigests, tree_digest
from artifacts.kinds import Adapter, Artifact, Checkpoint, Model
from tasks.context import Context
from tasks.memory.parts import Memory
from tasks.memory.reading import adopt
from tasks.shape import ModelShape, tensor_elements
from tasks.sources import locate, split_hub, understood
from tasks.stage import Outside, Stage, Terms
from tasks.training.model_files import TOKENIZER_FILES

FILES = ("adapter_config.json", "adapter_model.safetensors")
COMPLETE = ("config.json", "*.safetensors", *TOKENIZER_FILES)
DIGEST = re.compile(r"[0-9a-f]{64}")


class Adopt(Stage):
    """An adapter on `base`, in peft's form, or a complete model tuned from it, in transformers'."""

    seeded: ClassVar[bool] = False
    outside: ClassVar[Mapping[str, Outside]] = {"source": "model"}

    base: Checkpoint
    """What it was trained on."""
    source: str = Field(min_length=1)
    """A folder with adapter_config.json and adapter_model.safetensors, or of a complete model with config.json and
    weights in safetensors; a hub id; or where MLflow has either: `models:/NAME/3`, `models:/NAME@ALIAS`,
    `runs:/RUN/output`."""
    complete: bool = False
    """Whether it is a complete model instead of an adapter."""

    def output(self, key: str, path: Path) -> Artifact:
        if self.complete:
            return Checkpoint(key=key, path=path, like=self.base)
        return Adapter(key=key, path=path, base=self.base)

    def locate(self, folders: Sequence[Path]) -> Self:
        found = locate(self.source, folders, repo="model")
        if not found.startswith("hub:"):
            self._check_usable(Path(found))
        return self.model_copy(update={"source": found})

    def content(self, digests: FileDigests) -> dict[str, Any]:
        if self.source.startswith("hub:"):
            return {"source": self.source}
        folder = Path(self.source)
        files = sorted({file for pattern in self._patterns() for file in folder.glob(pattern)})
        return {"source": {"folder": tree_digest(folder, files, digests)}}

    def computes(self) -> bool:
        return False

    def memory(self, terms: Terms) -> Memory | None:
        if (shape := ModelShape.of(self.base)) is None or self.source.startswith("hub:"):
            return None
        try:
            count = None if self.complete else sum(tensor_elements(Path(self.source) / FILES[1]).values())
        except (OSError, ValueError):  # damaged, which running it says
            return None
        return adopt(shape, count, terms.kind)

    def loaded(self) -> Model | None:
        return self.base

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.base)
        if not self.complete or shape is None:
            return super().disk_bytes()
        return shape.parameters * shape.bytes_each

    def run(self, ctx: Context) -> dict[str, float]:
        folder = self._folder()
        return self._adopt_complete(folder, ctx) if self.complete else self._adopt_adapter(folder, ctx)

    def _adopt_complete(self, folder: Path, ctx: Context) -> dict[str, float]:
        from tasks.training.adopting_complete import Tuned
        from tasks.training.rounding import rounding_problem
        from tasks.training.weight_files import write_like

        with understood(folder, "a complete model"):
            tuned = Tuned(self.base, folder)
            if problem := rounding_problem(tuned.theirs, tuned.there, ctx):
                raise ModelError(f"source: {problem}")
            write_like(self.base, tuned, ctx.out)
        count = sum(tuned.theirs[name].numel() for name in tuned)
        ctx.say(f"adopted {count:,} parameters")
        return {"model/parameters": float(count)}

    def _adopt_adapter(self, folder: Path, ctx: Context) -> dict[str, float]:
        from tasks.training.adopting import fitted
        from tasks.training.models import parameter_counts, save_adapter

        with understood(folder, "an adapter"):
            config = json.loads((folder / FILES[0]).read_text())
            model = fitted(self.base, folder, config)
        _check_base(str(config.get("base_model_name_or_path")), self.base, ctx)
        save_adapter(model, ctx.out, self.base)
        count = parameter_counts(model)[1]
        ctx.say(f"adopted {count:,} parameters, rank {config['r']}")
        return {"model/parameters": float(count)}

    def _patterns(self) -> tuple[str, ...]:
        return COMPLETE if self.complete else FILES

    def _folder(self) -> Path:
        if not self.source.startswith("hub:"):
            return Path(self.source)
        from huggingface_hub import snapshot_download

        identity, commit = split_hub(self.source)
        folder = Path(snapshot_download(identity, revision=commit, allow_patterns=list(self._patterns())))
        self._check_usable(folder)
        return folder

    def _check_usable(self, folder: Path) -> None:
        """Raise ModelError for a folder that is not of the kind that was said."""
        config, weights = ("config.json", "*.safetensors") if self.complete else FILES
        if self.complete and (folder / FILES[0]).exists():
            raise ModelError(f"source: {folder} holds an adapter; leave `complete` out")
        if not (folder / config).exists():
            hint = "; for a complete model set `complete: true`" if (folder / "config.json").exists() else ""
            writer = "transformers" if self.complete else "peft"
            raise ModelError(f"source: {folder} has no {config}; wanted a folder that {writer} saved{hint}")
        if not any(folder.glob(weights)):
            pickled = any(folder.glob("*.bin"))
            more = ", only a pickle, which runs code when it is loaded; convert it to safetensors first"
            raise ModelError(f"source: {folder} has no {weights}{more if pickled else ''}")


def _check_base(named: str, base: Checkpoint, ctx: Context) -> None:
    """Raise ModelError if it names another base of ours; a name of any other kind can only be said."""
    if DIGEST.fullmatch(named) and named != base.digest():
        raise ModelError(
            f"source: the adapter was trained on the base {named[:12]}, but got {base.digest()[:12]}; take the base "
            "that it was trained on"
        )
    if not DIGEST.fullmatch(named):
        ctx.say(f"warning: it says that its base is {named!r}; that its tensors fit is all that can be checked of that")
