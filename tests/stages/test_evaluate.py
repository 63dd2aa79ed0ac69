"""The evaluate stage: what it writes, what makes it work again, and what its figures don't depend on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from runs import conversation, gradsift, tiny_run, write_jsonl
from torch import nn

from gradsift.artifact import read_json
from gradsift.encoding import Encoder
from gradsift.errors import ConfigError
from gradsift.modeling import ModelConfig, load_base_model
from gradsift.predictions import Prediction, summarised
from gradsift.stages.encode import TargetConfig, held_out, target_examples
from gradsift.stages.evaluate import (
    EvaluateConfig,
    EvaluationJob,
    drawn,
    evaluate_target,
)
from gradsift.tasks.question import Question

MakeJob = Callable[..., EvaluationJob]

OWN_ROWS = [
    conversation(
        f"h{index}", f"How much is {index} and {index}?", f"It is {2 * index}.", kind=["even", "odd"][index % 2]
    )
    for index in range(6)
]
MMLU_ROWS: list[dict[str, Any]] = [
    {
        "id": f"{subject}/{split}/{index}",
        "subtask": subject,
        "split": split,
        "question": f"What is {index} in {subject}?" + " Think." * (index % 3),
        "choices": ["a park", "a girl", "a name"],
        "answer": "ABC"[index % 3],
    }
    for subject in ("law", "art")
    for split, count in (("val", 3), ("test", 4))
    for index in range(count)
]


@pytest.fixture
def make_job(tmp_path: Path, tiny_model_folder: Path, tiny_encoder: Encoder) -> MakeJob:
    """Makes a job on the tiny model and a target of those rows."""

    def load() -> nn.Module:
        config = ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32")
        return load_base_model(config, torch.device("cpu")).eval()

    def make(rows: list[dict[str, Any]], config: dict[str, Any] | None = None, **target: Any) -> EvaluationJob:
        path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
        paths = {"path": path} if "task" in target else {"path": path, "test_path": path, "subtask_column": "kind"}
        return EvaluationJob(
            model=load,
            encoder=tiny_encoder,
            target=TargetConfig(name="own", **paths, **target),
            config=EvaluateConfig(**{"max_new_tokens": 8, **(config or {})}),
            folder=tmp_path / "evaluation" / "own" / "less",
            metrics_path=tmp_path / "evaluation" / "own" / "less.json",
            inputs={"model": "tiny"},
        )

    return make


def predictions(job: EvaluationJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_every_prediction_is_kept_with_its_prompt(make_job: MakeJob) -> None:
    job = make_job(OWN_ROWS, metric="f1")
    evaluate_target(job)
    rows = predictions(job)
    assert [row["id"] for row in rows] == [f"h{index}" for index in range(6)]
    assert rows[2]["prompt"] == "<|user|>\nHow much is 2 and 2?\n<|assistant|>\n"
    assert rows[2]["answers"] == ["It is 4."]
    assert list(rows[2]["scores"]) == ["f1", "exact_match"]
    assert isinstance(rows[2]["output"], str)


def test_metrics_are_those_of_the_predictions(make_job: MakeJob) -> None:
    job = make_job(MMLU_ROWS, task="mmlu")
    metrics = evaluate_target(job)
    rows = predictions(job)
    correct = [row["output"].strip() == row["answers"][0] for row in rows]
    assert metrics["metric"] == "accuracy"
    assert metrics["metrics"]["accuracy"] == sum(correct) / len(correct)
    assert metrics["counts"] == {"questions": 8, "with_lost_shots": 0, "lost_shots": 0, "cut": 0}
    assert metrics["answer_loss"]["nats_per_token"] == pytest.approx(
        sum(row["answer_nats"] for row in rows) / sum(row["answer_tokens"] for row in rows)
    )
    assert read_json(job.metrics_path) == metrics


def test_letters_loss_is_read_from_the_choices(make_job: MakeJob) -> None:
    job = make_job(MMLU_ROWS, task="mmlu")
    evaluate_target(job)
    for row in predictions(job):
        assert row["answer_nats"] == -row["log_likelihoods"][f" {row['answers'][0]}"]


def test_loss_alone_generates_nothing(make_job: MakeJob) -> None:
    job = make_job(OWN_ROWS)
    metrics = evaluate_target(job)
    assert (metrics["metric"], metrics["metrics"]) == ("answer_loss", {})
    assert metrics["answer_loss"]["num_questions"] == 6
    assert {row["output"] for row in predictions(job)} == {None}


def test_an_answer_loss_that_no_row_can_give_is_null_with_its_reason(make_job: MakeJob) -> None:
    bbh = {"subtask": "sums", "description": "Add."}
    rows = [bbh | {"split": "val", "prompt": f"{n} + {n}", "cot": f"So the answer is {2 * n}."} for n in range(3)]
    metrics = evaluate_target(make_job([*rows, bbh | {"split": "test", "prompt": "4 + 4", "answer": "8"}], task="bbh"))
    assert metrics["answer_loss"]["nats_per_token"] is None
    assert "no chain of thought" in metrics["answer_loss"]["reason"]


def test_held_out_worked_examples_are_asked_for_their_loss_alone(make_job: MakeJob) -> None:
    bbh = {"subtask": "sums", "description": "Add."}
    rows = [bbh | {"split": "val", "prompt": f"{n} + {n}", "cot": f"So the answer is {2 * n}."} for n in range(3)]
    test = bbh | {"split": "test", "prompt": "4 + 4", "answer": "8"}
    job = make_job([*rows, test], task="bbh", hold_out=1, test_limit=1)
    metrics = evaluate_target(job)
    (held,) = [row for row in predictions(job) if row["scores"] == {}]
    assert held["output"] is None
    assert held["answer_nats"] == metrics["answer_loss"]["nats_per_token"] * held["answer_tokens"]
    assert (metrics["answer_loss"]["num_questions"], metrics["metric"]) == (1, "exact_match")


def test_a_file_of_examples_may_hold_out_its_own_last_ones(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "own.jsonl", OWN_ROWS)
    config = TargetConfig(name="own", path=str(file), subtask_column="kind", hold_out=1)
    questions, _ = held_out(config)
    assert [question.id for question in questions] == ["h4", "h5"]
    assert [example.id for example in target_examples(config, seed=0)] == ["h0", "h1", "h2", "h3"]


def test_a_target_has_its_own_limit_and_shots(make_job: MakeJob) -> None:
    job = make_job(MMLU_ROWS, config={"limit": 4, "num_shots": 3}, task="mmlu", test_limit=2, num_shots=1)
    evaluate_target(job)
    assert [(row["subtask"], row["num_shots"]) for row in predictions(job)] == [
        (subject, 1) for subject in ("art", "art", "law", "law")
    ]


def refuse() -> nn.Module:
    raise AssertionError("the model was asked for")


def test_a_finished_evaluation_is_not_done_again(make_job: MakeJob) -> None:
    job = make_job(OWN_ROWS)
    metrics = evaluate_target(job)
    assert evaluate_target(replace(job, model=refuse)) == metrics


def test_the_batch_size_makes_no_evaluation_anew(make_job: MakeJob) -> None:
    evaluate_target(make_job(OWN_ROWS))
    evaluate_target(replace(make_job(OWN_ROWS, {"batch_size": 2}), model=refuse))


def test_a_targets_own_number_of_tokens_comes_first(make_job: MakeJob) -> None:
    metrics = evaluate_target(make_job(OWN_ROWS, {"max_new_tokens": 8}, metric="f1", max_new_tokens=3))
    assert metrics["settings"]["max_new_tokens"] == 3


@pytest.mark.parametrize("change", ["inputs", "num_shots", "question", "metric"])
def test_a_changed_evaluation_is_done_again(make_job: MakeJob, change: str) -> None:
    evaluate_target(make_job(OWN_ROWS))
    again = {
        "inputs": lambda: replace(make_job(OWN_ROWS), inputs={"model": "other"}),
        "num_shots": lambda: make_job(OWN_ROWS, {"num_shots": 1}),
        "question": lambda: make_job([*OWN_ROWS, conversation("h6", "And?", "Yes.", kind="odd")]),
        "metric": lambda: make_job(OWN_ROWS, metric="exact_match"),
    }[change]()
    with pytest.raises(AssertionError, match="the model was asked for"):
        evaluate_target(replace(again, model=refuse))


def test_metrics_are_written_after_the_predictions(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(OWN_ROWS)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("gradsift.stages.evaluate._write_predictions", fail)
    with pytest.raises(OSError, match="disk full"):
        evaluate_target(job)
    assert not job.metrics_path.exists()


def test_no_question_at_a_time_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 question at a time"):
        EvaluateConfig(batch_size=0)


def questions(count: int) -> list[Question]:
    return [Question(f"q/{index}", "ab"[index % 2], "", (), "?", "", ("x",)) for index in range(count)]


def test_drawn_questions_follow_their_ids_not_their_order() -> None:
    items = questions(20)
    chosen = drawn(items, 3)
    assert [sum(item.subtask == name for item in chosen) for name in "ab"] == [3, 3]
    assert {item.id for item in drawn(items[::-1], 3)} == {item.id for item in chosen}
    assert [item for item in items if item in chosen] == chosen


def test_without_a_limit_every_question_is_asked() -> None:
    assert drawn(questions(5), None) == questions(5)


def prediction(subtask: str, score: float, nats: float = 1.0, tokens: int = 1, lost: int = 0) -> Prediction:
    return Prediction("x", subtask, "p", 0, lost, False, "o", ("a",), {"f1": score}, nats, tokens, 0)


UNEQUAL = [prediction("a", 1.0, nats=6.0, tokens=3), prediction("a", 1.0, lost=2), prediction("b", 0.0, nats=3.0)]


@pytest.mark.parametrize(("averaged_over", "expected"), [("questions", 2 / 3), ("subtasks", 1 / 2)])
def test_overall_figure_is_the_mean_that_the_protocol_wants(averaged_over: Any, expected: float) -> None:
    found = summarised(UNEQUAL, averaged_over)
    assert found["metrics"]["f1"] == pytest.approx(expected)
    assert {name: figures["metrics"]["f1"] for name, figures in found["subtasks"].items()} == {"a": 1.0, "b": 0.0}


def test_answer_loss_is_all_nats_by_all_tokens() -> None:
    found = summarised(UNEQUAL, "subtasks")
    assert found["answer_loss"]["nats_per_token"] == pytest.approx(10 / 5)
    assert found["subtasks"]["a"]["answer_loss"]["nats_per_token"] == pytest.approx(7 / 4)


def test_lost_shots_are_counted() -> None:
    assert summarised(UNEQUAL, "questions")["counts"] == {
        "questions": 3,
        "with_lost_shots": 1,
        "lost_shots": 2,
        "cut": 0,
    }


IN_A_NEW_PROCESS = """
import sys, torch
from pathlib import Path
from gradsift.encoding import Encoder, EncodingConfig
from gradsift.modeling import ModelConfig, load_base_model, load_tokenizer
from gradsift.stages.encode import TargetConfig
from gradsift.stages.evaluate import EvaluateConfig, EvaluationJob, evaluate_target
model, rows, folder = sys.argv[1:]
config = ModelConfig(name_or_path=model, dtype="float32")
encoder = Encoder(load_tokenizer(config), EncodingConfig(template="tulu", max_length=512))
target = TargetConfig(name="own", path=rows, test_path=rows, subtask_column="kind", metric="f1")
evaluate_target(EvaluationJob(
    lambda: load_base_model(config, torch.device("cpu")).eval(), encoder, target,
    EvaluateConfig(max_new_tokens=8, limit=2), Path(folder), Path(folder) / "metrics.json", {"model": "tiny"},
))
"""


@pytest.mark.slow
def test_rows_in_another_order_hash_seed_and_process_give_the_same_bytes(
    make_job: MakeJob, tmp_path: Path, tiny_model_folder: Path
) -> None:
    job = make_job(OWN_ROWS, {"limit": 2}, metric="f1")
    evaluate_target(job)
    (tmp_path / "other").mkdir()
    shuffled = write_jsonl(tmp_path / "other" / "rows.jsonl", OWN_ROWS[::-1])
    folder = tmp_path / "other" / "evaluation"
    subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tiny_model_folder), str(shuffled), str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    for mine, other in (
        (job.folder / "predictions.jsonl", folder / "predictions.jsonl"),
        (job.metrics_path, folder / "metrics.json"),
    ):
        assert mine.read_bytes() == other.read_bytes()


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
