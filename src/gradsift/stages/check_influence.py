"""The influence check: real optimizer steps on the user's own model, pool and targets against what Γ predicts of them.

Every target has a file an experiment, RUN/checks/influence/<target>/<checkpoint>/<experiment>.safetensors, and what is
finished with the same settings is not done again.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradsift.adam_steps import AdamSteps, StepSettings
from gradsift.artifact import atomic_path, fingerprint
from gradsift.batching import Batch, batches_by_length, pad_rows
from gradsift.checkpoints import Checkpoint, load_adapter, read_moments
from gradsift.corpus import Corpus
from gradsift.encoding import EncodedRow
from gradsift.errors import ConfigError, UserError, nearest
from gradsift.gradients import AdamForm, PerExampleGradients
from gradsift.influence import (
    DIRECTIONS,
    FORMS,
    DirectionSums,
    Products,
    TargetDirections,
    direction,
    epsilon_shares,
    flat_gradients,
    mean_pairwise_cosine,
    products,
    projected,
    unit_rows,
)
from gradsift.losses import example_losses
from gradsift.modeling import ModelConfig, add_saved_lora, load_base_model
from gradsift.projection import ProjectionConfig, Projector, build_projector
from gradsift.runfolder import RunFolder
from gradsift.runtime import Progress, free_memory, pick_device
from gradsift.scoring import ScoreConfig

logger = logging.getLogger(__name__)

Experiment = Literal["single", "batch", "trajectory", "stability", "projected"]
EXACT = "exact"
STEP = "step"
"""The direction that the weights really went, as a form of its own: what is left to it is the curvature alone."""
TOKENS_AT_ONCE = 4096
FLOATS_AT_ONCE = 1 << 26
"""Numbers of whole gradients that are held together: 256 MB, or one row where it has more."""


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
    sketch_dims: tuple[Dimension, ...] = (512, 2048, 8192, 32768)
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
    score: ScoreConfig
    max_grad_norm: float


@dataclass(frozen=True)
class TargetSample:
    """The examples of a target that its loss is measured on."""

    name: str
    subtasks: list[str]
    members: list[int]
    """The number of each row's subtask."""
    rows: list[EncodedRow]
    num_rows: int
    """Examples of the whole target."""

    @property
    def counts(self) -> list[int]:
        """Rows a subtask."""
        return [self.members.count(index) for index in range(len(self.subtasks))]

    def batches(self, max_rows: int) -> list[list[int]]:
        """Positions of the rows in batches of like length."""
        return batches_by_length([row.num_tokens for row in self.rows], TOKENS_AT_ONCE, max_rows)


@dataclass(frozen=True)
class Part:
    """One experiment at one checkpoint: what it takes, and what its figures come from."""

    experiment: Experiment
    checkpoint: Checkpoint
    draws: int
    projections: tuple[ProjectionConfig, ...] = ()

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.experiment} at {self.checkpoint.name}"


@dataclass
class Figures:
    """What an experiment gives for one target: tensors, and facts for the header."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


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
        main, config = self._main(checkpoints), self.config
        projections, own = tuple(self._projections()), self.own_projection
        first = tuple(dict.fromkeys((*(item for item in projections if item.seed == 0), *own)))
        elsewhere = [item for item in checkpoints if item != main and config.checkpoint_draws]
        parts = [Part("single", main, config.draws)]
        parts += [Part("projected", main, config.draws, first)] if first else []
        parts += [Part("stability", main, config.stability_rows, projections)] if config.stability_rows else []
        for item in elsewhere:
            num_draws = min(config.draws, config.checkpoint_draws)
            parts += [Part("single", item, num_draws)] + ([Part("projected", item, num_draws, own)] if own else [])
        parts += [Part("batch", main, config.batches, own)] if config.batches else []
        return parts + ([Part("trajectory", main, config.steps, own)] if config.steps else [])

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
        return fingerprint([part.experiment, where, keys, projections, corpora, adam])

    def _is_done(self, part: Part, sample: TargetSample) -> bool:
        path = self.file(part, sample.name)
        return path.is_file() and read_figures(path).facts["inputs"] == self._inputs(part, sample)

    def _write(self, part: Part, sample: TargetSample, figures: Figures) -> None:
        from safetensors.torch import save_file

        facts = {
            **figures.facts,
            "inputs": self._inputs(part, sample),
            "learning_rate": self._step_settings(part.checkpoint).learning_rate,
            "subtasks": sample.subtasks,
            "counts": sample.counts,
            "num_target_rows": sample.num_rows,
            "target_tokens": sum(row.num_tokens for row in sample.rows),
        }
        with atomic_path(self.file(part, sample.name)) as path:
            tensors = {name: tensor.contiguous() for name, tensor in figures.tensors.items()}
            save_file(tensors, path, metadata={"facts": json.dumps(facts)})

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
    """Figures as they were written."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Figures(tensors, json.loads(file.metadata()["facts"]))


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


