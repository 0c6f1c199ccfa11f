"""What the `align` command accepts: its verbs and their options, without what they do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Fields that differ from the recipe may stand after options too, where argparse alone would not take them."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="align", description="Align a language model: a recipe's stages, cached, tracked, compared."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    run = _recipe_verb(verbs, "run", "run a recipe; what is cached is not run again")
    run.add_argument("--quiet", action="store_true", help="no progress, only the table at the end")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="stages at the same time (1)")
    run.add_argument("--offline-tracking", action="store_true", help="leave MLflow alone; `align sync` sends it later")
    plan = _recipe_verb(verbs, "plan", "what a run would do, and why; runs nothing")
    plan.add_argument("--why", metavar="STAGE", help="only this stage, with every difference")
    plan.add_argument("--memory", action="store_true", help="also memory by part, tokens, disk and time")
    plan.add_argument("--device", metavar="NAME", help="plan for h100, t4, ... or cpu:24GiB; else what is here")
    runs = verbs.add_parser("runs", help="the runs so far, the newest first")
    runs.set_defaults(verb="runs")
    show = verbs.add_parser("show", help="one run: its stages, figures and folders")
    show.add_argument("run", metavar="RUN", help="a run_id, its beginning, or `last`")
    show.set_defaults(verb="show")
    compare = verbs.add_parser("compare", help="policies side by side, from runs or evaluate stages")
    compare.add_argument("what", nargs="+", metavar="RUN|STAGE", help="RUN, RUN:stage, or the beginning of a key")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page that stands alone")
    compare.add_argument("--chart", type=Path, metavar="FILE.png", help="write the chart to this file")
    compare.add_argument("--frontier", type=Path, metavar="FILE.png", help="write the chart against KL to this file")
    compare.add_argument("--completions", type=int, default=0, metavar="N", help="show N prompts side by side")
    compare.add_argument("--link", action="store_true", help="print where MLflow's own page compares these")
    compare.set_defaults(verb="compare")
    sync = verbs.add_parser("sync", help="send MLflow what it lacks")
    sync.set_defaults(verb="sync")
    for sub in (runs, show, compare, sync):
        sub.add_argument("--json", action="store_true", help="one object on standard output")
    gc = verbs.add_parser("gc", help="show what no kept run refers to; with --yes, remove it")
    gc.add_argument("--keep-runs", type=_whole, metavar="N", help="keep only the newest N runs; by default all")
    gc.add_argument("--draft-days", type=float, default=14, metavar="D",
                    help="unfinished work stays this long after it was last touched (14)")  # fmt: skip
    gc.add_argument("--yes", action="store_true", help="remove what is shown")
    gc.add_argument("--json", action="store_true", help="one object on standard output")
    gc.set_defaults(verb="gc")
    chat = verbs.add_parser("chat", help="talk to a model: a stage's output, or a folder")
    chat.add_argument("what", metavar="STAGE|FOLDER", help="RUN:stage, the beginning of a key, or a model folder")
    chat.add_argument("--temperature", type=float, default=0.7, help="0 for the likeliest token each time")
    chat.add_argument("--max-new-tokens", type=int, default=256)
    chat.set_defaults(verb="chat")
    _registry_verbs(verbs)
    _server_verbs(verbs)
    return parser


def _registry_verbs(verbs: Any) -> None:
    retrain = verbs.add_parser("retrain", help="train if data or base changed, and promote what beats the champion")
    retrain.add_argument("recipe", type=Path, metavar="RECIPE")
    retrain.add_argument("overrides", nargs="*", metavar="stage.field=value", help="fields that differ from the recipe")
    retrain.add_argument("--exec", action="append", default=[], metavar="NAME=VALUE", dest="execution")
    retrain.add_argument("--stage", metavar="STAGE", help="that makes the model; by default the last complete one")
    retrain.set_defaults(verb="retrain")
    promote = verbs.add_parser("promote", help="register a complete model in MLflow, through a gate if one is given")
    promote.add_argument("what", metavar="STAGE", help="RUN:stage, or the beginning of a key: a merge, say")
    promote.add_argument("--as", required=True, dest="alias", metavar="ALIAS", help="candidate or champion")
    promote.set_defaults(verb="promote")
    for sub in (retrain, promote):
        sub.add_argument("--must", action="append", default=[], metavar="CONDITION",
                         help="'win_rate_low>0.5' or 'check_rate>=champion-0.02', say; any number of them")  # fmt: skip
        sub.add_argument("--report", metavar="STAGE", help="the evaluate stage that measured it, if there are several")
    rollback = verbs.add_parser("rollback", help="make the champion before the champion again")
    rollback.set_defaults(verb="rollback")
    for sub in (retrain, promote, rollback):
        sub.add_argument(
            "--name", metavar="MODEL", help="of the registered model; by default the recipe's, or the only one"
        )
        sub.add_argument("--json", action="store_true", help="one object on standard output")


def _server_verbs(verbs: Any) -> None:
    up = verbs.add_parser("up", help="start Prefect, MLflow and what runs deployments here, unless they are up")
    up.add_argument("--status", action="store_true", help="only say what is up; exit status 1 unless all of it is")
    up.add_argument("--host", metavar="HOST", help="listen on this address (127.0.0.1: nobody but this machine)")
    up.add_argument("--prefect-port", type=_port, metavar="N", help="by default 4200, or the next that is free")
    up.add_argument("--mlflow-port", type=_port, metavar="N", help="by default 5000, or the next that is free")
    up.add_argument("--limit", type=_positive, metavar="N", help="deployments' flow runs at the same time (1)")
    up.set_defaults(verb="up")
    down = verbs.add_parser("down", help="end what `align up` started, and nothing else")
    down.set_defaults(verb="down")
    doctor = verbs.add_parser("doctor", help="what is wrong on this machine, and what to do about it")
    doctor.set_defaults(verb="doctor")
    for sub in (up, down, doctor):
        sub.add_argument("--json", action="store_true", help="one object on standard output")


def _recipe_verb(verbs: Any, name: str, help_text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help_text)
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, such as pipelines/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="stage.field=value",
                        help="fields that differ from the recipe; a|b makes a branch for each value")  # fmt: skip
    parser.add_argument("--exec", action="append", default=[], metavar="NAME=VALUE", dest="execution",
                        help="how to run, such as threads=2; never changes a result")  # fmt: skip
    parser.add_argument("--until", metavar="STAGE", help="this stage and what it needs, no more")
    parser.add_argument("--refresh", action="append", default=[], metavar="STAGE",
                        help="make this stage, and so what follows, afresh; any number of them")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="make more than 16 branches")
    parser.add_argument("--strict-env", action="store_true", help="let library versions count as part of the keys")
    parser.add_argument("--json", action="store_true", help="one object on standard output, all else on standard error")
    parser.set_defaults(verb=name)
    return parser


def _whole(text: str) -> int:
    """A whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"wanted a whole number, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    """A whole number, 1 or more."""
    if (number := _whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"wanted 1 or more, got {text!r}")
    return number


def _port(text: str) -> int:
    if not 1 <= (number := _whole(text)) <= 65_535:
        raise argparse.ArgumentTypeError(f"wanted a port, 1 to 65535, got {text!r}")
    return number
