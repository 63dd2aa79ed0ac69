"""The features stage: projected gradients of every row of the pool and the targets at every checkpoint, or what a
baseline makes of them with the base model."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from gradsift.baselines import REPRESENTATIONS
from gradsift.batching import TokenBudget, by_length, num_fitting, pad_rows
from gradsift.checkpoints import Checkpoint, adapter_shapes
from gradsift.corpus import Corpus
from gradsift.encoding import EncodedRow
from gradsift.errors import UserError
from gradsift.executors.local import Report, WorkerLost, run_units
from gradsift.gradients import AdamForm
from gradsift.modeling import ModelConfig, hidden_size, model_fingerprint
from gradsift.projection import PROJECTION_VERSION, ProjectionConfig
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress, num_workers, peak_share, pick_device
from gradsift.stages.makers import Maker, Makers, Origin
from gradsift.store import DTYPES, StoreWriter, row_bytes

logger = logging.getLogger(__name__)

MANIFEST_BYTES = 1 << 20


class FeaturesConfig(BaseModel):
    """What features are made, and how they are stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    projection: ProjectionConfig = ProjectionConfig()
    adam: AdamForm = "reference"
    """Γ of the pool's rows (METHOD section 2); a target's rows are always plain gradients."""
    store_dtype: Literal["float16", "bfloat16", "float32", "int8", "int4", "int1"] = "float16"
    """`int8`, `int4`, `int1`: the pool's rows are quantised; a target's, few as they are, stay in float16."""
    shard_rows: int = Field(1024, ge=1)
    tokens_per_batch: int | Literal["auto"] = "auto"
    """Padded tokens that go through the model at once; changes memory and speed, not the features."""

    def dtype_of(self, is_pool: bool) -> str:
        """The dtype of the pool's rows or a target's."""
        return self.store_dtype if is_pool or self.store_dtype in DTYPES else "float16"


class ExecutorConfig(BaseModel):
    """Who does the work units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = "local"
    workers: int | Literal["auto"] = "auto"
    """Processes; `auto`: one per CUDA device, one on a CPU."""


@dataclass(frozen=True)
class StoreTask:
    """One feature store to make: these rows, with this model, in this form."""

    corpus: Path
    folder: Path
    origin: Origin
    meaning: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """K."""
        return int(self.meaning["projection"]["dim"])


@dataclass(frozen=True)
class Unit:
    """One shard of a store, and the rows `start` … `stop - 1` that it holds."""

    task: StoreTask
    start: int
    stop: int
    shard: int

    @property
    def num_rows(self) -> int:
        """R."""
        return self.stop - self.start


@dataclass(frozen=True)
class FeaturesStage:
    """Makes the stores that are missing; finished shards are never made again."""

    run: RunFolder
    model: ModelConfig
    config: FeaturesConfig
    executor: ExecutorConfig

    def collect(self, origins: Sequence[Origin], targets: Sequence[str]) -> None:
        """Finish the pool's and the targets' stores of these origins."""
        writers = self._writers(origins, targets)
        unfinished = [(task, writer) for task, writer in writers if not writer.is_finished()]
        if not unfinished:
            logger.info("features: all %d stores are finished", len(writers))
            return
        for _, writer in unfinished:
            writer.open()
        units = _missing(unfinished)
        self._require_space(unfinished, units)
        logger.info("features: %d of %d shards to make", len(units), sum(w.num_shards for _, w in unfinished))
        while units:
            left = self._do(units, unfinished)
            if len(left) == len(units):
                raise WorkerLost("every worker process was lost at its first shard; is there enough memory?")
            units = left
        for _, writer in unfinished:
            writer.finish()

    def _do(self, units: Sequence[Unit], unfinished: Sequence[tuple[StoreTask, StoreWriter]]) -> list[Unit]:
        """Do the units; what is left of them when a worker was lost."""
        total = sum(unit.num_rows for unit in units)
        make_worker = partial(FeatureWorker, self.model, self.config)
        with Progress("features", total) as progress:
            try:
                run_units(make_worker, units, num_workers(self.executor.workers), progress.advance)
            except WorkerLost as error:
                logger.warning("%s; its shard is made again", error)
        return _missing(unfinished)

    def _writers(self, origins: Sequence[Origin], targets: Sequence[str]) -> list[tuple[StoreTask, StoreWriter]]:
        base_model = model_fingerprint(self.model)
        writers = []
        for origin in origins:
            shared = self._shared_meaning(origin)
            folders = {self.run.pool: self.run.pool_features(origin.name)}
            folders |= {self.run.target(name): self.run.target_features(name, origin.name) for name in targets}
            for source, folder in folders.items():
                corpus = Corpus(source)
                meaning = {
                    **shared,
                    **corpus.manifest["encoding"],
                    "base_model": base_model,
                    "dtype": self._dtype(origin, source == self.run.pool),
                    "data": corpus.manifest["fingerprint"],
                }
                if isinstance(origin, Checkpoint):
                    meaning["gradient"] = self.config.adam if source == self.run.pool else "sgd"
                task = StoreTask(source, folder, origin, meaning)
                writers.append((task, store_writer(source, folder, meaning, self.config)))
        return writers

    def _shared_meaning(self, origin: Origin) -> dict[str, Any]:
        """What the features of pool and targets have in common."""
        if isinstance(origin, Checkpoint):
            return self._gradients_meaning(origin)
        kind = REPRESENTATIONS[origin.name]
        return {
            "representation": origin.name,
            "projection": unprojected(kind.dim or hidden_size(self.model)),
        }

    def _dtype(self, origin: Origin, is_pool: bool) -> str:
        if origin.name in REPRESENTATIONS and REPRESENTATIONS[origin.name].is_score:
            return "float32"  # in fewer bits rows would be equal that are not
        return self.config.dtype_of(is_pool)

    def _gradients_meaning(self, checkpoint: Checkpoint) -> dict[str, Any]:
        shapes = adapter_shapes(checkpoint)
        projection = self.config.projection.model_dump() | {"version": PROJECTION_VERSION}
        if self.config.projection.kind == "identity":
            projection |= {"dim": sum(rows * columns for rows, columns in shapes.values()), "seed": 0}
        return {
            "checkpoint": checkpoint.fingerprint(),
            "parameters": {name: list(shape) for name, shape in shapes.items()},
            "projection": projection,
        }

    def _require_space(self, unfinished: Sequence[tuple[StoreTask, StoreWriter]], units: Sequence[Unit]) -> None:
        needed = MANIFEST_BYTES * len(unfinished)
        needed += sum(
            unit.num_rows * row_bytes(unit.task.meaning["projection"]["dim"], unit.task.meaning["dtype"])
            for unit in units
        )
        free = shutil.disk_usage(self.run.path).free
        if needed > free:
            raise UserError(
                f"no space left on the disk: the features need {needed / 1e9:.1f} GB, {self.run.path} has "
                f"{free / 1e9:.1f} GB free; free some, lower features.projection.dim, or set "
                "features.store_dtype=int8"
            )


def unprojected(dim: int) -> dict[str, Any]:
    """What stands in a meaning where K numbers are stored as they are made."""
    return {"kind": "none", "dim": dim}


def store_writer(corpus: Path, folder: Path, meaning: Mapping[str, Any], config: FeaturesConfig) -> StoreWriter:
    """The writer of a store of a corpus' rows."""
    table = Corpus(corpus).table(["source", "id"])
    keys = list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))
    return StoreWriter(folder, meaning, keys, config.shard_rows)