class Bench:
    """A model at a checkpoint, on which gradients are taken and steps are tried."""

    def __init__(self, run: RunFolder, model: ModelConfig, checkpoint: Checkpoint) -> None:
        self.pool = Corpus(run.pool)
        self.device = pick_device()
        base = load_base_model(model, self.device)
        self.gradients = PerExampleGradients(add_saved_lora(base, checkpoint.path).to(self.device))
        self.shapes = self.gradients.shapes
        self.size = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        self.rows_at_once = max(1, FLOATS_AT_ONCE // self.size)
        self._batches: dict[str, list[tuple[list[int], Batch]]] = {}

    def load(self, checkpoint: Checkpoint, settings: StepSettings) -> None:
        """Stand at that checkpoint."""
        load_adapter(self.gradients.model, checkpoint, self.shapes)
        moments, adam = read_moments(checkpoint, self.shapes)
        parameters = dict(self.gradients.model.named_parameters())
        on_device = {name: moments[name].to(self.device) for name in self.shapes}
        self.steps = AdamSteps({name: parameters[name] for name in self.shapes}, on_device, adam, settings)

    def pool_rows(self, positions: Sequence[int]) -> list[EncodedRow]:
        """Those rows of the pool, in that order."""
        return [self.pool.rows(position, position + 1)[0] for position in positions]

    def rows_gradients(self, rows: Sequence[EncodedRow]) -> Tensor:
        """Gradients of the rows, float32 [R, P], in their order."""
        gradients_RP = torch.zeros(len(rows), self.size, device=self.device)
        for positions in batches_by_length([row.num_tokens for row in rows], TOKENS_AT_ONCE, self.rows_at_once):
            batch = pad_rows([rows[position] for position in positions]).to(self.device)
            gradients_RP[positions] = flat_gradients(self.gradients, batch)[0]
        return gradients_RP

    def target_gradients(self, sample: TargetSample) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Positions, gradients [B, P] and losses [B] of the target's examples, batch by batch."""
        for positions, batch in self._padded(sample):
            yield positions, *flat_gradients(self.gradients, batch)

    def losses(self, sample: TargetSample) -> Tensor:
        """The target's loss as the weights stand now, by subtask: float64 [G], in nats."""
        with torch.no_grad():
            found = [
                (positions, example_losses(self.gradients.model, batch)) for positions, batch in self._padded(sample)
            ]
        return by_subtask(sample, found)

    def _padded(self, sample: TargetSample) -> list[tuple[list[int], Batch]]:
        if sample.name not in self._batches:
            self._batches[sample.name] = [
                (positions, pad_rows([sample.rows[position] for position in positions]).to(self.device))
                for positions in sample.batches(self.rows_at_once)
            ]
        return self._batches[sample.name]

    def projectors(self, projections: Sequence[ProjectionConfig]) -> dict[str, Projector | None]:
        """Projectors by name, and none at all under `EXACT`."""
        named = {projection_name(item): build_projector(item, self.shapes) for item in projections}
        return {EXACT: None, **named}


def projection_name(projection: ProjectionConfig) -> str:
    """`kind/dim/seed`."""
    return f"{projection.kind}/{projection.dim}/{projection.seed}"


def by_subtask(sample: TargetSample, found: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """Means over each subtask of values that came with their positions: float64 [G]."""
    sums_G = torch.zeros(len(sample.subtasks), dtype=torch.float64)
    for positions, values_B in found:
        index_B = torch.tensor([sample.members[position] for position in positions])
        sums_G.index_add_(0, index_B, values_B.detach().double().cpu())
    return sums_G / torch.tensor(sample.counts)


def target_directions(
    bench: Bench, sample: TargetSample, projectors: Mapping[str, Projector | None]
) -> tuple[dict[str, TargetDirections], Tensor]:
    """A target's directions as the weights stand now, under every projector, and its loss by subtask."""
    sums = {name: DirectionSums(len(sample.subtasks)) for name in projectors}
    found = []
    for positions, gradients_BP, losses_B in bench.target_gradients(sample):
        members = [sample.members[position] for position in positions]
        for name, projector in projectors.items():
            sums[name].add(projected(gradients_BP, projector, bench.shapes), members)
        found.append((positions, losses_B))
    return {name: item.result() for name, item in sums.items()}, by_subtask(sample, found)


def one_step(
    bench: Bench, part: Part, samples: Sequence[TargetSample], draws: Sequence[Sequence[int]]
) -> list[Figures]:
    """A step from the checkpoint on every draw, undone after the targets' losses were measured."""
    record = Record(bench, part, [sample.name for sample in samples])
    directions = [target_directions(bench, sample, record.projectors)[0] for sample in samples]
    before = [bench.losses(sample) for sample in samples]
    chunk = max(1, FLOATS_AT_ONCE // (bench.size * len(DIRECTIONS)))
    with Progress(f"check {part.label}", len(draws), "draws") as progress:
        for start in range(0, len(draws), chunk):
            rows = [bench.pool_rows(draw) for draw in draws[start : start + chunk]]
            gradients_CP = torch.stack([bench.rows_gradients(draw).mean(dim=0) for draw in rows])
            record.predict(gradients_CP, directions)
            for gradient_P in gradients_CP:
                record.step(gradient_P, directions)
                record.drops([loss_G - bench.losses(sample) for loss_G, sample in zip(before, samples, strict=True)])
                bench.steps.undo()
                progress.advance(1)
    return record.figures()


def trajectory(
    bench: Bench, part: Part, samples: Sequence[TargetSample], draws: Sequence[Sequence[int]]
) -> list[Figures]:
    """Training goes on from the checkpoint: before every step its effect is predicted, at the weights of that step."""
    record = Record(bench, part, [sample.name for sample in samples])
    before: list[Tensor] | None = None
    with Progress(f"check {part.label}", len(draws), "steps") as progress:
        for draw in draws:
            found = [target_directions(bench, sample, record.projectors) for sample in samples]
            directions, losses = [item[0] for item in found], [item[1] for item in found]
            if before is not None:
                record.drops([loss_G - now_G for loss_G, now_G in zip(before, losses, strict=True)])
            before = losses
            gradient_P = bench.rows_gradients(bench.pool_rows(draw)).mean(dim=0)
            record.predict(gradient_P[None], directions)
            record.step(gradient_P, directions)
            progress.advance(1)
    assert before is not None, "a trajectory has steps"
    record.drops([loss_G - bench.losses(sample) for loss_G, sample in zip(before, samples, strict=True)])
    bench.steps.undo()
    return record.figures()


class Record:
    """Gathers what was predicted and what came of it, for several targets at once."""

    def __init__(self, bench: Bench, part: Part, targets: Sequence[str]) -> None:
        self._bench = bench
        self.projectors = bench.projectors(part.projections)
        self._products: list[dict[str, list[Products]]] = [{} for _ in targets]
        self._drops: list[list[Tensor]] = [[] for _ in targets]
        self._unit_sums = {name: torch.zeros(bench.size, device=bench.device) for name in DIRECTIONS}
        self._epsilon: list[dict[str, float]] = []
        self._clipped: list[bool] = []

    def predict(self, gradients_CP: Tensor, directions: Sequence[Mapping[str, TargetDirections]]) -> None:
        """Products of these draws' directions with the targets', in every form and projection."""
        moments, adam = self._bench.steps.moments, self._bench.steps.adam
        self._epsilon += [epsilon_shares(gradient_P[None], moments, adam) for gradient_P in gradients_CP]
        for name in DIRECTIONS:
            rows_CP = direction(name, gradients_CP, moments, adam)
            self._unit_sums[name] += unit_rows(rows_CP).sum(dim=0)
            for projection, projector in self.projectors.items():
                features_CK = projected(rows_CP, projector, self._bench.shapes)
                _keep(self._products, f"{name}|{projection}", features_CK, [item[projection] for item in directions])

    def step(self, gradient_P: Tensor, directions: Sequence[Mapping[str, TargetDirections]]) -> None:
        """Take the step on this gradient; the direction that it went is a form of its own."""
        gone_P, clipped = self._bench.steps.take(gradient_P)
        self._clipped.append(clipped)
        _keep(self._products, f"{STEP}|{EXACT}", gone_P[None], [item[EXACT] for item in directions])

    def drops(self, drops: Sequence[Tensor]) -> None:
        """How much the loss of each target fell, by subtask [G]."""
        for found, drop_G in zip(self._drops, drops, strict=True):
            found.append(drop_G)

    def figures(self) -> list[Figures]:
        """Everything, a target each."""
        num_draws = len(self._clipped)
        pairwise = {name: mean_pairwise_cosine(unit_P, num_draws) for name, unit_P in self._unit_sums.items()}
        epsilon = {form: float(np.mean([share[form] for share in self._epsilon])) for form in self._epsilon[0]}
        facts = {"clipped": float(np.mean(self._clipped)), "epsilon": epsilon, "pairwise_cosine": pairwise}
        return [
            Figures({"drops": torch.stack(drops), **joined(found)}, facts)
            for drops, found in zip(self._drops, self._products, strict=True)
        ]


def joined(found: Mapping[str, Sequence[Products]]) -> dict[str, Tensor]:
    """Products as tensors named `form|projection|…`."""
    tensors = {}
    for key, parts in found.items():
        tensors[f"{key}|dots"] = torch.cat([part.dots_NG for part in parts])
        tensors[f"{key}|cosines"] = torch.cat([part.cosines_NG for part in parts])
        tensors[f"{key}|norms"] = torch.cat([part.norms_N for part in parts])
    return tensors


def predictions(
    bench: Bench, part: Part, samples: Sequence[TargetSample], drawn: tuple[Sequence[int], Sequence[str]]
) -> list[Figures]:
    """Products of pool rows with the targets: exact in every form, and under every projector in some."""
    positions, forms = drawn
    projectors = bench.projectors(part.projections)
    directions = [target_directions(bench, sample, projectors)[0] for sample in samples]
    found: list[dict[str, list[Products]]] = [{} for _ in samples]
    moments, adam = bench.steps.moments, bench.steps.adam
    with Progress(f"check {part.label}", len(positions)) as progress:
        for start in range(0, len(positions), bench.rows_at_once):
            rows = bench.pool_rows(positions[start : start + bench.rows_at_once])
            gradients_CP = bench.rows_gradients(rows)
            for name in DIRECTIONS:
                rows_CP = direction(name, gradients_CP, moments, adam)
                for projection, projector in projectors.items():
                    if name in forms or projection == EXACT:
                        features_CK = projected(rows_CP, projector, bench.shapes)
                        _keep(found, f"{name}|{projection}", features_CK, [item[projection] for item in directions])
            progress.advance(len(rows), sum(row.num_tokens for row in rows))
    return [Figures(joined(item)) for item in found]


def _keep(
    found: Sequence[dict[str, list[Products]]], key: str, features_CK: Tensor, targets: Sequence[TargetDirections]
) -> None:
    """Add the products of these rows to what was found for each target."""
    for products_of, target in zip(found, targets, strict=True):
        products_of.setdefault(key, []).append(products(features_CK, target))
