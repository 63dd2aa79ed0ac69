"""The experiments of the influence check: a model at a checkpoint, steps tried on it, and what was foretold of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from gradsift.encoding import Batch, Corpus, EncodedRow, batches_by_length, pad_rows
from gradsift.gradients import PerExampleGradients, ProjectionConfig, Projector, build_projector
from gradsift.influence_check.predictions import (
    DIRECTIONS,
    DirectionSums,
    Products,
    TargetDirections,
    as_stored,
    direction,
    epsilon_shares,
    flat_gradients,
    mean_pairwise_cosine,
    products,
    projected,
    unit_rows,
)
from gradsift.influence_check.steps import AdamSteps, StepSettings
from gradsift.machine import Progress, RunFolder, pick_device
from gradsift.model import (
    Checkpoint,
    ModelConfig,
    example_losses,
    load_adapter,
    lora_at,
    read_moments,
)

Experiment = Literal["single", "batch", "trajectory", "stability", "projected"]
EXACT = "exact"
STEP = "step"
"""The direction that the weights really went, as a form of its own: what is left to it is the curvature alone."""
TOKENS_AT_ONCE = 4096
FLOATS_AT_ONCE = 1 << 26
"""Numbers of whole gradients that are held together: 256 MB, or one row where it has more."""


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
    quantised: Mapping[str, str] = field(default_factory=dict)
    """By the names of projections whose rows are taken as they come back from a store besides: its dtype."""

    @property
    def label(self) -> str:
        """For progress."""
        return f"{self.experiment} at {self.checkpoint.name}"


@dataclass
class Figures:
    """What an experiment gives for one target: tensors, and facts for the header."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Bench:
    """A model at a checkpoint, on which gradients are taken and steps are tried."""

    def __init__(self, run: RunFolder, model: ModelConfig, checkpoint: Checkpoint) -> None:
        self.pool = Corpus(run.pool)
        self.device = pick_device()
        self.model = model
        self._stand_at(checkpoint)
        self._batches: dict[str, list[tuple[list[int], Batch]]] = {}

    def _stand_at(self, checkpoint: Checkpoint) -> None:
        """Load the base anew, with that checkpoint's adapter."""
        self.gradients = PerExampleGradients(lora_at(self.model, checkpoint, self.device))
        self.adapter = checkpoint.adapter
        self.shapes = self.gradients.shapes
        self.size = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        self.rows_at_once = max(1, FLOATS_AT_ONCE // self.size)

    def load(self, checkpoint: Checkpoint, settings: StepSettings) -> None:
        """Stand at that checkpoint."""
        if checkpoint.adapter == self.adapter:
            load_adapter(self.gradients.model, checkpoint, self.shapes)
        else:
            del self.gradients  # never two models at once
            self._stand_at(checkpoint)
            self._batches.clear()
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


def stored_name(projection: str, dtype: str) -> str:
    """`kind/dim/seed/dtype`: rows projected, then quantised as a run's store has them."""
    return f"{projection}/{dtype}"


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
        self._quantised = part.quantised
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
                _keep_projected(self._products, name, projection, features_CK, directions, self._quantised)

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
                        _keep_projected(found, name, projection, features_CK, directions, part.quantised)
            progress.advance(len(rows), sum(row.num_tokens for row in rows))
    return [Figures(joined(item)) for item in found]


def _keep_projected(
    found: Sequence[dict[str, list[Products]]],
    form: str,
    projection: str,
    features_CK: Tensor,
    directions: Sequence[Mapping[str, TargetDirections]],
    quantised: Mapping[str, str],
) -> None:
    """Add the products of these rows through a projection, and besides as they come back from a quantised store."""
    targets = [item[projection] for item in directions]
    _keep(found, f"{form}|{projection}", features_CK, targets)
    if projection in quantised:
        stored_CK = as_stored(features_CK, quantised[projection])
        _keep(found, f"{form}|{stored_name(projection, quantised[projection])}", stored_CK, targets)


def _keep(
    found: Sequence[dict[str, list[Products]]], key: str, features_CK: Tensor, targets: Sequence[TargetDirections]
) -> None:
    """Add the products of these rows to what was found for each target."""
    for products_of, target in zip(found, targets, strict=True):
        products_of.setdefault(key, []).append(products(features_CK, target))
