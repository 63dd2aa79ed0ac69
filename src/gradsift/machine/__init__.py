"""The ground that a run stands on: files that are whole or absent, the run folder, devices, threads, progress."""

from __future__ import annotations

from gradsift.machine.artifact import (
    MANIFEST,
    atomic_open,
    atomic_path,
    file_sha256,
    fingerprint,
    first_difference,
    read_json,
    remove_leftovers,
    write_json,
)
from gradsift.machine.devices import free_memory, num_devices, peak_share, pick_device, pick_dtype
from gradsift.machine.disk import require_space
from gradsift.machine.faults import is_read_only, machine_fault
from gradsift.machine.lock import locked
from gradsift.machine.markdown import table
from gradsift.machine.progress import Progress, duration
from gradsift.machine.runfolder import RunFolder
from gradsift.machine.threads import Threads, compute_threads, share_threads

__all__ = [
    "MANIFEST",
    "Progress",
    "RunFolder",
    "Threads",
    "atomic_open",
    "atomic_path",
    "compute_threads",
    "duration",
    "file_sha256",
    "fingerprint",
    "first_difference",
    "free_memory",
    "is_read_only",
    "locked",
    "machine_fault",
    "num_devices",
    "peak_share",
    "pick_device",
    "pick_dtype",
    "read_json",
    "remove_leftovers",
    "require_space",
    "share_threads",
    "table",
    "write_json",
]
