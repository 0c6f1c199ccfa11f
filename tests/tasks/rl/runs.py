"""PPO runs for tests: inputs made in a moment, the real stage in a folder of its own, and what it leaves.

The bases are small and uneven, so that sampling is far from uniform and EOS ends many completions early.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts.kinds import Adapter, Checkpoint, Demonstrations, Preferences, RewardModel
from tasks.context import Context, Execution, MetricsLog, Progress
from tasks.job import Job
from tasks.lora import LoRA
from tasks.registry import stage_class
from tasks.rl.loop import Loop
from tests.left import timeless

Tensors = dict[str, Tensor]
PAD, EOS, LETTERS = "<pad>", "<eos>", "abcdefghijkl"
SMALL: dict[str, Any] = {
    "batch_size": 4, "total_episodes": 8, "num_ppo_epochs": 2, "max_new_tokens": 8, "learning_rate": 5e-3,
    "eval_rows": 0,
}  # fmt: skip
ONE_THREAD = Execution(threads=1, device="cpu")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices on busy cores: with two threads each waits for the other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Inputs


def tokenizer_of(letters: str) -> Any:
    """One token a letter, after PAD and EOS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *letters])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    core.add_special_tokens([PAD, EOS])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)


def base_in(folder: Path, kind: str = "llama", layers: int = 2, dtype: str = "float32", seed: int = 0) -> Checkpoint:
    """A base with random weights, as the base stage would leave it."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    from tasks.training.model_files import save_checkpoint

    tokenizer = tokenizer_of(LETTERS)
    config: Any
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.25, "bos_token_id": None, "eos_token_id": 1}
    if kind == "llama":
        config = LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, **common,
        )  # fmt: skip
    else:
        config = GPT2Config(n_embd=32, n_layer=layers, n_head=4, n_positions=64, pad_token_id=0, **common)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (folder / "out").mkdir(parents=True)
    save_checkpoint(model, tokenizer, folder / "out", dtype)
    (folder / "manifest.json").write_text(json.dumps({"digest": f"{seed:064d}"}))  # adapters name their base by it
    return Checkpoint(key=f"base-{kind}-{layers}-{dtype}-{seed}", path=folder / "out")


def adapter_in(folder: Path, base: Checkpoint, seed: int, lora: LoRA) -> Adapter:
    """An adapter that was trained, for all that anyone can see: neither of its matrices is 0."""
    from tasks.training.models import add_adapter, load_checkpoint, save_adapter

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = add_adapter(load_checkpoint(base, "cpu"), lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    (folder / "out").mkdir(parents=True)
    save_adapter(model, folder / "out", base)
    return Adapter(key=f"adapter-{seed}", path=folder / "out", base=base)


def reward_in(folder: Path, base: Checkpoint, lora: LoRA | None, seed: int = 2) -> RewardModel:
    """A reward model: an adapter, or without `lora` complete weights, and a head."""
    from safetensors.torch import load_file

    from tasks.training.models import load_checkpoint
    from tasks.training.scoring import save_head
    from tasks.training.trainable import save_whole

    if lora is not None:
        adapter_in(folder, base, seed, lora)
    else:
        (folder / "out").mkdir(parents=True)
        model = load_checkpoint(base, "cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        out = folder / "out"
        save_whole(model, base, Context(out, out, MetricsLog(folder / "m"), Progress(events=False), 0, Execution()))
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(seed)) / 6
    save_head(weight, 0.25, folder / "out")
    assert load_file(folder / "out" / "head.safetensors")["offset"].tolist() == [0.25]
    return RewardModel(key=f"reward-{seed}", path=folder / "out", base=base)


def write_rows(out: Path, rows: Sequence[dict[str, Any]], tests: Sequence[dict[str, Any]] = ()) -> Path:
    """The two files of a data stage."""
    out.mkdir(parents=True)
    for split, given in (("train", rows), ("test", tests)):
        (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return out


def prompt_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct prompts of 1 to 9 letters, each with a check and a completion."""
    draw, tokenizer = random.Random(seed), tokenizer_of(LETTERS)
    prompts = list(dict.fromkeys("".join(draw.choices(LETTERS, k=draw.randint(1, 9))) for _ in range(3 * count)))
    return [
        {
            "row": number, "prompt": prompt, "prompt_ids": tokenizer(prompt)["input_ids"],
            "completion_ids": tokenizer(prompt[::-1])["input_ids"] + [1], "check": {"kind": "contains", "words": ["c"]},
        }
        for number, prompt in enumerate(prompts[:count], start=1)
    ]  # fmt: skip


