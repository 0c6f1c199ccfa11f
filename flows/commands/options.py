"""What the `align` command accepts: its verbs and their options, without what they do."""

from __future__ import annotations

import argparse
import os
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.commands.guide import VERBS, overview

SHELLS = ("bash", "zsh", "fish")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Fields that differ from the recipe may stand after options too, where argparse alone would not take them."""
    parser = command_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks, on a press of the tab key
        from flows.commands.completing import complete

        complete(parser)
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def command_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="align", usage="align [-h] VERB ...",
        description="Align a language model: a recipe's stages, cached, tracked, compared.", epilog=overview(),
        formatter_class=RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = parser.add_subparsers(prog="align", metavar="VERB", required=True, help=SUPPRESS)
    run = _recipe_verb(verbs, "run")
    run.add_argument("--quiet", action="store_true", help="no progress, only the table at the end")
    run.add_argument("--jobs", type=int, default=1, metavar="N", help="stages at the same time (1)")
    run.add_argument("--offline-tracking", action="store_true", help="leave MLflow alone; `align sync` sends it later")
    plan = _recipe_verb(verbs, "plan")
    plan.add_argument("--why", metavar="STAGE", help="only this stage, with every difference")
    plan.add_argument("--memory", action="store_true", help="also memory by part, tokens, disk and time")
    plan.add_argument("--device", metavar="NAME", help="plan for h100, t4, ... or cpu:24GiB; else what is here")
    _looking_verbs(verbs)
    _registry_verbs(verbs)
    _server_verbs(verbs)
    _keeping_verbs(verbs)
    return parser


def _verb(verbs: Any, name: str, *, answers_json: bool = True) -> argparse.ArgumentParser:
    guide = VERBS[name]
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, description=guide.about, epilog=guide.shown, formatter_class=RawDescriptionHelpFormatter
    )
    if answers_json:
        parser.add_argument("--json", action="store_true", help="one object on standard output")
    parser.set_defaults(verb=name)
    return parser


def _looking_verbs(verbs: Any) -> None:
    _verb(verbs, "runs")
    show = _verb(verbs, "show")
    show.add_argument("run", metavar="RUN", help="a run_id, its beginning, or `last`")
    logs = _verb(verbs, "logs", answers_json=False)
    logs.add_argument("run", nargs="?", default="last", metavar="RUN", help="a run_id, its beginning, or `last`")
    logs.add_argument("stage", nargs="?", metavar="STAGE", help="only what this stage said")
    logs.add_argument("-f", "--follow", action="store_true", help="also what is still to come, until the run ends")
    page = _verb(verbs, "open", answers_json=False)
    page.add_argument("what", metavar="RUN|STAGE", help="RUN, RUN:stage, or the beginning of a key")
    page.add_argument("--prefect", action="store_true", help="the flow run in Prefect, not the run in MLflow")
    compare = _verb(verbs, "compare")
    compare.add_argument("what", nargs="+", metavar="RUN|STAGE", help="RUN, RUN:stage, or the beginning of a key")
    compare.add_argument("--html", type=Path, metavar="FILE", help="write all of it as one page that stands alone")
    compare.add_argument("--chart", type=Path, metavar="FILE.png", help="write the chart to this file")
    compare.add_argument("--frontier", type=Path, metavar="FILE.png", help="write the chart against KL to this file")
    compare.add_argument("--completions", type=int, default=0, metavar="N", help="show N prompts side by side")
    compare.add_argument("--link", action="store_true", help="print where MLflow's own page compares these")
    compare.add_argument("--open", action="store_true", help="the same, and open it in the browser")


def _keeping_verbs(verbs: Any) -> None:
    _verb(verbs, "sync")
    gc = _verb(verbs, "gc")
    gc.add_argument("--keep-runs", type=_whole, metavar="N", help="keep only the newest N runs; by default all")
    gc.add_argument("--draft-days", type=float, default=14, metavar="D",
                    help="unfinished work stays this long after it was last touched (14)")  # fmt: skip
    gc.add_argument("--yes", action="store_true", help="remove what is shown")
    completion = _verb(verbs, "completion", answers_json=False)
    completion.add_argument("shell", choices=SHELLS, help="which shell")


def _registry_verbs(verbs: Any) -> None:
    chat = _verb(verbs, "chat", answers_json=False)
    chat.add_argument("what", metavar="STAGE|FOLDER", help="RUN:stage, the beginning of a key, or a model folder")
    chat.add_argument("--temperature", type=float, default=0.7, help="0 for the likeliest token each time (0.7)")
    chat.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N",
                      help="the most tokens of an answer (256)")  # fmt: skip
    retrain = _verb(verbs, "retrain")
    _fields(retrain)
    retrain.add_argument("--stage", metavar="STAGE",
                         help="the stage that makes the model; default: the recipe's last complete one")  # fmt: skip
    promote = _verb(verbs, "promote")
    promote.add_argument("what", metavar="STAGE", help="RUN:stage, or the beginning of a key: a merge, say")
    promote.add_argument("--as", required=True, dest="alias", metavar="ALIAS", help="candidate or champion")
    for sub, report in ((retrain, "by its name in the recipe"), (promote, "as RUN:stage or the beginning of a key")):
        sub.add_argument("--must", action="append", default=[], metavar="CONDITION",
                         help="'win_rate_low>0.5' or 'check_rate>=champion-0.02', say; any number of them")  # fmt: skip
        sub.add_argument("--report", metavar="STAGE",
                         help=f"the evaluate stage that measured it, if there are several, {report}")  # fmt: skip
    rollback = _verb(verbs, "rollback")
    for sub in (retrain, promote, rollback):
        sub.add_argument("--name", metavar="MODEL", help="registered model; default: the recipe's name (rollback: the "
                         "only model that has a champion)")  # fmt: skip


def _server_verbs(verbs: Any) -> None:
    up = _verb(verbs, "up")
    up.add_argument("--status", action="store_true", help="only say what is up; exit status 1 unless all of it is")
    up.add_argument("--host", metavar="HOST", help="listen on this address (127.0.0.1: nobody but this machine)")
    up.add_argument("--prefect-port", type=_port, metavar="N", help="by default 4200, or the next that is free")
    up.add_argument("--mlflow-port", type=_port, metavar="N", help="by default 5000, or the next that is free")
    up.add_argument("--limit", type=_positive, metavar="N", help="deployments' flow runs at the same time (1)")
    _verb(verbs, "down")
    _verb(verbs, "doctor")


def _recipe_verb(verbs: Any, name: str) -> argparse.ArgumentParser:
    parser = _verb(verbs, name, answers_json=False)
    _fields(parser, "; a|b makes a branch for each value")
    parser.add_argument("--until", metavar="STAGE", help="this stage and what it needs, no more")
    parser.add_argument("--refresh", action="append", default=[], metavar="STAGE",
                        help="make this stage, and so what follows, afresh; any number of them")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="make more than 16 branches")
    parser.add_argument("--strict-env", action="store_true", help="let library versions count as part of the keys")
    parser.add_argument("--json", action="store_true", help="one object on standard output, all else on standard error")
    return parser


def _fields(parser: argparse.ArgumentParser, more: str = "") -> None:
    """A recipe, what differs from it, and how to run it."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file, such as pipelines/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="stage.field=value",
                        help=f"fields that differ from the recipe{more}")  # fmt: skip
    parser.add_argument("--exec", action="append", default=[], metavar="NAME=VALUE", dest="execution",
                        help="how to run, such as threads=2; no part of any key")  # fmt: skip


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
