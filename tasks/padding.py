"""The PAD token of a base: never its EOS, which would be masked away with the padding and go unlearned.

It is chosen among the tokens that exist, so that no embedding is resized.
"""

from __future__ import annotations

import json
from typing import Any

from artifacts.errors import ModelError

UNUSED_TOKENS = (
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<|finetune_right_pad_id|>",
    "<|endoftext|>",
    "<unk>",
)
NUL_BYTE = "Ā"
"""The byte 0 as byte-level vocabularies spell it: in no text that anyone trains on."""
NUL_FALLBACK = "<0x00>"
"""The same in byte-fallback vocabularies."""


def choose_pad(tokenizer: Any, wanted: str | None) -> None:
    """Give the tokenizer a PAD that is not its EOS; raises ModelError if it has no token to spare."""
    vocabulary = tokenizer.get_vocab()
    if wanted is not None and wanted not in vocabulary:
        raise ModelError(f"pad_token: {wanted!r} is not in the vocabulary")
    if wanted is not None and wanted == tokenizer.eos_token:
        raise ModelError(f"pad_token: {wanted!r} is the EOS, which must not be padded with: it would go unsupervised")
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    given = [tokenizer.pad_token] if tokenizer.pad_token is not None else []
    special = [token for token in tokenizer.all_special_tokens if token not in ("<unk>",)]
    for token in [wanted] if wanted else [*given, *UNUSED_TOKENS, *special, NUL_FALLBACK]:
        if token in vocabulary and token not in taken:
            tokenizer.pad_token = token
            return
    if NUL_BYTE in vocabulary:
        _respell(tokenizer, NUL_BYTE, UNUSED_TOKENS[0])
        tokenizer.pad_token = UNUSED_TOKENS[0]
        return
    raise ModelError("pad_token: every special token has a use already; name an existing token that no text contains")


def _respell(tokenizer: Any, old: str, new: str) -> None:
    """Spell a token of the vocabulary otherwise; its id stays.

    A special token is found in text by its spelling, so "Ā" as PAD would take the letter out of every "Āboli".
    """
    from tokenizers import Tokenizer

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in core["model"].get("merges", ())]
    if any(old in merge for merge in merges):
        raise ModelError("pad_token: no token is unused; name an existing token that no text contains")
    core["model"]["vocab"][new] = core["model"]["vocab"].pop(old)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(core))
