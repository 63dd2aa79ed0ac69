"""Philox4x64-10, a counter-based generator: the same bits on every device, from any position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD, WORD_64 = (1 << 32) - 1, (1 << 64) - 1

PHILOX_FACTORS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
PHILOX_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B


def philox(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """Philox4x64-10 (Salmon et al., SC 2011) of counters `start` … `start + count - 1`: 64-bit words [count · 4].

    The same bits on every device: NumPy's on the CPU, integer arithmetic elsewhere.
    """
    if device.type != "cpu":
        return philox_in_integers(key, start, count, device)
    before = [(start - 1 >> shift) & WORD_64 for shift in (0, 64, 128, 192)]  # NumPy counts on before it gives
    generator = np.random.Philox(counter=np.array(before, np.uint64), key=np.array([key, 0], np.uint64))
    return torch.from_numpy(generator.random_raw(4 * count).view(np.int64))


def philox_in_integers(key: int, start: int, count: int, device: torch.device) -> Tensor:
    """`philox` in torch's integers, for any device."""
    x0 = torch.arange(start, start + count, device=device)
    x1 = x2 = x3 = torch.zeros_like(x0)
    k0, k1 = key, 0
    for _ in range(10):
        high0, low0 = _wide_product(x0, PHILOX_FACTORS[0])
        high1, low1 = _wide_product(x2, PHILOX_FACTORS[1])
        x0, x1, x2, x3 = high1 ^ x1 ^ _signed(k0), low1, high0 ^ x3 ^ _signed(k1), low0
        k0, k1 = (k0 + PHILOX_STEPS[0]) & WORD_64, (k1 + PHILOX_STEPS[1]) & WORD_64
    return torch.stack((x0, x1, x2, x3), dim=-1).flatten()


def _wide_product(left: Tensor, right: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the product of unsigned 64-bit integers, held as int64."""
    left_high, left_low = (left >> 32) & WORD, left & WORD
    right_high, right_low = right >> 32, right & WORD
    low, cross0, cross1 = left_low * right_low, left_high * right_low, left_low * right_high
    carried = ((low >> 32) & WORD) + (cross0 & WORD) + (cross1 & WORD)
    high = left_high * right_high + ((cross0 >> 32) & WORD) + ((cross1 >> 32) & WORD) + (carried >> 32)
    return high, left * _signed(right)


def _signed(word: int) -> int:
    """An unsigned 64-bit integer as the int64 of the same bits."""
    return word - (1 << 64) if word >> 63 else word
