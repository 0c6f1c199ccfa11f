"""What a stage is: fields that are its identity, inputs that are other stages' outputs, and a `run`."""

from __future__ import annotations

import hashlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self, Union

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from artifacts.code import code_digest
from artifacts.fingerprint import FileDigests
from artifacts.kinds import Artifact, Dataset, Model
from tasks.context import Context, Execution
from tasks.lora import LoRA
from tasks.memory.adapted import parameters
from tasks.memory.lengths import Lengths
from tasks.memory.parts import Kind, Memory

Outside = Literal["data", "model", "programs", "endpoint", "variable", "nothing"]
"""What a field names outside the store: rows or a model, by a path or where a hub has them; Python functions, as the
keys of a mapping; a URL; an environment variable. Or nothing, where the field only does not count for the key."""


class Input(NamedTuple):
    """A field that takes another stage's output."""

    kind: type[Artifact]
    required: bool


class Estimate(NamedTuple):
    """What a plan says of a stage before it runs; None where nothing is known yet."""

    parameters: int | None = None
    trainable: int | None = None
    steps: int | None = None
    memory: Memory | None = None
    tokens: int | None = None
    """Read or written while it trains, prompts included: what a finished stage reports as `cost/tokens`."""
    tokens_is_bound: bool = False
    """Whether it may turn out to be fewer."""
    steps_is_bound: bool = False
    """Likewise."""


class Terms(NamedTuple):
    """What an estimate hangs on beside a stage's fields and inputs."""

    execution: Execution = Execution()
    kind: Kind = "cpu"
    bounds: Mapping[str, Lengths] = {}
    """The most that rows can be, by their stage's key: of data that has not been made yet, and of evaluations."""
    seed: int = 0
    """What the stage would be given."""
    adapters: Mapping[str, LoRA] = {}
    """With what settings adapters will be made that are not there yet, by their keys."""


