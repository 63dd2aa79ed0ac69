"""The local executor: every unit is done once, and a lost worker costs its unit alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from gradsift.errors import UserError, WorkerLost
from gradsift.executors.local import run_units


@dataclass
class Marker:
    """Leaves a file for every unit it does; `die` ends the process, `refuse` refuses."""

    folder: Path
    index: int

    def do(self, unit: str, report: Callable[[int, int], None]) -> None:
        if unit == "die":
            os._exit(9)
        if unit == "refuse":
            raise UserError("the unit is wrong")
        with (self.folder / unit).open("a") as file:
            file.write("done\n")
        report(1, 10)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_unit_is_done_once_and_reported(tmp_path: Path, workers: int) -> None:
    reported: list[tuple[int, int]] = []
    units = [f"unit-{index}" for index in range(5)]
    run_units(partial(Marker, tmp_path), units, workers, lambda rows, tokens: reported.append((rows, tokens)))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(units, "done\n")
    assert reported == [(1, 10)] * 5


@pytest.mark.slow
def test_a_lost_worker_costs_only_its_unit(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match="status 9"):
        run_units(partial(Marker, tmp_path), ["die", "a", "b", "c"], 2, lambda *_: None)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c"}


@pytest.mark.slow
def test_what_a_worker_refuses_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the unit is wrong"):
        run_units(partial(Marker, tmp_path), ["a", "refuse"], 2, lambda *_: None)
