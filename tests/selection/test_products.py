"""Products of stored rows against naive ones, and the same bits in integers and in floats."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradsift.selection import products
from gradsift.selection.products import (
    FloatProducts,
    IntegerProducts,
    LevelSums,
    SignProducts,
    Workspace,
    build_products,
    integers_are_fast,
)
from gradsift.store.quantization import BITS, packed, quantized, unpacked

needs_integers = pytest.mark.skipif(not integers_are_fast(), reason="int8 products aren't exact here")
KERNELS = [pytest.param(True, marks=needs_integers, id="integers"), pytest.param(False, id="floats")]
DIMS = [1, 7, 300, 8 * 1024, 8 * 1025, 8 * 1500 + 3]
"""Of 1 bit at 8 · 1,025 a byte stands alone behind the first columns."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored_levels(num_rows: int, dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """Levels of random rows [R, K], and as they are stored."""
    levels_RK, _ = quantized(draw(num_rows, dim, seed=1), bits)
    return levels_RK, packed(levels_RK, bits)


@needs_integers
@pytest.mark.parametrize("bits", [8, 4])
def test_integer_products_are_of_directions_with_16_bits(bits: int) -> None:
    levels = torch.arange(-32_639, 32_640).split(300)[:-1]  # every level that an entry can have
    directions_GK = torch.stack(levels).float() * 1e-4
    directions_GK[:, 0] = 3.2639  # the largest of each: its step is then 1e-4
    levels_RK, rows_RP = stored_levels(5, 300, bits)
    expected_GR = directions_GK.double() @ levels_RK.double().T
    found_GR = IntegerProducts(directions_GK, bits)(rows_RP, Workspace())
    assert torch.allclose(found_GR.double(), expected_GR, rtol=1e-6, atol=1e-2)


@needs_integers
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("bits", [8, 4])
def test_integer_products_are_two_plain_products_of_unpacked_rows(bits: int, dim: int) -> None:
    directions_GK, (levels_RK, rows_RP) = draw(3, dim), stored_levels(5, dim, bits)
    steps_G1 = directions_GK.abs().amax(dim=1, keepdim=True) / 32639
    whole_GK = (directions_GK / steps_G1).round().long()
    high_GK = (whole_GK + 128) // 256
    high_GR, low_GR = ((plane_GK @ levels_RK.long().T).float() for plane_GK in (high_GK, whole_GK - 256 * high_GK))
    found_GR = IntegerProducts(directions_GK, bits)(rows_RP, Workspace())
    assert torch.equal(found_GR, (low_GR + 256 * high_GR) * steps_G1)


@pytest.mark.parametrize("in_integers", KERNELS)
@pytest.mark.parametrize("dim", DIMS)
def test_sign_products_are_those_of_rounded_directions(dim: int, in_integers: bool) -> None:
    directions_GK, (levels_RK, rows_RP) = draw(3, dim), stored_levels(5, dim, 1)
    steps_G1 = directions_GK.abs().amax(dim=1, keepdim=True) / 127
    rounded_GK = (directions_GK / steps_G1).round().long()
    expected_GR = (rounded_GK @ levels_RK.long().T).double() * steps_G1.double()
    assert torch.equal(SignProducts(directions_GK, in_integers)(rows_RP, Workspace()), expected_GR.float())


@needs_integers
@pytest.mark.parametrize("dim", DIMS)
def test_sign_products_have_the_same_bits_in_floats(dim: int) -> None:
    directions_GK, (_, rows_RP) = draw(9, dim), stored_levels(70, dim, 1)
    directions_GK[4, 0] = 1e4
    found = [SignProducts(directions_GK, in_integers)(rows_RP, Workspace()) for in_integers in (True, False)]
    assert torch.equal(*found)


@pytest.mark.parametrize("in_integers", KERNELS)
def test_the_largest_sums_are_exact(in_integers: bool) -> None:
    dim = 8 * 4096
    rows_RP = torch.full((2, dim // 8), -1, dtype=torch.int8)  # every bit is 1
    sums = LevelSums(torch.full((2, dim), 127, dtype=torch.int8), 1, in_integers)
    assert sums(rows_RP, Workspace()).tolist() == [[127 * dim] * 2] * 2


@pytest.mark.parametrize("in_integers", KERNELS)
def test_rounding_for_signs_is_far_below_the_error_of_the_sketch(in_integers: bool) -> None:
    dim = 1 << 15
    directions_GK, (levels_RK, rows_RP) = draw(4, dim), stored_levels(50, dim, 1)
    found_GR = SignProducts(directions_GK, in_integers)(rows_RP, Workspace()).double()
    errors_GR = (found_GR - directions_GK.double() @ levels_RK.double().T) / dim**0.5
    errors_GR /= directions_GK.double().norm(dim=1, keepdim=True)
    assert float(errors_GR.square().mean().sqrt()) < 0.015 / dim**0.5


@pytest.mark.parametrize("in_integers", KERNELS)
def test_one_large_entry_does_not_round_the_others_away(in_integers: bool) -> None:
    dim = 1 << 15
    directions_GK, (levels_RK, rows_RP) = draw(2, dim), stored_levels(50, dim, 1)
    directions_GK[1, 7] = 1e3
    expected_GR = directions_GK.double() @ levels_RK.double().T
    found_GR = SignProducts(directions_GK, in_integers)(rows_RP, Workspace()).double()
    assert float((found_GR - expected_GR).abs().max()) < 5e-4 * 1e3 * dim**0.5 / 4


@pytest.mark.parametrize("in_integers", KERNELS)
def test_a_direction_does_not_depend_on_those_beside_it(in_integers: bool) -> None:
    directions_GK, (_, rows_RP) = draw(4, 5000), stored_levels(6, 5000, 1)
    directions_GK[2, 1] = 1e4
    together_GR = SignProducts(directions_GK, in_integers)(rows_RP, Workspace())
    alone = [SignProducts(one_1K, in_integers)(rows_RP, Workspace()) for one_1K in directions_GK.split(1)]
    assert torch.equal(together_GR, torch.cat(alone))


@pytest.mark.parametrize("dtype", BITS)
def test_a_direction_of_zeros_gives_zeros(dtype: str) -> None:
    _, rows_RP = stored_levels(3, 12, BITS[dtype])
    assert not build_products(torch.zeros(2, 12), dtype)(rows_RP, Workspace()).any()


@pytest.mark.parametrize("bits", BITS.values())
def test_float_products_are_of_the_unpacked_rows(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "block_rows", lambda *_: 3)
    directions_GK, (_, rows_RP) = draw(3, 21), stored_levels(8, 21, bits)
    expected_GR = directions_GK @ unpacked(rows_RP, bits)[:, :21].float().T
    assert torch.allclose(FloatProducts(directions_GK, bits)(rows_RP, Workspace()), expected_GR, atol=1e-5)


@pytest.mark.parametrize("columns", [4, 7, 50])
def test_float_products_of_long_rows_are_summed_over_their_columns(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "block_rows", lambda *_: 3)
    monkeypatch.setattr(products, "COPY_VALUES", 3 * columns)
    directions_GK, rows_RK = draw(3, 50), draw(8, 50, seed=1).half()
    found_GR = FloatProducts(directions_GK, 32)(rows_RK, Workspace())
    torch.testing.assert_close(found_GR, directions_GK @ rows_RK.float().T, rtol=1e-5, atol=1e-5)


def test_a_workspace_gives_the_same_memory_again() -> None:
    workspace = Workspace()
    first = workspace.tensor(torch.Size((4, 6)), torch.float32)
    assert workspace.tensor(torch.Size((2, 3)), torch.int8).data_ptr() == first.data_ptr()
