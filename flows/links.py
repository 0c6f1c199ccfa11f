"""Where MLflow and Prefect show a run, and the browser that opens it."""

from __future__ import annotations

import os
import sys
import webbrowser

from flows.addresses import without_secrets

PAGES = "ALIGN_MLFLOW_PAGES"
"""How browsers call the MLflow server, where they can't by the address that runs use: a name within a cluster, say."""
LOCAL = "http://127.0.0.1:5000"
"""Where `align up` shows this home's own database, and `mlflow ui` another, unless the port is taken."""
HAS_DISPLAY = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")


def mlflow_server() -> str | None:
    """Where the MLflow server that is known to be one has its pages: the user's own, or that of `align up`."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith("http"):
        return None
    return without_secrets(os.environ.get(PAGES) or uri).rstrip("/")


def mlflow_page(run: str | None, server: str | None = None) -> str | None:
    """The page of an MLflow run on a server, by default on the one that is known; None if there is none."""
    server = server or mlflow_server()
    return f"{server}/#/runs/{run}" if server and run else None


def open_in_browser(link: str) -> bool:
    """Whether a browser has been given this link; says why not, if not. Never a browser within the terminal."""
    if sys.platform == "linux" and not any(os.environ.get(name) for name in HAS_DISPLAY):
        print("there is no display here; open the link in a browser, from elsewhere through `ssh -L`", file=sys.stderr)
        return False
    if not webbrowser.open(link):
        print("no browser could be started; set $BROWSER, or open the link by hand", file=sys.stderr)
        return False
    return True
