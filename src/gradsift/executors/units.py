"""`finish_units`: does what is missing, again where a worker was lost, until nothing is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from gradsift.errors import WorkerLost
from gradsift.executors.local import Report, Worker, run_units
from gradsift.executors.settings import ExecutorConfig

logger = logging.getLogger(__name__)


def finish_units(
    make_worker: Callable[[int], Worker[Any]],
    missing: Callable[[], Sequence[Any]],
    executor: ExecutorConfig,
    report: Report,
) -> None:
    """Do the units that are `missing`, which is asked again after a worker was lost.

    `make_worker(index)` makes the worker of a process. Raises WorkerLost where a round of work got nothing done.
    """
    units = missing()
    while units:
        try:
            run_units(make_worker, units, executor.num_workers, report)
        except WorkerLost as error:
            logger.warning("%s; its shard is made again", error)
        left = missing()
        if len(left) == len(units):
            raise WorkerLost("every worker process was lost at its first shard; is there enough memory?")
        units = left
