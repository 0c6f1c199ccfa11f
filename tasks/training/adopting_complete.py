"""A complete model that was tuned elsewhere, held against the base that it was tuned from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.training.model_files import TOKENIZER_FILES
from tasks.training.models import load_tokenizer
from tasks.training.trainable import load_config
from tasks.training.weight_files import WeightFiles, embedding_and_head, skeleton

if TYPE_CHECKING:
    from torch import Tensor

BESIDE = ("architectures", "dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id")
"""Entries of a configuration that leave the model as it is."""


class Tuned(Mapping[str, "Tensor"]):
    """The weights in `folder`, named, shaped and typed as those of `base`; each is read when it is asked for."""

    def __init__(self, base: Checkpoint, folder: Path) -> None:
        """Raises ModelError if it is no tuned `base`."""
        _compare_configurations(base, folder)
        _compare_tokenizers(base, folder)
        self.there, self.theirs = WeightFiles(base.path), WeightFiles(folder)
        self._compare_names(base)
        self._compare_tensors()

    def _compare_names(self, base: Checkpoint) -> None:
        missing, strange = self.there.keys() - self.theirs.keys(), self.theirs.keys() - self.there.keys()
        embedding, head = (f"{name}.weight" for name in embedding_and_head(skeleton(base)))
        if head in strange and embedding in self.theirs:  # some write one matrix twice
            if not self.theirs[head].equal(self.theirs[embedding]):
                raise ModelError(f"source: {head} is not {embedding}, which are one matrix in the base")
            strange -= {head}
        if problem := [f"{len(names)} tensors {what}, such as {min(names)}" for names, what in (
            (missing, "are missing"), (strange, "have no place")) if names]:  # fmt: skip
            raise ModelError(f"source: the model does not fit the base: {'; '.join(problem)}")

    def _compare_tensors(self) -> None:
        for name, wanted in self.there.items():
            given = self.theirs[name]
            if given.shape != wanted.shape:
                raise ModelError(f"source: {name} has the shape {tuple(given.shape)}, not {tuple(wanted.shape)}")
            if not given.isfinite().all():
                raise ModelError(f"source: {name} holds numbers that are not finite")

    def __getitem__(self, name: str) -> Tensor:
        return self.theirs[name].to(self.there[name].dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.there)

    def __len__(self) -> int:
        return len(self.there)


def _compare_configurations(base: Checkpoint, folder: Path) -> None:
    from transformers import AutoConfig

    ours = load_config(base).to_dict()
    theirs = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    for name in sorted((ours.keys() | theirs.keys()) - set(BESIDE)):
        if not name.startswith("_") and ours.get(name) != theirs.get(name):
            raise ModelError(
                f"source: its config.json has {name} {theirs.get(name)!r}, the base {ours.get(name)!r}; take the base "
                "that it was tuned from"
            )


def _compare_tokenizers(base: Checkpoint, folder: Path) -> None:
    """The base's is used on; a folder without one is taken to speak it."""
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return
    from transformers import AutoTokenizer

    ours: Any = load_tokenizer(base)
    theirs: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    spelled, other = ({number: token for token, number in one.get_vocab().items()} for one in (ours, theirs))
    unlike = {number for number in spelled.keys() | other.keys() if spelled.get(number) != other.get(number)}
    if unlike - {ours.pad_token_id}:  # which a base of ours may spell otherwise
        number = min(unlike - {ours.pad_token_id})
        raise ModelError(
            f"source: its token {number} is {other.get(number)!r}, the base's {spelled.get(number)!r}; what was tuned "
            "with a vocabulary of its own is a `base`"
        )
    for what, wanted, given in (
        ("EOS", ours.eos_token, theirs.eos_token), ("chat template", ours.chat_template, theirs.chat_template),
    ):  # fmt: skip
        if given is not None and given != wanted:
            raise ModelError(
                f"source: its {what} is not the base's ({given[:60]!r}, not {str(wanted)[:60]!r}), which all stages "
                "would use; take it as a `base`"
            )
