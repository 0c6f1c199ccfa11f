"""What users are promised, through the command they type. Each test starts from a finished run of `tiny.yaml`."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

RAN_AFTER_DPO = {"dpo", "merge", "eval_dpo"}


def test_the_first_run_makes_every_stage_and_says_so(first, shop):
    assert set(first.statuses.values()) == {"ran"}
    assert set(first.json) == {
        "recipe", "run_id", "flow_run_id", "mlflow_run_id", "stages", "status", "started", "seconds", "tokens"
    }  # fmt: skip
    for stage in first.json["stages"]:
        assert set(stage) == {
            "name", "uses", "key", "status", "seconds", "path", "digest", "metrics", "mlflow_run_id", "error", "inputs"
        }  # fmt: skip
        assert Path(stage["path"]).is_relative_to(shop.home) and stage["error"] is None
        assert stage["metrics"]["cost/seconds"] > 0 and len(stage["mlflow_run_id"]) == 32


def test_the_second_run_is_cached_throughout_with_the_same_bytes(first, again):
    assert set(again.statuses.values()) == {"cached"}
    assert [stage["digest"] for stage in again.json["stages"]] == [stage["digest"] for stage in first.json["stages"]]
    assert again.json["run_id"] != first.json["run_id"]


def test_another_beta_runs_dpo_and_what_follows_from_it(first, another_beta):
    assert {name for name, status in another_beta.statuses.items() if status == "ran"} == RAN_AFTER_DPO
    assert another_beta.stage("dpo")["digest"] != first.stage("dpo")["digest"]


def test_nothing_runs_after_a_move_a_rename_or_another_way_of_running(first, shop, project):
    recipe = project / "pipelines" / "renamed.yaml"
    (project / "pipelines" / "tiny.yaml").rename(recipe)
    answer = shop.align(
        "run", str(recipe), "--exec", "save_interval=7", "--exec", "micro_batch=2", "--json",
        cwd=project, PYTHONHASHSEED="17",
    )  # fmt: skip
    assert set(answer.statuses.values()) == {"cached"}


def test_one_changed_byte_of_data_runs_what_depends_on_it(first, shop, project):
    data = project / "pipelines" / "quickstart_data" / "instructions.jsonl"
    data.write_text(data.read_text().replace("Name", "name", 1).replace("about", "About", 1))
    plan = shop.align("plan", str(project / "pipelines" / "tiny.yaml"), "--json").json
    runs = {stage["name"]: stage["reason"] for stage in plan["stages"] if not stage["cached"]}
    assert set(runs) == {"instructions", "sft", "eval_sft", "ppo", "merge_ppo", "eval_ppo"} | RAN_AFTER_DPO
    assert "content of source changed" in runs["instructions"] and "instructions" in runs["sft"]


def test_two_recipes_that_share_a_prefix_share_its_stages(first, shop, tmp_path):
    text = (
        Path("pipelines/tiny.yaml").read_text().replace("quickstart_data/", f"{Path.cwd()}/pipelines/quickstart_data/")
    )
    head = text[: text.index("  reward:")].replace("  sft:\n", "  tuned:\n")
    (tmp_path / "other.yaml").write_text(
        head + "  ipo: {uses: dpo, policy: tuned, data: pairs, beta: 0.9, eval_rows: 0}\n"
    )
    answer = shop.align("run", str(tmp_path / "other.yaml"), "--json")
    assert answer.statuses == {
        "base": "cached", "instructions": "cached", "pairs": "cached", "tuned": "cached", "ipo": "ran"
    }  # fmt: skip
    assert answer.stage("tuned")["digest"] == first.stage("sft")["digest"]


def test_an_adapter_is_branched_from_by_where_mlflow_has_it(first, shop, tmp_path):
    """A stage's run, or a registered version under any name: one key, and the bytes that MLflow was given."""
    from mlflow.tracking import MlflowClient

    run, data = first.stage("sft")["mlflow_run_id"], Path.cwd() / "pipelines" / "quickstart_data"
    (tmp_path / "theirs.yaml").write_text(f"""
stages:
  base: {{uses: base, source: "builtin:tiny-llama"}}
  pairs: {{uses: data, base: base, form: preferences, source: {data}/preferences.jsonl, limit: 32}}
  theirs: {{uses: adopt, base: base, source: "runs:/{run}/output"}}
  dpo: {{uses: dpo, policy: theirs, data: pairs, max_steps: 2, eval_rows: 0}}
""")
    answer = shop.align("run", str(tmp_path / "theirs.yaml"), "--json")
    assert answer.status == 0, answer.err
    assert answer.stage("theirs")["digest"] == first.stage("sft")["digest"]
    client = MlflowClient(f"sqlite:///{shop.home}/mlflow.db")
    client.create_registered_model("theirs")
    client.create_model_version("theirs", f"runs:/{run}/output", run)
    client.set_registered_model_alias("theirs", "good", "1")
    for source in ("models:/theirs/1", "models:/theirs@good"):
        plan = shop.align("plan", str(tmp_path / "theirs.yaml"), f"theirs.source={source}", "--json")
        assert all(stage["cached"] for stage in plan.json["stages"]), plan.out
    gone = shop.align("plan", str(tmp_path / "theirs.yaml"), "theirs.source=models:/theirs/2")
    assert gone.status == 2 and "theirs.source: models:/theirs/2 can't be had from MLflow at sqlite:" in gone.err


