"""Representations against a naive loop: one example at a time, all hidden states kept, plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import MODEL_KINDS, save_model
from runs import largest_relative_error
from torch import Tensor

from gradsift.baselines.representations import REPRESENTATIONS, Base
from gradsift.encoding.batching import pad_rows
from gradsift.encoding.masks import IGNORED
from gradsift.model.finetuned import load_finetuned
from gradsift.model.loading import ModelConfig
from gradsift.model.tail import find_shortcuts

LENGTHS = (5, 17, 1, 40, 8)


@pytest.fixture(scope="module", params=["llama", *MODEL_KINDS])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    if request.param == "llama":
        folder = request.getfixturevalue("tiny_model_folder")
    else:
        folder = save_model(request.param, tmp_path_factory.mktemp(request.param))
    model = load_finetuned(ModelConfig(name_or_path=str(folder), dtype="float32"), None, torch.device("cpu"))
    return Base(model, find_shortcuts(model))


@pytest.fixture
def rows(make_row: Callable[..., Any]) -> list[Any]:
    """Rows of different lengths, of ids below 260; the supervised half is never empty but in the row of one token."""
    made = [make_row(length, seed=seed) for seed, length in enumerate(LENGTHS)]
    for row in made:
        row.input_ids[:] %= 260
        row.labels[:] = [IGNORED if label == IGNORED else label % 260 for label in row.labels]
    return made


def last_states(base: Base, row: Any) -> Tensor:
    """[T, H] of one example, alone and unpadded."""
    with torch.no_grad():
        output: Any = base.model(torch.tensor([row.input_ids.tolist()]), output_hidden_states=True)
    return output.hidden_states[-1][0]


def naive_rds(base: Base, row: Any) -> Tensor:
    return last_states(base, row)[-1]


def naive_rds_plus(base: Base, row: Any) -> Tensor:
    states_TH = last_states(base, row)
    total = sum(range(1, len(states_TH) + 1))
    return torch.stack([(i / total) * state_H for i, state_H in enumerate(states_TH, 1)]).sum(dim=0)


def naive_loss(base: Base, row: Any) -> Tensor:
    ids_1T = torch.tensor([row.input_ids.tolist()])
    with torch.no_grad():
        return base.model(ids_1T, labels=torch.tensor([row.labels.tolist()])).loss[None]  # type: ignore[no-any-return]


NAIVE = {"rds": naive_rds, "rds+": naive_rds_plus, "loss": naive_loss}


def represented(base: Base, kind: str, rows: list[Any]) -> Tensor:
    with torch.no_grad():
        return REPRESENTATIONS[kind].represent(base, pad_rows(rows))


def test_every_representation_has_a_naive_twin() -> None:
    assert NAIVE.keys() == REPRESENTATIONS.keys()


@pytest.mark.parametrize("kind", NAIVE)
def test_a_batch_equals_the_naive_loop(kind: str, base: Base, rows: list[Any]) -> None:
    rows = [row for row in rows if row.num_tokens > 1] if kind == "loss" else rows
    expected_BK = torch.stack([NAIVE[kind](base, row) for row in rows])
    found_BK = represented(base, kind, rows)
    assert found_BK.dtype == torch.float32
    assert largest_relative_error(found_BK, expected_BK) < 1e-5


@pytest.mark.parametrize("kind", NAIVE)
def test_a_rows_company_and_padding_do_not_change_it(
    kind: str, base: Base, rows: list[Any], make_row: Callable[..., Any]
) -> None:
    row = rows[1]
    others = [make_row(60, seed=50), make_row(3, seed=51)]
    for other in others:
        other.input_ids[:] %= 260
        other.labels[:] = [IGNORED if label == IGNORED else label % 260 for label in other.labels]
    alone_K, among_K = represented(base, kind, [row])[0], represented(base, kind, [*others, row])[2]
    assert largest_relative_error(among_K[None], alone_K[None]) < 1e-5


def test_no_more_than_one_position_gets_logits(base: Base, rows: list[Any]) -> None:
    seen: list[int] = []
    head: Any = base.model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_hook(lambda _, __, logits: seen.append(logits.shape[:-1].numel()))
    try:
        represented(base, "rds", rows)
        represented(base, "rds+", rows)
    finally:
        handle.remove()
    assert seen == [1, 1]
