"""What a model's config.json or GGUF header says."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest

from tasks.model_config import config_at


def test_a_header_that_cant_be_read_is_tried_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan asks for it with every figure, and a header of a whole vocabulary takes seconds to read."""
    tried: list[str] = []

    class Counting(gguf.GGUFReader):
        def __init__(self, path: str) -> None:
            tried.append(path)
            super().__init__(path)

    monkeypatch.setattr(gguf, "GGUFReader", Counting)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"nonsense")
    for _ in range(3):
        with pytest.raises(ValueError, match=r"model\.gguf: its header can't be read \("):
            config_at(file)
    assert len(tried) == 1
    os.utime(file, ns=(1, 1))  # as another file under the name has another time
    with pytest.raises(ValueError, match="its header can't be read"):
        config_at(file)
    assert len(tried) == 2
