"""A merge needs one file of the model in memory at a time, beside the adapter; never the model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tasks.context import Execution
from tasks.job import Job
from tasks.tiny import build_tiny
from tasks.training import model_files
from tasks.training.models import load_model
from tests.conftest import ROOT

MIB = 1 << 20
MEASURED = """
import ctypes, gc, json, sys
from pathlib import Path
from tasks.job import Job

def status(name):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").open() if line.startswith(name))

job = Job.model_validate_json(Path(sys.argv[1]).read_text())
job.stage().run(job.context(events=False))  # libraries that are loaded on the way are no part of it
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
before = status("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
job.stage().run(job.context(events=False))
print(json.dumps(status("VmHWM:") - before))
"""


@pytest.fixture
def sharded(kitchen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A base of some 160 MiB in ten files, whose head is its embeddings."""
    monkeypatch.setattr(model_files, "SHARD", "16MB")
    _, tokenizer = build_tiny("tiny-llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(
        hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=1536, vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id, tie_word_embeddings=True,
    ))  # fmt: skip
    model.save_pretrained(tmp_path / "large")
    tokenizer.save_pretrained(tmp_path / "large")
    return kitchen.make("base", source=str(tmp_path / "large"))


@pytest.fixture
def adapted(kitchen: Any, sharded: Any, tmp_path: Path) -> Any:
    """An adapter on it, with a head that is no longer the embeddings."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"],
                        modules_to_save=["lm_head"], task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(load_model(sharded.handle, "cpu"), config)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.1)
    model.save_pretrained(tmp_path / "adapter")
    return kitchen.make("adopt", base=sharded.handle, source=str(tmp_path / "adapter"))


def test_the_peak_is_near_one_file_and_the_index_names_what_was_added(kitchen, sharded, adapted, tmp_path):
    files = sorted(sharded.handle.path.glob("*.safetensors"))
    size, largest = sum(file.stat().st_size for file in files), max(file.stat().st_size for file in files)
    assert size > 140 * MIB and largest < 20 * MIB
    data = kitchen.make("data", base=sharded.handle, form="demonstrations", source="instructions.jsonl", limit=32)
    stage = kitchen.stage("merge", adapter=adapted.handle, data=data.handle, prompts=4)
    (draft := tmp_path / "draft").mkdir()
    execution = Execution(threads=1, device="cpu")
    job = Job.of(stage, uses="merge", key="k" * 8, seed=0, execution=execution, draft=draft)
    (draft / "job.json").write_text(job.model_dump_json())
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(draft / "job.json")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = json.loads(done.stdout.splitlines()[-1])
    assert peak < 5 * largest, f"{peak / MIB:.0f} MiB of a model of {size / MIB:.0f}"
    assert [file.name for file in sorted((draft / "out").glob("*.safetensors"))] == [file.name for file in files]
    merged, ids = AutoModelForCausalLM.from_pretrained(draft / "out").eval(), torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, load_model(adapted.handle, "cpu")(ids).logits, atol=1e-4)
    assert not torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)
