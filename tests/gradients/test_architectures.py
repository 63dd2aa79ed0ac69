"""Features of a padded batch equal plain autograd of each row alone, in every kind of architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LENGTH_READERS, all_alone, load_toy, save_toy, with_adapter
from conftest import MakeRow
from torch import Tensor

from gradsift.encoding.batching import pad_rows
from gradsift.encoding.encoder import EncodedRow
from gradsift.features.gradient_features import FeatureMaker
from gradsift.gradients.per_example import PerExampleGradients, is_of_tokens
from gradsift.gradients.projection import ProjectionConfig, build_projector

pytestmark = [
    # PEFT 0.21 asks transformers for a name that it has since renamed.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning"),
]

LENGTHS = (23, 4, 9, 17, 30, 12, 13)
KINDS: dict[str, tuple[str, dict[str, Any], str | list[str]]] = {
    "llama": ("llama", {}, "auto"),
    "convolutions of one": ("gpt2", {}, "auto"),
    "one matrix for queries, keys and values": ("gpt_neox", {}, "auto"),
    "no sdpa, alibi, an MLP of two arguments": ("bloom", {}, "all-linear"),
    "no sdpa, capped logits": ("gemma2", {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 5.0}, "auto"),
    "inputs [B·T, I]": ("opt", {}, "all-linear"),
    "inputs [B, 1, T, I]": ("deepseek_v3", {"first_k_dense_replace": 1, "num_key_value_heads": 4}, "auto"),
    "one MLP beside the attention": ("falcon", {}, "auto"),
    "a recurrence": ("mamba", {}, ["in_proj", "x_proj"]),
    "experts beside the adapter": ("mixtral", {}, "auto"),
    "a shared expert": ("qwen2_moe", {}, "all-linear"),
    "sinks and windows": ("gpt_oss", {}, "auto"),
}


def features(folder: Path, rows: list[EncodedRow], targets: str | list[str] = "auto") -> Tensor:
    """The engine's gradients of a batch, [B, P]."""
    gradients = PerExampleGradients(with_adapter(load_toy(folder), targets))
    projector = build_projector(ProjectionConfig(kind="identity"), gradients.shapes)
    return FeatureMaker(gradients, "sgd", {}, projector)(pad_rows(rows))


def largest_error(found_BP: Tensor, expected_BP: Tensor) -> float:
    return float(((found_BP - expected_BP).norm(dim=1) / expected_BP.norm(dim=1)).max())


@pytest.mark.parametrize("kind", KINDS)
def test_features_equal_autograd_of_each_row_alone(kind: str, tmp_path: Path, make_row: MakeRow) -> None:
    family, settings, targets = KINDS[kind]
    folder, rows = save_toy(family, tmp_path, settings), [make_row(length, length) for length in LENGTHS]

    found_BP = features(folder, rows, targets)

    assert largest_error(found_BP, all_alone(folder, rows, targets)[1]) < 1e-4


@pytest.mark.parametrize("kind", LENGTH_READERS)
def test_company_of_any_length_leaves_features_as_they_are_alone(kind: str, tmp_path: Path, make_row: MakeRow) -> None:
    folder, rows = save_toy(LENGTH_READERS[kind][0], tmp_path, LENGTH_READERS[kind][1]), []
    rows = [make_row(length, length) for length in LENGTHS]

    found_BP = features(folder, rows)

    assert largest_error(found_BP, all_alone(folder, rows)[1]) < 1e-4


def test_the_engine_refuses_a_batch_of_both_sides(tmp_path: Path, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(with_adapter(load_toy(save_toy("phi3", tmp_path, LENGTH_READERS["longrope"][1]))))

    with pytest.raises(AssertionError, match="rows of different positions"):
        gradients(pad_rows([make_row(20, 1), make_row(8, 2)]), lambda *_: None)


@pytest.mark.parametrize(
    ("shape", "path", "expected"),
    [
        ((3, 5, 8), "layers.0.q_proj", True),
        ((3, 1, 5, 8), "layers.0.kv_b_proj", True),
        ((3, 5, 1, 8), "layers.0.kv_b_proj", True),
        ((15, 8), "layers.0.fc1", True),
        ((15, 8), "layers.0.shared_expert.up_proj", True),
        ((15, 8), "layers.0.mlp.experts.3.up_proj", False),
        ((14, 8), "layers.0.fc1", False),
        ((5, 3, 8), "layers.0.q_proj", False),
        ((3, 4, 5, 8), "layers.0.q_proj", False),
        ((3, 6, 8), "layers.0.q_proj", False),
    ],
)
def test_an_input_of_the_tokens_in_their_order_is_told_from_others(
    shape: tuple[int, ...], path: str, expected: bool
) -> None:
    assert is_of_tokens(torch.Size(shape), torch.Size((3, 5)), path) is expected
