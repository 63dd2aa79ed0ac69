"""How a training is split into micro-batches, and what the Trainer is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import ConfigError
from gradsift.training.finetuning import Training, TrainingConfig, finetune, micro_batch_size


@pytest.fixture
def training(make_row: Any, tmp_path: Path) -> Any:
    def make(longest: int = 10, **settings: Any) -> Training:
        return Training("train", [make_row(6), make_row(longest)], TrainingConfig(**settings), 0, tmp_path)

    return make


@pytest.mark.parametrize(("longest", "expected"), [(64, 96), (200, 32), (2048, 4), (8192, 1), (100_000, 1)])
def test_micro_batch_is_the_largest_divisor_within_the_token_budget(training: Any, longest: int, expected: int) -> None:
    assert micro_batch_size(training(longest, batch_size=96)) == expected


def test_micro_batch_that_does_not_divide_the_batch_is_refused(training: Any) -> None:
    with pytest.raises(ConfigError, match="doesn't divide"):
        micro_batch_size(training(batch_size=8, micro_batch_size=3))


def test_unknown_schedule_is_refused_in_one_line(training: Any, make_lora_model: Any) -> None:
    with pytest.raises(ConfigError, match=r"train: the Trainer refuses its settings: .*wavy"):
        finetune(make_lora_model(), training(lr_scheduler_type="wavy"))


def test_gradient_checkpointing_does_not_change_the_training(
    training: Any, make_lora_model: Any, tmp_path: Path
) -> None:
    weights = []
    for forget in (False, True):
        model = make_lora_model()
        job = training(batch_size=2, epochs=2, learning_rate=1e-2, gradient_checkpointing=forget)
        finetune(model, Training(job.section, job.rows, job.config, 0, tmp_path / str(forget)))
        weights.append([weight.detach().clone() for weight in model.parameters() if weight.requires_grad])
    assert all(plain.allclose(forgotten, rtol=1e-4, atol=1e-6) for plain, forgotten in zip(*weights, strict=True))


def test_log_has_an_entry_a_step(training: Any, make_lora_model: Any) -> None:
    log = finetune(make_lora_model(), training(batch_size=1, epochs=3))
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