def _missing(unfinished: Sequence[tuple[StoreTask, StoreWriter]]) -> list[Unit]:
    """The shards still to make: an origin's pool, then its targets, so that a checkpoint is loaded once."""
    return [Unit(task, *writer.bounds(shard), shard) for task, writer in unfinished for shard in writer.missing()]


class FeatureWorker:
    """One process's model: computes shards, in batches of rows of like length."""

    def __init__(self, model: ModelConfig, config: FeaturesConfig, index: int) -> None:
        self._config, self._device = config, pick_device(index)
        self._makers = Makers(model, config.projection, config.adam, self._device)
        self._budget = TokenBudget(config.tokens_per_batch, self._device.type)
        self._writers: dict[Path, StoreWriter] = {}
        self._corpora: dict[Path, Corpus] = {}

    def do(self, unit: Unit, report: Report) -> None:
        """Compute one shard and store it."""
        task = unit.task
        if task.folder not in self._writers:
            self._writers[task.folder] = store_writer(task.corpus, task.folder, task.meaning, self._config)
            self._corpora[task.folder] = Corpus(task.corpus)
        rows = self._corpora[task.folder].rows(unit.start, unit.stop)
        maker = self._makers.maker(task.origin, task.meaning.get("gradient", "sgd"))
        features_RK = torch.empty(unit.num_rows, task.dim, device=self._device)
        self._fill(features_RK, rows, maker, report)
        self._writers[task.folder].write(unit.shard, features_RK)

    def _fill(self, features_RK: torch.Tensor, rows: Sequence[EncodedRow], maker: Maker, report: Report) -> None:
        """Put the features of the rows into `features_RK`, in their order."""
        lengths = [row.num_tokens for row in rows]
        waiting = by_length(lengths)
        while waiting:
            positions = waiting[: num_fitting([lengths[position] for position in waiting], self._budget.tokens)]
            batch = [rows[position] for position in positions]
            done_BK = self._attempt(maker, batch)
            if done_BK is not None:
                features_RK[positions] = done_BK
                waiting = waiting[len(positions) :]
                report(len(batch), sum(row.num_tokens for row in batch))

    def _attempt(self, maker: Maker, rows: Sequence[EncodedRow]) -> torch.Tensor | None:
        """Features of a batch; None where memory ran out: the budget is smaller then. Raises UserError on one row."""
        try:
            features_BK = maker(pad_rows(rows).to(self._device))
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise UserError(
                    f"out of memory on a row of {rows[0].num_tokens} tokens: lower encoding.max_length, or load the "
                    "model in another dtype"
                ) from None
            self._budget.failed(len(rows) * rows[0].num_tokens)
            torch.cuda.empty_cache()
            return None
        self._budget.succeeded(len(rows) * rows[0].num_tokens, peak_share(self._device))
        return features_BK
