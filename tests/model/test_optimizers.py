"""Optimizer states of other trainers: Adam's moments where they are exact, every other optimizer refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import copied, edit_optimizer, save_checkpoint, stepped

from gradsift.errors import CheckpointError
from gradsift.gradients.adam import adam_feature
from gradsift.model.checkpoints import adapter_shapes, load_checkpoint, read_moments
from gradsift.model.moments import AdamSettings, Moments

State = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return save_checkpoint(tiny_model_folder, tmp_path_factory.mktemp("saved") / "checkpoint-4")


@pytest.fixture
def checkpoint(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return copied(saved, tmp_path / "checkpoint-4")


def moments_of(folder: Path) -> tuple[dict[str, Moments], AdamSettings]:
    checkpoint = load_checkpoint(folder)
    return read_moments(checkpoint, adapter_shapes(checkpoint))


def with_optimizer(folder: Path, kind: Callable[..., torch.optim.Optimizer], **options: Any) -> None:
    """Put the state of an optimizer of that kind in the place of AdamW's."""
    shapes = adapter_shapes(load_checkpoint(folder))
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes.values()]
    torch.save(stepped(kind, parameters, **options).state_dict(), folder / "optimizer.pt")


def as_bitsandbytes(state: State) -> None:
    """What bitsandbytes' 32-bit AdamW saves, paged or not: float32 tensors with marks of their own."""
    for key, entry in state["state"].items():
        tensors = {"state1": entry["exp_avg"], "state2": entry["exp_avg_sq"]}
        for tensor in tensors.values():
            tensor.is_paged = True
        state["state"][key] = {"step": int(entry["step"]), **tensors}
    group = state["param_groups"][0]
    state["param_groups"][0] = {
        **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay", "params")},
        "alpha": 0.0,
        "t_alpha": None,
        "t_beta3": None,
    }


def as_apex(state: State) -> None:
    """What apex's FusedAdam saves: the step in the group."""
    state["param_groups"][0]["step"] = int(state["state"][0]["step"])
    for entry in state["state"].values():
        del entry["step"]


def on_graph(state: State) -> None:
    """The step as a tensor on the parameter's device, as `capturable` and `fused` keep it."""
    for entry in state["state"].values():
        entry["step"] = torch.tensor(4.0)


@pytest.mark.parametrize("change", [as_bitsandbytes, as_apex, on_graph], ids=lambda change: change.__name__)
def test_adamw_of_other_makers_gives_the_same_moments(checkpoint: Path, change: Callable[[State], None]) -> None:
    expected, adam = moments_of(checkpoint)
    edit_optimizer(checkpoint, change)
    found, settings = moments_of(checkpoint)
    assert settings == adam
    for name, pair in expected.items():
        assert torch.equal(found[name].first_OI, pair.first_OI)
        assert torch.equal(found[name].second_OI, pair.second_OI)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}], ids=str)
def test_every_way_in_which_torch_computes_adamw_is_read(checkpoint: Path, options: dict[str, bool]) -> None:
    with_optimizer(checkpoint, torch.optim.AdamW, **options)
    assert moments_of(checkpoint)[1] == AdamSettings(4, (0.9, 0.999), 1e-8)


def test_the_moments_of_bitsandbytes_in_32_bits_give_its_next_step() -> None:
    """Its kernel (kOptimizer32bit2State, ADAM): s1, s2 are running means; the step lr·√c2/c1 · s1 / (√s2 + ε·√c2)."""
    generator = torch.Generator().manual_seed(0)
    first, gradient = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    second = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    beta1, beta2, eps, step = 0.9, 0.999, 1e-6, 5
    state1, state2 = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
    correction1, correction2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
    expected = correction2 / correction1 * state1 / (state2.sqrt() + eps * correction2)

    adam = AdamSettings(step - 1, (beta1, beta2), eps)
    found = adam_feature(gradient[None].clone(), "adamw", Moments(first, second), adam)[0]

    torch.testing.assert_close(found, expected)


