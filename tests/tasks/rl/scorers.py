"""Rewards that tests name as `scorers.py:function`."""

from __future__ import annotations

import os
import time


def letters(prompts: list[str], completions: list[str]) -> list[float]:
    """Something that differs between almost any two completions."""
    return [sum(map(ord, text)) % 97 / 97 for text in completions]


def length(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


def readable(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of letters."""
    return [sum(character.isascii() and character.isalpha() for character in text) / 6 for text in completions]


def in_turn(prompts: list[str], completions: list[str]) -> list[float]:
    """0, 1, 2, 5 for each group of four."""
    return [(0.0, 1.0, 2.0, 5.0)[i % 4] for i in range(len(prompts))]


def nothing(prompts: list[str], completions: list[str]) -> list[float]:
    return [0.0] * len(prompts)


def slowly(prompts: list[str], completions: list[str]) -> list[float]:
    """Leaves time to be killed in."""
    time.sleep(float(os.environ.get("SCORER_SLEEPS", "0")))
    return letters(prompts, completions)


calls = 0


def once_in_a_while(prompts: list[str], completions: list[str], rows: list[dict[str, object]]) -> list[float]:
    """Raises on its fourth rollout, and never again."""
    global calls
    calls += len(prompts) == 4
    if calls == 4 and len(prompts) in (1, 4):
        if len(prompts) == 1:
            calls += 1
        raise OSError("the judge is out for lunch")
    return letters(prompts, completions)
