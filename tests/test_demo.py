"""The demo's data and, at tiny sizes, the demo itself."""

import json
from pathlib import Path

import pytest

from gradsift.demo import DemoSizes, demo
from gradsift.demo_data import SKILLS, WORDINGS, pool_rows, target_rows

TINY = DemoSizes(
    pool_rows=80,
    base_rows=200,
    base_steps=3,
    base_batch=4,
    vocabulary=300,
    hidden=16,
    layers=1,
    projection=64,
    lora_rank=2,
    warmup_batch=2,
)


def _questions(rows):
    return {row["messages"][0]["content"] for row in rows}


def test_the_pool_follows_from_its_seed():
    assert pool_rows(100, seed=3) == pool_rows(100, seed=3)
    assert pool_rows(100, seed=3) != pool_rows(100, seed=4)


def test_ids_are_unique():
    ids = [row["id"] for row in pool_rows(500, seed=0)]
    assert len(set(ids)) == 500


def test_every_skill_has_an_equal_part_of_the_pool():
    skills = [row["skill"] for row in pool_rows(400, seed=0)]
    assert {skill: skills.count(skill) for skill in SKILLS} == dict.fromkeys(SKILLS, 50)


@pytest.mark.parametrize("skill", SKILLS)
def test_the_targets_wording_is_not_in_the_pool(skill):
    opening = WORDINGS[skill][-1].split("{")[0]
    targets = _questions(target_rows(skill, 20, seed=0))
    pool = _questions(pool_rows(2000, seed=1))
    assert not targets & pool
    assert WORDINGS[skill][-1] not in WORDINGS[skill][:-1]
    assert not opening or not any(question.startswith(opening) for question in pool)


def test_sorting_answers_are_in_order_of_the_alphabet():
    answers = [row["messages"][1]["content"].split() for row in target_rows("sorting", 20, seed=0)]
    assert answers == [sorted(letters) for letters in answers]


def test_boolean_answers_are_the_values_of_their_expressions():
    for row in target_rows("boolean", 40, seed=5):
        question, answer = (message["content"] for message in row["messages"])
        expression = question.removeprefix("Work out the logical expression ").removesuffix(" and give its result.")
        assert str(eval(expression)) == answer


@pytest.mark.slow
def test_the_demo_selects_five_percent_and_says_their_skills(tmp_path: Path):
    text = demo(tmp_path, TINY)
    selected = (tmp_path / "run" / "selection" / TINY.target_skill / "less.jsonl").read_text().splitlines()
    pool = (tmp_path / "pool.jsonl").read_text().splitlines()
    assert len(selected) == TINY.pool_rows * 5 // 100
    assert set(selected) <= set(pool)
    share = sum(json.loads(line)["skill"] == TINY.target_skill for line in selected) / len(selected)
    line = next(line for line in text.splitlines() if "<- the target's skill" in line)
    assert f"{share:.1%}" in line


@pytest.mark.slow
def test_a_finished_demo_is_not_made_again(tmp_path: Path):
    first = demo(tmp_path, TINY)
    model = tmp_path / "model" / "model.safetensors"
    made = model.stat().st_mtime_ns
    second = demo(tmp_path, TINY)
    assert model.stat().st_mtime_ns == made
    assert _without_times(first) == _without_times(second)


def _without_times(text):
    return [line for line in text.splitlines() if not line.startswith("time:")]
