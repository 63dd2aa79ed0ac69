"""The lock on a run folder: one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from gradsift.errors import RunFolderError
from gradsift.machine.faults import is_read_only

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the run folder for this process; the lock dies with the process, however it ends.

    Where another process holds it: wait for it, or raise RunFolderError. A folder that can't be written to needs no
    lock: what is finished in it can still be told.
    """
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file where a folder belongs: use another run_dir")
    if is_read_only(folder):
        logger.warning("%s is read-only: only what is finished in it can be shown", folder)
        yield
        return
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
