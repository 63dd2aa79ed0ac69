"""Quantised rows come back within half a level; packing loses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gradsift.store.quantization import (
    BITS,
    LEVEL_FACTORS,
    multiples_of_levels,
    packed,
    packed_width,
    quantized,
    unpacked,
)

ALL_BITS = sorted(BITS.values())


def rows(count: int = 9, dim: int = 21, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(count, dim, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dim", [1, 7, 8, 21])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_levels_come_back_from_their_bytes(bits: int, dim: int) -> None:
    levels_RK, _ = quantized(rows(dim=dim), bits)
    packed_RP = packed(levels_RK, bits)
    assert packed_RP.dtype == torch.int8
    assert packed_RP.shape == (9, packed_width(dim, bits))
    assert torch.equal(unpacked(packed_RP, bits)[:, :dim], levels_RK)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_values_are_off_by_half_a_level_at_most(bits: int, scale: float) -> None:
    features_RK = rows(scale=scale)
    levels_RK, scales_R = quantized(features_RK, bits)
    levels = 2 ** (bits - 1) - 1
    assert torch.allclose(scales_R, features_RK.abs().amax(dim=1) / levels)
    assert torch.all((levels_RK * scales_R[:, None] - features_RK).abs() <= scales_R[:, None] * 0.5001)


def test_one_bit_is_the_sign_at_the_mean_size() -> None:
    features_RK = rows()
    levels_RK, scales_R = quantized(features_RK, 1)
    assert torch.equal(levels_RK, features_RK.sign().to(torch.int8))
    assert torch.allclose(scales_R, features_RK.abs().mean(dim=1))


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.25), (1, 0.75)])
def test_relative_error_of_a_row(bits: int, most: float) -> None:
    features_RK = rows(50, 500)
    levels_RK, scales_R = quantized(features_RK, bits)
    errors_R = (levels_RK * scales_R[:, None] - features_RK).norm(dim=1) / features_RK.norm(dim=1)
    assert float(errors_R.max()) < most


@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_zero_row_has_scale_zero(bits: int) -> None:
    assert float(quantized(torch.zeros(1, 5), bits)[1]) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_a_row_that_is_not_finite_has_a_scale_that_says_so(bits: int, value: float) -> None:
    features_RK = rows(2)
    features_RK[1, 3] = value
    assert quantized(features_RK, bits)[1].isfinite().tolist() == [True, False]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_levels_of_a_part_are_the_unpacked_ones_times_its_factor(bits: int) -> None:
    packed_RP = torch.arange(-128, 128).to(torch.int8).repeat(2, 1)  # every byte that there is
    expected_RK = unpacked(packed_RP, bits)
    if bits == 1:
        expected_RK = (expected_RK < 0).to(torch.int8)
    for part, factor in enumerate(LEVEL_FACTORS[bits]):
        found_RP = multiples_of_levels(packed_RP, bits, part, torch.empty_like(packed_RP))
        assert torch.equal(found_RP.int(), expected_RK.split(256, dim=1)[part].int() * factor)
