from __future__ import annotations

import json

from artifacts.jsonl import read_jsonl


def test_unicode_line_ends_are_text_and_a_half_line_waits(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": "one\u2028two\u0085three"}, {"text": "four"}]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + '{"text": "fi')
    assert read_jsonl(file) == rows
