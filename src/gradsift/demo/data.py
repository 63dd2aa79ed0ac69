"""The demo's rows: an instruction pool, targets and the base model's texts. Everything follows from a seed."""

from __future__ import annotations

from random import Random
from typing import Any

from gradsift.demo.skills import DAYS, JOBS, NAMES, PLACES, SKILLS, THINGS, Task
from gradsift.demo.wordings import PROSE, WORDINGS

Row = dict[str, Any]

BASE_WORKED = 0.1
"""Share of the base model's texts whose answers show their working, as those of the pool and the targets do."""


def pool_rows(count: int, seed: int) -> list[Row]:
    """`count` rows in random order, the skills and a skill's wordings of the pool in equal parts."""
    random = Random(f"pool {seed}")
    names = list(SKILLS)
    rows = []
    for index in range(count):
        skill, turn = names[index % len(names)], index // len(names)
        wordings = WORDINGS[skill].pool
        task = SKILLS[skill](random)
        question = filled(wordings[turn % len(wordings)], task, random)
        rows.append(_row(f"row-{index:05d}", skill, question, task.worked))
    random.shuffle(rows)
    return rows


def target_rows(skill: str, num_examples: int, num_held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Examples of a skill and held-out rows of other tasks, all in the wording that the pool doesn't use.

    No task stands twice among the examples; the held-out ones may repeat where a skill has few tasks.
    """
    random = Random(f"target {skill} {seed}")
    examples: dict[str, Row] = {}
    held_out: list[Row] = []
    while len(held_out) < num_held_out or len(examples) < num_examples:
        task = SKILLS[skill](random)
        question = filled(WORDINGS[skill].target, task, random)
        if task.key in examples:
            continue
        if len(examples) < num_examples:
            examples[task.key] = _row(f"{skill}-{len(examples):03d}", skill, question, task.worked)
        else:
            held_out.append(_row(f"{skill}-held-out-{len(held_out):03d}", skill, question, task.worked))
    return list(examples.values()), held_out


def base_rows(count: int, seed: int) -> list[Row]:
    """`count` rows of all skills, in wordings of their own between sentences that ask for nothing."""
    random = Random(f"base {seed}")
    names = list(SKILLS)
    return [_base_row(names[index % len(names)], index, random) for index in range(count)]


def _base_row(skill: str, index: int, random: Random) -> Row:
    before, after = random.random() < 0.4, random.random() < 0.25
    parts = [random.choice(WORDINGS[skill].base)]
    parts = [random.choice(PROSE)] * before + parts + [random.choice(PROSE)] * after
    task = SKILLS[skill](random)
    answer = task.worked if random.random() < BASE_WORKED else task.answer
    return _row(f"base-{index:06d}", skill, filled(" ".join(parts), task, random), answer)


def filled(wording: str, task: Task, random: Random) -> str:
    """The wording with the task's fields, and with names and things that the answer doesn't depend on."""
    name, other = random.sample(NAMES, 2)
    scenery = {
        "name": name,
        "other": other,
        "thing": random.choice(THINGS),
        "place": random.choice(PLACES),
        "job": random.choice(JOBS),
        "number": str(random.randint(2, 40)),
        "day": random.choice(DAYS),
    }
    return wording.format(**{**scenery, **task.fields})


def _row(identifier: str, skill: str, question: str, answer: str) -> Row:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": identifier, "skill": skill, "messages": messages}
