"""The demo's rows: an instruction pool, targets and the base model's texts. Everything follows from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

from gradsift.demo.skills import DAYS, JOBS, NAMES, PLACES, SKILLS, THINGS
from gradsift.demo.wordings import PROSE, WORDINGS

Row = dict[str, Any]

BASE_WORKED = 0.2
"""Share of the base model's texts whose answers show their working, as those of the pool and the targets do."""


def pool_rows(count: int, seed: int) -> list[Row]:
    """`count` rows in random order, the skills and a skill's wordings of the pool in equal parts."""
    random = Random(f"pool {seed}")
    names = list(SKILLS)
    rows = []
    for index in range(count):
        skill, turn = names[index % len(names)], index // len(names)
        wordings = WORDINGS[skill].pool
        rows.append(filled(wordings[turn % len(wordings)], skill, f"row-{index:05d}", random))
    random.shuffle(rows)
    return rows


def target_rows(skill: str, count: int, held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """`count` examples of a skill and `held_out` rows of other tasks, all in the wording that the pool doesn't use."""
    random = Random(f"target {seed}")
    examples: dict[str, Row] = {}
    rows: list[Row] = []
    while len(rows) < held_out or len(examples) < count:
        row = filled(WORDINGS[skill].target, skill, f"{skill}-{len(examples) + len(rows):04d}", random)
        if len(examples) < count:
            examples.setdefault(row["task"], row)
        elif row["task"] not in examples:
            rows.append(row)
    return list(examples.values()), rows


def base_rows(count: int, seed: int) -> list[Row]:
    """`count` rows of all skills in the wordings of the base model's texts."""
    random = Random(f"base {seed}")
    names = list(SKILLS)
    return [_base_row(names[index % len(names)], index, random) for index in range(count)]


def _base_row(skill: str, index: int, random: Random) -> Row:
    wording = random.choice(WORDINGS[skill].base)
    before, after = random.random() < 0.4, random.random() < 0.25
    parts = [random.choice(PROSE)] * before + [wording] + [random.choice(PROSE)] * after
    return filled(" ".join(parts), skill, f"base-{index:06d}", random, worked=random.random() < BASE_WORKED)


def filled(wording: str, skill: str, identifier: str, random: Random, worked: bool = True) -> Row:
    """The row that a wording and a task of the skill make."""
    task = SKILLS[skill](random)
    question = {"role": "user", "content": wording.format(**{**_scenery(random), **task.fields})}
    answer = {"role": "assistant", "content": task.worked if worked else task.answer}
    return {"id": identifier, "skill": skill, "task": str(task.fields), "messages": [question, answer]}


def _scenery(random: Random) -> dict[str, str]:
    """Names and things that a wording may mention; the answer never depends on them."""
    name, other = random.sample(NAMES, 2)
    return {
        "name": name,
        "other": other,
        "thing": random.choice(THINGS),
        "place": random.choice(PLACES),
        "job": random.choice(JOBS),
        "number": str(random.randint(2, 40)),
        "day": random.choice(DAYS),
    }
