from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset_builder

from artifacts.errors import DataError
from artifacts.kinds import Checkpoint, Preferences
from tasks.row_files import require_own
from tests.conftest import run_stage, write_rows

PAD, EOS = 0, 2
PROMPT_TOKENS = 3 + len("user\n") + len("\n") + len("assistant\n")
"""What the template of tiny-llama adds to a prompt: 3 special tokens, and one token a byte of the rest."""


class Made:
    """What a data stage left."""

    def __init__(self, folder: Path) -> None:
        self.report = json.loads((folder / "report.json").read_text())
        self.train, self.test = (
            [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
            for split in ("train", "test")
        )

    def prompts(self, split: str) -> set[str]:
        return {row["prompt"] for row in getattr(self, split)}


@pytest.fixture
def make(tiny_llama: Checkpoint, tmp_path: Path):
    def made(
        rows: list[dict[str, Any]], test: list[dict[str, Any]] | None = None, seed: int = 0, **fields: Any
    ) -> Made:
        draft = tmp_path / f"draft-{len(list(tmp_path.iterdir()))}"
        source = write_rows(tmp_path / "rows.jsonl", rows)
        if test is not None:
            fields["test_source"] = str(write_rows(tmp_path / "test.jsonl", test))
        fields = {"form": "demonstrations", "base": tiny_llama, "source": str(source), **fields}
        return Made(run_stage("data", draft, seed=seed, **fields).path)

    return made


def demonstrations(count: int, completions: int = 1) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i}", "completion": f"c{i}.{j}"} for i in range(count) for j in range(completions)]


def pairs(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(count)]


def test_the_figures_of_a_hand_computed_example(make: Any) -> None:
    rows = [
        {"prompt": "ab", "completion": "xyz"},
        {"prompt": "abcd", "completion": "é"},
        {"prompt": "a", "completion": "x"},
    ]
    made = make(rows, test_size=0)
    prompts, completions = [2 + 19, 4 + 19, 1 + 19], [3 + 1, 2 + 1, 1 + 1]
    assert PROMPT_TOKENS == 19
    assert made.report == {
        "form": "demonstrations",
        "rows_in": 3,
        "left_out": {},
        "train": {
            "rows": 3, "truncated": 0, "tokens": sum(prompts) + sum(completions),
            "supervised_share": sum(completions) / (sum(prompts) + sum(completions)),
            "prompt_tokens": {"mean": 64 / 3, "median": 21, "p95": 21, "max": 23},
            "completion_tokens": {"mean": 3, "median": 3, "p95": 3, "max": 4},
        },
        "test": {
            "rows": 0, "truncated": 0, "tokens": 0, "supervised_share": 0, "prompt_tokens": {}, "completion_tokens": {},
        },
    }  # fmt: skip


def test_a_pairs_prompt_counts_for_both_sides(make: Any) -> None:
    made = make([{"prompt": "ab", "chosen": "xy", "rejected": "z"}], test_size=0, form="preferences")
    assert made.report["train"]["tokens"] == 2 * 21 + 3 + 2
    assert made.report["train"]["completion_tokens"]["mean"] == 2.5


def test_every_completion_ends_with_eos_once_and_nothing_is_padded(make: Any) -> None:
    made = make(pairs(20), form="preferences")
    for row in made.train + made.test:
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            assert ids[-1] == EOS
            assert ids.count(EOS) == 1
            assert PAD not in ids + row["prompt_ids"]


