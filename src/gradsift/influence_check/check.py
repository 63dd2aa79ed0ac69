"""The influence check: real optimizer steps on the user's own model, pool and targets against what Γ predicts of them.

Every target has a file an experiment, RUN/checks/influence/<target>/<checkpoint>/<experiment>.safetensors, and what is
finished with the same settings is not done again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradsift.encoding import Corpus
from gradsift.errors import ConfigError, UserError, nearest
from gradsift.gradients import AdamForm, ProjectionConfig
from gradsift.influence_check.experiments import (
    FLOATS_AT_ONCE,
    Bench,
    Experiment,
    Figures,
    Part,
    TargetSample,
    one_step,
    predictions,
    projection_name,
    trajectory,
)
from gradsift.influence_check.predictions import FORMS
from gradsift.influence_check.steps import StepSettings
from gradsift.machine import RunFolder, atomic_path, damaged, fingerprint, free_memory
from gradsift.model import Checkpoint, ModelConfig, model_fingerprint
from gradsift.selection import ScoreConfig
from gradsift.store import BITS, checksum

logger = logging.getLogger(__name__)


Dimension = Annotated[int, Field(ge=1)]


class CheckConfig(BaseModel):
    """How much `check --influence` measures; binds nothing in the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0)
    """Of the rows, target examples and batches drawn."""
    checkpoint: str | None = None
    """Name of the checkpoint that batches, the trajectory, projections and the top's stability are measured at; None:
    the one that counts most in the score."""
    learning_rate: float | None = Field(None, gt=0)
    """Of the steps taken; None: the checkpoint's own."""
    draws: int = Field(99, ge=3)
    """Single examples that a step is taken on, at that checkpoint."""
    checkpoint_draws: int = Field(99, ge=0)
    """Of them, how many at every other checkpoint too; 0: that checkpoint alone."""
    batches: int = Field(99, ge=0)
    """Small batches that a step is taken on, each from the checkpoint."""
    steps: int = Field(99, ge=0)
    """Steps of the trajectory, one after the other."""
    batch_size: int = Field(8, ge=1)
    target_tokens: int | None = Field(8192, ge=1)
    """Tokens of a target's examples that its loss is measured on, drawn over its subtasks in turns; None: all of it."""
    per_subtask: bool = True
    """False: a target's examples are one subtask, which needs less memory (two gradients a subtask)."""
    sketch_dims: tuple[Dimension, ...] = (512, 2048, 8192, 32768, 131072)
    rademacher_dims: tuple[Dimension, ...] = (512, 2048, 8192)
    """Its cost grows with K: about 2 · parameters · K operations a direction."""
    stability_rows: int = Field(400, ge=0)
    """Pool rows among which the top 5 % are compared over projections; 0: none."""
    projection_seeds: int = Field(3, ge=1)


RELEVANT_KEYS = {
    "single": {"seed", "learning_rate", "target_tokens", "per_subtask"},
    "batch": {"seed", "learning_rate", "target_tokens", "per_subtask", "batches", "batch_size"},
    "trajectory": {"seed", "learning_rate", "target_tokens", "per_subtask", "steps", "batch_size"},
    "stability": {"seed", "target_tokens", "per_subtask"},
    "projected": {"seed", "target_tokens", "per_subtask"},
}
"""Keys that an experiment's figures depend on, besides its number of draws and its projections."""


@dataclass(frozen=True)
class InfluenceSettings:
    """What the check takes from the other sections of the config."""

    adam: AdamForm
    projection: ProjectionConfig
    store_dtype: str
    """Of the pool's rows."""
    score: ScoreConfig
    max_grad_norm: float