def test_a_damaged_output_is_noticed_and_made_again(first, shop):
    weights = Path(first.stage("sft")["path"]) / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.unlink()
    weights.write_bytes(damaged)
    answer = shop.align("run", "pipelines/tiny.yaml", "--json")
    assert {name for name, status in answer.statuses.items() if status == "ran"} == {"sft"}
    assert "the content of adapter_model.safetensors has changed" in answer.err
    assert answer.stage("sft")["digest"] == first.stage("sft")["digest"]


def until_there_is_a_checkpoint(shop, process, uses="dpo"):
    """Waits; gives the job file that names the trainer."""
    deadline = time.monotonic() + 180
    while not (found := shop.checkpoints(uses)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    return str(found[0].parents[1] / "job.json")


def processes_with(text):
    return [path for path in Path("/proc").glob("[0-9]*") if text in cmdline(path)]


@pytest.mark.slow  # the faults of every `make test` kill DPO's trainer and its flow too
@pytest.mark.parametrize("longer", ["dpo.epochs=4", "ppo.total_episodes=256"])
def test_a_run_killed_while_it_trains_goes_on_to_the_same_bytes(first, shop, tmp_path, longer):
    uses = longer.split(".")[0]
    words = ("run", "pipelines/tiny.yaml", longer, "--exec", "save_interval=2", "--until", uses)
    undisturbed = shop.align(*words, "--json", ALIGN_HOME=str(tmp_path / "undisturbed"))
    process = shop.start(*words, PREFECT_API_URL="")
    trainer = until_there_is_a_checkpoint(shop, process, uses)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # ends only when Prefect's server, which shares the pipes, is gone too
    assert not processes_with(trainer), "an orphan trains on"
    answer = shop.align(*words, "--json")
    assert answer.stage(uses)["status"] == "resumed"
    assert answer.stage(uses)["digest"] == undisturbed.stage(uses)["digest"]
    assert answer.stage("sft")["status"] == "cached"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)], ids=["Ctrl-C", "SIGTERM"]
)
def test_asked_to_end_it_saves_leaves_no_process_and_ends_with_130(first, shop, number):
    """No checkpoint is due: the one that is there was made for this."""
    seldom = ("--exec", "save_interval=1000")
    words = ("run", "pipelines/tiny.yaml", f"dpo.epochs={10 + number}", "--until", "dpo", *seldom)
    process = shop.start(*words)
    deadline = time.monotonic() + 180
    while not (points := list((shop.home / "drafts").glob("dpo-*/metrics.jsonl"))) or not points[0].read_text():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    draft = points[0].parent
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again" in err
    assert not processes_with(str(draft / "job.json"))
    assert len(list((draft / "work").glob("checkpoint-*/manifest.json"))) == 1
    record = json.loads(max((shop.home / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime).read_text())
    assert {stage["name"]: stage["status"] for stage in record["stages"]} == {
        "base": "cached", "instructions": "cached", "pairs": "cached", "sft": "cached", "dpo": "planned"
    }  # fmt: skip
    assert shop.align(*words, "--json").stage("dpo")["status"] == "resumed"


GREEDY = """
from pathlib import Path

def score(prompts, completions):
    rollouts = Path(__file__).with_suffix(".txt")
    with rollouts.open("a") as file:
        file.write("called\\n")
    if rollouts.read_text().count("called") == 3:
        raise MemoryError("this stands for a pass that is too large")
    return [len(text) for text in completions]
"""


def test_out_of_memory_it_goes_on_with_half_the_micro_batch_and_the_manifest_says_so(first, shop, project):
    (project / "pipelines" / "greedy.py").write_text(GREEDY)
    recipe = str(project / "pipelines" / "tiny.yaml")
    words = ("run", recipe, "ppo.reward=greedy:score", "ppo.eval_rows=0", "--until", "ppo", "--exec", "save_interval=1")
    answer = shop.align(*words, "--json")
    assert answer.status == 1
    assert "out of memory: peak" in answer.err and "try --exec micro_batch=4 (it was 8)" in answer.err
    (project / "pipelines" / "greedy.txt").unlink()
    answer = shop.align(*words, "--json", "--exec", "retries=1")
    assert answer.status == 0, answer.err
    assert "goes on with micro_batch 4" in answer.err and "going on after" in answer.err
    manifest = json.loads((Path(answer.stage("ppo")["path"]).parent / "manifest.json").read_text())
    assert "within rounding, not byte for byte" in manifest["remarks"][0]


def cmdline(process: Path) -> str:
    try:
        return (process / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def test_a_bad_row_ends_with_status_2_before_anything_trains_and_keeps_finished_work(first, shop, project):
    data = project / "pipelines" / "quickstart_data" / "preferences.jsonl"
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3]["rejected"] = rows[3]["chosen"]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    answer = shop.align("run", str(project / "pipelines" / "tiny.yaml"), "--json")
    assert answer.status == 2
    assert "preferences.jsonl: row 4: fields 'chosen' and 'rejected' are identical" in answer.err
    assert answer.statuses["pairs"] == "failed" and "ran" not in answer.statuses.values()
    assert answer.statuses["base"] == "cached"


def test_runs_show_and_compare_answer_from_what_is_there(first, shop, tmp_path):
    run = first.json["run_id"]
    assert run in shop.align("runs").out
    assert shop.align("show", run, "--json").json == first.json
    picture = tmp_path / "chart.png"
    compared = shop.align("compare", run, "--json", "--chart", str(picture)).json
    assert [policy["name"] for policy in compared["policies"]] == ["base", "sft", "dpo", "ppo"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    plan = {line["name"]: line for line in shop.align("plan", "pipelines/tiny.yaml", "--json").json["stages"]}
    for policy, made in zip(compared["policies"][1:], ("sft", "dpo", "ppo"), strict=True):
        assert policy["trained_by"]["key"] == first.stage(made)["key"]
        assert policy["costs"]["model/trainable"] == plan[made]["trainable"]
        assert policy["costs"]["cost/tokens"] == first.stage(made)["metrics"]["cost/tokens"]
    assert [policy["sampling"] for policy in compared["policies"]] == ["no", "no", "no", "while training"]
    one = shop.align("compare", f"{run}:eval_sft", first.stage("eval_dpo")["key"][:12], "--json").json
    assert len(one["policies"]) == 2
    linked = shop.align("compare", run, "--link", "--json").json["links"]
    evaluations = [first.stage(name)["mlflow_run_id"] for name in ("eval_base", "eval_sft", "eval_dpo", "eval_ppo")]
    assert all(one in linked["MLflow: the evaluations"] for one in evaluations)
    assert all(first.stage(name)["mlflow_run_id"] in linked["MLflow: the trainings"] for name in ("sft", "dpo", "ppo"))
    opened = shop.align("compare", run, "--open")
    assert opened.status == 0 and linked["MLflow: the evaluations"] in opened.out
    assert "align up" in opened.err, "no server shows this page yet"
    unknown = shop.align("show", "nothing")
    assert unknown.status == 2 and "align runs" in unknown.err


def test_what_the_stages_said_and_what_they_took_is_kept(first, shop):
    run = first.json["run_id"]
    assert json.loads((shop.home / "runs" / run / "facts.json").read_text())["ui"] is None, "no server has its page"
    assert first.json["status"] == "finished" and first.json["tokens"] > 0
    assert first.stage("dpo")["inputs"] == {"policy": "sft", "data": "pairs"}
    said = shop.align("logs", run).out
    assert " base: starts\n" in said and " eval_dpo: ran (" in said
    own = shop.align("logs", run, "sft").out.splitlines()
    assert all(" sft: " in line for line in own) and any(" steps  loss " in line for line in own)
    assert "\n│   ├── dpo " in shop.align("show", run).out


def test_chat_answers_with_an_adapter_and_with_a_merged_folder(first, shop):
    for what in (f"{first.json['run_id']}:dpo", first.stage("merge")["path"]):
        answer = shop.align("chat", what, "--max-new-tokens", "4", given="hello\n")
        assert answer.status == 0, answer.err
    refused = shop.align("chat", f"{first.json['run_id']}:reward")
    assert refused.status == 2 and "writes text" in refused.err