def test_the_output_is_named_for_its_form_and_knows_its_rows(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", pairs(10))
    made = run_stage("data", tmp_path / "draft", base=tiny_llama, form="preferences", source=str(source))
    assert isinstance(made, Preferences)
    assert made.train_rows() == 9


def test_rows_in_are_rows_out_or_counted(make: Any) -> None:
    rows = demonstrations(40) + demonstrations(5) + [{"prompt": "long " * 20, "completion": "x"}] * 2
    made = make(rows, max_length=60, overlong="drop", test_size=0.25, limit=20)
    report = made.report
    assert report["left_out"]["duplicate"] == 6
    assert report["left_out"]["longer than 60 tokens"] == 1
    assert report["left_out"]["over the limit"] > 0
    assert report["rows_in"] == len(rows) == len(made.train) + len(made.test) + sum(report["left_out"].values())


def test_what_is_dropped_from_the_held_out_share_is_counted_too(make: Any) -> None:
    rows = [{"prompt": "x" * 100 + str(i), "completion": "y"} for i in range(5)] + demonstrations(5)
    for seed in range(3):
        made = make(rows, seed=seed, max_length=40, overlong="drop", test_size=0.5)
        assert made.report["left_out"] == {"longer than 40 tokens": 5}
        assert len(made.train) + len(made.test) == 5


def test_the_split_holds_out_whole_prompts(make: Any) -> None:
    made = make(demonstrations(30, completions=3), test_size=0.2)
    assert made.prompts("train").isdisjoint(made.prompts("test"))
    assert len(made.prompts("test")) == 6
    assert len(made.test) == 18


def test_the_split_is_the_seeds_and_no_accidents(make: Any) -> None:
    rows = demonstrations(40)
    first = make(rows, seed=1).prompts("test")
    assert make(rows, seed=1).prompts("test") == first
    assert make(list(reversed(rows)), seed=1).prompts("test") == first
    assert make(rows, seed=2).prompts("test") != first


def test_the_same_question_after_another_conversation_is_another_prompt(make: Any) -> None:
    def talk(before: str) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": before}, {"role": "assistant", "content": "ok"},
            {"role": "user", "content": "And?"}, {"role": "assistant", "content": "so"},
        ]  # fmt: skip

    made = make([{"messages": talk(str(i))} for i in range(10)], test_size=0.3)
    assert (len(made.train), len(made.test)) == (7, 3)


def test_a_prompt_of_the_held_out_file_is_taken_out_of_the_training_rows(make: Any) -> None:
    test = [{"prompt": "p3", "completion": "another answer"}, {"prompt": "new", "completion": "x"}]
    made = make(demonstrations(10, completions=2), test)
    assert "p3" not in made.prompts("train")
    assert made.prompts("test") == {"p3", "new"}
    assert made.report["left_out"] == {"prompt is in the held-out file": 2}


def test_nothing_is_left_if_every_prompt_is_held_out(make: Any) -> None:
    with pytest.raises(DataError, match=r"no row is left for training.*prompt is in the held-out file"):
        make(demonstrations(3), demonstrations(3))


def test_what_the_held_out_file_loses_is_counted_apart(make: Any) -> None:
    test = [{"prompt": "t", "completion": "x"}, {"prompt": "t", "completion": "x"}, {"prompt": "u", "completion": "x"}]
    made = make(demonstrations(10), test)
    assert made.report["left_out"] == {}
    assert made.report["left_out_of_test"] == {"duplicate": 1}


def test_the_limit_is_drawn_by_the_seed_and_keeps_the_order(make: Any) -> None:
    rows = demonstrations(50)
    first, again, other = make(rows, limit=10), make(rows, limit=10), make(rows, limit=10, seed=5)
    assert [row["row"] for row in first.train] == sorted(row["row"] for row in first.train)
    assert len(first.train) == 10
    assert first.train == again.train
    assert first.prompts("train") != other.prompts("train")


def test_the_held_out_prompts_do_not_depend_on_the_limit(make: Any) -> None:
    assert make(demonstrations(50), limit=10).test == make(demonstrations(50)).test


def test_a_long_row_is_cut_at_its_end_and_counted(make: Any) -> None:
    made = make(
        [{"prompt": "ab", "completion": "x" * 50}, {"prompt": "b", "completion": "y"}], test_size=0, max_length=30
    )
    long = next(row for row in made.train if row["prompt"] == "ab")
    assert len(long["prompt_ids"] + long["completion_ids"]) == 30
    assert EOS not in long["completion_ids"]
    assert made.report["train"]["truncated"] == 1


def test_a_row_of_exactly_the_longest_length_is_whole(make: Any) -> None:
    made = make(
        [{"prompt": "ab", "completion": "x" * 8}, {"prompt": "a", "completion": "y"}], test_size=0, max_length=30
    )
    assert made.report["train"]["truncated"] == 0
    assert made.report["train"]["completion_tokens"]["max"] == 9