def eight_bits(state: State) -> None:
    for key, entry in state["state"].items():
        state["state"][key] = {
            "step": 4,
            "state1": entry["exp_avg"].byte(),
            "state2": entry["exp_avg_sq"].byte(),
            "qmap1": torch.zeros(256),
            "absmax1": torch.zeros(1),
        }


def lion_of_bitsandbytes(state: State) -> None:
    for entry in state["state"].values():
        entry["state1"] = entry.pop("exp_avg")
        del entry["exp_avg_sq"]


def factored(state: State) -> None:
    for key, entry in state["state"].items():
        rows = {"exp_avg_sq_row": entry["exp_avg_sq"][:, 0], "exp_avg_sq_col": entry["exp_avg_sq"][0]}
        state["state"][key] = {"step": 4, "RMS": 0.1, **rows}


def muon(state: State) -> None:
    for key, entry in state["state"].items():
        state["state"][key] = {"momentum_buffer": entry["exp_avg"]}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (eight_bits, "8-bit"),
        (lion_of_bitsandbytes, "Lion"),
        (factored, "Adafactor"),
        (muon, "SGD or Muon"),
        (lambda state: state["param_groups"][0].update(maximize=True), "maximize"),
    ],
    ids=["eight bits", "lion", "adafactor", "muon", "maximize"],
)
def test_states_that_are_not_adams_are_refused_by_name(
    checkpoint: Path, change: Callable[[State], None], name: str
) -> None:
    edit_optimizer(checkpoint, change)
    with pytest.raises(CheckpointError, match=name) as refusal:
        moments_of(checkpoint)
    assert str(checkpoint / "optimizer.pt") in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (torch.optim.AdamW, {"amsgrad": True}, "amsgrad"),
        (torch.optim.NAdam, {}, "NAdam"),
        (torch.optim.RAdam, {}, "RAdam"),
        (torch.optim.Adamax, {}, "Adamax"),
        (torch.optim.RMSprop, {}, "RMSprop"),
        (torch.optim.Adagrad, {}, "Adagrad"),
        (torch.optim.SGD, {"momentum": 0.9}, "SGD or Muon"),
        (torch.optim.SGD, {}, "its state is empty"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_torchs_other_optimizers_are_refused_by_name(
    checkpoint: Path, kind: Any, options: dict[str, Any], name: str
) -> None:
    with_optimizer(checkpoint, kind, **options)
    with pytest.raises(CheckpointError, match=name):
        moments_of(checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_no_numbers_are_refused(checkpoint: Path, key: str, value: float) -> None:
    edit_optimizer(checkpoint, lambda state: state["state"][1][key].view(-1)[0].fill_(value))
    with pytest.raises(CheckpointError, match=rf"{key} of .* not numbers"):
        moments_of(checkpoint)


def test_negative_second_moments_are_refused(checkpoint: Path) -> None:
    edit_optimizer(checkpoint, lambda state: state["state"][1]["exp_avg_sq"].neg_())
    with pytest.raises(CheckpointError, match="negative second moments"):
        moments_of(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["param_groups"][0].update(betas=(0.9, 1.0)),
        lambda state: state["param_groups"][0].update(betas=0.9),
        lambda state: state["param_groups"][0].pop("eps"),
        lambda state: state["param_groups"][0].update(eps=float("nan")),
        lambda state: state["param_groups"][0].pop("params"),
        lambda state: state.update(param_groups=[]),
        lambda state: state.update(state=[1, 2]),
        lambda state: state["state"].update({0: 7}),
        lambda state: state["state"][0].update(step=0),
        lambda state: state["state"][0].update(step="four"),
        lambda state: state["state"][0].update(step=torch.tensor([1.0, 2.0])),
        lambda state: state["state"][0].update(exp_avg="text"),
    ],
)
def test_a_state_that_no_adam_has_is_refused(checkpoint: Path, change: Callable[[State], None]) -> None:
    edit_optimizer(checkpoint, change)
    with pytest.raises(CheckpointError, match=r"optimizer\.pt"):
        moments_of(checkpoint)
