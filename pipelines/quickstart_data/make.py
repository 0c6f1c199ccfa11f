"""Write the quickstart's data: everyday topics, each under constraints that `tasks.checks` can decide.

    python pipelines/quickstart_data/make.py           # write the four files next to this script
    python pipelines/quickstart_data/make.py --check   # exit 1 if the files on disk differ

Topics, not rows, are split: no topic of the training files occurs in validation or held-out. A rejected
text is a near miss (one word too many, one capital left, a key forgotten) about the same topic in the same
style, so that the constraint alone tells it from the chosen one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tasks.checks import passes, validate, words  # noqa: E402

SEED = 7
TRAIN_TOPICS, VALIDATION_TOPICS = 54, 12  # all other topics are held out
INSTRUCTIONS_PER_KIND, PAIRS_PER_KIND = 34, 42

OPENINGS = (
    "Honestly,",
    "In short,",
    "Fun fact:",
    "Well,",
    "Listen:",
    "To be clear,",
    "Good news:",
    "As a rule,",
)
ENDINGS = (
    "That is all.",
    "Now you know.",
    "Have a good day!",
    "The end.",
    "Thanks for asking!",
    "Simple as that.",
)
QUESTIONS = (
    "What else would you like to know?",
    "Did you know that?",
    "What do you think?",
    "Have you noticed it too?",
    "Is that new to you?",
)
KEYS = (("name", "fact"), ("topic", "summary"), ("word", "note"), ("title", "text"), ("subject", "idea"))
COUNT = {1: "one", 2: "two", 3: "three", 4: "four"}


@dataclass(frozen=True)
class Topic:
    """A thing to write about: true sentences about it, and single words that belong to it."""

    name: str
    facts: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def noun(self) -> str:
        return self.name.split()[-1]


@dataclass(frozen=True)
class Case:
    """A prompt, a text that passes its check and a near miss that fails it."""

    prompt: str
    chosen: str
    rejected: str
    check: dict[str, Any]


Builder = Callable[[Topic, random.Random], Case]


def make_case(prompts: tuple[str, ...], rng: random.Random, chosen: str, rejected: str, **check: Any) -> Case:
    return Case(rng.choice(prompts), chosen, rejected, check)


def short(topic: Topic) -> list[str]:
    return [fact for fact in topic.facts if len(words(fact)) <= 7]


def max_words(topic: Topic, rng: random.Random) -> Case:
    pairs = [
        (low, high)
        for low, high in product(topic.facts, repeat=2)
        if len(words(low)) < len(words(high)) and len(words(low)) <= 10
    ]
    low, high = rng.choice(pairs)
    n = rng.randint(len(words(low)), min(len(words(high)) - 1, len(words(low)) + 2))
    prompts = (
        f"Tell me about {topic.name} in at most {n} words.",
        f"Say something about {topic.name}. Use no more than {n} words.",
        f"Describe {topic.name}. The limit is {n} words.",
    )
    return make_case(prompts, rng, low, high, kind="max_words", n=n)


def exact_words(topic: Topic, rng: random.Random) -> Case:
    n = rng.randint(2, 4)
    wrong = rng.choice([n - 1, n + 1])
    listed = rng.sample(topic.words, 5)
    prompts = (
        f"Name exactly {COUNT[n]} words that go with {topic.name}.",
        f"Answer with exactly {COUNT[n]} words: what comes to mind when you think of {topic.name}?",
        f"Sum up {topic.name} in exactly {COUNT[n]} words.",
    )
    return make_case(prompts, rng, ", ".join(listed[:n]), ", ".join(listed[:wrong]), kind="exact_words", n=n)


def exact_sentences(topic: Topic, rng: random.Random) -> Case:
    n = rng.randint(2, 3)
    facts = rng.sample(short(topic), 3)
    spare = rng.choice([fact for fact in topic.facts if fact not in facts])
    wrong = rng.choice([facts[: n - 1], [*facts[:n], spare]])
    prompts = (
        f"Write exactly {COUNT[n]} sentences about {topic.name}.",
        f"Describe {topic.name} in exactly {COUNT[n]} short sentences.",
        f"Give me {COUNT[n]} sentences about {topic.name}, no more and no fewer.",
    )
    return make_case(prompts, rng, " ".join(facts[:n]), " ".join(wrong), kind="exact_sentences", n=n)


def bullets(topic: Topic, rng: random.Random) -> Case:
    n = rng.randint(2, 4)
    wrong = rng.choice([n - 1, n + 1])
    lines = [f"- {word}" for word in rng.sample(topic.words, 5)]
    prompts = (
        f"List {COUNT[n]} things linked with {topic.name} as bullets, and nothing else.",
        f"Give me exactly {COUNT[n]} bullet points on {topic.name}.",
        f"Write a list of {COUNT[n]} bullets about {topic.name}. Do not add an introduction.",
    )
    return make_case(prompts, rng, "\n".join(lines[:n]), "\n".join(lines[:wrong]), kind="bullets", n=n)


def lowercase(topic: Topic, rng: random.Random) -> Case:
    fact = rng.choice(topic.facts)
    prompts = (
        f"Write a sentence about {topic.name} in lower case only.",
        f"Tell me about {topic.name} without any capital letters.",
        f"Describe {topic.name}. Use only small letters.",
    )
    return make_case(prompts, rng, fact.lower(), fact, kind="lowercase")


def uppercase(topic: Topic, rng: random.Random) -> Case:
    fact = rng.choice(short(topic))
    first, *rest = fact.split()
    wrong = rng.choice([fact, " ".join([first.upper(), *rest]), fact.upper()[:-2] + fact[-2:]])
    prompts = (
        f"Write a sentence about {topic.name} in capital letters only.",
        f"Shout a fact about {topic.name}: every letter must be a capital.",
        f"Tell me about {topic.name} in upper case.",
    )
    return make_case(prompts, rng, fact.upper(), wrong, kind="uppercase")


def question(topic: Topic, rng: random.Random) -> Case:
    fact, other = rng.sample(topic.facts, 2)
    asked = rng.choice(QUESTIONS)
    wrong = rng.choice([f"{asked} {fact}", f"{fact} {other}", fact])
    prompts = (
        f"Tell me a fact about {topic.name} and end with a question.",
        f"Write about {topic.name}. The last thing must be a question.",
        f"Say something about {topic.name}, then ask me a question.",
    )
    return make_case(prompts, rng, f"{fact} {asked}", wrong, kind="question")


def starts_with(topic: Topic, rng: random.Random) -> Case:
    fact = rng.choice(topic.facts)
    start = rng.choice(OPENINGS)
    follow = fact[0].lower() + fact[1:]
    wrong = rng.choice([fact, f"{start[:-1]} {follow}", f"{start.lower()} {follow}"])
    prompts = (
        f'Write a sentence about {topic.name} that starts with "{start}"',
        f'Begin with "{start}" and tell me about {topic.name}.',
        f'Describe {topic.name}. Your answer must start with "{start}"',
    )
    return make_case(prompts, rng, f"{start} {follow}", wrong, kind="starts_with", text=start)


def ends_with(topic: Topic, rng: random.Random) -> Case:
    fact, other = rng.sample(topic.facts, 2)
    end = rng.choice(ENDINGS)
    wrong = rng.choice([f"{fact} {other}", fact, f"{end} {fact}"])
    prompts = (
        f'Write about {topic.name} and end with "{end}"',
        f'Tell me about {topic.name}. The last words must be "{end}"',
        f'Finish with "{end}" after a fact about {topic.name}.',
    )
    return make_case(prompts, rng, f"{fact} {end}", wrong, kind="ends_with", text=end)


def contains(topic: Topic, rng: random.Random) -> Case:
    fact = rng.choice([fact for fact in topic.facts if len(words(fact)) >= 8])
    useful = [word for word in fact[:-1].split() if len(word) >= 5 and word.islower() and word != topic.noun]
    wanted = sorted(rng.sample(useful, rng.randint(1, 2)))
    check = {"kind": "contains", "words": wanted}
    wrong = rng.choice([other for other in topic.facts if not passes(check, other)])
    quoted = " and ".join(f'"{word}"' for word in wanted)
    prompts = (
        f"Write a sentence about {topic.name} that contains {quoted}.",
        f"Tell me about {topic.name}. Make sure to use {quoted}.",
        f"Use {quoted} in a sentence about {topic.name}.",
    )
    return make_case(prompts, rng, fact, wrong, **check)


def excludes(topic: Topic, rng: random.Random) -> Case:
    banned = rng.choice([topic.noun, topic.noun, "the", "and"])
    check = {"kind": "excludes", "words": [banned]}
    good = rng.choice([fact for fact in topic.facts if passes(check, fact)])
    bad = rng.choice([fact for fact in topic.facts if not passes(check, fact)])
    pronoun, _, rest = good.partition(" ")
    if banned == topic.noun and pronoun in ("It", "They"):
        # The nearest miss: the same sentence, with the name where the pronoun was.
        bad = f"{topic.name[0].upper()}{topic.name[1:]} {rest}"
    prompts = (
        f'Write a sentence about {topic.name} without the word "{banned}".',
        f'Describe {topic.name}, but never use the word "{banned}".',
        f'Tell me about {topic.name}. The word "{banned}" is not allowed.',
    )
    return make_case(prompts, rng, good, bad, **check)


def json_keys(topic: Topic, rng: random.Random) -> Case:
    first, second = rng.choice(KEYS)
    chosen = json.dumps({first: topic.noun, second: rng.choice(topic.facts)})
    value = json.loads(chosen)
    missing, extra = {second: value[second]}, {**value, "more": rng.choice(topic.words)}
    wrong = rng.choice([json.dumps(missing), json.dumps(extra), chosen[:-1], f"Here it is: {chosen}"])
    prompts = (
        f'Answer in JSON with the keys "{first}" and "{second}": what is worth knowing about {topic.name}?',
        f'Describe {topic.name} as a JSON object with the keys "{first}" and "{second}" only.',
        f'Return only a JSON object about {topic.name}. Its keys are "{first}" and "{second}".',
    )
    return make_case(prompts, rng, chosen, wrong, kind="json_keys", keys=[first, second])


BUILDERS: tuple[Builder, ...] = (
    max_words,
    exact_words,
    exact_sentences,
    bullets,
    lowercase,
    uppercase,
    question,
    starts_with,
    ends_with,
    contains,
    excludes,
    json_keys,
)


def draw(builder: Builder, topics: list[Topic], rng: random.Random, seen: set[str]) -> list[Case]:
    """One case for each topic, with a prompt that no earlier case has."""
    cases = []
    for topic in topics:
        for _ in range(20):
            case = attempt(builder, topic, rng)
            if case is not None and case.prompt not in seen:
                seen.add(case.prompt)
                cases.append(case)
                break
    return cases


def attempt(builder: Builder, topic: Topic, rng: random.Random) -> Case | None:
    """A case, or None where this draw finds no pair of facts that differ under its check."""
    try:
        case = builder(topic, rng)
    except (IndexError, ValueError):
        return None
    assert validate(case.check) is None, validate(case.check)
    if not passes(case.check, case.chosen) or passes(case.check, case.rejected):
        return None
    return case


def split(topics: list[Topic], rng: random.Random) -> tuple[list[Topic], list[Topic], list[Topic]]:
    mixed = rng.sample(topics, len(topics))
    middle = TRAIN_TOPICS + VALIDATION_TOPICS
    return mixed[:TRAIN_TOPICS], mixed[TRAIN_TOPICS:middle], mixed[middle:]


def instruction(case: Case) -> dict[str, Any]:
    return {"prompt": case.prompt, "completion": case.chosen, "check": case.check}


def pair(case: Case) -> dict[str, Any]:
    return {"prompt": case.prompt, "chosen": case.chosen, "rejected": case.rejected, "check": case.check}


def build() -> dict[str, list[dict[str, Any]]]:
    """File name -> rows; the same rows each time."""
    raw = json.loads((HERE / "topics.json").read_text(encoding="utf-8"))
    topics = [Topic(name, tuple(entry["facts"]), tuple(entry["words"])) for name, entry in raw.items()]
    rng = random.Random(SEED)
    train, validation, heldout = split(topics, rng)
    seen: set[str] = set()
    names = ("instructions", "preferences", "validation", "heldout")
    files: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for builder in BUILDERS:
        taught = draw(builder, rng.sample(train, INSTRUCTIONS_PER_KIND), rng, seen)
        compared = draw(builder, rng.sample(train, PAIRS_PER_KIND), rng, seen)
        files["instructions"] += [instruction(case) for case in taught]
        files["preferences"] += [pair(case) for case in compared]
        files["validation"] += [pair(case) for case in draw(builder, validation, rng, seen)]
        files["heldout"] += [pair(case) for case in draw(builder, heldout, rng, seen)]
    for rows in files.values():
        rng.shuffle(rows)
    return {f"{name}.jsonl": rows for name, rows in files.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the quickstart's data files.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    only_check = parser.parse_args().check
    differs = False
    for name, rows in build().items():
        path = HERE / name
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        same = path.exists() and path.read_bytes() == content
        differs = differs or not same
        if not only_check and not same:
            path.write_bytes(content)
        print(f"{name}: {len(rows)} rows" + ("" if same else ", differs" if only_check else ", written"))
    return 1 if only_check and differs else 0


if __name__ == "__main__":
    sys.exit(main())
