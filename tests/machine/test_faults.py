"""Errors of the machine are told in one line from errors of ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from gradsift.machine import machine_fault

FULL = "no space left on the disk"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def while_handling(error: Exception, handled: Exception) -> Exception:
    error.__context__ = handled
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), FULL),
        (caused(RuntimeError("while saving"), OSError(errno.ENOSPC, "")), FULL),
        (while_handling(RuntimeError("while saving"), OSError(errno.ENOSPC, "")), FULL),
        (PermissionError(errno.EACCES, "Permission denied", "/a/pool.jsonl"), "/a/pool.jsonl: permission denied"),
        (OSError(errno.EROFS, "Read-only file system", b"/run"), "/run: read-only file system; name a place"),
        (OSError(errno.EIO, "Input/output error"), "input/output error; the disk or the network drive fails"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), "file name too long; take a shorter name"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/f/x"), "a file is where a folder belongs"),
        (RuntimeError("Error while serializing: I/O error: Read-only (os error 30)"), "name a place"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "can't be written"),
        (RuntimeError("basic_ios::clear: iostream error"), "a file can't be written"),
    ],
)
def test_fault_of_the_machine_is_one_line(error: Exception, said: str) -> None:
    line = machine_fault(error)
    assert line is not None
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("code", set(errno.errorcode) - {errno.ENOSPC, errno.EDQUOT})
def test_no_other_error_is_called_a_full_disk(code: int) -> None:
    line = machine_fault(OSError(code, os.strerror(code), "/a"))
    assert line is not None
    assert FULL not in line
    assert line.startswith("/a: ")


@pytest.mark.parametrize(
    "error",
    [
        KeyError("rows"),
        OSError("We couldn't connect"),
        while_handling(KeyError("rows"), FileNotFoundError(errno.ENOENT, "No such file", "/a")),
    ],
)
def test_error_of_ours_stays_ours(error: Exception) -> None:
    assert machine_fault(error) is None


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "gone").read_bytes()
    assert machine_fault(caught.value) == f"{tmp_path}/gone: no such file or directory; it was deleted or moved"
