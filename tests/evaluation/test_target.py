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
from runs import conversation, write_jsonl
from torch import nn

from gradsift.encoding.encoder import Encoder
from gradsift.evaluation.target import EvaluateConfig, EvaluationJob, drawn, evaluate_target
from gradsift.machine.records import read_record
from gradsift.model.loading import ModelConfig, load_base_model
from gradsift.tasks.question import Question
from gradsift.tasks.targets import TargetConfig

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
    assert read_record(job.metrics_path).facts == metrics


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

    monkeypatch.setattr("gradsift.evaluation.target._write_predictions", fail)
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


IN_A_NEW_PROCESS = """
import sys, torch
from pathlib import Path
from gradsift.encoding import Encoder, EncodingConfig
from gradsift.evaluation import EvaluateConfig, EvaluationJob, evaluate_target
from gradsift.model import ModelConfig, load_base_model, load_tokenizer
from gradsift.tasks import TargetConfig
model, rows, folder = sys.argv[1:]
config = ModelConfig(name_or_path=model, dtype="float32")
encoder = Encoder(load_tokenizer(config), EncodingConfig(template="tulu", max_length=512))
target = TargetConfig(name="own", path=rows, test_path=rows, subtask_column="kind", metric="f1")
evaluate_target(EvaluationJob(
    lambda: load_base_model(config, torch.device("cpu")).eval(), encoder, target,
    EvaluateConfig(max_new_tokens=8, limit=2), Path(folder), Path(folder + ".json"), {"model": "tiny"},
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
    folder = tmp_path / "other" / "evaluation" / "less"
    subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tiny_model_folder), str(shuffled), str(folder)],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    for mine, other in (
        (job.folder / "predictions.jsonl", folder / "predictions.jsonl"),
        (job.metrics_path, folder.with_suffix(".json")),
    ):
        assert mine.read_bytes() == other.read_bytes()
