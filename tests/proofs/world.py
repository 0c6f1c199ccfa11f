"""Worlds so small that every completion can be listed: expectations are sums, and the best policy is known.

A world is a base checkpoint with an alphabet of a few tokens, some prompts, and all completions of up to `length`
tokens. PAD and EOS are ordinary members of the alphabet, so a stage that guessed its masks from ids would fail here.

A prompt needs two different letters. After `a`, a further `a` attends to copies of itself alone, and with rotary
positions its state is the same again: pi(. | a) = pi(. | aa) whatever the weights, and no training reaches the optimum.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.kinds import Artifact, Checkpoint, Model, Preferences
from tasks.context import Execution
from tasks.job import Job
from tasks.registry import stage_class
from tasks.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

PAD, EOS = "<pad>", "<eos>"
STRENGTHS = (1, 3, 9)
"""What a completion can be worth, as odds: the chance that i beats j is s_i / (s_i + s_j), a fraction."""


def strength(prompt: str, text: str) -> int:
    """A completion's strength: drawn once and for all from what it says."""
    return STRENGTHS[hashlib.sha256(f"{prompt}/{text}".encode()).digest()[0] % len(STRENGTHS)]


def table(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """The reward, in the form that a recipe's `reward: module:function` has: the logarithm of the strength."""
    return [math.log(strength(*pair)) for pair in zip(prompts, completions, strict=True)]


REWARD = f"{Path(__file__).name}:table"


def tokenizer_of(letters: str) -> Any:
    """One token a letter, after PAD and EOS."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([PAD, EOS, *letters])}
    core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.add_special_tokens([PAD, EOS])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=PAD, eos_token=EOS)


def checkpoint(folder: Path, letters: str, *, seed: int, width: int, layers: int, spread: float) -> Checkpoint:
    """A base with random weights; `spread` is their standard deviation, and so says how uneven its distribution is."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tasks.training.model_files import save_checkpoint

    tokenizer = tokenizer_of(letters)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=32, initializer_range=spread,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (folder / "out").mkdir(parents=True)
    save_checkpoint(model, tokenizer, folder / "out", "float32")
    (folder / "manifest.json").write_text(json.dumps({"digest": f"{seed:064d}"}))  # adapters name their base by it
    return Checkpoint(key="base", path=folder / "out")


@dataclass
class World:
    """A base, its prompts, and all completions that there are: N for each prompt."""

    base: Checkpoint
    letters: str
    prompts: list[str]
    completions: list[list[int]]
    truncated: list[bool]
    folder: Path
    seed: int

    @classmethod
    def build(
        cls, folder: Path, *, length: int, letters: str = "abcdef", prompts: Sequence[str] = ("ab",),
        ends: bool = False, seed: int = 0, width: int = 32, layers: int = 1, spread: float = 0.15,
    ) -> World:  # fmt: skip
        """Completions have `length` tokens; or, if EOS `ends` them, as many or fewer."""
        base = checkpoint(folder / "base", letters, seed=seed, width=width, layers=layers, spread=spread)
        tokens = range(len(letters) + 2)
        eos = 1 if ends else None
        whole = [list(ids) for ids in itertools.product(tokens, repeat=length) if eos not in ids]
        ended = [
            [*ids, 1]
            for before in range(length if ends else 0)
            for ids in itertools.product(tokens, repeat=before)
            if eos not in ids
        ]
        truncated = [False] * len(ended) + [True] * len(whole)
        return cls(base, letters, list(prompts), ended + whole, truncated, folder, seed)

    def prompt_ids(self, prompt: str) -> list[int]:
        ids: list[int] = tokenizer_of(self.letters)(prompt)["input_ids"]
        return ids

    def rows(self) -> list[dict[str, Any]]:
        """The prompts as a data stage's rows."""
        return [
            {"row": number, "prompt": prompt, "prompt_ids": self.prompt_ids(prompt)}
            for number, prompt in enumerate(self.prompts, start=1)
        ]

    def data(self, name: str, rows: list[dict[str, Any]], tests: Sequence[dict[str, Any]] = ()) -> Preferences:
        """Rows as the artifact that a stage reads."""
        out = self.folder / name / "out"
        out.mkdir(parents=True)
        for split, given in (("train", rows), ("test", tests)):
            (out / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        return Preferences(key=name, path=out, base=self.base)

    def texts(self) -> list[str]:
        """Each completion as a reward function gets to see it."""
        tokenizer = tokenizer_of(self.letters)
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in self.completions]

    def rewards(self, *, missing_eos_penalty: float = 0.0) -> Tensor:
        """What each completion is worth, (prompts, N) in float64."""
        import torch

        texts = self.texts()
        values = torch.tensor([table([prompt] * len(texts), texts) for prompt in self.prompts], dtype=torch.float64)
        return values - missing_eos_penalty * torch.tensor(self.truncated)

    def logps(self, model: Any) -> Tensor:
        """log p of each completion under a loaded model, (prompts, N) in float64."""
        import torch

        from tasks.training.logps import padded, token_logps

        with torch.no_grad():
            found = []
            for prompt in self.prompts:
                ids = [self.prompt_ids(prompt)] * len(self.completions)
                found.append(token_logps(model, padded(ids, self.completions, 0, "cpu")).double().sum(dim=1))
        return torch.stack(found)

    def logps_of(self, model: Model) -> Tensor:
        """The same for what a stage has left."""
        from tasks.training.models import load_model

        return self.logps(load_model(model, "cpu"))


def optimum(ref_logps: Tensor, rewards: Tensor, kl_coef: float) -> Tensor:
    """log pi* for pi*(y|x) = pi_ref(y|x) exp(r(x, y) / kl_coef) / Z(x), the maximiser of `objective`: (prompts, N)."""
    return (ref_logps + rewards / kl_coef).log_softmax(dim=-1)


def objective(logps: Tensor, ref_logps: Tensor, rewards: Tensor, kl_coef: float) -> float:
    """J = E[r] - kl_coef KL(pi || pi_ref), exactly, in the mean over prompts."""
    return float((logps.exp() * (rewards - kl_coef * (logps - ref_logps))).sum(dim=-1).mean())


def best_objective(ref_logps: Tensor, rewards: Tensor, kl_coef: float) -> float:
    """J* = kl_coef log E_ref[exp(r / kl_coef)]: what no policy exceeds."""
    return float(kl_coef * (ref_logps + rewards / kl_coef).logsumexp(dim=-1).mean())


def variation(logps: Tensor, others: Tensor) -> float:
    """Total variation, half the sum of |p - q|: the largest difference that any event could show; worst prompt."""
    return float(0.5 * (logps.exp() - others.exp()).abs().sum(dim=-1).max())


@dataclass
class Trained:
    """A stage that has run."""

    handle: Any
    metrics: dict[str, float]
    folder: Path

    def points(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


def policies_along(trained: Trained, start: Model) -> Iterator[tuple[int, Any]]:
    """(number, model) for each checkpoint of a stage that trained all weights: rollouts of PPO, steps of the others."""
    import torch

    from tasks.training.models import load_model

    folders = (trained.folder / "work").glob("checkpoint-*")
    for number, folder in sorted((int(folder.name.rsplit("-", 1)[1]), folder) for folder in folders):
        if (folder / "state.pt").exists():
            model = load_model(start, "cpu")
            tensors = torch.load(folder / "state.pt", weights_only=True)["policy"]
            assert not model.load_state_dict(tensors, strict=False).unexpected_keys
        else:
            model = load_model(Checkpoint(key="", path=folder), "cpu")
        yield number, model


def train(uses: str, folder: Path, *, seed: int = 0, save_interval: int = 10**9, **fields: Any) -> Trained:
    """Run a stage, the real one, in `folder`; its checkpoints stay in `folder/work`."""
    stage: Stage = stage_class(uses).model_validate(fields).locate([folder, Path(__file__).parent])
    handle: Artifact = stage.output(uses, folder / "out")
    execution = Execution(device="cpu", threads=1, micro_batch=512, save_interval=save_interval, keep_checkpoints=10**6)
    job = Job.of(stage, uses=uses, key=handle.key, seed=seed, execution=execution, draft=folder)
    return Trained(handle, stage.run(job.context(events=False)), folder)
