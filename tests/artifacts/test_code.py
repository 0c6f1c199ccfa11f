"""Changed code is noticed wherever a module uses it; changed words are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.code import _parsed, code_digest
from tasks.registry import STAGES, stage_class

FILES = {
    "__init__.py": "",
    "sft.py": '"""Train."""\nfrom house.loss import mean\n\ndef run():\n'
    "    from house.rows import load\n    return mean(load())\n",
    "loss.py": "import math\n\ndef mean(rows):\n    return sum(rows) / len(rows)\n",
    "rows.py": "from house import deep\n\ndef load():\n    return deep.VALUE\n",
    "deep.py": "import house.rows\n\nVALUE = [1]\n",
    "other.py": "X = 1\n",
}


@pytest.fixture
def house(tmp_path: Path) -> Path:
    root = tmp_path / "house"
    root.mkdir()
    for name, text in FILES.items():
        (root / name).write_text(text)
    return root


def changed(house: Path, name: str, old: str, new: str) -> bool:
    """Whether a change of one file shows in the digest of `sft.py`."""
    before = code_digest(house / "sft.py", house)
    text = (house / name).read_text()
    assert old in text
    (house / name).write_text(text.replace(old, new))
    _parsed.cache_clear()
    return code_digest(house / "sft.py", house) != before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sft.py", "return mean", "return 2 * mean"),
        ("loss.py", "len(rows)", "7"),
        ("rows.py", "deep.VALUE", "deep.VALUE[1:]"),
        ("deep.py", "[1]", "[2]"),
    ],
    ids=["its own", "what it imports", "what a function imports", "what that imports in turn"],
)
def test_a_change_of_code_shows(house, name, old, new):
    assert changed(house, name, old, new)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sft.py", "Train.", "Train well."),
        ("loss.py", "import math\n", "import math\n\n# why\n"),
        ("loss.py", "sum(rows) / len(rows)", "sum(rows) / len(\n        rows)"),
        ("other.py", "X = 1", "X = 2"),
    ],
    ids=["a docstring", "a comment", "a line break", "a file it does not use"],
)
def test_a_change_of_words_or_elsewhere_does_not(house, name, old, new):
    assert not changed(house, name, old, new)


def test_the_place_of_the_folder_does_not_matter(house, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    house_there = moved / "house"
    before = code_digest(house / "sft.py", house)
    house.rename(house_there)
    assert code_digest(house_there / "sft.py", house_there) == before


def test_stages_that_share_code_differ_in_their_own():
    digests = {uses: stage_class(uses).source_digest() for uses in STAGES}
    assert len(set(digests.values())) == len(STAGES)
