"""What this machine refuses us, told from our own mistakes: full disks, files that can't be read or written."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

DISK_FULL = "no space left on the disk: free some and run again; what was finished is kept"
DISK_FULL_WORDS = ("no space left on device", "disk quota exceeded")
TORCH_WRITE_FAILED = ("pytorchstreamwriter failed", "file write failed", "unexpected pos", "iostream error")
REMEDIES = {
    errno.EACCES: "let this user have it, or name another place",
    errno.EPERM: "let this user have it, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.EIO: "the disk or the network drive fails; see the system's log",
    errno.ENOTDIR: "a file is where a folder belongs",
    errno.EEXIST: "a file is where a folder belongs",
    errno.EISDIR: "a folder is where a file belongs",
    errno.ENOENT: "it was deleted or moved",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def machine_fault(error: BaseException) -> str | None:
    """The error in one line where this machine is at fault, with its remedy; None where it is another error."""
    if any(_says_disk_full(cause) for cause in _causes(error, with_context=True)):
        return DISK_FULL
    # Without the context: an error of ours while another was handled is still ours.
    return next((line for cause in _causes(error, with_context=False) if (line := _line(cause))), None)


def is_read_only(folder: Path) -> bool:
    """Whether the folder is there, and nothing can be written to it."""
    return folder.is_dir() and not os.access(folder, os.W_OK)


def _causes(error: BaseException, with_context: bool) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (seen.__context__ if with_context else None)


def _says_disk_full(error: BaseException) -> bool:
    text = str(error).lower()
    return _code(error) in (errno.ENOSPC, errno.EDQUOT) or any(words in text for words in DISK_FULL_WORDS)


def _code(error: BaseException) -> int | None:
    """The system's number of an error; libraries in Rust give it in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _line(error: BaseException) -> str | None:
    text = " ".join(str(error).split())
    if any(words in text.lower() for words in TORCH_WRITE_FAILED):
        return f"a file can't be written ({text[:200]}): is the disk full, or its folder gone or read-only?"
    code = _code(error)
    if code is None:
        return None
    name = getattr(error, "filename", None)
    where = "" if name is None else f"{os.fsdecode(name) if isinstance(name, bytes) else name}: "
    problem = os.strerror(code).lower() if isinstance(error, OSError) else text
    remedy = REMEDIES.get(code)
    return f"{where}{problem}" + (f"; {remedy}" if remedy else "")