@dataclass(frozen=True)
class InfluenceCheck:
    """Does the experiments that have no figures yet."""

    run: RunFolder
    model: ModelConfig
    config: CheckConfig
    settings: InfluenceSettings

    def measure(self, checkpoints: Sequence[Checkpoint], targets: Sequence[str]) -> list[Part]:
        """Finish every experiment for every target; the experiments there are. Raises UserError where it can't."""
        parts = self.parts(checkpoints)
        samples = [target_sample(self.run, name, self.config) for name in targets]
        pending = [(part, [item for item in samples if not self._is_done(part, item)]) for part in parts]
        bench: Bench | None = None
        for part, wanted in pending:
            if not wanted:
                logger.info("check: %s is finished", part.label)
                continue
            bench = bench or Bench(self.run, self.model, checkpoints[0])
            bench.load(part.checkpoint, self._step_settings(part.checkpoint))
            self._require_memory(bench, wanted)
            for sample, figures in zip(wanted, self._figures(bench, part, wanted), strict=True):
                self._write(part, sample, figures)
        return parts

    def parts(self, checkpoints: Sequence[Checkpoint]) -> list[Part]:
        """The experiments that the settings ask for. Raises ConfigError for an unknown checkpoint."""
        main, config, part = self._main(checkpoints), self.config, self._part
        projections, own = tuple(self._projections()), self.own_projection
        first = tuple(dict.fromkeys((*(item for item in projections if item.seed == 0), *own)))
        elsewhere = [item for item in checkpoints if item != main and config.checkpoint_draws]
        parts = [part("single", main, config.draws)]
        parts += [part("projected", main, config.draws, first)] if first else []
        parts += [part("stability", main, config.stability_rows, projections)] if config.stability_rows else []
        for item in elsewhere:
            num_draws = min(config.draws, config.checkpoint_draws)
            parts += [part("single", item, num_draws)] + ([part("projected", item, num_draws, own)] if own else [])
        parts += [part("batch", main, config.batches, own)] if config.batches else []
        return parts + ([part("trajectory", main, config.steps, own)] if config.steps else [])

    def _part(
        self, experiment: Experiment, checkpoint: Checkpoint, draws: int, projections: Sequence[ProjectionConfig] = ()
    ) -> Part:
        """An experiment; where the run's store is quantised, so are those of its projections that differ from the run's
        in their seed alone."""
        dtype = self.settings.store_dtype
        own = {(item.kind, item.dim) for item in self.own_projection if dtype in BITS}
        like_own = [projection_name(item) for item in projections if (item.kind, item.dim) in own]
        return Part(experiment, checkpoint, draws, tuple(projections), dict.fromkeys(like_own, dtype))

    @property
    def own_projection(self) -> tuple[ProjectionConfig, ...]:
        """The run's own projection, where it costs next to nothing: everything is foretold through it too."""
        return (self.settings.projection,) if self.settings.projection.kind == "sketch" else ()

    def _projections(self) -> Iterator[ProjectionConfig]:
        for seed in range(self.config.projection_seeds):
            yield from (ProjectionConfig(kind="sketch", dim=dim, seed=seed) for dim in self.config.sketch_dims)
            yield from (ProjectionConfig(kind="rademacher", dim=dim, seed=seed) for dim in self.config.rademacher_dims)

    def file(self, part: Part, target: str) -> Path:
        """Where an experiment's figures stand."""
        return self.run.influence_check / target / part.checkpoint.name / f"{part.experiment}.safetensors"

    def _main(self, checkpoints: Sequence[Checkpoint]) -> Checkpoint:
        by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        heaviest = max(checkpoints, key=lambda checkpoint: checkpoint.learning_rate)
        name = self.config.checkpoint or heaviest.name
        if name not in by_name:
            raise ConfigError(f"check.checkpoint: there is no {name}{nearest(name, by_name)}")
        return by_name[name]

    def _step_settings(self, checkpoint: Checkpoint) -> StepSettings:
        rate = self.config.learning_rate or checkpoint.learning_rate
        if rate <= 0:
            raise UserError(f"{checkpoint.path}: its learning rate is 0: give check.learning_rate")
        return StepSettings(rate, self.settings.max_grad_norm)

    def _figures(self, bench: Bench, part: Part, samples: Sequence[TargetSample]) -> list[Figures]:
        order = self._order(part, bench.pool.num_rows)
        if part.experiment == "projected":  # the draws of `single`
            draws = [order[draw % len(order)] for draw in range(part.draws)]
            return predictions(bench, part, samples, (draws, FORMS))
        if part.experiment == "stability":
            return predictions(bench, part, samples, (order[: part.draws], (self.settings.adam,)))
        size = 1 if part.experiment == "single" else min(self.config.batch_size, len(order))
        draws_of = [[order[(size * draw + item) % len(order)] for item in range(size)] for draw in range(part.draws)]
        if part.experiment == "trajectory":
            return trajectory(bench, part, samples, draws_of)
        return one_step(bench, part, samples, draws_of)

    def _order(self, part: Part, num_rows: int) -> list[int]:
        """All rows of the pool in the order in which the experiment draws them."""
        stream = list(RELEVANT_KEYS).index("single" if part.experiment == "projected" else part.experiment)
        generator = np.random.default_rng([self.config.seed, stream])
        return [int(position) for position in generator.permutation(num_rows)]

    def _inputs(self, part: Part, sample: TargetSample) -> str:
        """Fingerprint of everything that an experiment's figures come from."""
        keys = self.config.model_dump(mode="json", include=RELEVANT_KEYS[part.experiment])
        corpora = [Corpus(folder).manifest["fingerprint"] for folder in (self.run.pool, self.run.target(sample.name))]
        adam = self.settings.adam if part.experiment == "stability" else None
        projections = [projection.model_dump() for projection in part.projections]
        where = [part.checkpoint.fingerprint(), part.checkpoint.learning_rate, part.draws, self.settings.max_grad_norm]
        quantised = [part.quantised] if part.quantised else []
        return fingerprint([part.experiment, where, keys, projections, corpora, adam, *quantised])

    def _is_done(self, part: Part, sample: TargetSample) -> bool:
        path = self.file(part, sample.name)
        if not path.is_file():
            return False
        facts = read_figures(path).facts
        same_base = facts.get("base_model") in (None, self._base_model)  # files made before it was kept have none
        return facts["inputs"] == self._inputs(part, sample) and same_base

    @cached_property
    def _base_model(self) -> str:
        return model_fingerprint(self.model)

    def _write(self, part: Part, sample: TargetSample, figures: Figures) -> None:
        from safetensors.torch import save_file

        tensors = {name: tensor.contiguous() for name, tensor in figures.tensors.items()}
        facts = {
            **figures.facts,
            "inputs": self._inputs(part, sample),
            "base_model": self._base_model,
            "learning_rate": self._step_settings(part.checkpoint).learning_rate,
            "subtasks": sample.subtasks,
            "counts": sample.counts,
            "num_target_rows": sample.num_rows,
            "target_tokens": sum(row.num_tokens for row in sample.rows),
        }
        text = json.dumps(facts)
        with atomic_path(self.file(part, sample.name)) as path:
            save_file(tensors, path, metadata={"facts": text, "checksum": _checksum(tensors, text)})

    def _require_memory(self, bench: Bench, samples: Sequence[TargetSample]) -> None:
        num_subtasks = sum(len(sample.subtasks) for sample in samples)
        needed = 4 * (bench.size * 2 * num_subtasks + 12 * max(FLOATS_AT_ONCE, bench.size))
        free = free_memory(bench.device)
        if needed > free:
            raise UserError(
                f"out of memory: gradients of {num_subtasks} subtasks need {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB "
                "are free; set check.per_subtask=false, or check fewer targets at a time"
            )


