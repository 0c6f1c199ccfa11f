"""Fields of every stage that samples from a policy and scores what it wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, FiniteFloat, model_validator

from artifacts.errors import DataError, ModelError
from artifacts.fingerprint import FileDigests, tree_digest
from artifacts.kinds import Adapter, Dataset, Model, RewardModel, base_of, unquantized
from tasks.memory.adapted import Adapted
from tasks.memory.lengths import Lengths
from tasks.memory.online import Judge, Sampled
from tasks.rl.program_files import import_root, imported_files
from tasks.rl.programs import is_program, locate_program, program_names
from tasks.shape import ModelShape
from tasks.stage import Outside, Stage, Terms


class Sampling(Stage):
    """A stage that samples completions from a policy, and scores them.

    `reward` may be written in a recipe as a stage's name, as `checks`, as `module:function`, or as a mapping of these
    to weights, of which they become the sum.
    """

    outside: ClassVar[Mapping[str, Outside]] = {"programs": "programs"}

    policy: Model
    """Who writes the completions; where training starts, if there is any."""
    data: Dataset
    """Whose training prompts are sampled from; its completions are not used."""
    reward: RewardModel | None = None
    """Scores completions; trained on the same base."""
    reward_weight: FiniteFloat = 1.0
    """What the reward model's score counts in the sum."""
    programs: dict[str, FiniteFloat] = Field({})
    """Weights of `checks` and of functions, each named `module:function`."""
    max_new_tokens: int = Field(48, ge=1)
    """Tokens in a completion; one that has not stopped by then is truncated."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, and of every log-probability: both speak of the same distribution."""
    missing_eos_penalty: float | None = Field(None, ge=0)
    """Taken from the score of a truncated completion."""

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
    def _something_to_score_by(self) -> Self:
        if self.reward is None and not self.programs:
            raise ValueError("reward is missing: name a reward model's stage, `checks`, or `module:function`")
        return self

    def input_problem(self) -> str | None:
        """What was made for another base can't be brought together with the policy's adapter."""
        if not isinstance(self.policy, Adapter):
            return None  # a fully tuned policy is a base of its own; tokenizers are compared when it runs
        for name, artifact in self.bound().items():
            base = getattr(artifact, "base", None)
            if name != "policy" and base is not None and unquantized(base).key != unquantized(self.policy.base).key:
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
            if path and (imported := imported_files(Path(path))):
                source["imports"] = tree_digest(import_root(Path(path)), imported, digests)
            named[name] = {"weight": self.programs[located], **source}
        return {"programs": named} if named else {}

    def judge(self, terms: Terms, *, shares: bool = False) -> Judge | None:
        """The reward model's size, with a base of its own or the policy's; None without one, or if it is not known."""
        return None if self.reward is None else judge_of(self.reward, terms, self.policy if shares else None)

    def sampled(self, rows: int, terms: Terms) -> Sampled | None:
        """Completions of `rows` prompts at a time; None where the prompts' lengths are not known."""
        lengths = Lengths.of(self.data, terms.bounds)
        if lengths is None:
            return None
        return Sampled(rows, lengths.longest_prompt, self.max_new_tokens)

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


def judge_of(reward: RewardModel, terms: Terms, policy: Model | None = None) -> Judge | None:
    """What a reward model has in memory, beside `policy` if that can share its base; None if it is not known yet."""
    shape = ModelShape.of(reward.base)
    there = (reward.path / "head.safetensors").exists()
    if shape is None or not (there or reward.key in terms.adapters):
        return None
    shares = policy is not None and isinstance(policy, Adapter) and base_of(policy).key == reward.base.key
    adapted = Adapted.of(shape, reward, terms.adapters)
    return Judge(shape, adapted, shares=shares and adapted is not None)


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
