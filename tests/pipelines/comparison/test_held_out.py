"""Only what was measured on the same held-out set is compared."""

from __future__ import annotations

import pytest

from artifacts.errors import UserError
from pipelines.comparison.comparison import Comparisons


@pytest.fixture
def cook(shelf):
    """Reports of one policy, alike unless told otherwise."""
    sft = shelf.made("sft", "adapter")

    def report(name, rows=4, held_out="rows", data_fields=None, **fields):
        fields = {"max_new_tokens": 48, "temperature": 0.0, **fields}
        data = shelf.made("data", "preferences", fields=data_fields or {"limit": rows + len(held_out)},
                            files={"test.jsonl": held_out}) if name not in made else ""  # fmt: skip
        made.add(name)
        return shelf.report(name, sft, [True] * rows, data=data, **fields)

    made: set[str] = set()
    return report


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"max_new_tokens": 16}, "max_new_tokens 48 and 16"),
        ({"temperature": 0.7}, "temperature 0.0 and 0.7"),
        ({"reward": "c" * 64}, "reward model none and cccccccccccc"),
        ({"rows": 2}, "rows (4 and 2 of them, 2 in both); rows with a loss 4 and 2"),
        ({"max_scored": 3}, "rows with a loss 4 and 3"),
    ],
)
def test_what_differs_is_named(cook, shelf, other, said):
    one, two = cook("one", data_fields={"limit": 1}), cook("two", data_fields={"limit": 2}, **other)
    with pytest.raises(UserError) as refused:
        Comparisons.of([one, two], shelf.store, alike=True)
    message = str(refused.value)
    assert message.startswith(f"one and two were evaluated on different held-out sets: {said}; evaluate them")
    assert refused.value.exit_status == 2


def test_other_held_out_rows_are_named_by_the_digest_of_their_file(cook, shelf):
    one, two = cook("one"), cook("two", held_out="other rows")
    with pytest.raises(UserError, match=r"one and two were .* sets: data [0-9a-f]{12} and [0-9a-f]{12}; evaluate"):
        Comparisons.of([one, two], shelf.store, alike=True)


def test_the_same_held_out_rows_may_come_from_data_with_other_training_rows(cook, shelf):
    one, two = cook("one", data_fields={"limit": 1}), cook("two", data_fields={"limit": 2})
    assert one.inputs["data"] != two.inputs["data"]
    assert len(Comparisons.of([one, two], shelf.store, alike=True).each) == 1


def test_one_run_is_compared_in_parts_and_says_why(cook, shelf):
    reports = [
        cook("one", data_fields={"limit": 1}),
        cook("short", data_fields={"limit": 2}, max_new_tokens=16),
        cook("two", data_fields={"limit": 3}),
        cook("also_short", data_fields={"limit": 4}, max_new_tokens=16),
    ]
    found = Comparisons.of(reports, shelf.store)
    assert [[policy.name for policy in part.policies] for part in found.each] == [
        ["one", "two"], ["short", "also_short"]
    ]  # fmt: skip
    assert found.remarks == (
        "one and short, also_short were evaluated on different held-out sets: max_new_tokens 48 and 16",
    )
    assert [policy["held_out"] for policy in found.as_dict()["policies"]] == [0, 0, 1, 1]


def test_a_report_that_is_named_twice_is_shown_once(cook, shelf):
    one, two = cook("one", data_fields={"limit": 1}), cook("two", data_fields={"limit": 2})
    assert [policy.name for policy in Comparisons.of([one, two, one], shelf.store).policies] == ["one", "two"]
