"""The ground that a run stands on: files that are whole or absent, the run folder, devices, threads, progress."""

from __future__ import annotations

from gradsift.machine.artifact import (
    MANIFEST,
    atomic_open,
    atomic_path,
    damaged,
    file_sha256,
    fingerprint,
    first_difference,
    read_json,
    read_parquet,
    remove_leftovers,
    write_json,
)
from gradsift.machine.devices import free_memory, num_devices, peak_share, pick_device, pick_dtype
from gradsift.machine.disk import require_space
from gradsift.machine.faults import is_read_only, machine_fault
from gradsift.machine.lock import locked
from gradsift.machine.markdown import table
from gradsift.machine.progress import Progress, duration
from gradsift.machine.records import Record, finished_facts, read_record, remove_record, renewed, write_record
from gradsift.machine.runfolder import RunFolder
from gradsift.machine.threads import Threads, compute_threads
from gradsift.machine.waiting import wait_politely

__all__ = [
    "MANIFEST",
    "Progress",
    "Record",
    "RunFolder",
    "Threads",
    "atomic_open",
    "atomic_path",
    "compute_threads",
    "damaged",
    "duration",
    "file_sha256",
    "fingerprint",
    "finished_facts",
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
    "read_parquet",
    "read_record",
    "remove_leftovers",
    "remove_record",
    "renewed",
    "require_space",
    "table",
    "wait_politely",
    "write_json",
    "write_record",
]