def test_a_pair_that_is_cut_to_the_same_is_left_out_and_counted(make: Any) -> None:
    same = {"prompt": "ab", "chosen": "x" * 50 + "good", "rejected": "x" * 50 + "bad"}
    made = make([same, *pairs(3)], test_size=0, max_length=40, form="preferences")
    assert made.report["left_out"] == {"pair is the same within 40 tokens": 1}


def test_a_row_without_a_supervised_token_is_named(make: Any) -> None:
    rows = [{"prompt": "a", "completion": "x"}, {"prompt": "long" * 10, "completion": "x"}]
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: its prompt has 59 tokens.*no supervised token is left"):
        make(rows, test_size=0, max_length=30)


def test_a_longest_length_beyond_the_bases_context_is_refused(make: Any) -> None:
    with pytest.raises(DataError, match="max_length: wanted at most 1024, the base's context, got 2000"):
        make(demonstrations(3), max_length=2000)


def test_rows_that_are_all_the_same_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match="all 5 rows are the same one"):
        make([{"prompt": "a", "completion": "b"}] * 5)


def test_rows_that_are_all_too_long_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match=r"no row is left for training; left out: {'longer than 30 tokens': 3}"):
        make(
            [{"prompt": "p" * 40 + str(i), "completion": "x"} for i in range(3)],
            test_size=0, max_length=30, overlong="drop",
        )  # fmt: skip


def test_a_bad_row_of_either_file_is_named_with_its_file(make: Any) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl: row 2: field 'completion' is empty"):
        make([*demonstrations(1), {"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match=r"test.jsonl: row 1: field 'completion' is missing"):
        make(demonstrations(3), [{"prompt": "a"}])


def test_checks_go_with_their_rows(make: Any) -> None:
    check = {"kind": "max_words", "n": 3}
    made = make([{**demonstrations(1)[0], "check": check}, *demonstrations(4)[1:]], test_size=0)
    assert [row.get("check") for row in made.train] == [check, None, None, None]


def test_the_same_rows_give_the_same_bytes(tiny_llama: Checkpoint, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", demonstrations(30))
    given = {"base": tiny_llama, "form": "demonstrations", "source": str(source)}
    one, two = (run_stage("data", tmp_path / name, **given).path for name in ("one", "two"))
    for name in ("train.jsonl", "test.jsonl", "report.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_the_card_of_a_hub_data_set_names_no_files_of_this_machine_or_elsewhere(tmp_path: Path) -> None:
    """A card may name any path and any address, and `datasets` reads what is there."""
    secret = write_rows(tmp_path / "secret.jsonl", [{"prompt": "p", "completion": "c"}])
    (tmp_path / "set").mkdir()
    card = f"---\nconfigs:\n- config_name: default\n  data_files: {secret}\n---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    found = load_dataset_builder(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache")).config.data_files
    assert [str(file) for file in found["train"]] == [str(secret)]
    elsewhere = [
        "https://host/x.csv", "zip://x.csv::/tmp/x.zip", "dir://x.jsonl::/home/me::hf://datasets/org/name@abc/x.csv",
        "zip://x.csv::/tmp/x.zip::hf://datasets/org/name@abc/x.csv", "file:///tmp/x::hf://datasets/org/name@abc/x",
        "zip://x::zip://y::hf://datasets/org/name@abc/x.zip", "hf://datasets/org/private@main/x.jsonl",
        "hf://datasets/org/name@abd/x.jsonl", "hf://datasets/org/name@abc", "hf://datasets/org/names@abc/x",
    ]  # fmt: skip
    for files in (found["train"], *([file] for file in elsewhere)):
        with pytest.raises(DataError, match=r"its card names .*, which is not in it"):
            require_own("hub:org/name@abc", files)
    require_own(
        "hub:org/name@abc", ["hf://datasets/org/name@abc/x.csv", "zip://x.csv::hf://datasets/org/name@abc/x.zip"]
    )
