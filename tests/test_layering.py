"""The four folders know each other in one direction only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tasks.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("artifacts", "tasks", "pipelines", "flows")
SOURCES = sorted(
    path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if "quickstart_data" not in path.parts
)


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}:{node.lineno}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_module_imports_only_from_its_own_layer_and_those_below(path: Path) -> None:
    above = LAYERS[LAYERS.index(path.relative_to(ROOT).parts[0]) + 1 :]
    assert [name for name in imports(path) if name.split(".")[0] in above] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "flows"], ids=named)
def test_prefect_and_mlflow_are_imported_only_under_flows(path: Path) -> None:
    assert {"prefect", "mlflow"}.isdisjoint(name.split(".")[0] for name in imports(path))


STAGE_MODULES = sorted({place.split(":")[0] for place in STAGES.values()})


@pytest.mark.parametrize("module", STAGE_MODULES)
def test_a_stage_knows_no_other_stage(module: str) -> None:
    others = [other for other in STAGE_MODULES if other != module]
    path = ROOT / (module.replace(".", "/") + ".py")
    assert set(imports(path)).isdisjoint(others)


@pytest.mark.parametrize(
    "path", [path for path in SOURCES if path.is_relative_to(ROOT / "tasks" / "training")], ids=named
)
def test_what_stages_share_knows_no_stage(path: Path) -> None:
    assert set(imports(path)).isdisjoint(STAGE_MODULES)


def test_no_module_in_flows_hides_another_when_flows_is_first_on_the_path() -> None:
    taken = set(sys.stdlib_module_names) | set(LAYERS) | set(metadata.packages_distributions())
    assert {path.stem for path in (ROOT / "flows").rglob("*.py")} & taken <= {"__init__"}


@pytest.mark.parametrize("name", LAYERS)
def test_our_package_names_belong_to_no_other_distribution(name: str) -> None:
    assert set(metadata.packages_distributions().get(name, [])) <= {"alignflow"}


def test_every_module_that_ships_is_in_a_listed_package() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert {".".join(path.relative_to(ROOT).parent.parts) for path in SOURCES} == set(listed)


def test_a_plan_imports_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from flows.cli import main\n"
        "status = main(['plan', 'pipelines/tiny.yaml', '--json'])\n"
        "heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'mlflow', 'prefect', 'matplotlib', 'numpy'}\n"
        "print(status, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"ALIGN_HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == "0 []", done.stderr
