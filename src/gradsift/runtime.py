"""Where the process runs: device, precision, progress on the terminal, and the lock on a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradsift.errors import ConfigError, RunFolderError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PLAIN_PROGRESS_SECONDS = 10.0
AHEAD = 2

Item = TypeVar("Item")
Result = TypeVar("Result")


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


class Progress:
    """Rows done, rows and tokens a second, time left: a bar on a terminal, a line every 10 s elsewhere."""

    def __init__(self, label: str, total: int | None, unit: str = "rows") -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.tokens = self._before = 0
        self._start = self._spoken = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self.total, desc=self.label, unit=f" {self.unit}", leave=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def resume(self, count: int) -> None:
        """Count what was done before this process; it doesn't enter the rate."""
        self.done = self._before = count
        if self._bar is not None:
            self._bar.update(count)
            self._bar.start_t = time.time()

    def advance(self, count: int, tokens: int = 0) -> None:
        """Count `count` more rows, of `tokens` tokens in all, as done."""
        self.done += count
        self.tokens += tokens
        if self._bar is not None:
            if self.tokens:
                self._bar.set_postfix_str(f"{self.tokens / self._elapsed():,.0f} tokens/s", refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._spoken >= PLAIN_PROGRESS_SECONDS:
            self._spoken = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """The state as one line of text."""
        rate = (self.done - self._before) / self._elapsed()
        parts = [f"{self.done:,}/{self.total:,} {self.unit}" if self.total else f"{self.done:,} {self.unit}"]
        parts.append(f"{rate:,.1f} {self.unit}/s")
        if self.tokens:
            parts.append(f"{self.tokens / self._elapsed():,.0f} tokens/s")
        if self.total and rate > 0:
            parts.append(f"{duration((self.total - self.done) / rate)} left")
        return f"{self.label}: {', '.join(parts)}"

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)


def duration(seconds: float) -> str:
    """Seconds as `12 s`, `3:05` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the run folder for this process; the lock dies with the process, however it ends.

    Where another process holds it: wait for it, or raise RunFolderError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise RunFolderError(
                    f"another gradsift process is working in {folder}: wait for it, or stop it"
                ) from None
            logger.info("waiting for another gradsift process in %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def num_workers(wanted: int | str) -> int:
    """Worker processes for the config value: `auto` is one per CUDA device, one on a CPU."""
    if wanted == "auto":
        return num_devices()
    count = int(wanted)
    if count < 1:
        raise ConfigError(f"executor.workers is {count}: give at least 1")
    return count


def share_threads(num_processes: int) -> None:
    """Give this process its share of the cores."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))


class Threads:
    """Threads that compute side by side."""

    def __init__(self, count: int, pool: ThreadPoolExecutor) -> None:
        self.count, self._pool = count, pool

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of every item, in the items' order; two items a thread are taken ahead, and no more."""
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > AHEAD * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextlib.contextmanager
def compute_threads(per_core: int = 1) -> Iterator[Threads]:
    """As many threads as torch would use for one product (OMP_NUM_THREADS, else the cores), times `per_core`: more
    than one where threads wait for a disk.

    Each runs torch on one thread, so that what it computes doesn't depend on how many there are. So does the
    calling thread meanwhile: torch's own threads wait by spinning, on the cores that these need.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count * per_core, "compute", torch.set_num_threads, (1,)) as pool:
            yield Threads(count * per_core, pool)
    finally:
        torch.set_num_threads(count)
