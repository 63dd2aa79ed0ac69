"""The features stage: projected gradients of every row of the pool and the targets, at every checkpoint."""

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

from gradsift.batching import TokenBudget, by_length, num_fitting, pad_rows
from gradsift.checkpoints import Checkpoint, adapter_shapes, load_adapter, read_moments
from gradsift.corpus import Corpus
from gradsift.encoding import EncodedRow
from gradsift.errors import UserError
from gradsift.executors.local import Report, WorkerLost, run_units
from gradsift.features import FeatureMaker
from gradsift.gradients import AdamForm, AdamTerms, PerExampleGradients, adam_terms
from gradsift.modeling import ModelConfig, add_saved_lora, load_base_model, model_fingerprint
from gradsift.projection import PROJECTION_VERSION, ProjectionConfig, build_projector
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress, num_workers, peak_share, pick_device
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


class ExecutorConfig(BaseModel):
    """Who does the work units."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local"] = "local"
    workers: int | Literal["auto"] = "auto"
    """Processes; `auto`: one per CUDA device, one on a CPU."""


@dataclass(frozen=True)
class StoreTask:
    """One feature store to make: these rows, at this checkpoint, in this form."""

    corpus: Path
    folder: Path
    checkpoint: Checkpoint
    meaning: Mapping[str, Any]


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

    def collect(self, checkpoints: Sequence[Checkpoint], targets: Sequence[str]) -> None:
        """Finish the pool's and the targets' stores at these checkpoints."""
        writers = self._writers(checkpoints, targets)
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

    def _writers(
        self, checkpoints: Sequence[Checkpoint], targets: Sequence[str]
    ) -> list[tuple[StoreTask, StoreWriter]]:
        base_model = model_fingerprint(self.model)
        writers = []
        for checkpoint in checkpoints:
            shared = self._shared_meaning(checkpoint, base_model)
            folders = {self.run.pool: self.run.pool_features(checkpoint.name)}
            folders |= {self.run.target(name): self.run.target_features(name, checkpoint.name) for name in targets}
            for source, folder in folders.items():
                corpus = Corpus(source)
                is_pool = source == self.run.pool
                meaning = {
                    **shared,
                    **corpus.manifest["encoding"],
                    "gradient": self.config.adam if is_pool else "sgd",
                    "dtype": self.config.store_dtype if is_pool or self.config.store_dtype in DTYPES else "float16",
                    "data": corpus.manifest["fingerprint"],
                }
                task = StoreTask(source, folder, checkpoint, meaning)
                writers.append((task, store_writer(task, self.config)))
        return writers

    def _shared_meaning(self, checkpoint: Checkpoint, base_model: str) -> dict[str, Any]:
        shapes = adapter_shapes(checkpoint)
        projection = self.config.projection.model_dump() | {"version": PROJECTION_VERSION}
        if self.config.projection.kind == "identity":
            projection |= {"dim": sum(rows * columns for rows, columns in shapes.values()), "seed": 0}
        return {
            "checkpoint": checkpoint.fingerprint(),
            "base_model": base_model,
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


def store_writer(task: StoreTask, config: FeaturesConfig) -> StoreWriter:
    """The writer of a task's store."""
    table = Corpus(task.corpus).table(["source", "id"])
    keys = list(zip(table["source"].to_pylist(), table["id"].to_pylist(), strict=True))
    return StoreWriter(task.folder, task.meaning, keys, config.shard_rows)


def _missing(unfinished: Sequence[tuple[StoreTask, StoreWriter]]) -> list[Unit]:
    """The shards still to make: a checkpoint's pool, then its targets, so that it is loaded once."""
    return [Unit(task, *writer.bounds(shard), shard) for task, writer in unfinished for shard in writer.missing()]


class FeatureWorker:
    """One process's model: computes shards, changing the adapter when the checkpoint changes."""

    def __init__(self, model: ModelConfig, config: FeaturesConfig, index: int) -> None:
        self._model_config, self._config = model, config
        self._device = pick_device(index)
        self._loaded: LoadedCheckpoint | None = None
        self._budget = TokenBudget(config.tokens_per_batch, self._device.type)
        self._writers: dict[Path, StoreWriter] = {}
        self._corpora: dict[Path, Corpus] = {}

    def do(self, unit: Unit, report: Report) -> None:
        """Compute one shard and store it."""
        task = unit.task
        if task.folder not in self._writers:
            self._writers[task.folder] = store_writer(task, self._config)
            self._corpora[task.folder] = Corpus(task.corpus)
        rows = self._corpora[task.folder].rows(unit.start, unit.stop)
        loaded = self._load(task.checkpoint)
        self._writers[task.folder].write(unit.shard, self._features(rows, loaded, task.meaning["gradient"], report))

    def _load(self, checkpoint: Checkpoint) -> LoadedCheckpoint:
        """The model with that checkpoint's adapter; the base is loaded once."""
        if self._loaded is not None and self._loaded.checkpoint == checkpoint:
            return self._loaded
        if self._loaded is None:
            base = load_base_model(self._model_config, self._device)
            model = add_saved_lora(base, checkpoint.path).to(self._device)
            gradients = PerExampleGradients(model)
        else:
            gradients = self._loaded.gradients
            self._loaded.terms.clear()  # never two checkpoints' moments at once
        load_adapter(gradients.model, checkpoint, gradients.shapes)
        self._loaded = LoadedCheckpoint(checkpoint, gradients, self._terms(checkpoint, gradients.shapes))
        return self._loaded

    def _terms(self, checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, AdamTerms]:
        form = self._config.adam
        if form not in ("reference", "adamw"):
            return {}
        moments, adam = read_moments(checkpoint, shapes)
        return {name: adam_terms(form, moments.pop(name).to(self._device), adam) for name in shapes}

    def _features(
        self, rows: Sequence[EncodedRow], loaded: LoadedCheckpoint, form: AdamForm, report: Report
    ) -> torch.Tensor:
        """Features of the rows, float32 [R, K], in their order."""
        projector = build_projector(self._config.projection, loaded.gradients.shapes)
        terms = loaded.terms if form == self._config.adam else {}
        maker = FeatureMaker(loaded.gradients, form, terms, projector)
        features_RK = torch.zeros(len(rows), projector.dim, device=self._device)
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
        return features_RK

    def _attempt(self, maker: FeatureMaker, rows: Sequence[EncodedRow]) -> torch.Tensor | None:
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


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model with hooks that stands at a checkpoint, and what Γ takes from that checkpoint, on its device."""

    checkpoint: Checkpoint
    gradients: PerExampleGradients
    terms: dict[str, AdamTerms]
