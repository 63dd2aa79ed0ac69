"""Products of stored rows with a target's directions: in float32, or in integers, whose sums are exact."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradsift.store import BITS, LEVEL_FACTORS, block_rows, multiples_of_levels, packed_width, unpacked

MAX_INTEGER_DIM = 2**31 // (128 * 128)
COPY_VALUES = 1 << 20
"""Values of a float32 copy: 4 MB, which stay in a core's share of the cache."""
COLUMNS = 1024
"""Bytes of a row that are taken at once below 8 bits. A float32 sum of as many products of 2⁷ and 127 is exact."""
LARGEST_LEVEL = 127
HEAVY = 64
"""A direction whose largest entry is so many times the root of its mean square keeps what rounding takes away."""


class Workspace:
    """Memory that a thread uses again and again: fresh memory would cost a page fault every 4 KB."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of this shape with anything in it, until the next call."""
        size = math.prod(shape) * dtype.itemsize
        if len(self._bytes) < size:
            self._bytes = torch.empty(size, dtype=torch.uint8)
        return self._bytes[:size].view(dtype).view(shape)


class Products(Protocol):
    """Products of rows with all directions; threads share one, each with a workspace of its own."""

    def __call__(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        """Float32 [G, R], of rows as they are stored, without their scales."""


def build_products(directions_GK: Tensor, dtype: str) -> Products:
    """What multiplies rows of a store of that dtype fastest on this machine."""
    bits = BITS.get(dtype)
    if bits == 1:
        return SignProducts(directions_GK, integers_are_fast())
    if bits is not None and directions_GK.shape[1] <= MAX_INTEGER_DIM and integers_are_fast():
        return IntegerProducts(directions_GK, bits)
    return FloatProducts(directions_GK, bits or 32)


def integers_are_fast() -> bool:
    """Whether this machine makes int8 products faster than float32 ones, and exactly.

    Without VNNI instructions sums of two products may overflow their 16 bits.
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    built_for = hasattr(torch, "_int_mm") and torch.backends.mkldnn.is_available()
    return built_for and bool(supported())


class FloatProducts:
    """Products in float32, from copies of some rows, and of long rows some columns, that stay in the core's cache."""

    def __init__(self, directions_GK: Tensor, bits: int) -> None:
        self._num_sums, self._dim = directions_GK.shape
        self._bits, self._rows = bits, block_rows(torch.float32, self._dim)
        self._columns = max(1, COPY_VALUES // self._rows)
        self._slices_GC = directions_GK.split(self._columns, dim=1)

    def __call__(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        """Float32 [G, R]."""
        return torch.cat([self._of_some(part_RP, workspace) for part_RP in rows_RP.split(self._rows)], dim=1)

    def _of_some(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        levels_RK = unpacked(rows_RP, self._bits)[:, : self._dim] if self._bits < 8 else rows_RP
        sums_GR = torch.zeros(self._num_sums, len(levels_RK))
        for levels_RC, directions_GC in zip(levels_RK.split(self._columns, dim=1), self._slices_GC, strict=True):
            copy_RC = workspace.tensor(levels_RC.shape, torch.float32).copy_(levels_RC)
            sums_GR.addmm_(directions_GC, copy_RC.T)
        return sums_GR


class IntegerProducts:
    """Products of int8 or int4 rows with directions rounded to 16 bits: two int8 planes.

    An entry is off by 1/65,278 of its direction's largest at most, so that a cosine with a random direction is off by
    4e-7 at K = 8192 (root of the mean square).
    """

    def __init__(self, directions_GK: Tensor, bits: int) -> None:
        self._steps_G1 = _steps(directions_GK, 32639)
        levels_GK = (directions_GK / self._steps_G1).round()
        high_GK = ((levels_GK + 128) / 256).floor()  # what is left is in -128 … 127
        planes = torch.cat([high_GK, levels_GK - 256 * high_GK]).to(torch.int8)
        self._sums = LevelSums(planes, bits, in_integers=True)

    def __call__(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        """Float32 [G, R]."""
        high_GR, low_GR = self._sums(rows_RP, workspace).float().chunk(2)
        return (low_GR + 256 * high_GR).mul_(self._steps_G1)


class SignProducts:
    """Products of int1 rows with directions rounded to 8 bits: ±1 · d = Σd − 2 b·d for the bits b of a row.

    An entry is off by 1/254 of its direction's largest at most, a cosine with a random direction of K entries by
    0.01/√K (root of the mean square): a hundredth of what the sketch is off by itself. Of a `HEAVY` direction, in
    which most entries would be rounded to few levels, what is left is multiplied too, as a plane of its own. All sums
    are exact, so that the same bits come out in integers and in float32, and whatever else is multiplied beside.
    """

    def __init__(self, directions_GK: Tensor, in_integers: bool) -> None:
        steps_G1, dim = _steps(directions_GK, LARGEST_LEVEL), directions_GK.shape[1]
        exact_GK = directions_GK / steps_G1
        sizes_G = torch.linalg.vector_norm(exact_GK, dim=1) / dim**0.5
        self._is_heavy_G = (sizes_G > 0) & (sizes_G * HEAVY < LARGEST_LEVEL)
        heavy_HK = exact_GK[self._is_heavy_G]
        rest_HK = ((heavy_HK - heavy_HK.round()) * 2 * LARGEST_LEVEL).round_()
        planes = torch.cat([exact_GK.round_().to(torch.int8), rest_HK.to(torch.int8)])
        self._steps_G1, self._totals_G1 = steps_G1.double(), planes.sum(dim=1, keepdim=True, dtype=torch.int64)
        self._sums = LevelSums(planes, 1, in_integers)

    def __call__(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        """Float32 [G, R]."""
        products = (self._totals_G1 - 2 * self._sums(rows_RP, workspace).long()).double()
        products_GR, rest_HR = products.tensor_split([len(self._steps_G1)])
        products_GR[self._is_heavy_G] += rest_HR / (2 * LARGEST_LEVEL)
        return products_GR.mul_(self._steps_G1).float()


def _steps(directions_GK: Tensor, largest_level: int) -> Tensor:
    """What a level is worth, so that a direction's largest entry has the largest, [G, 1]."""
    return directions_GK.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest_level


class LevelSums:
    """Sums of integers, int8 [G, K], with the levels of rows as they are stored; of int1 rows with their bits.

    Levels stay where they stand in a byte, as multiples of ± a power of two by which the sums are divided: one pass
    over the bytes for each. Directions come first in the product: 57 of them aren't filled up to 64 then, and a row of
    bytes is in the order in which oneDNN wants it.
    """

    def __init__(self, integers_GK: Tensor, bits: int, in_integers: bool) -> None:
        num_sums, dim = integers_GK.shape
        width = packed_width(dim, bits)
        self._bits, self._columns = bits, width if bits == 8 else COLUMNS
        self._sum_dtype = torch.int32 if width << 14 <= 1 << 31 else torch.int64  # a multiple is in -128 … 127 too
        filled = pad(integers_GK, (0, width * 8 // bits - dim))
        parts_QGP = filled.view(num_sums, 8 // bits, width).transpose(0, 1)
        used_as = torch.int8 if in_integers else torch.float32
        self._slices_QGC = [slice_QGC.to(used_as).contiguous() for slice_QGC in parts_QGP.split(self._columns, dim=2)]

    def __call__(self, rows_RP: Tensor, workspace: Workspace) -> Tensor:
        """Int32 [G, R]; int64 where rows are so long that it takes them."""
        factors = LEVEL_FACTORS[self._bits]
        num_sums = self._slices_QGC[0].shape[1]
        sums_QGR = torch.zeros(len(factors), num_sums, len(rows_RP), dtype=self._sum_dtype)
        for rows_RC, integers_QGC in zip(rows_RP.split(self._columns, dim=1), self._slices_QGC, strict=True):
            buffer_RC = workspace.tensor(rows_RC.shape, torch.int8)
            for part, integers_GC in enumerate(integers_QGC):
                levels_RC = multiples_of_levels(rows_RC, self._bits, part, buffer_RC)
                sums_QGR[part] += _exact_product(integers_GC, levels_RC)
        for sums_GR, factor in zip(sums_QGR, factors, strict=True):
            sums_GR.bitwise_right_shift_(abs(factor).bit_length() - 1).mul_(1 if factor > 0 else -1)
        return sums_QGR.sum(dim=0, dtype=self._sum_dtype)


def _exact_product(integers_GC: Tensor, levels_RC: Tensor) -> Tensor:
    """Int32 [G, R], by whichever instructions the integers' dtype stands for."""
    if integers_GC.shape[1] == 1:  # `_int_mm` misreads a single column (torch 2.13)
        return integers_GC.int() * levels_RC.T.int()
    if integers_GC.dtype == torch.int8:
        return torch._int_mm(integers_GC, levels_RC.T)
    return (integers_GC @ levels_RC.float().T).int()
