"""What `make operated` showed, as files of a run in this home's MLflow: pictures of pages, logs of what was operated.

python -m tests.e2e.keep FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from flows.home import align_home, prepare_services
from flows.tracking.mlflow_server import MlflowServer

EXPERIMENT = "operated"


def keep(folder: Path) -> str:
    """Its files, in a run of their own; gives the run's id. Raises SystemExit for what shows nothing."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    if not files or any(path.stat().st_size == 0 for path in files):
        raise SystemExit(f"{folder}: wanted pictures and logs, got {len(files)} files, some of them empty")
    server = MlflowServer.reach(align_home(), EXPERIMENT)
    run = server.make(EXPERIMENT, folder.name, {"align.kind": "pictures"})
    server.client.log_artifacts(run, str(folder))
    server.client.set_terminated(run)
    return run


if __name__ == "__main__":
    prepare_services(align_home())
    kept = Path(sys.argv[1])
    sys.stdout.write(f"{kept} is kept in MLflow: `align up`, then #/runs/{keep(kept)} there\n")
