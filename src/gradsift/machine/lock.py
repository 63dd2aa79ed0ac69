"""The lock on a run folder: one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gradsift.errors import RunFolderError
from gradsift.machine.artifact import make_folder
from gradsift.machine.faults import is_read_only

logger = logging.getLogger(__name__)

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems say that know no locks; some network mounts don't."""


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold the run folder for this process; the lock dies with the process, however it ends.

    Where another process holds it: wait for it, or raise RunFolderError. A folder that can't be written to needs no
    lock: what is finished in it can still be told.
    """
    if is_read_only(folder):
        logger.warning("%s is read-only: only what is finished in it can be shown", folder)
        yield
        return
    make_folder(folder)
    with (folder / ".lock").open("a+") as file:
        _hold(file, folder, wait)
        yield


def _hold(file: IO[str], folder: Path, wait: bool) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise RunFolderError(f"another gradsift process is working in {folder}: wait for it, or stop it") from None
        logger.info("waiting for another gradsift process in %s", folder)
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        logger.warning("%s is on a file system without locks: start no second gradsift there", folder)
