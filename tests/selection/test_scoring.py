"""Scores against a naive double loop, and the rows that get none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from gradsift.errors import UserError
from gradsift.model.checkpoints import load_checkpoint
from gradsift.selection.scoring import (
    ScoreConfig,
    checkpoint_weights,
    combined,
    influence_scores,
    scored_subtasks,
    subtask_directions,
)

SUBTASKS = ["b", "a", "b", "a", "b"]


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))


def directions(target_VK: Tensor, how: str = "mean_of_cosines") -> Tensor:
    return subtask_directions(target_VK, target_VK.norm(dim=1), SUBTASKS, ["a", "b"], how)


def test_influence_is_the_mean_of_the_cosines_of_a_subtask() -> None:
    pool, target = rows(7, 0), rows(5, 1)
    found = influence_scores(pool, pool.norm(dim=1), directions(target))
    for row in range(7):
        for column, name in enumerate(["a", "b"]):
            members = [index for index, subtask in enumerate(SUBTASKS) if subtask == name]
            cosines = [float(cosine_similarity(pool[row], target[index], dim=0)) for index in members]
            assert float(found[row, column]) == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)


def test_cosine_of_mean_is_the_cosine_with_the_mean_gradient() -> None:
    pool, target = rows(3, 0), rows(5, 1)
    found = influence_scores(pool, pool.norm(dim=1), directions(target, "cosine_of_mean"))
    assert torch.allclose(found[:, 0], cosine_similarity(pool, target[[1, 3]].mean(dim=0)[None]), atol=1e-6)


def test_slices_give_what_one_pass_gives() -> None:
    pool, side = rows(9, 0), directions(rows(5, 1))
    parts = [influence_scores(part, part.norm(dim=1), side) for part in pool.split(4)]
    assert torch.allclose(torch.cat(parts), influence_scores(pool, pool.norm(dim=1), side), atol=1e-7)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_row_without_a_direction_has_no_score(value: float) -> None:
    pool = rows(3, 0)
    pool[1] = value
    score, _ = combined(influence_scores(pool, pool.norm(dim=1), directions(rows(5, 1))), "max")
    assert score.isfinite().tolist() == [True, False, True]


def test_target_example_without_a_direction_does_not_count() -> None:
    target = rows(5, 1)
    whole = directions(target)
    target[0] = 0
    left = directions(target)
    assert torch.equal(left[0], whole[0])
    unit = target / target.norm(dim=1, keepdim=True)
    assert torch.allclose(left[1], unit[[2, 4]].mean(dim=0))


def test_subtask_without_a_direction_is_refused() -> None:
    target = rows(5, 1)
    target[[1, 3]] = 0
    with pytest.raises(UserError, match="subtask a"):
        directions(target)


def test_examples_as_subtasks_take_turns_over_the_subtasks() -> None:
    ids, subtasks = ["b0", "b1", "a0", "a1", "a2"], ["b", "b", "a", "a", "a"]
    assert scored_subtasks(ids, subtasks, "examples") == (ids, ["a0", "b0", "a1", "b1", "a2"])
    assert scored_subtasks(ids, subtasks, "mean_of_cosines") == (subtasks, ["a", "b"])


def test_an_examples_direction_is_its_own_unit_row() -> None:
    features_VK, norms_V = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([5.0, 2.0])
    directions_GK = subtask_directions(features_VK, norms_V, ["one", "two"], ["two", "one"], "examples")
    assert directions_GK.tolist() == [[0.0, 1.0], pytest.approx([0.6, 0.8])]


def test_max_and_mean_combine_subtasks() -> None:
    scores = torch.tensor([[0.1, 0.3], [0.5, -0.5]])
    assert combined(scores, "max")[0].tolist() == pytest.approx([0.3, 0.5])
    assert combined(scores, "mean")[0].tolist() == pytest.approx([0.2, 0.0])
    assert combined(scores, "max")[1].tolist() == [1, 0]


def test_settings_of_before_a_key_have_the_fingerprint_of_before() -> None:
    assert ScoreConfig().decisive == {"subtasks": "mean_of_cosines", "combine": "max"}
    assert ScoreConfig(normalize="rank").decisive == ScoreConfig(normalize="rank").model_dump()


def test_weights_are_shares_of_the_learning_rates() -> None:
    assert checkpoint_weights([3.0, 1.0]) == [0.75, 0.25]


def test_scores_of_the_expected_features_are_the_authors(shared: Path) -> None:
    golden = shared / "golden"
    expected = json.loads((golden / "expected-scores.json").read_text())
    names = ["checkpoint-8", "checkpoint-16"]
    weights = checkpoint_weights([load_checkpoint(golden / name).learning_rate for name in names])
    total = torch.zeros(24, 2)
    for weight, name in zip(weights, names, strict=True):
        tensors = load_file(golden / f"expected-{name}.safetensors")
        target, pool = tensors["target_gradients"], tensors["train_adam_features"]
        side = subtask_directions(target, target.norm(dim=1), expected["subtasks"], ["a", "b"], "mean_of_cosines")
        total += weight * influence_scores(pool, pool.norm(dim=1), side)
    assert combined(total, "max")[0].tolist() == pytest.approx(expected["scores"], rel=1e-5)
