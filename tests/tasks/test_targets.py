"""Targets' settings, and what they hold out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from runs import conversation, gradsift, tiny_run, write_jsonl

from gradsift.errors import ConfigError
from gradsift.tasks.question import Question
from gradsift.tasks.targets import TargetConfig, held_out, target_examples

OWN_ROWS = [
    conversation(
        f"h{index}", f"How much is {index} and {index}?", f"It is {2 * index}.", kind=["even", "odd"][index % 2]
    )
    for index in range(6)
]


def test_a_file_of_examples_may_hold_out_its_own_last_ones(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "own.jsonl", OWN_ROWS)
    config = TargetConfig(name="own", path=str(file), subtask_column="kind", hold_out=1)
    questions, _ = held_out(config)
    assert [question.id for question in questions] == ["h4", "h5"]
    assert [example.id for example in target_examples(config, seed=0)] == ["h0", "h1", "h2", "h3"]


def questions(count: int) -> list[Question]:
    return [Question(f"q/{index}", "ab"[index % 2], "", (), "?", "", ("x",)) for index in range(count)]


def test_a_target_without_held_out_examples_is_named() -> None:
    with pytest.raises(ConfigError, match="target own has no held-out examples"):
        held_out(TargetConfig(name="own", path="examples.jsonl"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"task": "mmlu", "metric": "f1"}, "task mmlu has a metric of its own"),
        ({"metric": "f1"}, "metric f1 needs held-out examples: give test_path"),
    ],
)
def test_a_metric_that_cannot_be_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TargetConfig(name="own", path="x.jsonl", **keys)


def test_evaluation_settings_may_change_after_a_target_is_encoded(tmp_path: Path, tiny_model_folder: Path) -> None:
    config = tiny_run(tmp_path, tiny_model_folder)
    assert gradsift("encode", config) == 0
    test_path = write_jsonl(tmp_path / "held_out.jsonl", OWN_ROWS)
    assert gradsift("encode", config, f"targets.sums.test_path={test_path}", "targets.sums.metric=f1") == 0
