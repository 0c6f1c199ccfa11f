"""`align compare`, and finding what a user names: a run, a stage of a run, or the beginning of a key."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import UserError
from artifacts.manifest import Manifest
from artifacts.store import Store
from flows.commands.comparison_text import full
from flows.commands.summary import policies_of
from flows.home import align_home
from flows.links import LOCAL, mlflow_server, open_in_browser
from flows.records import SHORTEST_KEY, find_record, find_stage
from flows.tracking.compare_links import compare_links
from pipelines.comparison.charts import chart
from pipelines.comparison.comparison import Comparisons
from pipelines.comparison.frontier import frontier
from pipelines.comparison.page import page
from pipelines.comparison.policies import Compared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flows.tracking.mlflow_server import MlflowServer

PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a comparison, beside the answer."""

    chart: Path | None = None
    frontier: Path | None = None
    html: Path | None = None
    completions: int = 0
    link: bool = False
    """Say where MLflow's own pages compare the same."""
    open: bool = False
    """And open the first of them."""

    def check(self) -> None:
        """Raise UserError for a file that can't be written, before anything is read."""
        for option, file in (("--chart", self.chart), ("--frontier", self.frontier), ("--html", self.html)):
            if file is None:
                continue
            if not file.resolve().parent.is_dir() or file.is_dir():
                raise UserError(f"{option}: wanted a file in a folder that is there, got {file}")
            if not os.access(file if file.exists() else file.resolve().parent, os.W_OK):
                raise UserError(f"{option}: wanted a file that you may write, got {file}")
            if option != "--html" and file.suffix not in PICTURES:
                raise UserError(f"{option}: wanted a file named {', '.join(f'*{end}' for end in PICTURES)}, got {file}")
        if self.completions < 0:
            raise UserError(f"--completions: wanted 0 or more, got {self.completions}")


def compare(what: Sequence[str], wanted: Wanted, *, as_json: bool) -> int:
    """Print the evaluated policies of runs and stages, compared, and write what else is wanted.

    A run by itself is shown in parts where its policies were evaluated differently; between things that were named one
    by one that is an error.
    """
    wanted.check()
    policies = [policy for name in what for policy in _policies(name, prefix=len(what) > 1)]
    if not policies:
        raise UserError(f"{' '.join(what)}: no evaluate stage there has finished; its recipe may have none")
    comparisons = Comparisons.of(policies, Store(align_home()), alike=len(what) > 1)
    server = _mlflow() if wanted.link or wanted.open else None
    links = compare_links(comparisons, mlflow_server() or server.shown, server.place_of) if server else {}
    try:
        _save(comparisons, wanted, " ".join(map(_title, what)), links)
    except OSError as error:
        raise UserError(
            f"{error.filename or 'page or picture'}: can't be written ({error.strerror}); give another file"
        ) from error
    if as_json:
        print(json.dumps({**comparisons.as_dict(), "links": links}))
    else:
        print(full(comparisons, wanted.completions))
        for name, link in links.items():
            print(f"\n{name}: {link}")
    if server is not None and _can_be_opened(server, links) and wanted.open:
        open_in_browser(next(iter(links.values())))
    return 0


def _save(comparisons: Comparisons, wanted: Wanted, title: str, links: dict[str, str]) -> None:
    first = comparisons.each[0]
    _save_picture(wanted.chart, chart(first.policies) if wanted.chart else None)
    _save_picture(wanted.frontier, frontier(first) if wanted.frontier else None)
    if wanted.html is not None:
        wanted.html.write_text(page(comparisons, title, links))


def _save_picture(file: Path | None, figure: Figure | None) -> None:
    if file is None:
        return
    if figure is None:
        print(f"{file}: not written: no two of these policies have the figures for it", file=sys.stderr)
    else:
        figure.savefig(file, dpi=120)


def _mlflow() -> MlflowServer:
    """MLflow's server or database; raises UserError if it can't be reached."""
    from flows.tracking.mlflow_server import MlflowServer

    return MlflowServer.reach(align_home())


def _can_be_opened(server: MlflowServer, links: Mapping[str, str]) -> bool:
    """Whether there are pages and they are served; says what to do, if not."""
    if not links:
        print("MLflow does not have the runs of these stages; `align sync` sends what it lacks", file=sys.stderr)
        return False
    if server.uri.startswith("http"):
        return True
    start = f"mlflow ui --backend-store-uri {server.shown}" if "MLFLOW_TRACKING_URI" in os.environ else "align up"
    print(f"nothing serves MLflow here now; these are at {LOCAL} after: {start}", file=sys.stderr)
    return False


def _policies(name: str, *, prefix: bool) -> list[Compared]:
    """A whole run's policies, or the one of a stage."""
    if ":" in name or _by_key(name) is not None:
        folder = find_output(name)
        if not (folder / "completions.jsonl").exists():
            raise UserError(f"{name}: wanted an evaluate stage, but its output is no report ({folder})")
        return [Compared.read(name, folder)]
    record = find_record(align_home(), name)
    found = policies_of(record)
    if not prefix:
        return found
    return [replace(one, name=f"{name}:{one.name}") for one in found]


def _title(name: str) -> str:
    """A run under its own name, since `last` is soon another."""
    is_stage = ":" in name or _by_key(name) is not None
    return name if is_stage else find_record(align_home(), name).run_id


def find_output(name: str) -> Path:
    """The output folder of `RUN:stage`, or of the only result whose key starts with `name`; raises UserError."""
    if ":" in name:
        _, stage = find_stage(align_home(), name)
        if stage["path"] is None or not Path(stage["path"]).exists():
            raise UserError(f"{name}: has no output; it {stage['status']}")
        return Path(stage["path"])
    manifest = _by_key(name)
    if manifest is None:
        raise UserError(f"{name!r} is neither RUN:stage nor the beginning of a key; `align runs` lists the runs")
    return Store(align_home()).folder(manifest.uses, manifest.key) / "out"


def _by_key(name: str) -> Manifest | None:
    if len(name) < SHORTEST_KEY:
        return None
    matching = [manifest for manifest in Store(align_home()).all() if manifest.key.startswith(name)]
    if len(matching) > 1:
        raise UserError(f"{name!r} is the beginning of {len(matching)} keys; give more of it")
    return matching[0] if matching else None
