"""The demo's data: right answers, wordings of their own, and rows that follow from their seed."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from random import Random
from string import Formatter
from typing import Any

import pytest

from gradsift.demo.data import base_rows, pool_rows, target_rows
from gradsift.demo.skills import CATEGORIES, DAYS, LEXICON, SKILLS, Task
from gradsift.demo.wordings import WORDINGS
from gradsift.texts.words import words_in

Check = Callable[[Task], bool]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _is_right_choice(task: Task) -> bool:
    options = dict(re.findall(r"\((\d)\) (\w+)", task.fields["options"]))
    return options[task.answer.strip("()")] in CATEGORIES[task.fields["category"]]


CHECKS: dict[str, Check] = {
    "sorting": lambda task: task.answer.split() == sorted(task.fields["letters"].split()),
    "reversal": lambda task: task.answer.split()[::-1] == task.fields["letters"].split(),
    "counting": lambda task: int(task.answer) == task.fields["letters"].count(task.fields["letter"]),
    "editing": lambda task: task.answer == task.fields["letters"].replace(task.fields["old"], task.fields["new"]),
    "arithmetic": lambda task: int(task.answer) == int(task.fields["a"]) + int(task.fields["b"]),
    "comparison": lambda task: int(task.answer) == max(_numbers(task.fields["numbers"])),
    "sequence": lambda task: len({b - a for a, b in _steps([*_numbers(task.fields["terms"]), int(task.answer)])}) == 1,
    "dates": lambda task: (DAYS.index(task.fields["day"]) + int(task.fields["days"])) % 7 == DAYS.index(task.answer),
    "boolean": lambda task: str(eval(task.fields["expression"])) == task.answer,
    "translation": lambda task: [LEXICON[word] for word in task.fields["words"].split()] == task.answer.split(),
    "extraction": lambda task: f"moved to {task.answer} on" in task.fields["passage"],
    "choice": _is_right_choice,
}


def _steps(numbers: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(numbers))


def _questions(rows: list[dict[str, Any]]) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


@pytest.mark.parametrize("skill", SKILLS)
def test_answers_are_right(skill: str) -> None:
    random = Random(0)
    tasks = [SKILLS[skill](random) for _ in range(300)]
    assert all(CHECKS[skill](task) for task in tasks)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_working_holds_the_answer(skill: str) -> None:
    random = Random(1)
    tasks = [SKILLS[skill](random) for _ in range(100)]
    assert all(set(words_in(task.answer)) <= set(words_in(task.worked)) for task in tasks)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_wording_shows_the_whole_task(skill: str) -> None:
    fields = set(SKILLS[skill](Random(0)).fields) - ({"passage"} if skill == "extraction" else set())
    for wording in (*WORDINGS[skill].base, *WORDINGS[skill].pool, WORDINGS[skill].target):
        named = {name for _, name, _, _ in Formatter().parse(wording) if name}
        assert fields <= named or (skill == "extraction" and "passage" in named), wording


def test_no_wording_stands_twice() -> None:
    everything = [text for w in WORDINGS.values() for text in (*w.base, *w.pool, w.target)]
    assert [text for text, count in Counter(everything).items() if count > 1] == []


@pytest.mark.parametrize("skill", SKILLS)
def test_the_targets_wording_is_not_in_the_pool(skill: str) -> None:
    examples, held_out = target_rows(skill, 16, 50, seed=0)
    template = re.sub(r"\\\{\w+\\\}", ".+", re.escape(WORDINGS[skill].target))
    assert all(re.fullmatch(template, question) for question in _questions(examples + held_out))
    assert not any(re.fullmatch(template, question) for question in _questions(pool_rows(2000, seed=1)))


@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_tasks_are_not_among_the_examples(skill: str) -> None:
    examples, held_out = target_rows(skill, 16, 200, seed=2)
    assert (len(examples), len(held_out)) == (16, 200)
    assert not {_facts(row) for row in examples} & {_facts(row) for row in held_out}


def _facts(row: dict[str, Any]) -> str:
    """The answer's working and, where it doesn't show it all, the question."""
    return " ".join(message["content"] for message in row["messages"])


def test_rows_follow_from_their_seed() -> None:
    assert pool_rows(100, seed=3) == pool_rows(100, seed=3)
    assert pool_rows(100, seed=3) != pool_rows(100, seed=4)
    assert base_rows(100, seed=3) != base_rows(100, seed=4)


def test_ids_are_unique() -> None:
    ids = [row["id"] for row in pool_rows(500, seed=0)]
    assert len(set(ids)) == 500


def test_every_skill_has_an_equal_part_of_the_pool() -> None:
    skills = Counter(row["skill"] for row in pool_rows(600, seed=0))
    assert skills == dict.fromkeys(SKILLS, 50)


def test_words_of_a_target_are_those_of_other_skills() -> None:
    """A target's words that its own skill's rows lack are in rows of other skills: word overlap misleads."""
    for skill, wordings in WORDINGS.items():
        own = {word for text in wordings.pool for word in words_in(text)}
        others = {word for name, w in WORDINGS.items() if name != skill for text in w.pool for word in words_in(text)}
        assert len((set(words_in(wordings.target)) & others) - own) >= 3, skill
