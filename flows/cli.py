"""The `align` command: a contract (see the README) of verbs, exit statuses and `--json`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from artifacts.errors import AlignError, UserError
from flows.addresses import without_secrets
from flows.colours import coloured
from flows.commands.options import parse
from flows.home import align_home, prepare_services
from flows.servers.state import use_servers

if TYPE_CHECKING:
    from flows.commands.planning import Wanted

INTERRUPTED = 130
ALONE = ("up", "down", "doctor")
"""What deals with the servers themselves, whichever the environment names."""


def main(argv: Sequence[str] | None = None) -> int:
    """0 done; 1 a stage failed; 2 what was given is wrong; 130 interrupted."""
    args = parse(argv)
    try:
        if args.verb not in ALONE:
            use_servers(align_home())
        return int(VERBS[args.verb](args))
    except AlignError as error:
        for line in str(error).splitlines():
            print(f"{coloured('error:', 'red', sys.stderr)} {without_secrets(line)}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        instead = " with STAGE.refresh=N, as said above, in place of --refresh" if vars(args).get("refresh") else ""
        print(f"interrupted; run the same command again{instead} to go on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `align runs | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    from flows.commands.run import run_recipe

    return run_recipe(_wanted(args), jobs=args.jobs, offline=args.offline_tracking, as_json=args.json, quiet=args.quiet)


def _plan(args: argparse.Namespace) -> int:
    from flows.commands.planning import Shown, show_plan

    return show_plan(_wanted(args), Shown(args.json, args.why, args.memory, args.device))


def _wanted(args: argparse.Namespace) -> Wanted:
    from flows.commands.planning import Wanted
    from pipelines.assignments import parse_assignments, parse_overrides
    from pipelines.sweep import MOST_BRANCHES

    overrides, sweep = parse_overrides(args.overrides)
    return Wanted(
        args.recipe, overrides, parse_assignments(args.execution, "--exec"), sweep,
        sys.maxsize if args.yes else MOST_BRANCHES, args.until, args.strict_env, tuple(args.refresh),
    )  # fmt: skip


def _runs(args: argparse.Namespace) -> int:
    from flows.commands.run_tables import runs_table
    from flows.records import load_records

    home = align_home()
    records = load_records(home)
    print(json.dumps([record.described(home) for record in records]) if args.json else runs_table(records, home))
    if records and not args.json and sys.stdout.isatty():
        print("\nmore of one: align show RUN, align logs RUN, align compare RUN, align open RUN; RUN may be `last`")
    return 0


def _show(args: argparse.Namespace) -> int:
    from flows.commands.run_tables import run_text
    from flows.records import find_record

    home = align_home()
    record = find_record(home, args.run)
    print(json.dumps(record.described(home)) if args.json else run_text(record, home))
    return 0


def _logs(args: argparse.Namespace) -> int:
    from flows.commands.logs import show_logs

    return show_logs(align_home(), args.run, args.stage, follow=args.follow)


def _open(args: argparse.Namespace) -> int:
    from flows.commands.opening import open_page

    return open_page(align_home(), args.what, prefect=args.prefect)


def _compare(args: argparse.Namespace) -> int:
    from flows.commands.comparing import Wanted, compare

    wanted = Wanted(args.chart, args.frontier, args.html, args.completions, args.link, args.open)
    return compare(args.what, wanted, as_json=args.json)


def _gc(args: argparse.Namespace) -> int:
    from flows.commands.collecting import collect

    return collect(keep_runs=args.keep_runs, draft_days=args.draft_days, yes=args.yes, as_json=args.json)


def _sync(args: argparse.Namespace) -> int:
    from flows.tracking.sync import sync

    return sync(as_json=args.json)


def _retrain(args: argparse.Namespace) -> int:
    from flows.commands.run import retrain_recipe
    from pipelines.assignments import parse_assignments

    given = {"model": args.name, "stage": args.stage, "report": args.report, "must": args.must or None}
    overrides, execution = parse_assignments(args.overrides, "override"), parse_assignments(args.execution, "--exec")
    given |= {"recipe": str(args.recipe), "overrides": overrides, "execution": execution}
    return retrain_recipe({name: value for name, value in given.items() if value is not None}, as_json=args.json)


def _promote(args: argparse.Namespace) -> int:
    from flows.registry.promoting import show_promotion

    return show_promotion(args.what, args.alias, name=args.name, must=args.must, report=args.report, as_json=args.json)


def _rollback(args: argparse.Namespace) -> int:
    from flows.registry.promoting import roll_back

    return roll_back(name=args.name, as_json=args.json)


def _chat(args: argparse.Namespace) -> int:
    from flows.commands.chat import chat

    if args.temperature < 0:
        raise UserError(f"--temperature: wanted 0 or more, got {args.temperature}")
    return chat(args.what, temperature=args.temperature, max_new_tokens=args.max_new_tokens)


def _up(args: argparse.Namespace) -> int:
    from flows.servers.verbs import show_status, show_up

    if args.status:
        return show_status(align_home(), as_json=args.json)
    from flows.servers.choosing import Asked

    asked = Asked(args.host, args.prefect_port, args.mlflow_port, args.limit)
    return show_up(align_home(), asked=asked, as_json=args.json)


def _down(args: argparse.Namespace) -> int:
    from flows.servers.verbs import show_down

    return show_down(align_home(), as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from flows.servers.doctor import doctor

    return doctor(align_home(), as_json=args.json)


def _completion(args: argparse.Namespace) -> int:
    from flows.commands.completing import script

    print(script(args.shell))
    return 0


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run, "plan": _plan, "runs": _runs, "show": _show, "logs": _logs, "open": _open, "compare": _compare,
    "gc": _gc, "sync": _sync, "retrain": _retrain, "promote": _promote, "rollback": _rollback, "chat": _chat,
    "up": _up, "down": _down, "doctor": _doctor, "completion": _completion,
}  # fmt: skip

prepare_services(align_home())

if __name__ == "__main__":
    sys.exit(main())
