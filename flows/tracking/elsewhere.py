"""What another machine has made of a key: found through MLflow, fetched from its artifact store, verified, taken over.

A finished stage comes with its output, manifest and history; one that somebody there is making is waited for; any other
with its newest checkpoint, what was logged until then, and its run, in which it goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlflow.entities import Run

from artifacts.errors import AlignError
from artifacts.store import Store
from flows.addresses import reason
from flows.home import aside
from flows.tracking.artifact_files import CHECKPOINTS, HISTORY, STAGE_FILES
from flows.tracking.mlflow_server import KEY_TAG, MlflowServer
from flows.tracking.pulse import beating, beats, claimed
from flows.tracking.tracked_stage import TrackedStage
from tasks.training.checkpoints import damage

Say = Callable[[str], None]


def fetch(server: MlflowServer, store: Store, uses: str, key: str, say: Say, waiting: Say) -> bool:
    """Bring what there is of this key, whose lock the caller holds; says whether the finished result is here now.

    Never raises for what a server does: at worst nothing is fetched, and the stage is made here. `waiting` is told for
    whom it waits, again and again, and may raise AlignError to give up.
    """
    if server.is_own:
        return False
    stage, refused = TrackedStage(store, uses, key), set[str]()
    try:
        while True:
            runs = _runs(server, key)
            finished = [run.info.run_id for run in runs if _finished(run)]
            if finished and finished[0] not in refused:
                if _fetch_result(server, stage, finished[0], say):
                    return True
                refused.add(finished[0])  # somebody may be making it again
            if any(beats(server, run, waiting) for run in runs):
                continue
            ours = stage.sent(server.name).run_id
            left = [run.info.run_id for run in runs if run.info.run_id not in (*finished, ours)]
            if not left or any(stage.draft.glob("work/checkpoint-*/manifest.json")):
                return False
            if claimed(server, left[0]):
                with beating(server, left[0]):
                    _fetch_checkpoint(server, stage, left[0], say)
                return False
    except AlignError:
        raise
    except Exception as error:  # stores raise what they like: botocore's own, or that a library is not there
        say(f"nothing could be fetched from {server.shown}: {reason(error)}")
    return False


def _runs(server: MlflowServer, key: str) -> list[Run]:
    """Every run of this key, the newest first."""
    experiments = [experiment.experiment_id for experiment in server.client.search_experiments()]
    return list(server.client.search_runs(experiments, f"tags.`{KEY_TAG}` = '{key}'"))


def is_made(server: MlflowServer, key: str) -> bool:
    """Whether a server knows a finished stage of this key; raises MlflowException."""
    return any(_finished(run) for run in _runs(server, key))


def _finished(run: Run) -> bool:
    return bool(run.info.status == "FINISHED")


def _fetch_result(server: MlflowServer, stage: TrackedStage, run: str, say: Say) -> bool:
    listed = {each.path for each in server.client.list_artifacts(run, "stage")}
    with aside(stage.store.home) as part:
        for name in STAGE_FILES:
            if f"stage/{name}" in listed:
                Path(server.client.download_artifacts(run, f"stage/{name}", str(part))).replace(part / name)
        Path(server.client.download_artifacts(run, "output", str(part))).rename(part / "out")
        problem = stage.store.accept(stage.uses, stage.key, part)
    if problem:
        say(f"the result of run {run[:8]} on {server.shown} is not used: {problem}")
        return False
    sent = stage.sent(server.name)
    sent.made(run)
    sent.mark("complete")
    say(f"fetched from {server.shown}")
    return True


def _fetch_checkpoint(server: MlflowServer, stage: TrackedStage, run: str, say: Say) -> None:
    """The newest complete checkpoint of a run; its metrics so far; and the run itself, with what it has."""
    folders = [each.path for each in server.client.list_artifacts(run, CHECKPOINTS) if each.is_dir]
    for folder in sorted(folders, key=lambda path: -int(path.rsplit("-", 1)[1])):
        if f"{folder}/manifest.json" not in {each.path for each in server.client.list_artifacts(run, folder)}:
            say(f"warning: {Path(folder).name} on {server.shown} is passed over: it was not sent whole")
            continue
        with aside(stage.store.home) as part:
            fetched = Path(server.client.download_artifacts(run, folder, str(part)))
            if problem := damage(fetched):
                say(f"warning: {fetched.name} on {server.shown} is passed over: {problem}")
                continue
            (stage.draft / "work").mkdir(parents=True, exist_ok=True)
            for name in HISTORY:
                if (fetched / name).exists():
                    (fetched / name).replace(stage.draft / name)
            fetched.rename(stage.draft / "work" / fetched.name)
        stage.take_over(server, run)
        say(f"goes on from {Path(folder).name}, fetched from {server.shown}")
        return