class Stage(BaseModel):
    """One unit of a recipe. Every field is hashed into the key; where and how it runs comes as a `Context`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    version: ClassVar[int] = 1
    """Bump when the same fields would now give other bytes."""
    seeded: ClassVar[bool] = True
    """Whether the recipe's seed changes the result."""
    outside: ClassVar[Mapping[str, Outside]] = {}
    """Every field that names something outside the store, and what; the key holds its content instead of its name."""
    goes_on_from: ClassVar[str] = "checkpoint-*/manifest.json"
    """What it leaves in its work folder to go on from, as a pattern."""

    shown: ClassVar[tuple[str, ...]] = ()
    """Settings that a form shows, the most telling first; a stage with none has no form of its own."""
    renamed: ClassVar[Mapping[str, Callable[[Any, Mapping[str, Any]], str]]] = {}
    """Names that a field has elsewhere, to what to write here, from the value given and the other fields given."""

    @classmethod
    def spelled_out(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A recipe's fields with the shorthands of this stage written out."""
        return dict(fields)

    def output(self, key: str, path: Path) -> Artifact:
        """The handle of what this stage makes, known before it runs."""
        raise NotImplementedError

    def run(self, ctx: Context) -> dict[str, float]:
        """Do the work, write under `ctx.out`, return the headline metrics."""
        raise NotImplementedError

    def locate(self, folders: Sequence[Path]) -> Self:
        """This stage with the names in `outside` resolved against `folders`; raises UserError if missing."""
        return self

    def content(self, digests: FileDigests) -> dict[str, Any]:
        """What stands in the key for the fields in `outside`."""
        return {}

    def keyed_micro_batch(self, execution: Execution) -> int | None:
        """The micro-batch, where another one would give another result, so that it belongs to the key; else None."""
        return None

    def widest_pass(self) -> int | None:
        """The most rows that a micro-batch can have; None for a stage that has no choice in it."""
        return None

    def micro_batch(self, execution: Execution) -> int | None:
        """Rows of one forward and backward pass; None for a stage that has no choice in it."""
        return None

    def in_half_the_memory(self, execution: Execution) -> Execution | None:
        """The same mathematics in passes of at most half as many rows; None where there is no such way to run it."""
        rows = self.micro_batch(execution)
        if rows is None or self.keyed_micro_batch(execution) is not None:
            return None
        smaller = (execution.model_copy(update={"micro_batch": size}) for size in range(rows // 2, 0, -1))
        return next((one for one in smaller if self.execution_problem(one) is None), None)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is not the number 1."""
        options = _options(cls.model_fields[str(info.field_name)].annotation)
        if isinstance(value, bool) and bool not in options:
            raise ValueError("wanted no true or false here")
        return value

    def computes(self) -> bool:
        """Whether it runs a model, on a GPU where there is one."""
        return True

    def execution_problem(self, execution: Execution) -> str | None:
        """Why this stage can't be run like that, or None."""
        return None

    def input_problem(self) -> str | None:
        """Why these inputs, known by their keys now, don't go together, or None."""
        return None

    def estimate(self, terms: Terms = Terms()) -> Estimate:  # noqa: B008  (immutable)
        """Sizes and steps, as far as they are known before it runs; needs no torch."""
        loaded = self.loaded()
        return Estimate(None if loaded is None else parameters(loaded, terms.adapters), memory=self.memory(terms))

    def loaded(self) -> Model | None:
        """The model that it reads or writes with, of a stage that trains none."""
        return None

    def rows_are_bound(self, terms: Terms) -> bool:
        """Whether its rows are taken for the longest that they can be, so that it may need less memory than is said."""
        data = [artifact for artifact in self.bound().values() if isinstance(artifact, Dataset)]
        return any(lengths.is_bound for one in data if (lengths := Lengths.of(one, terms.bounds)))

    def memory(self, terms: Terms) -> Memory | None:
        """What it has in memory at its fullest moment, by part; None where that is not known."""
        return None

    def adapter_settings(self, terms: Terms) -> LoRA | None:
        """Those of the adapter that it makes, as far as they are known before it runs; None if it makes none."""
        return None

    def row_bound(self, terms: Terms) -> Lengths | None:
        """The most that the rows which this stage makes can be; None for one that makes none, or can't tell."""
        return None

    def disk_bytes(self) -> int:
        """A rough upper bound of what the output needs."""
        return 32 << 20

    def begun(self, work: Path) -> bool:
        """Whether an earlier attempt left something in its work folder from which this one goes on."""
        return any(path.stat().st_size for path in work.glob(self.goes_on_from))

    @classmethod
    def inputs(cls) -> dict[str, Input]:
        """The artifact-typed fields by name."""
        found = {}
        for name, field in cls.model_fields.items():
            options = _options(field.annotation)
            kinds = [option for option in options if isinstance(option, type) and issubclass(option, Artifact)]
            if kinds:
                found[name] = Input(kinds[0], field.is_required())
        return found

    def identity(self) -> dict[str, Any]:
        """The fields as they enter the key: no inputs, nothing outside, no defaults.

        Leaving defaults out is what lets a later version add a field without changing old keys; a test pins every
        default to the stage's version, since changing one means other results under the same key.
        """
        skipped = self.inputs().keys() | self.outside.keys()
        return self.model_dump(mode="json", exclude=skipped, exclude_defaults=True)

    def settings(self) -> dict[str, Any]:
        """Every field but the inputs, defaults included."""
        return self.model_dump(mode="json", exclude=set(self.inputs()))

    def bound(self) -> dict[str, Artifact]:
        """The inputs that are given, by field name."""
        given = {name: getattr(self, name) for name in self.inputs()}
        return {name: artifact for name, artifact in given.items() if artifact is not None}

    @classmethod
    def source_digest(cls) -> str:
        """Of the code that defines the stage and all of ours that it uses: shows a change without a new `version`."""
        here = Path(__file__).parent
        return code_digest(Path(str(sys.modules[cls.__module__].__file__)), here, without=here / "memory")


def derive_seed(seed: int, uses: str) -> int:
    """A stage's own seed, so that no two kinds of stage draw the same numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{uses}".encode()).digest()[:4], "big")


def _options(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
