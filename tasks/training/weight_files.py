"""A checkpoint's weights by name, read one at a time, so that a model need never be in memory whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.kinds import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
"""Which file has which tensor, where there are several."""
Weights = Mapping[str, "Tensor"]


class WeightFiles(Mapping[str, "Tensor"]):
    """The tensors in a folder's safetensors files, each read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.shards: dict[str, list[str]] = {}
        """The names in each file."""
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                self.shards[file.name] = sorted(tensors.keys())
        self._places = {name: folder / file for file, names in self.shards.items() for name in names}

    def __getitem__(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self._places[name], framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def write_like(checkpoint: Checkpoint, weights: Weights, out: Path) -> None:
    """Write `weights` into files as `checkpoint` has them, one after another, with everything else from there.

    What `checkpoint` has no place for goes into the last file.
    """
    import shutil

    from safetensors.torch import save_file

    for file in sorted(checkpoint.path.iterdir()):
        if file.suffix != ".safetensors" and file.name != "README.md":
            shutil.copyfile(file, out / file.name)
    there = WeightFiles(checkpoint.path)
    if added := sorted(weights.keys() - there.keys()):
        there.shards[max(there.shards)] += added
        _add_to_index(out / INDEX, max(there.shards), {name: weights[name] for name in added})
    for name, names in there.shards.items():
        save_file({each: weights[each].contiguous() for each in names}, out / name, metadata={"format": "pt"})


def _add_to_index(index: Path, file: str, added: Weights) -> None:
    """A model in one file has no index."""
    if index.exists():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(added, file)
        totals = {
            "total_size": sum(tensor.nbytes for tensor in added.values()),
            "total_parameters": sum(tensor.numel() for tensor in added.values()),
        }
        content["metadata"] |= {
            name: content["metadata"][name] + more for name, more in totals.items() if name in content["metadata"]
        }
        index.write_text(json.dumps(content, indent=2, sort_keys=True))


def skeleton(checkpoint: Checkpoint) -> Any:
    """The checkpoint's model in evaluation mode, with its modules and buffers but no weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint.path))
    return model.eval()


def transposed(model: Any) -> frozenset[str]:
    """Names of the weights that are kept as (inputs, outputs): those of GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))


def embedding_and_head(model: Any) -> tuple[str, str]:
    """Names of the two modules over the vocabulary, whose weights may be one matrix."""
    names = {id(module): name for name, module in model.named_modules()}
    return names[id(model.get_input_embeddings())], names[id(model.get_output_embeddings())]
