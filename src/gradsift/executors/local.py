"""The local executor: work units in this process, or in worker processes of this machine, one per device."""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

from gradsift.errors import GradsiftError, UserError, WorkerLost

logger = logging.getLogger(__name__)

Unit = TypeVar("Unit", contravariant=True)
Report = Callable[[int, int], None]
"""Called with (rows, tokens) as they are done."""


class Worker(Protocol[Unit]):
    """Does units, one at a time; it may keep a model between them."""

    def do(self, unit: Unit, report: Report) -> None:
        """Do the unit. It must be safe to do one twice."""
        ...


def run_units(make_worker: Callable[[int], Worker[Any]], units: Sequence[Any], workers: int, report: Report) -> None:
    """Do every unit; `make_worker(index)` makes the worker of a process and must be picklable for more than one.

    A worker asks for its next unit when it is done with one, so a lost worker costs the unit it was at: the others
    go on, and WorkerLost is raised when they are done.
    """
    if workers == 1 or len(units) <= 1:
        worker = make_worker(0)
        for unit in units:
            worker.do(unit, report)
        return
    _run_in_processes(make_worker, list(units), min(workers, len(units)), report)


def _run_in_processes(
    make_worker: Callable[[int], Worker[Any]], pending: list[Any], workers: int, report: Report
) -> None:
    context = multiprocessing.get_context("spawn")
    connections: dict[Connection, Any] = {}
    for index in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(make_worker, index, workers, theirs), daemon=True)
        process.start()
        theirs.close()
        connections[ours] = process
    lost: list[int | None] = []
    try:
        while connections:
            for connection in wait(list(connections)):
                assert isinstance(connection, Connection)
                if not _listen(connection, pending, report):
                    process = connections.pop(connection)
                    process.join()
                    if process.exitcode:
                        lost.append(process.exitcode)
    finally:
        for process in connections.values():
            process.terminate()
    if lost:
        raise WorkerLost(f"{len(lost)} worker process(es) ended with status {', '.join(map(str, lost))}")


def _listen(connection: Connection, pending: list[Any], report: Report) -> bool:
    """Take one message of a worker; False when it has ended."""
    try:
        kind, content = connection.recv()
    except EOFError:
        return False
    if kind == "progress":
        report(*content)
    elif kind == "ready":
        connection.send(pending.pop(0) if pending else None)
    elif kind == "refused":
        raise UserError(content)
    else:
        raise GradsiftError(f"a worker process failed:\n{content}")
    return True


def _serve(make_worker: Callable[[int], Worker[Any]], index: int, workers: int, connection: Connection) -> None:
    """A worker process: ask for units until there are none. It ends with its parent, whose end closes the pipe."""
    try:
        _share_threads(workers)
        worker = make_worker(index)
        connection.send(("ready", None))
        while (unit := connection.recv()) is not None:
            worker.do(unit, lambda rows, tokens: connection.send(("progress", (rows, tokens))))
            connection.send(("ready", None))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except UserError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("failed", traceback.format_exc()))


def _share_threads(num_processes: int) -> None:
    """Give this process its share of the cores."""
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
