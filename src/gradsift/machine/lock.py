"""The lock on a run folder: one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from gradsift.errors import RunFolderError

logger = logging.getLogger(__name__)


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