def top(count: int, kind: str = "llama") -> LoRA:
    """Adapters in so many of the last layers."""
    modules = ["q_proj", "v_proj", "down_proj"] if kind == "llama" else ["c_attn", "c_proj"]
    return LoRA(rank=2, alpha=4, target_modules=modules, top_layers=count)


def source(folder: Path, body: str, name: str = "judge.py") -> Path:
    """A file that defines `score` with this body."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"import math\n\ndef score(prompts, completions):\n    {body}\n")
    return folder / name


@dataclass
class World:
    """A base and what a recipe would have made on it."""

    folder: Path
    base: Checkpoint
    policy: Adapter
    reward: RewardModel
    data: Preferences
    demonstrations: Demonstrations

    @classmethod
    def build(
        cls, folder: Path, kind: str = "llama", layers: int = 2, policy_lora: LoRA | None = None, prompts: int = 10
    ) -> World:
        modules = ["q_proj", "v_proj", "down_proj"] if kind == "llama" else ["c_attn", "c_proj"]
        lora = LoRA(rank=2, alpha=4, target_modules=modules)
        base = base_in(folder / "base", kind, layers)
        return cls(
            folder, base, adapter_in(folder / "sft", base, 1, policy_lora or lora),
            reward_in(folder / "reward", base, lora),
            Preferences(
                key="data", path=write_rows(folder / "data", prompt_rows(prompts), prompt_rows(6, seed=1)), base=base
            ),
            Demonstrations(key="demos", path=write_rows(folder / "demos", prompt_rows(7, seed=2)), base=base),
        )  # fmt: skip

    def fields(self, **fields: Any) -> dict[str, Any]:
        """A PPO stage's fields: inputs, small settings, and what is given here."""
        return {"policy": self.policy, "data": self.data, "reward": self.reward, **SMALL, **fields}


# Runs


@dataclass
class Ran:
    """A PPO stage that has run, with its checkpoints, which go with the draft in real life."""

    handle: Any
    metrics: dict[str, float]
    folder: Path

    def lines(self, name: str = "metrics") -> list[dict[str, Any]]:
        """What it logged, without the clock."""
        return lines_in(self.folder, name)

    def points(self) -> list[dict[str, float]]:
        """The metrics of each rollout."""
        return [line["metrics"] for line in self.lines()]

    def only(self, name: str) -> list[float]:
        """One metric over the rollouts."""
        return [point[name] for point in self.points()]

    def figures(self) -> dict[str, float]:
        """The headline metrics without the clock."""
        return timeless(self.metrics)

    def adapter(self) -> Tensors:
        return adapter_of(self.handle)

    def state(self) -> dict[str, Any]:
        """The last checkpoint's."""
        newest = max((self.folder / "work").glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
        return torch.load(newest / "state.pt", weights_only=True)

    def value(self) -> Tensors:
        """The value model's trained tensors."""
        return self.state()["value"]


def lines_in(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
    path = folder / f"{name}.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for line in found:
        del line["time"]
        if "metrics" in line:
            line["metrics"] = timeless(line["metrics"])
    return found


def adapter_of(handle: Any) -> Tensors:
    from safetensors.torch import load_file

    return load_file(handle.path / "adapter_model.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    """Bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def furthest(one: Tensors, other: Tensors) -> float:
    """The largest difference between two numbers in the same place."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def job_of(folder: Path, *, seed: int = 0, execution: Execution = ONE_THREAD, **fields: Any) -> Job:
    """The stage as a job in `folder`."""
    stage = stage_class("ppo").model_validate(fields).locate([folder, Path(__file__).parent])
    return Job.of(stage, uses="ppo", key="p" * 64, seed=seed, execution=execution, draft=folder)


def loop_of(folder: Path, **fields: Any) -> Loop:
    """The loop, ready to run."""
    job = job_of(folder, **fields)
    stage: Any = job.stage()
    return Loop(stage, job.context(events=False))


def run(folder: Path, **fields: Any) -> Ran:
    """Run the stage, the real one; it goes on where an earlier call in the same folder was interrupted."""
    job = job_of(folder, **fields)
    stage = job.stage()
    return Ran(stage.output(job.key, folder / "out"), job.run(job.context(events=False)), folder)
