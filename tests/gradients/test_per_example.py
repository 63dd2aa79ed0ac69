"""Gradients of every example, against autograd of each alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsift.encoding.batching import pad_rows
from gradsift.encoding.encoder import EncodedRow
from gradsift.errors import ConfigError
from gradsift.gradients.layers import lora_linears
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.model.losses import example_losses

MakeModel = Callable[..., nn.Module]
MakeRow = Callable[..., EncodedRow]


def collected(gradients: PerExampleGradients, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
    """Gradients [B, O, I] of a batch, by parameter."""
    blocks: dict[str, Tensor] = {}
    gradients(pad_rows(rows), blocks.__setitem__)
    return blocks


def naive_loss(model: nn.Module, row: EncodedRow) -> Tensor:
    """The loss that transformers gives for that example alone."""
    input_ids_1T, labels_1T = (torch.tensor(ids)[None].long() for ids in (row.input_ids, row.labels))
    loss: Tensor = model(input_ids=input_ids_1T, labels=labels_1T).loss
    return loss


def naive_gradients(model: nn.Module, row: EncodedRow) -> dict[str, Tensor]:
    """Autograd of that example alone, by parameter."""
    model.zero_grad()
    naive_loss(model.eval(), row).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def assert_equal_to_autograd(model: nn.Module, rows: Sequence[EncodedRow]) -> None:
    oracle = copy.deepcopy(model)
    blocks = collected(PerExampleGradients(model), rows)
    for index, row in enumerate(rows):
        expected = naive_gradients(oracle, row)
        assert blocks.keys() == expected.keys()
        for name, gradient_OI in expected.items():
            assert relative_error(blocks[name][index], gradient_OI) < 1e-5, (row.id, name)


def test_gradients_of_rows_of_one_length_equal_autograd_of_each_alone(
    make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    assert_equal_to_autograd(make_lora_model(), [make_row(12, seed) for seed in range(4)])


def test_gradients_of_padded_rows_equal_autograd_of_each_alone(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    assert_equal_to_autograd(make_lora_model(), [make_row(length, length) for length in (23, 4, 9, 17)])


def test_gradients_of_several_turns_equal_autograd(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    assert_equal_to_autograd(
        make_lora_model(), [make_row(20, 1, supervised=[4, 5, 6, 11, 17, 18]), make_row(14, 2, supervised=[13])]
    )


def test_gradients_of_all_linear_layers_equal_autograd(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model = make_lora_model(target_modules="all-linear")

    assert_equal_to_autograd(model, [make_row(12, 1), make_row(7, 2)])


def test_batch_company_does_not_change_a_gradient(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    row = make_row(9, 1)

    alone = collected(gradients, [row])
    in_company = collected(gradients, [make_row(30, 2), row, make_row(4, 3)])

    assert max(relative_error(in_company[name][1], alone[name][0]) for name in alone) < 1e-5


def test_every_matrix_is_handed_out_once_in_float32(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model())
    seen: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    gradients(pad_rows([make_row(6, 1)]), lambda name, block: seen.append((name, tuple(block.shape), block.dtype)))

    assert sorted(seen) == sorted((name, (1, *shape), torch.float32) for name, shape in gradients.shapes.items())


def test_no_parameter_collects_a_gradient(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model = make_lora_model()

    collected(PerExampleGradients(model), [make_row(6, 1)])

    assert all(parameter.grad is None for parameter in model.parameters())


def test_dropout_is_off(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    without = collected(PerExampleGradients(make_lora_model(dropout=0.0)), [make_row(12, 1)])

    with_dropout = collected(PerExampleGradients(make_lora_model(dropout=0.5).train()), [make_row(12, 1)])

    assert all(torch.equal(with_dropout[name], without[name]) for name in without)


def test_gradients_return_the_losses(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model, rows = make_lora_model(), [make_row(12, 1), make_row(5, 2)]
    expected = [naive_loss(model.eval(), row).item() for row in rows]

    losses_B = PerExampleGradients(model)(pad_rows(rows), lambda *_: None)

    assert losses_B.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "supervised",
    [[11], [0, 1, 2], [3, 4, 5, 9, 10, 11], list(range(12))],
    ids=["last token", "first tokens", "two turns", "all"],
)
def test_loss_of_an_example_is_that_of_transformers(
    supervised: list[int], make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    model, row = make_lora_model().eval(), make_row(12, 1, supervised)

    losses_B = example_losses(model, pad_rows([row])).detach()

    assert losses_B.tolist() == pytest.approx([naive_loss(model, row).item()], rel=1e-6)


def test_losses_of_a_padded_batch_are_those_of_each_example(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model, rows = make_lora_model().eval(), [make_row(length, length) for length in (12, 31, 5)]

    losses_B = example_losses(model, pad_rows(rows)).detach()

    assert losses_B.tolist() == pytest.approx([naive_loss(model, row).item() for row in rows], rel=1e-5)


def test_loss_from_supervised_positions_equals_the_one_from_all_logits(
    make_lora_model: MakeModel, make_row: MakeRow
) -> None:
    model, batch = make_lora_model().eval(), pad_rows([make_row(12, 1), make_row(8, 2)])
    logits_BTV = model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT).logits[:, :-1]
    labels_BT = batch.labels_BT[:, 1:]
    losses_BT = functional.cross_entropy(logits_BTV.transpose(1, 2), labels_BT, reduction="none")

    losses_B = example_losses(model, batch)

    torch.testing.assert_close(losses_B, losses_BT.sum(dim=1) / (labels_BT != -100).sum(dim=1))


def test_the_model_gives_all_logits_again_after_a_loss(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model, batch = make_lora_model().eval(), pad_rows([make_row(12, 1)])

    example_losses(model, batch)

    assert model(input_ids=batch.input_ids_BT).logits.shape[:2] == (1, 12)


def test_lora_linears_come_in_the_order_of_the_model(make_lora_model: MakeModel) -> None:
    model = make_lora_model()

    names = list(lora_linears(model))

    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]


# PEFT 0.21 asks transformers for a name that it has since renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize(
    ("peft_settings", "refused"),
    [
        ({"bias": "all"}, "q_proj.base_layer.bias"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.modules_to_save.default.weight"),
        ({"use_dora": True}, "q_proj.lora_magnitude_vector.default.weight"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens.lora_embedding_A.default"),
    ],
    ids=["bias", "modules_to_save", "dora", "embedding"],
)
def test_trainable_parameters_that_are_no_lora_linear_are_refused_by_name(
    peft_settings: dict[str, Any], refused: str, tiny_model_folder: Path
) -> None:
    import peft
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model_folder, attention_bias=True, num_hidden_layers=1)
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **peft_settings}
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(config), peft.LoraConfig(**settings))

    with pytest.raises(ConfigError) as caught:
        PerExampleGradients(model)

    assert refused in str(caught.value)


def test_a_model_without_trainable_parameters_is_refused(make_lora_model: MakeModel) -> None:
    with pytest.raises(ConfigError, match="no LoRA parameter"):
        PerExampleGradients(make_lora_model().requires_grad_(False))


def test_lora_on_the_output_embedding_is_refused_by_name(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    gradients = PerExampleGradients(make_lora_model(target_modules=["q_proj", "lm_head"]))

    with pytest.raises(ConfigError, match="lm_head"):
        collected(gradients, [make_row(6, 1)])


def test_lora_that_takes_no_part_in_the_loss_is_refused_by_name(make_lora_model: MakeModel, make_row: MakeRow) -> None:
    model = make_lora_model()
    model.base_model.model.model.layers = model.base_model.model.model.layers[:1]
    unused = make_lora_model().base_model.model.model.layers[1]
    model.base_model.model.unused = unused

    with pytest.raises(ConfigError, match=r"no part in the loss: .*unused\.self_attn"):
        collected(PerExampleGradients(model), [make_row(6, 1)])
