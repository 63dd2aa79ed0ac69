"""Quantised rows: 8, 4 or 1 bit a value and a scale a row, packed into bytes and unpacked again.

QLESS (arXiv 2502.01703): a row is its levels times its scale. 8 and 4 bits: round to nearest, the largest value of
the row at level 127 or 7 (absmax). 1 bit: the sign, and the row's mean absolute value as its scale; 0 counts as
positive.
"""

from __future__ import annotations

import torch
from torch import Tensor

BITS = {"int8": 8, "int4": 4, "int1": 1}
"""Bits of a value, by the dtype's name in a store's meaning."""

LEVEL_FACTORS = {8: (1,), 4: (16, 16), 1: (1, 2, 4, 8, 16, 32, 64, -128)}
"""What `multiples_of_levels` multiplies by, part by part; 1 bit counts as 1 where the value is negative, else 0."""


def quantized(features_RK: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The levels, int8 [R, K], and the scale of every row, float32 [R], so that features ≈ levels × scale.

    A row without a finite value everywhere has a scale that isn't finite.
    """
    sizes_RK = features_RK.abs()
    if bits == 1:
        return (features_RK < 0).to(torch.int8) * -2 + 1, sizes_RK.mean(dim=1)
    most = 2 ** (bits - 1) - 1
    scales_R = sizes_RK.amax(dim=1) / most
    levels_RK = torch.div(features_RK, scales_R[:, None], out=sizes_RK)
    return levels_RK.nan_to_num_(nan=0.0).round_().clamp_(-most, most).to(torch.int8), scales_R


def packed(levels_RK: Tensor, bits: int) -> Tensor:
    """Levels in as few bytes as hold them, int8 [R, P]: byte p has the levels p, p + P, p + 2P, …, lowest bits first.

    Missing ones at a row's end are level 0, or 1 where a value has one bit.
    """
    if bits == 8:
        return levels_RK
    parts = 8 // bits
    width = packed_width(levels_RK.shape[1], bits)
    codes_RK = (levels_RK < 0).to(torch.int8) if bits == 1 else levels_RK & (2**bits - 1)
    codes_RK = torch.nn.functional.pad(codes_RK, (0, parts * width - codes_RK.shape[1]))
    packed_RP = torch.zeros(len(codes_RK), width, dtype=torch.int8, device=codes_RK.device)
    for part, codes_RP in enumerate(codes_RK.split(width, dim=1)):
        packed_RP |= codes_RP << (bits * part)
    return packed_RP


def packed_width(dim: int, bits: int) -> int:
    """P: bytes of a row of `dim` values."""
    return -(-dim * bits // 8)


def unpacked(packed_RP: Tensor, bits: int) -> Tensor:
    """The levels, int8 [R, P × 8 / bits]: those that were packed, and what fills the last bytes."""
    if bits == 8:
        return packed_RP
    rows, width = packed_RP.shape
    out_RK = torch.empty(rows, width * 8 // bits, dtype=torch.int8, device=packed_RP.device)
    for part, out_RP in enumerate(out_RK.split(width, dim=1)):
        torch.bitwise_left_shift(packed_RP, 8 - bits * (part + 1), out=out_RP)
    out_RK.bitwise_right_shift_(8 - bits)  # arithmetic: the highest bit is the sign
    return out_RK.bitwise_or_(1) if bits == 1 else out_RK


def multiples_of_levels(packed_RP: Tensor, bits: int, part: int, out_RP: Tensor) -> Tensor:
    """The levels of one part of every byte, int8 [R, P], times its `LEVEL_FACTORS`: where they stand in the byte.

    That takes one pass, in which `out_RP` is filled; 8 bits are given back as they are.
    """
    if bits == 8:
        return packed_RP
    if bits == 4 and part == 0:
        return torch.bitwise_left_shift(packed_RP, 4, out=out_RP)
    return torch.bitwise_and(packed_RP, -16 if bits == 4 else LEVEL_FACTORS[1][part], out=out_RP)
