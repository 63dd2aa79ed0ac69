"""lm-evaluation-harness: the same model, the same questions, the same answers; and what it can't do, in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MakeModel

from gradsift.encoding.encoder import Encoder, EncodingConfig
from gradsift.errors import ConfigError
from gradsift.evaluation.answering import Answerer
from gradsift.evaluation.harness import HarnessConfig, require_harness, run_harness
from gradsift.evaluation.target import drawn
from gradsift.model.loading import ModelConfig, load_base_model, load_tokenizer
from gradsift.tasks.builtin import TASKS

SUBJECTS = ("anatomy", "astronomy", "econometrics", "management", "marketing", "virology")
QUESTIONS_OF_EACH = 2
CHOICES = [" A", " B", " C", " D"]


def write_task(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> None:
    """A task file whose prompts are shown word for word, and its data."""
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": "letters",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{prompt}}",
        "doc_to_choice": CHOICES,
        "doc_to_target": "{{label}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / "letters.yaml").write_text(yaml.safe_dump(task | settings), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # lm-evaluation-harness and its tasks warn of their own affairs
def test_mmlu_accuracy_equals_the_harness_question_by_question(shared: Path, tmp_path: Path) -> None:
    config = ModelConfig(name_or_path=str(shared / "models" / "instruct-12m"), dtype="float32")
    model = load_base_model(config, torch.device("cpu")).eval()
    encoder = Encoder(load_tokenizer(config), EncodingConfig())
    path = shared / "data" / "targets" / "mmlu.jsonl"
    every = drawn(TASKS["mmlu"].test_questions(path, path), limit=QUESTIONS_OF_EACH)
    questions = [question for question in every if question.subtask in SUBJECTS]
    ours = Answerer(model, encoder).choose(questions, 5, lambda *_: None)
    rows = [
        {"prompt": answer.fitted.prompt, "label": CHOICES.index(f" {question.answers[0]}")}
        for question, answer in zip(questions, ours, strict=True)
    ]
    write_task(tmp_path, rows)
    outcome = run_harness(model, encoder, HarnessConfig(tasks=["letters"], include_path=str(tmp_path)), 4)
    samples = sorted(outcome.samples["letters"], key=lambda sample: sample["doc_id"])
    theirs = [[float(response[0]) for (response,) in sample["resps"]] for sample in samples]
    for mine, other, sample, row in zip(ours, theirs, samples, rows, strict=True):
        assert mine.log_likelihoods == pytest.approx(other, abs=1e-4)
        assert sample["acc"] == float(mine.best == row["label"])
    correct = [answer.best == row["label"] for answer, row in zip(ours, rows, strict=True)]
    assert outcome.results["letters"]["acc,none"] == pytest.approx(sum(correct) / len(correct))


@pytest.mark.slow
def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'hellaswga'; did you mean 'hellaswag'"):
        require_harness(HarnessConfig(tasks=["hellaswga"]))


def test_a_missing_folder_of_tasks_is_named() -> None:
    with pytest.raises(ConfigError, match="include_path: there is no folder nowhere"):
        require_harness(HarnessConfig(tasks=["letters"], include_path="nowhere"))


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradsift\[eval\]'"):
        require_harness(HarnessConfig(tasks=["letters"]))


@pytest.mark.filterwarnings("default")
def test_a_hub_that_cannot_be_reached_is_one_line(
    tmp_path: Path, tiny_encoder: Encoder, make_lora_model: MakeModel
) -> None:
    write_task(tmp_path, [], dataset_path="cais/mmlu", dataset_kwargs={"cache_dir": str(tmp_path / "cache")})
    config = HarnessConfig(tasks=["letters"], include_path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"the data of letters can't be had from the hub .*include_path"):
        run_harness(make_lora_model().eval(), tiny_encoder, config, 1)
