"""The model card of a merge: what made it, read from the manifests beside its inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.kinds import Adapter
from artifacts.manifest import Manifest


def model_card(adapter: Adapter, merge: dict[str, float]) -> str:
    """Markdown: base and licence, the chain of stages with their settings and figures, how the merge was verified.

    Holds no path, host or time, since the card is part of the output's digest.
    """
    about = json.loads((adapter.base.path / "base.json").read_text())
    chain = lineage(adapter.path.parent)
    head = f"---\nlicense: {_identifier(about['licence'])}\nlibrary_name: transformers\ntags: [alignflow]\n---\n"
    return "\n".join(
        [
            head,
            "# An aligned model\n",
            f"Made by alignflow from `{about['origin']}` (licence of the base: {about['licence']}), digest "
            f"`{adapter.base.digest()[:16]}`. Load it with `AutoModelForCausalLM.from_pretrained`; the tokenizer "
            "and the chat template that it was tuned with are beside it.\n",
            "## The stages that made it\n",
            *(_section(manifest) for manifest in chain),
            "## The merge\n",
            *(f"- {name.removeprefix('merge/')}: {value:.4g}" for name, value in sorted(merge.items())),
            "",
        ]
    )


def lineage(folder: Path) -> list[Manifest]:
    """The manifests of a result and of everything it was made from, inputs first."""
    found: dict[str, Manifest] = {}

    def visit(folder: Path) -> None:
        manifest = Manifest.read(folder)
        for key in manifest.payload["inputs"].values():
            if key not in found:
                for other in folder.parent.glob(f"*-{key[:20]}"):
                    visit(other)
        found[manifest.key] = manifest

    visit(folder)
    return list(found.values())


def _section(manifest: Manifest) -> str:
    said = manifest.payload
    settings = ", ".join(f"{name} {_short(value)}" for name, value in said["fields"].items()) or "defaults"
    shown = ", ".join(
        f"{name} {value:.4g}"
        for name, value in sorted(manifest.metrics.items())
        if not name.startswith(("cost/", "train/learning_rate"))
    )
    content = ", ".join(_short(value) for value in said["content"].values())
    lines = [("settings", settings), ("data or weights", content), ("measured", shown)]
    listed = "".join(f"- {name}: {text}\n" for name, text in lines if text)
    return f"### {manifest.uses} `{manifest.key[:12]}`\n\n{listed}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(item)}" for name, item in value.items())
    return str(value)[:16] if isinstance(value, str) and len(value) == 64 else str(value)


def _identifier(licence: str) -> str:
    """A licence in the form that model cards want."""
    return "apache-2.0" if "apache" in licence.lower() else licence.lower().replace(" ", "-")
