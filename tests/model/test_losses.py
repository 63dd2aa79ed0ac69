"""Losses in chunks and at supervised positions equal those of all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from gradsift.encoding.batching import pad_rows
from gradsift.model import losses
from gradsift.model.losses import example_losses
from gradsift.model.tail import Shortcuts, find_shortcuts, last_mlp, plain_head

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., Any]


def tiny(kind: str, **settings: Any) -> nn.Module:
    """A random model of two layers, of another architecture than the tests' Llama."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **settings}))
    return model.eval().requires_grad_(False)


def loss_and_input_gradient(model: nn.Module, batch: Any, shortcuts: Shortcuts) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [B] and the gradient of their sum by the first layer's first weight."""
    weight = next(parameter for name, parameter in model.named_parameters() if ".0." in name)
    weight.requires_grad_(True)
    losses_B = example_losses(model, batch, shortcuts)
    (gradient,) = torch.autograd.grad(losses_B.sum(), weight)
    weight.requires_grad_(False)
    return losses_B.detach(), gradient


@pytest.mark.parametrize("chunk_logits", [1, 1000, 1 << 20], ids=["a row", "some rows", "all rows"])
def test_chunked_losses_and_gradients_equal_those_from_all_logits(
    chunk_logits: int, make_lora_model: MakeModel, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(losses.CHUNK_LOGITS, "cpu", chunk_logits)
    model = make_lora_model().eval().requires_grad_(False)
    batch = pad_rows([make_row(12, 1), make_row(8, 2)])

    expected = loss_and_input_gradient(model, batch, Shortcuts())
    found = loss_and_input_gradient(model, batch, Shortcuts(plain_head(model)))

    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gpt_neox", "olmo2", "bloom", "mixtral"]
)
def test_losses_and_gradients_equal_those_of_all_positions(kind: str, make_row: MakeRow) -> None:
    model, rows = tiny(kind), [make_row(12, 1), make_row(9, 2, supervised=[5, 8])]
    weight = next(parameter for name, parameter in model.named_parameters() if ".0." in name)

    found, gradient = loss_and_input_gradient(model, pad_rows(rows), find_shortcuts(model))

    weight.requires_grad_(True)
    ids_and_labels = [[torch.tensor(ids)[None].long() for ids in (row.input_ids, row.labels)] for row in rows]
    expected = torch.stack([model(input_ids=ids, labels=labels).loss for ids, labels in ids_and_labels])
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), weight)[0], rtol=1e-4, atol=1e-6)


def test_a_head_whose_logits_are_capped_afterwards_is_not_plain() -> None:
    assert plain_head(tiny("llama")) is not None
    assert plain_head(tiny("gemma2", final_logit_softcapping=5.0)) is None


def test_a_head_that_trains_is_not_plain() -> None:
    model = tiny("llama")
    model.get_output_embeddings().requires_grad_(True)

    assert plain_head(model) is None


def test_an_mlp_with_an_adapter_is_left_alone(make_lora_model: MakeModel) -> None:
    assert last_mlp(make_lora_model().eval()) is not None
    assert last_mlp(make_lora_model(target_modules="all-linear").eval()) is None
