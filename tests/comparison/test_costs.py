"""Counting seconds over several starts, and operations."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gradsift.comparison.costs import PassCost, Watch, num_weights
from gradsift.model.loading import ModelConfig


def test_a_piece_begun_twice_counts_both_times(tmp_path: Path) -> None:
    for _ in range(2):
        with Watch(tmp_path).timed("train"):
            time.sleep(0.02)
    assert Watch(tmp_path).of("train") >= 0.04


def test_a_piece_that_fails_counts_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError), Watch(tmp_path).timed("train"):
        time.sleep(0.02)
        raise ValueError
    assert Watch(tmp_path).of("train", "never begun") >= 0.02


def test_weights_are_those_that_multiply_a_token(tiny_model_folder: Path) -> None:
    attention, mlp, head = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32 * 64, 32 * 300
    assert num_weights(ModelConfig(name_or_path=str(tiny_model_folder))) == 2 * (attention + mlp) + head


def test_weights_of_an_architecture_without_linears_count_too(tmp_path: Path) -> None:
    from transformers import GPT2Config

    GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16).save_pretrained(tmp_path)
    assert num_weights(ModelConfig(name_or_path=str(tmp_path))) == 12 * 8 * 8 + 20 * 8


def test_frozen_weights_save_a_third_of_the_training() -> None:
    assert PassCost(1000).with_gradients / PassCost(1000).full == pytest.approx(2 / 3)
    assert PassCost(1000, 10).forward == 2020
