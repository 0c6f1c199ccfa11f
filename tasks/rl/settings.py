"""Fields that every method shares which learns from its own completions: PPO, RLOO, GRPO."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, FiniteFloat, model_validator

from artifacts.errors import DataError, ModelError
from artifacts.fingerprint import FileDigests
from artifacts.kinds import Adapter, Artifact, Checkpoint, Dataset, Model, RewardModel, base_of
from tasks.rl.programs import is_program, locate_program, program_names
from tasks.settings import LoRA
from tasks.shape import ModelShape
from tasks.stage import Estimate, Stage


class Online(Stage):
    """A stage that samples completions from the policy it trains, and scores them.

    `reward` may be written in a recipe as a stage's name, as `checks`, as `module:function`, or as a mapping of these
    to weights, of which they become the sum.
    """

    outside: ClassVar[frozenset[str]] = frozenset({"programs"})

    models_trained: ClassVar[int] = 1
    """The policy; a value model would be another."""

    policy: Model
    """Where training starts; the KL penalty is measured against it, frozen."""
    data: Dataset
    """Whose training prompts are sampled from; its completions are not used."""
    reward: RewardModel | None = None
    """Scores completions; trained on the same base."""
    reward_weight: FiniteFloat = 1.0
    """What the reward model's score counts in the sum."""
    programs: dict[str, FiniteFloat] = Field({})
    """Weights of `checks` and of functions, each named `module:function`."""
    lora: LoRA | None = None
    """For a `policy` that is a complete checkpoint: train a fresh adapter instead of all weights."""
    max_new_tokens: int = Field(48, ge=1)
    """Tokens in a completion; one that has not stopped by then is truncated."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, and of every log-probability: both speak of the same distribution."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Taken from the score of a truncated completion."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""
    eval_rows: int = Field(64, ge=0)
    """Held-out prompts that are sampled from and scored before and after training; 0 for none."""

    @classmethod
    def spelled_out(cls, fields: Mapping[str, Any]) -> dict[str, Any]:
        """`reward: checks`, or a mapping of rewards to weights, as the fields `reward` and `programs`."""
        spelled, given = dict(fields), fields.get("reward")
        if isinstance(given, str) and is_program(given):
            given = {given: 1.0}
        if not isinstance(given, dict) or "programs" in fields:
            return spelled
        programs = {name: weight for name, weight in given.items() if is_program(str(name))}
        models = [name for name in given if name not in programs]
        if len(models) <= 1:
            del spelled["reward"]
            spelled["programs"] = programs
            if models:
                spelled |= {"reward": models[0], "reward_weight": given[models[0]]}
        return spelled

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.reward is None and not self.programs:
            raise ValueError("reward is missing: name a reward model's stage, `checks`, or `module:function`")
        if self.lora is not None and isinstance(self.policy, Adapter):
            raise ValueError("lora must be left out: `policy` is an adapter already, and goes on training as it is")
        return self

    def output(self, key: str, path: Path) -> Artifact:
        if isinstance(self.policy, Adapter):
            return Adapter(key=key, path=path, base=self.policy.base)
        assert isinstance(self.policy, Checkpoint)
        return Checkpoint(key=key, path=path) if self.lora is None else Adapter(key=key, path=path, base=self.policy)

    def input_problem(self) -> str | None:
        """What was made for another base can't be brought together with the policy's adapter."""
        if not isinstance(self.policy, Adapter):
            return None  # a fully tuned policy is a base of its own; tokenizers are compared when it runs
        for name, artifact in self.bound().items():
            base = getattr(artifact, "base", None)
            if name != "policy" and base is not None and base.key != self.policy.base.key:
                return (
                    f"{name}: wanted one made for the policy's base {self.policy.base.key[:12]}, got one made for "
                    f"{base.key[:12]}; give the stage that makes it the same base"
                )
        return None

    def locate(self, folders: Sequence[Path]) -> Self:
        programs = {locate_program(name, folders): weight for name, weight in self.programs.items()}
        return self.model_copy(update={"programs": programs})

    def content(self, digests: FileDigests) -> dict[str, Any]:
        named = {}
        for located, name in program_names(self.programs).items():
            path = located.rpartition(":")[0]
            source = {"sha256": digests.of(Path(path))} if path else {}
            named[name] = {"weight": self.programs[located], **source}
        return {"programs": named} if named else {}

    def disk_bytes(self) -> int:
        shape = ModelShape.of(self.policy)
        if shape is None:
            return 512 << 20
        trained = self.trained(shape) or shape.parameters // 10
        return 4 * trained + 3 * 28 * trained + (64 << 20)  # the output; checkpoints: policy, value, their moments

    def trained(self, shape: ModelShape) -> int | None:
        """How many of the policy's parameters receive gradients; None while its adapter does not exist."""
        if isinstance(self.policy, Adapter):
            return shape.adapter_parameters(self.policy)
        if self.lora is None:
            return shape.parameters
        return shape.lora_parameters(self.lora.rank, self.lora.target_modules, self.lora.top_layers)

    def steps(self, rows: int) -> int:
        """Optimizer steps on so many prompts."""
        raise NotImplementedError

    def rows_in_memory(self) -> int:
        """Rows of the largest forward and backward pass, unless the execution says fewer."""
        raise NotImplementedError

    def estimate(self) -> Estimate:
        """Parameters and memory from the base's configuration, steps from the data's report; needs no torch."""
        shape, rows = ModelShape.of(self.policy), self.data.train_rows()
        steps = None if rows is None else self.steps(rows)
        trained = None if shape is None else self.trained(shape)
        if shape is None or trained is None:
            return Estimate(shape.parameters if shape else None, None, steps, None)
        added = 0 if trained == shape.parameters else self.models_trained * trained
        memory = shape.training_bytes(self.models_trained * trained, self.rows_in_memory())
        return Estimate(shape.parameters + added, trained, steps, memory)

    def require_room(self, rows: list[dict[str, Any]]) -> None:
        """Raise DataError for a prompt after which the context has no room for `max_new_tokens`."""
        config = json.loads((base_of(self.policy).path / "config.json").read_text())
        positions = config.get("max_position_embeddings") or config.get("n_positions")
        for row in rows:
            if positions and len(row["prompt_ids"]) + self.max_new_tokens > positions:
                raise DataError(
                    f"row {row['row']}: its prompt of {len(row['prompt_ids'])} tokens leaves no room for "
                    f"max_new_tokens {self.max_new_tokens} in the base's context of {positions}; lower it, or the "
                    "data's max_length with `overlong: drop`"
                )


