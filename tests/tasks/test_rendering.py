from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from artifacts.errors import ModelError
from artifacts.kinds import Checkpoint
from tasks.rendering import Renderer
from tasks.rows import Row, RowError

ROW = Row(row=1, history=(("system", "S"),), instruction="Q", input="I")
PLAIN = Row(row=1, instruction="Q")


def test_a_prompt_is_what_the_chat_template_makes_of_it(tiny_llama: Checkpoint) -> None:
    assert Renderer(tiny_llama, "chat").prompt_text(ROW) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ\n\nI<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_alpaca_text_is_the_one_that_alpaca_was_trained_on(tiny_gpt2: Checkpoint) -> None:
    renderer = Renderer(tiny_gpt2, "alpaca")
    assert renderer.prompt_text(PLAIN) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nQ\n\n### Response:\n"
    )
    assert renderer.prompt_text(Row(row=1, instruction="Q", input="I")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nQ\n\n### Input:\nI\n\n### Response:\n"
    )


@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("completion", ["Yes.", "Yes.\n", "é → Ā 漢", "Yes.<|im_end|>"])
def test_a_completion_ends_with_eos_exactly_once(tiny_llama: Checkpoint, template: str, completion: str) -> None:
    renderer = Renderer(tiny_llama, template)  # type: ignore[arg-type]
    ids, tokenizer = renderer.completion_ids(PLAIN, completion), renderer.tokenizer
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == completion.removesuffix("<|im_end|>")


def test_prompt_and_completion_are_the_template_of_the_whole_conversation(tiny_llama: Checkpoint) -> None:
    renderer = Renderer(tiny_llama, "chat")
    whole = renderer.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], tokenize=True, return_dict=False
    )
    newline = renderer.tokenizer("\n")["input_ids"]
    assert renderer.prompt_ids(PLAIN) + renderer.completion_ids(PLAIN, "A") + newline == whole


def test_an_eos_within_a_completion_is_refused_since_the_rest_would_be_lost(tiny_llama: Checkpoint) -> None:
    with pytest.raises(RowError, match=r"holds the EOS '<\|im_end\|>' as text"):
        Renderer(tiny_llama, "chat").completion_ids(PLAIN, "Yes.<|im_end|> And more.")


def test_the_alpaca_text_has_no_place_for_several_turns(tiny_gpt2: Checkpoint) -> None:
    with pytest.raises(RowError, match="several turns"):
        Renderer(tiny_gpt2, "alpaca").prompt_ids(ROW)


def test_a_base_without_a_chat_template_says_what_to_do(tiny_gpt2: Checkpoint) -> None:
    with pytest.raises(ModelError, match="its tokenizer has none; set `template: alpaca`"):
        Renderer(tiny_gpt2, "chat")


def with_template(base: Checkpoint, folder: Path, template: str | None, eos: bool = True) -> Checkpoint:
    shutil.copytree(base.path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    if not eos:
        tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    return Checkpoint(key="k", path=folder)


def test_a_template_that_never_writes_eos_is_refused(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    text = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    base = with_template(tiny_llama, tmp_path / "base", text)
    with pytest.raises(RowError, match="not with the tokenizer's EOS"):
        Renderer(base, "chat").completion_ids(PLAIN, "A")


def test_a_template_that_refuses_a_row_says_why(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    text = "{{ raise_exception('System role not supported') }}"
    base = with_template(tiny_llama, tmp_path / "base", text)
    with pytest.raises(RowError, match="chat template refuses it: System role not supported"):
        Renderer(base, "chat").prompt_ids(ROW)


def test_a_template_that_changes_the_prompt_after_the_fact_is_refused(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    text = "{{ messages | length }}{{ messages[-1]['content'] }}<|im_end|>"
    base = with_template(tiny_llama, tmp_path / "base", text)
    with pytest.raises(RowError, match="renders the prompt differently"):
        Renderer(base, "chat").completion_ids(PLAIN, "A")


def test_a_tokenizer_without_eos_is_refused(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    base = with_template(tiny_llama, tmp_path / "base", None, eos=False)
    with pytest.raises(ModelError, match="wanted an end-of-sequence token, got none"):
        Renderer(base, "alpaca")
