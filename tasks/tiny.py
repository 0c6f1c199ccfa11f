"""Two-layer models made in code, with byte-level tokenizers: for tests and for trying a recipe in seconds."""

from __future__ import annotations

from typing import Any

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
    " + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT = 1024
WIDTH = 64

BYTES = 256
"""Tokens of each vocabulary beside its special ones."""
TINY = {
    "tiny-llama": ["<|pad|>", "<|im_start|>", "<|im_end|>"],
    "tiny-gpt2": ["<|endoftext|>"],
}
"""The special tokens of each: one with a chat template, and one like GPT-2, with neither template nor PAD."""
SIZES: dict[str, dict[str, Any]] = {
    "tiny-llama": {
        "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 2 * WIDTH, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
    },
    "tiny-gpt2": {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
}  # fmt: skip
"""What each configuration says of its size, but for the vocabulary."""


def tiny_config(name: str) -> dict[str, Any]:
    """What decides the shape of `name`, as its config.json will have it; no torch."""
    return {"model_type": name.removeprefix("tiny-"), "vocab_size": len(TINY[name]) + BYTES, **SIZES[name]}


def build_tiny(name: str) -> tuple[Any, Any]:
    """A model with weights drawn from seed 0, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    tokenizer = _tokenizer(name)
    kinds: dict[str, Any] = {"tiny-llama": LlamaConfig, "tiny-gpt2": GPT2Config}
    config = kinds[name](
        **SIZES[name], vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer


def _tokenizer(name: str) -> Any:
    """One token a byte, and the special tokens first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = TINY[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=specials[-1],
        additional_special_tokens=specials,
        model_max_length=CONTEXT,
    )
    if name == "tiny-llama":
        tokenizer.pad_token = "<|pad|>"
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
