"""Devices: where tensors live, in which precision, and how much memory is free there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def pick_device(index: int = 0) -> torch.device:
    """The CUDA device of that index where there is one, else the CPU."""
    import torch

    return torch.device("cuda", index) if torch.cuda.is_available() else torch.device("cpu")


def num_devices() -> int:
    """Number of CUDA devices; 1 where there is none, for the CPU."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 1


def peak_share(device: torch.device) -> float | None:
    """The most of the card's memory that was ever in use, as a share; None on a CPU."""
    import torch

    if device.type != "cuda":
        return None
    return torch.cuda.max_memory_reserved(device) / torch.cuda.get_device_properties(device).total_memory


def free_memory(device: torch.device) -> int:
    """Bytes of memory that are free on the device."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # what the page cache holds is free, which sysconf doesn't say
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
        if found:
            return int(found[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def pick_dtype(name: str) -> torch.dtype:
    """The dtype of a config value; `auto` is bfloat16 on a CUDA card that has it, else float32."""
    import torch

    if name == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bf16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
