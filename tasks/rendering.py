"""Text to token ids, once and for all stages: the prompt as the model will see it, the completion up to its EOS.

Everything that trains or scores reads these ids; nothing is rendered a second time. A completion is cut right after
its end-of-sequence token, because templates like to add a newline that no sampled completion ever has.
"""

from __future__ import annotations

from typing import Any, Literal

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.rows import Row, RowError

Template = Literal["chat", "alpaca"]

ALPACA_PREAMBLE = "Below is an instruction that describes a task"
ALPACA_PLAIN = ". Write a response that appropriately completes the request."
ALPACA_INPUT = (
    ", paired with an input that provides further context. Write a response that appropriately completes the request."
)


class Renderer:
    """Renders rows with the chat template of a checkpoint's tokenizer, or as `### Instruction:` text."""

    def __init__(self, base: Checkpoint, template: Template) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(base.path)
        self.template = template
        if self.tokenizer.eos_token_id is None:
            raise ModelError("tokenizer: wanted an end-of-sequence token, got none; without it nothing ever stops")
        if template == "chat" and not self.tokenizer.chat_template:
            raise ModelError(
                "template: wanted the base's chat template, but its tokenizer has none; "
                "set `template: alpaca` or take an instruct model"
            )

    def prompt_ids(self, row: Row) -> list[int]:
        """The ids of everything before the completion."""
        return self._encode(self.prompt_text(row))

    def completion_ids(self, row: Row, completion: str) -> list[int]:
        """The completion's ids, ending with EOS; raises RowError if the template doesn't write one."""
        if str(self.tokenizer.eos_token) in completion.rstrip().removesuffix(self.tokenizer.eos_token):
            raise RowError(f"its completion holds the EOS {self.tokenizer.eos_token!r} as text; all after it would go")
        text = self._completion_text(row, completion)
        ids = self._encode(text)
        eos = self.tokenizer.eos_token_id
        if eos not in ids:
            raise RowError(
                f"the template ends a completion with {text[-20:]!r}, not with the tokenizer's EOS "
                f"{self.tokenizer.eos_token!r}: a model trained on it would never stop"
            )
        return ids[: ids.index(eos) + 1]

    def prompt_text(self, row: Row) -> str:
        """Everything before the completion, as text."""
        if self.template == "alpaca":
            return _alpaca(row)
        return self._chat(row, add_generation_prompt=True)

    def _completion_text(self, row: Row, completion: str) -> str:
        if self.template == "alpaca":
            return completion + str(self.tokenizer.eos_token)
        prompt = self.prompt_text(row)
        whole = self._chat(row, answer=completion)
        if not whole.startswith(prompt):
            raise RowError("the chat template renders the prompt differently once an answer follows it")
        return whole[len(prompt) :]

    def _chat(self, row: Row, answer: str | None = None, add_generation_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        messages = [{"role": role, "content": content} for role, content in row.history]
        messages.append({"role": "user", "content": row.prompt})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise RowError(f"the base's chat template refuses it: {error}") from error
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _alpaca(row: Row) -> str:
    if row.history:
        raise RowError("has several turns, which the alpaca template can't write; set `template: chat`")
    if row.input:
        return (
            f"{ALPACA_PREAMBLE}{ALPACA_INPUT}\n\n### Instruction:\n{row.instruction}\n\n"
            f"### Input:\n{row.input}\n\n### Response:\n"
        )
    return f"{ALPACA_PREAMBLE}{ALPACA_PLAIN}\n\n### Instruction:\n{row.instruction}\n\n### Response:\n"
