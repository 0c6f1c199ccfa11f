"""Completions from a policy, in batches of like prompt length."""

from __future__ import annotations

from typing import Any

from tasks.context import Context
from tasks.training.plain_model import plain_sampling
from tasks.training.rows import batches


def sample(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], *,
    max_new_tokens: int, temperature: float, batch_size: int, ctx: Context,
) -> list[dict[str, Any]]:  # fmt: skip
    """One completion a row, in the rows' order.

    Each result has `row`, `prompt`, `prompt_ids`, `completion_ids` (up to and with EOS), `completion` (text without
    special tokens) and `truncated` (no EOS within `max_new_tokens`). No hidden warpers: greedy, or the softmax at
    `temperature` itself.
    """
    lengths = [len(row["prompt_ids"]) for row in rows]
    results: list[dict[str, Any]] = [{} for _ in rows]
    settings = _settings(tokenizer, max_new_tokens, temperature)
    done = 0
    with merged(model), plain_sampling(model, tokenizer):
        for batch in batches(rows, lengths, batch_size):
            completions = _generate(model, [row["prompt_ids"] for _, row in batch], tokenizer, settings, ctx)
            for (position, row), ids in zip(batch, completions, strict=True):
                results[position] = _result(row, ids, tokenizer)
            done += len(batch)
            ctx.progress(done, len(rows), "completions")
    return results


def _settings(tokenizer: Any, max_new_tokens: int, temperature: float) -> Any:
    from transformers import GenerationConfig

    sampled = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        do_sample=False if not sampled else sampled.pop("do_sample"), **sampled,
    )  # fmt: skip


def _generate(model: Any, prompts: list[list[int]], tokenizer: Any, settings: Any, ctx: Context) -> list[list[int]]:
    """The ids after each prompt, cut after the first EOS."""
    import torch

    width = max(len(prompt) for prompt in prompts)
    ids = [[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    made = model.generate(
        input_ids=torch.tensor(ids, device=ctx.device()), attention_mask=torch.tensor(mask, device=ctx.device()),
        generation_config=settings,
    )  # fmt: skip
    return [until_eos(row, tokenizer.eos_token_id) for row in made[:, width:].tolist()]


def until_eos(ids: list[int], eos: int) -> list[int]:
    """`ids` up to and with the first EOS, or all of them."""
    return ids[: ids.index(eos) + 1] if eos in ids else ids


def _result(row: dict[str, Any], ids: list[int], tokenizer: Any) -> dict[str, Any]:
    return {
        "row": row["row"], "prompt": row["prompt"], "prompt_ids": row["prompt_ids"], "completion_ids": ids,
        "completion": tokenizer.decode(ids, skip_special_tokens=True).strip(),
        "truncated": tokenizer.eos_token_id not in ids,
    }  # fmt: skip


class merged:  # noqa: N801  (reads as a context manager)
    """While sampling, the adapter sits in the weights: one matrix product a layer instead of three.

    Only where they are float32: in half precision, or in 4 bits, the sum would be rounded to another policy. Afterwards
    the weights are copied back, never computed back, so that not a bit of the base moves.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.saved: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        if hasattr(self.model, "peft_config"):
            import torch
            from peft.tuners.tuners_utils import BaseTunerLayer

            for module in self.model.modules():
                if isinstance(module, BaseTunerLayer):
                    layer: Any = module
                    weight = layer.get_base_layer().weight.data
                    if weight.dtype == torch.float32:
                        self.saved.append((layer, weight.clone()))
                        layer.merge()

    def __exit__(self, *error: object) -> None:
        for module, weight in self.saved:
            module.get_base_layer().weight.data.copy_(weight)
            module.merged_adapters.clear()
