"""Checksums of tensors about as fast as memory gives them, so that what streams by is checked on its way.

The bytes are taken as 64-bit words and added up in 2,039 lanes, word i in lane i mod 2,039; the checksum is the CRC-32
of the lanes' sums and of what is left at the end. A flipped bit always changes it. The number of lanes is a prime, so
that rows, or blocks of a disk, that change places do too. It is no defence against somebody who means to deceive.
"""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

LANES = 2039
WORD_BYTES = 8
STRIPE_BYTES = WORD_BYTES * LANES


def checksum(tensor: Tensor) -> str:
    """Of the bytes of a contiguous tensor on the CPU: 8 hex digits, and the number of bytes."""
    bytes_B = tensor.reshape(-1).view(torch.uint8)
    if bytes_B.storage_offset() % WORD_BYTES:  # words must lie where words may
        bytes_B = bytes_B.clone()
    num_bytes = len(bytes_B)
    whole = num_bytes // STRIPE_BYTES * STRIPE_BYTES
    sums_L = bytes_B[:whole].view(torch.int64).view(-1, LANES).sum(dim=0)  # sums wrap around
    crc = zlib.crc32(bytes_B[whole:].numpy().data, zlib.crc32(sums_L.numpy().data))
    return f"{crc:08x}-{num_bytes}"
