"""How a training is split into micro-batches, and what the Trainer is refused for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gradsift.errors import ConfigError, UserError
from gradsift.training.finetuning import (
    Training,
    TrainingConfig,
    finetune,
    learning_rates,
    micro_batch_size,
    warmup_steps,
)


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


def of_steps(make_row: Any, folder: Path, num_steps: int, **settings: Any) -> Training:
    """A training of that many steps, a row each."""
    rows = [make_row(6, seed) for seed in range(num_steps)]
    return Training("warmup", rows, TrainingConfig(batch_size=1, epochs=1, **settings), 0, folder)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial", "constant_with_warmup", "inverse_sqrt"])
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_training_of_few_steps_learns(make_row: Any, tmp_path: Path, num_steps: int, schedule: str) -> None:
    rates = learning_rates(of_steps(make_row, tmp_path, num_steps, lr_scheduler_type=schedule))
    assert rates is not None
    assert len(rates) == num_steps
    assert max(rates) > 0


@pytest.mark.parametrize(
    ("num_steps", "expected"),
    [(1, [1.0]), (2, [0.0, 1.0]), (3, [0.0, 1.0, 0.5]), (5, [0.0, 1.0, 0.75, 0.5, 0.25])],
)
def test_the_steps_rates_are_those_that_the_trainer_logs(
    make_row: Any, make_lora_model: Any, tmp_path: Path, num_steps: int, expected: list[float]
) -> None:
    training = of_steps(make_row, tmp_path, num_steps, learning_rate=1e-3)
    logged = [entry["learning_rate"] for entry in finetune(make_lora_model(), training)]
    assert logged == learning_rates(training)
    assert logged == pytest.approx([1e-3 * rate for rate in expected])


def test_the_papers_schedule_has_the_trainers_own_steps_of_warmup(make_row: Any, tmp_path: Path) -> None:
    """105 steps an epoch (13,533 rows in batches of 128), four epochs, 3 %: as TrainingArguments counts them."""
    from transformers import TrainingArguments

    rows = [make_row(6)] * 13533
    training = Training("warmup", rows, TrainingConfig(), 0, tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), warmup_steps=0.03)
    assert (training.num_steps, warmup_steps(training)) == (424, 13)
    assert arguments.get_warmup_steps(424) == 13


@pytest.mark.parametrize("schedule", ["cosine_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_needs_more_settings_is_refused_in_one_line(
    training: Any, make_lora_model: Any, schedule: str
) -> None:
    with pytest.raises(ConfigError, match="train: the Trainer refuses its settings"):
        finetune(make_lora_model(), training(lr_scheduler_type=schedule))


def test_weights_that_are_no_numbers_are_noticed_before_they_are_kept(
    training: Any, make_lora_model: Any, tmp_path: Path
) -> None:
    kept: list[Path] = []
    job = training(batch_size=1, epochs=3, learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(UserError, match=r"train diverged .* lower train\.learning_rate"):
        finetune(make_lora_model(), dataclasses.replace(job, on_save=kept.append))
    assert len(kept) < 3