def read_figures(path: Path) -> Figures:
    """Figures as they were written. Raises RunFolderError where they aren't."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(metadata["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"can't be read: {error}") from error
    if metadata.get("checksum") not in (None, _checksum(tensors, metadata["facts"])):
        raise damaged(path, "differs from its checksum")
    if not isinstance(facts, dict) or not facts.keys() >= {"inputs", "learning_rate", "subtasks", "counts"}:
        raise damaged(path, "lacks what its figures come from")
    return Figures(tensors, facts)


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    """Fingerprint of figures and what is said of them: they are one file, which vouches for itself."""
    return fingerprint([facts, {name: checksum(tensor) for name, tensor in tensors.items()}])


def target_sample(run: RunFolder, name: str, config: CheckConfig) -> TargetSample:
    """The target's examples that its loss is measured on, drawn over its subtasks in turns."""
    corpus = Corpus(run.target(name))
    rows = corpus.rows(0, corpus.num_rows)
    names = [(row.subtask or name) if config.per_subtask else name for row in rows]
    chosen = in_turns(names, [row.num_tokens for row in rows], config.target_tokens, config.seed)
    subtasks = sorted({names[position] for position in chosen})
    members = [subtasks.index(names[position]) for position in chosen]
    return TargetSample(name, subtasks, members, [rows[position] for position in chosen], corpus.num_rows)


def in_turns(subtasks: Sequence[str], lengths: Sequence[int], tokens: int | None, seed: int) -> list[int]:
    """Positions of rows, drawn at random from the subtasks in turns until they have that many tokens; sorted."""
    generator = np.random.default_rng(seed)
    order = [int(position) for position in generator.permutation(len(subtasks))]
    seen: Counter[str] = Counter()
    turns: dict[int, int] = {}
    for position in order:
        turns[position] = seen[subtasks[position]]
        seen[subtasks[position]] += 1
    chosen: list[int] = []
    for position in sorted(order, key=lambda position: turns[position]):
        if tokens is not None and sum(lengths[item] for item in chosen) >= tokens:
            break
        chosen.append(position)
    return sorted(chosen)
