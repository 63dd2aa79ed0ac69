"""Disk space, asked for before work that needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

from gradsift.errors import UserError


def require_space(folder: Path, needed: int, what: str, remedy: str) -> None:
    """Raise UserError where the disk that holds `folder` has less than the bytes that `what` needs."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"no space left on the disk: {what} need {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free; "
            f"free some, {remedy}"
        )
