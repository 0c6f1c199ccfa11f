"""The two databases under `$ALIGN_HOME`: one for each server, both there before any server and after it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from artifacts.errors import UserError
from flows.servers.state import MLFLOW, PREFECT

NAMES = {PREFECT: "prefect.db", MLFLOW: "mlflow.db"}
BUSY_S = 10.0


def problem(path: Path, *, thorough: bool = False) -> str | None:
    """Why a database can't be used; None if it can, or is not there yet. `thorough` reads all of it."""
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=BUSY_S)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
            connection.execute("BEGIN IMMEDIATE").connection.rollback()
            found = connection.execute("PRAGMA quick_check(1)").fetchone()[0] if thorough else "ok"
        finally:
            connection.close()
    except sqlite3.Error as error:
        return None if "locked" in str(error) else str(error)
    return None if found == "ok" else str(found)


def check(home: Path, roles: Iterable[str]) -> None:
    """Raise UserError for a database that its server could not use."""
    for role in roles:
        if role in NAMES and (found := problem(home / NAMES[role])):
            raise UserError(
                f"{home / NAMES[role]}: wanted a database that can be read and written, got: {found}; correct its "
                "rights, put a copy that is good in its place, or move it away to begin with an empty one"
            )
