"""LoRA layers in one piece equal PEFT's own passes, merged or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradsift.encoding.batching import pad_rows
from gradsift.errors import ConfigError
from gradsift.gradients.layers import LoraLayer, lora_layers
from gradsift.gradients.per_example import PerExampleGradients

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., Any]


@pytest.mark.parametrize("merged", [False, True], ids=["adapter apart", "merged"])
def test_both_ways_through_a_layer_give_the_gradients_of_autograd(
    merged: bool, make_lora_model: MakeModel, make_row: MakeRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoraLayer, "gains_by_merging", lambda *_: merged)
    model, row = make_lora_model(), make_row(12, 1)
    ids, labels = (torch.tensor(values)[None].long() for values in (row.input_ids, row.labels))
    model.eval()(input_ids=ids, labels=labels).loss.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    blocks: dict[str, Tensor] = {}

    PerExampleGradients(model)(pad_rows([row]), blocks.__setitem__)

    for name, gradient_OI in expected.items():
        error = torch.linalg.vector_norm(blocks[name][0] - gradient_OI) / torch.linalg.vector_norm(gradient_OI)
        assert error < 1e-5, name


def test_merging_gains_only_with_many_tokens(make_lora_model: MakeModel) -> None:
    layer = lora_layers(make_lora_model())[0]  # 32 × 32

    assert [layer.gains_by_merging(tokens) for tokens in (1, 64, 65, 1000)] == [False, False, True, True]


def test_a_bf16_layer_is_never_merged(make_lora_model: MakeModel) -> None:
    layer = lora_layers(make_lora_model().to(torch.bfloat16))[0]

    assert not layer.gains_by_merging(1000)


def test_an_adapter_of_which_one_matrix_trains_is_refused(make_lora_model: MakeModel) -> None:
    model = make_lora_model()
    next(weight for name, weight in model.named_parameters() if ".lora_A." in name).requires_grad_(False)

    with pytest.raises(ConfigError, match="train both"):
        lora_layers(model)
