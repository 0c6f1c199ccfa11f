"""Where MLflow's own page compares the runs of stages: charts and parameters side by side.

The page wants the ids of the runs and of all experiments that they are in:

    <server>/#/compare-runs?runs=["<run>", ...]&experiments=["<experiment>", ...]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote

from flows.links import LOCAL
from pipelines.comparison.comparison import Comparisons


class Place(NamedTuple):
    """A run in MLflow."""

    run: str
    experiment: str


def compare_links(comparisons: Comparisons, uri: str, place: Callable[[str], Place | None]) -> dict[str, str]:
    """The pages of the evaluations and of the trainings behind them; `place` finds a stage's run by its key.

    A page for which not every run is known, or which would have one run alone, is left out.
    """
    histories = [history for one in comparisons.each for history in one.histories.values()]
    trained = dict.fromkeys(history.own.key for history in histories if history.own)
    wanted = {
        "MLflow: the evaluations": [policy.key for policy in comparisons.policies],
        "MLflow: the trainings": list(trained),
    }
    found = {}
    for name, keys in wanted.items():
        places = [known for key in keys if (known := place(key)) is not None]
        if len(places) == len(keys) > 1:
            found[name] = compare_page(uri, places)
    return found


def compare_page(uri: str, places: Sequence[Place]) -> str:
    """The address of the page for these runs on the server at `uri`, or where a database's own would be."""
    runs, experiments = [place.run for place in places], list(dict.fromkeys(place.experiment for place in places))
    server = uri.rstrip("/") if uri.startswith("http") else LOCAL
    return f"{server}/#/compare-runs?runs={_listed(runs)}&experiments={_listed(experiments)}"


def _listed(ids: Sequence[str]) -> str:
    return quote(json.dumps(list(ids), separators=(",", ":")), safe=",")
