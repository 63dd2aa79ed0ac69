"""The probe names what can't be covered, says what would do, and leaves the model as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import load_toy, save_toy, with_adapter
from conftest import MakeModel, MakeRow
from torch import nn

from gradsift.encoding.batching import pad_rows
from gradsift.errors import ConfigError
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.gradients.probe import UncoveredLayers, probe, short_rows
from gradsift.model.adapters import LoraConfig, add_lora
from gradsift.model.losses import example_losses

# PEFT 0.21 asks transformers for a name that it has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def refusal(model: nn.Module, rows: list[Any]) -> UncoveredLayers:
    with pytest.raises(UncoveredLayers) as caught:
        probe(model, rows)
    return caught.value


def test_a_fresh_adapter_stays_as_it_was(tmp_path: Path, make_row: MakeRow) -> None:
    model = add_lora(load_toy(save_toy("llama", tmp_path)), LoraConfig(r=2, alpha=4, dropout=0.5)).train()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    random = torch.get_rng_state()

    probe(model, [make_row(12, 1)])

    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trainable
    assert all(weight.grad is None for weight in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_model_trains_after_the_probe(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    probed, untouched, batch = make_lora_model(), make_lora_model(), pad_rows([make_row(12, 1)])
    probe(probed, [make_row(12, 1)])

    for model in (probed, untouched):
        example_losses(model, batch).mean().backward()

    pairs = zip(probed.parameters(), untouched.parameters(), strict=True)
    assert all(torch.equal(left.grad, right.grad) for left, right in pairs if right.grad is not None)


def test_all_layers_that_are_not_covered_are_named_with_what_would_do(
    make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    found = refusal(make_lora_model(target_modules=["q_proj", "lm_head"]), [make_row(40, 1)])

    assert "lm_head sees an input of shape (1, 33, 32)" in str(found)
    assert "set lora.target_modules to [q_proj]" in str(found)


def test_following_the_advice_is_enough(tmp_path: Path, make_row: MakeRow) -> None:
    folder, rows = save_toy("deepseek_v32", tmp_path, {"num_key_value_heads": 4}), [make_row(12, 1)]
    found = refusal(with_adapter(load_toy(folder)), rows)

    assert "self_attn.indexer" in str(found)
    assert found.target_modules == ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]
    probe(with_adapter(load_toy(folder), found.target_modules), rows)


def test_layers_that_names_do_not_tell_apart_are_advised_by_a_pattern(
    make_lora_model: MakeModel, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lora_model(target_modules=["q_proj", "v_proj"])
    model.base_model.model.tower = nn.ModuleDict({"layers": make_lora_model().base_model.model.model.layers})

    found = refusal(model, [make_row(6, 1)])

    assert found.target_modules == r"model.layers.\d+.self_attn.(q_proj|v_proj)"


def test_experts_that_see_what_a_router_gives_them_are_refused_by_name(tmp_path: Path, make_row: MakeRow) -> None:
    found = refusal(with_adapter(load_toy(save_toy("jetmoe", tmp_path))), [make_row(12, 1)])

    assert "self_attention.experts.router.layer sees an input of shape" in str(found)
    assert isinstance(found.target_modules, str)
    probe(with_adapter(load_toy(tmp_path), found.target_modules), [make_row(12, 1)])


@pytest.mark.filterwarnings("ignore:If you want to use `Bert")
def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path, make_row: MakeRow) -> None:
    model = with_adapter(load_toy(save_toy("bert", tmp_path, {"is_decoder": False})))

    with pytest.raises(ConfigError, match=r"BertLMHeadModel: the gradient of a row in a batch is not that of the row"):
        probe(model, [make_row(12, 1)])


def test_a_model_that_can_not_be_run_is_refused_in_one_line(
    make_lora_model: MakeModel, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_lora_model()

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("forward() needs\npixel_values")

    monkeypatch.setattr(model.base_model.model, "forward", fail)

    with pytest.raises(ConfigError, match=r"can't be run on rows of tokens alone: TypeError: forward\(\) needs pixel"):
        probe(model, [make_row(12, 1)])


@pytest.mark.parametrize(("lengths", "expected"), [((100, 50), [24, 11]), ((12, 9), [12, 5]), ((2,), [2, 2])])
def test_probed_rows_are_short_and_no_longer_than_the_longest(
    lengths: tuple[int, ...], expected: list[int], make_row: MakeRow
) -> None:
    rows = [make_row(length, length) for length in lengths]

    found = short_rows(rows)

    assert [row.num_tokens for row in found] == expected
    assert all(set(row.input_ids) <= {*rows[0].input_ids, *rows[-1].input_ids} for row in found)
    assert all(row.num_supervised == row.num_tokens - 1 for row in found)


def test_the_engine_can_be_released_and_made_again(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model, batch = make_lora_model(), pad_rows([make_row(9, 1), make_row(5, 2)])
    before: dict[str, torch.Tensor] = {}
    gradients = PerExampleGradients(model)
    gradients(batch, before.__setitem__)
    gradients.release()
    after: dict[str, torch.Tensor] = {}

    PerExampleGradients(model)(batch, after.__setitem__)

    assert all(torch.equal(after[name], block) for name, block in before.items())
