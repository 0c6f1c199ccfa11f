"""`align chat`: talk to a stage's model or to any model folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from artifacts.errors import UserError
from artifacts.kinds import Adapter, Checkpoint, Model, revive
from flows.commands.comparing import find_output


def chat(what: str, *, temperature: float, max_new_tokens: int) -> int:
    """Read turns from standard input until it ends; `/reset` forgets the conversation."""
    model_handle = resolve(what)
    from transformers import TextStreamer

    from tasks.training.models import base_tokenizer, load_model

    tokenizer, model = base_tokenizer(model_handle), load_model(model_handle, "cpu")
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    if sys.stdin.isatty():
        print("Ctrl-D ends, /reset forgets the conversation.", file=sys.stderr)
    history: list[dict[str, str]] = []
    while (line := _ask()) is not None:
        if line.strip() == "/reset":
            history = []
        elif line.strip():
            history.append({"role": "user", "content": line.strip()})
            answer = _answer(model, tokenizer, history, streamer, temperature, max_new_tokens)
            history.append({"role": "assistant", "content": answer})
    return 0


def resolve(what: str) -> Model:
    """The model that `what` names; raises UserError for something that doesn't generate text."""
    if (folder := Path(what)).is_dir():
        if not (folder / "config.json").exists():
            raise UserError(f"{what}: wanted a model folder (with config.json and safetensors)")
        return Checkpoint(key="", path=folder)
    out = find_output(what)
    if (out / "adapter_config.json").exists() and not (out / "head.safetensors").exists():
        job = json.loads((out.parent / "job.json").read_text())
        described = next(iter(job["inputs"].values()))
        made = [revive(inputs) for inputs in job["inputs"].values()]
        models = [artifact for artifact in made if isinstance(artifact, Model)]
        if not models:
            raise UserError(f"{what}: its job names no base ({described})")
        base = models[0].base if isinstance(models[0], Adapter) else models[0]
        assert isinstance(base, Checkpoint)
        return Adapter(key="", path=out, base=base)
    if (out / "config.json").exists() and not (out / "head.safetensors").exists():
        return Checkpoint(key="", path=out)
    raise UserError(f"{what}: wanted a stage that makes a model which writes text, such as sft, dpo or merge")


def _ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def _answer(
    model: Any,
    tokenizer: Any,
    history: list[dict[str, str]],
    streamer: Any,
    temperature: float,
    max_new_tokens: int,
) -> str:
    import torch

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(history, tokenize=False, add_generation_prompt=True)
    else:
        text = f"### Instruction:\n{history[-1]['content']}\n\n### Response:\n"
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    sampled: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=max_new_tokens, streamer=streamer, **sampled)
    return str(tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()
