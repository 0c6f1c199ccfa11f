"""What the memory of training is measured on: a base with random weights, adapters, a reward model, and rows.

Run as `python -m tests.bench.memory_workload FOLDER DEVICE`, in a process of its own: the one that measures needs no
torch.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.errors import ModelError
from artifacts.fingerprint import digest
from artifacts.kinds import Adapter, Artifact, Checkpoint, Feedback, Preferences, Quantized, Report, RewardModel
from artifacts.kinds import Demonstrations as Rows

SMOLLM2_135M: Mapping[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49_152, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of the quickstart's model; its weights are random here, since memory does not look at values."""
LENGTHS = {"short": (40, 24), "long": (160, 96)}
"""Of rows: tokens in the longest prompt and in the longest completion."""
TRAIN, TEST = 16, 4
EOS = 2
"""Of the tokenizer that tasks/tiny.py makes."""


class Workload:
    """The handles, by name; `ready` says whether the folder holds them already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = Checkpoint(key="base", path=folder / "base" / "out")
        self.bfloat16 = Checkpoint(key="bfloat16", path=folder / "bfloat16" / "out")
        self.four_bits = Quantized(key="four_bits", path=folder / "four_bits" / "out", original=self.base)

    def ready(self) -> bool:
        return (self.folder / "ready").exists()

    def has_four_bits(self) -> bool:
        """Whether bitsandbytes works on the device that it was made for."""
        return (self.four_bits.path / "config.json").exists()

    def adapter(self, base: str) -> Adapter:
        """A policy on one of the bases, with LoRA on every linear layer."""
        return Adapter(key=f"sft_{base}", path=self.folder / f"sft_{base}" / "out", base=getattr(self, base))

    def reward(self, base: str) -> RewardModel:
        return RewardModel(key=f"reward_{base}", path=self.folder / f"reward_{base}" / "out", base=getattr(self, base))

    def report(self, name: str) -> Report:
        """A policy's completions of the long held-out rows."""
        return Report(key=name, path=self.folder / name / "out")

    def text(self, name: str) -> Path:
        """A file of rows as a user has them: pairs of about 1 kB, or demonstrations of about 200 B."""
        return self.folder / f"{name}.jsonl"

    def data(self, form: str, length: str) -> Any:
        """Rows of one form, 16 to train on and 4 held out."""
        kind = {"demonstrations": Rows, "preferences": Preferences, "feedback": Feedback}[form]
        return kind(key=f"{form}_{length}", path=self.folder / f"{form}_{length}" / "out", base=self.base)


def make(work: Workload, device: str) -> None:
    """Write everything."""
    from tasks.context import Context, Execution, MetricsLog, Progress
    from tasks.stage import Stage

    _bases(work)
    for base in ("base", "bfloat16"):
        _adapters(work, base)
    for form in ("demonstrations", "preferences", "feedback"):
        for length in LENGTHS:
            _rows(work, form, length)
    _texts(work)
    _reports(work)
    from tasks.quantize import Quantize

    stage: Stage = Quantize(base=work.base, compute_dtype="bfloat16" if device == "cuda" else "float32")
    work.four_bits.path.mkdir(parents=True)
    try:
        context = Context(
            out=work.four_bits.path, work=work.folder, metrics=MetricsLog(work.folder / "metrics.jsonl"),
            progress=Progress(events=False), seed=0, execution=Execution(device="cuda" if device == "cuda" else "cpu"),
        )  # fmt: skip
        stage.run(context)
        _manifest(work.four_bits)
    except (ImportError, ModelError) as error:  # a machine without bitsandbytes measures the other settings
        print(f"no settings in 4 bits: {error}", file=sys.stderr)  # noqa: T201
    (work.folder / "ready").touch()


def _bases(work: Workload) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tasks.tiny import build_tiny

    _, tokenizer = build_tiny("tiny-llama")
    config = LlamaConfig(**SMOLLM2_135M, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for handle, dtype in ((work.base, torch.float32), (work.bfloat16, torch.bfloat16)):
        model = model.to(dtype)
        model.config.dtype = dtype
        model.save_pretrained(handle.path)
        tokenizer.save_pretrained(handle.path)
        _manifest(handle)


def _adapters(work: Workload, base: str) -> None:
    import torch

    from tasks.lora import LoRA
    from tasks.training.models import add_adapter, load_checkpoint, save_adapter
    from tasks.training.scoring import save_head

    torch.manual_seed(1)
    policy, reward = work.adapter(base), work.reward(base)
    model = add_adapter(load_checkpoint(policy.base, "cpu"), LoRA())
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=1e-3)
    for handle in (policy, reward):
        handle.path.mkdir(parents=True)
        save_adapter(model, handle.path, policy.base)
    save_head(torch.randn(1, SMOLLM2_135M["hidden_size"]) / 100, 0.0, reward.path)
    for made in (policy, reward):
        _manifest(made)


def _rows(work: Workload, form: str, length: str) -> None:
    """Rows of lengths between three quarters of the longest and the longest."""
    from tasks.splits import write_split

    handle, draw = work.data(form, length), random.Random(f"{form}/{length}")
    handle.path.mkdir(parents=True)

    def ids(longest: int) -> list[int]:
        return [draw.randrange(300, 49_000) for _ in range(draw.randint(3 * longest // 4, longest))]

    def row(number: int) -> dict[str, Any]:
        prompt, completion = LENGTHS[length]
        made: dict[str, Any] = {"row": number, "prompt": f"prompt {number}", "prompt_ids": ids(prompt)}
        names = ("chosen", "rejected") if form == "preferences" else ("completion",)
        made |= {"label": number % 2 == 0} if form == "feedback" else {}
        for name in names:
            made |= {name: name, f"{name}_ids": [*ids(completion)[1:], EOS]}
        return made

    report = {"form": form, "rows_in": TRAIN + TEST, "left_out": {}}
    for split, count in (("train", TRAIN), ("test", TEST)):
        report[split] = write_split([row(number) for number in range(count)], handle.path / f"{split}.jsonl")
    (handle.path / "report.json").write_text(json.dumps(report))
    _manifest(handle)


def _texts(work: Workload) -> None:
    pairs = (
        {"prompt": f"{number}: {_words(30)}", "chosen": _words(75), "rejected": _words(74)} for number in range(9000)
    )
    rows = ({"prompt": f"{number}: {_words(15)}", "completion": _words(15)} for number in range(20_000))
    for name, made in (("pairs", pairs), ("rows", rows)):
        work.text(name).write_text("\n".join(map(json.dumps, made)))


def _words(count: int) -> str:
    return "words " * count


def _reports(work: Workload) -> None:
    """As long as the long rows: the tokenizer makes a token of each byte."""
    prompt, completion = LENGTHS["long"]
    for name in ("mine", "other"):
        path = work.report(name).path
        path.mkdir(parents=True)
        results = [
            {"row": row, "prompt": f"{row:0{prompt}}", "completion": name[0] * (completion - row)} for row in range(16)
        ]
        (path / "completions.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
        (path / "report.json").write_text(json.dumps({"reward": None}))
        _manifest(work.report(name))


def _manifest(handle: Artifact) -> None:
    """Beside the output, with what adapters are checked against."""
    (handle.path.parent / "manifest.json").write_text(json.dumps({"digest": digest(handle.key)}))


if __name__ == "__main__":
    make(Workload(Path(sys.argv[1])), sys.argv[2])
