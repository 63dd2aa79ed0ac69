"""Losses and representations of a row don't depend on its company, where a model looks at the longest row."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import LENGTH_READERS, ORIGINAL, all_alone, load_toy, save_toy, with_adapter
from conftest import MakeModel, MakeRow

from gradsift.baselines.representations import REPRESENTATIONS, Base
from gradsift.encoding.batching import pad_rows
from gradsift.features.makers import RepresentationMaker
from gradsift.model.losses import example_losses
from gradsift.model.positions import alike_parts, position_sides
from gradsift.model.tail import find_shortcuts

# PEFT 0.21 asks transformers for a name that it has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTHS = (23, 4, 9, 30, 12, 13)


def toy_of(rope: dict[str, Any], **settings: Any) -> Any:
    config = SimpleNamespace(rope_parameters=rope, **settings)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config)


@pytest.mark.parametrize("kind", LENGTH_READERS)
def test_losses_in_company_are_those_of_each_row_alone(kind: str, tmp_path: Path, make_row: MakeRow) -> None:
    folder = save_toy(LENGTH_READERS[kind][0], tmp_path, LENGTH_READERS[kind][1])
    rows, model = [make_row(length, length) for length in LENGTHS], with_adapter(load_toy(folder))
    expected, _ = all_alone(folder, rows)

    for _ in range(2):  # nothing is remembered
        assert example_losses(model, pad_rows(rows)).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", LENGTH_READERS)
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_representations_in_company_are_those_of_each_row_alone(
    kind: str, representation: str, tmp_path: Path, make_row: MakeRow
) -> None:
    folder = save_toy(LENGTH_READERS[kind][0], tmp_path, LENGTH_READERS[kind][1])
    model, rows = load_toy(folder), [make_row(length, length) for length in LENGTHS]
    make = RepresentationMaker(representation, Base(model, find_shortcuts(model)))
    expected = torch.cat([make(pad_rows([row])) for row in rows])

    torch.testing.assert_close(make(pad_rows(rows)), expected, rtol=1e-4, atol=1e-5)


def test_longrope_has_two_sides_and_dynamic_one_a_length() -> None:
    longrope = toy_of({"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL})
    dynamic = toy_of({"rope_type": "dynamic"}, max_position_embeddings=ORIGINAL)

    assert position_sides(longrope, [3, 12, 13, 40]) == [(0,), (0,), (1,), (1,)]
    assert position_sides(dynamic, [3, 12, 13, 40, 13]) == [(0,), (0,), (13,), (40,), (13,)]


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_other_ropes_leave_a_batch_whole(kind: str, make_row: MakeRow) -> None:
    batch = pad_rows([make_row(20, 1), make_row(4, 2)])

    ((rows, part),) = alike_parts(toy_of({"rope_type": kind, "original_max_position_embeddings": 8}), batch)

    assert rows == [0, 1]
    assert part is batch


def test_padding_does_not_decide_a_side(make_row: MakeRow) -> None:
    model = toy_of({"rope_type": "longrope", "original_max_position_embeddings": ORIGINAL})

    parts = alike_parts(model, pad_rows([make_row(20, 1), make_row(4, 2), make_row(30, 3), make_row(9, 4)]))

    assert [(rows, part.input_ids_BT.shape[1]) for rows, part in parts] == [([0, 2], 30), ([1, 3], 9)]


def test_a_model_without_rope_leaves_a_batch_whole(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    assert len(alike_parts(make_lora_model(), pad_rows([make_row(20, 1), make_row(4, 2)]))) == 1