def stop_ids(tokenizer: Any, stop_token: str | None) -> list[int]:
    """The ids that end a completion: EOS, and the stop token if it is another; none for `null`.

    Raises ModelError if the tokenizer has no EOS, or the stop token is no single token of it.
    """
    if stop_token is None:
        return []
    if tokenizer.eos_token_id is None:
        raise ModelError("the base's tokenizer has no EOS, so no completion would ever end; take a base that has one")
    if stop_token == "eos":
        return [int(tokenizer.eos_token_id)]
    ids = [tokenizer.get_vocab().get(stop_token)]
    if ids == [None]:
        ids = tokenizer(stop_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ModelError(
            f"stop_token: wanted `eos`, null or one token of the base's tokenizer, got {stop_token!r}, which it writes "
            f"as {len(ids)} tokens: {tokenizer.convert_ids_to_tokens(ids)}"
        )
    return sorted({int(ids[0]), int(tokenizer.eos_token_id)})


def require_one_tokenizer(stage: Online) -> None:
    """Raise ModelError unless all inputs speak the policy's tokens: ids are handed on as they are."""
    from tasks.training.models import base_tokenizer, load_tokenizer

    vocabulary = base_tokenizer(stage.policy).get_vocab()
    for name, artifact in stage.bound().items():
        base = getattr(artifact, "base", None)
        if base is not None and load_tokenizer(base).get_vocab() != vocabulary:
            raise ModelError(f"{name}: its base has another tokenizer than the policy's; make it with the same one")


def distinct_prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with each prompt once (a preference set has one several times), without their completions."""
    first: dict[tuple[int, ...], dict[str, Any]] = {}
    for row in rows:
        first.setdefault(tuple(row["prompt_ids"]), row)
    kept = ("row", "prompt", "prompt_ids", "check")
    return [{name: row[name] for name in kept if name in row} for row in first.values()]
