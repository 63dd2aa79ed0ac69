"""What the bytes of a stored row buy: how near scores from stores of several K and bits come to exact ones.

    python benchmarks/store_size.py configs/compare-real.yaml run_dir=runs/store-size [--seeds 0 1] [--budget 60]

Runs the config's encoding and warmup, then sends the pool once through every checkpoint: each batch is scored exactly
(whole gradients against the targets' whole directions) and through every projection, quantised as its store would have
it. Prints, by target, Pearson's correlation with the exact scores over the rows, mean over subtasks, and how many of
the best rows by turns are the exact ones; after all checkpoints, mean over the projections' seeds. A checkpoint's
scores are kept in RUN/store-size, by what they come from, so that it goes on where it was stopped. Slow: as long as the
features stage.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from timing import machine
from torch import Tensor

from gradsift.config import RunConfig, load_config
from gradsift.encoding import Corpus, EncodedRow, batches_by_length, pad_rows
from gradsift.gradients import (
    PROJECTION_VERSION,
    AdamTerms,
    PerExampleGradients,
    ProjectionConfig,
    adam_feature,
    adam_terms,
    build_projector,
)
from gradsift.machine import Progress, atomic_path, fingerprint, pick_device
from gradsift.model import Checkpoint, alike_parts, lora_at, read_moments
from gradsift.pipeline import checkpoints_of, encode_stage, warmup_stage
from gradsift.selection import STRATEGIES, Candidates, checkpoint_weights
from gradsift.store import BITS, quantized, row_bytes

TOKENS_PER_BATCH = 2048
EXACT = "exact"


@dataclass(frozen=True)
class Form:
    """How a pool row is stored: K numbers, in a dtype. A target's rows are float16 in every form."""

    dim: int
    dtype: str

    @property
    def label(self) -> str:
        """As the table has it."""
        bits = BITS.get(self.dtype, 16)
        return f"K {self.dim}, {bits} bit"


FORMS = (
    Form(8192, "float16"),
    Form(16384, "int8"),
    Form(32768, "int4"),
    Form(131072, "int1"),
    Form(32768, "int1"),
    Form(32768, "float16"),
    Form(131072, "float16"),
)
PAPER = FORMS[0]


def main() -> None:
    """Print a table a target."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = _options()
    config = load_config(options.config, options.overrides)
    encode_stage(config)
    warmup_stage(config)
    checkpoints = checkpoints_of(config)
    weights = checkpoint_weights([checkpoint.learning_rate for checkpoint in checkpoints])
    total: dict[str, Tensor] = {}
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        for name, scores_NG in _scores(config, checkpoint, options.seeds).items():
            total[name] = total.get(name, torch.zeros_like(scores_NG)) + weight * scores_NG
    print(f"{machine()}; {Corpus(config.run.pool).num_rows} rows, {len(checkpoints)} checkpoints\n")
    for target in config.targets:
        _print_table(target.name, total, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="of the projections")
    parser.add_argument("--budget", type=int, default=60, help="rows whose agreement is counted")
    return parser.parse_args()


def _print_table(target: str, total: dict[str, Tensor], options: argparse.Namespace) -> None:
    exact_NG = total[_key(target, EXACT)]
    print(f"{target}: {exact_NG.shape[1]} subtasks\n")
    print(f"| stored | bytes a row | Pearson | of the best {options.budget} by turns |\n| --- | --- | --- | --- |")
    for form in FORMS:
        found = [total[_key(target, form, seed)] for seed in options.seeds]
        pearson = np.mean([_pearson(scores_NG, exact_NG) for scores_NG in found])
        shared = np.mean([_shared(scores_NG, exact_NG, options.budget) for scores_NG in found])
        print(f"| {form.label} | {row_bytes(form.dim, form.dtype) - 8:,} | {pearson:.2f} | {shared:.0f} |", flush=True)
    print()


def _pearson(scores_NG: Tensor, exact_NG: Tensor) -> float:
    """Over the rows, mean over the subtasks."""
    left_NG, right_NG = ((part - part.mean(dim=0)).double() for part in (scores_NG, exact_NG))
    norms_G = torch.linalg.vector_norm(left_NG, dim=0) * torch.linalg.vector_norm(right_NG, dim=0)
    return float(((left_NG * right_NG).sum(dim=0) / norms_G).mean())


def _shared(scores_NG: Tensor, exact_NG: Tensor, budget: int) -> int:
    return len(_by_turns(scores_NG, budget) & _by_turns(exact_NG, budget))


def _by_turns(scores_NG: Tensor, budget: int) -> set[int]:
    candidates = Candidates(scores_NG.amax(dim=1).double().numpy(), scores_NG.numpy())
    return set(itertools.islice(STRATEGIES["round_robin"](candidates), budget))


def _key(target: str, form: Form | str, seed: int = 0) -> str:
    return f"{target}/{form}" if isinstance(form, str) else f"{target}/{form.dim}/{form.dtype}/{seed}"


# One checkpoint


def _scores(config: RunConfig, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[str, Tensor]:
    """Influence [N, G] on every target at the checkpoint, exactly and in every form; read where it is there."""
    path = config.run.path / "store-size" / f"{checkpoint.name}-{_inputs(config, checkpoint, seeds)}.safetensors"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        scores = _computed(config, checkpoint, seeds)
        with atomic_path(path) as temporary:
            save_file(scores, temporary)
    return load_file(path)


def _inputs(config: RunConfig, checkpoint: Checkpoint, seeds: Sequence[int]) -> str:
    """Fingerprint of all that decides a checkpoint's scores."""
    targets = {target.name: _meaning(config.run.target(target.name)) for target in config.targets}
    views = [PROJECTION_VERSION, *map(asdict, FORMS), *seeds]
    made_from = [config.features.adam, checkpoint.fingerprint(), _meaning(config.run.pool), targets, views]
    return fingerprint(made_from)[:16]


def _meaning(corpus: Path) -> list[object]:
    manifest = Corpus(corpus).manifest
    return [manifest["fingerprint"], manifest["encoding"]]


def _computed(config: RunConfig, checkpoint: Checkpoint, seeds: Sequence[int]) -> dict[str, Tensor]:
    views = Views(config, checkpoint, seeds)
    directions: dict[str, dict[View, Tensor]] = {}
    for target in config.targets:
        directions[target.name] = views.directions(Corpus(config.run.target(target.name)), target.name)
    pool, scores = Corpus(config.run.pool), {}
    for positions, features in views.batches(pool, checkpoint.name, is_pool=True):
        for target, by_view in directions.items():
            for view, directions_GK in by_view.items():
                for form in _forms_of(view):
                    name = _key(target, form, view.seed)
                    empty_NG = torch.empty(pool.num_rows, len(directions_GK))
                    scores.setdefault(name, empty_NG)[positions] = _cosines(features[view], directions_GK, form)
    return scores


def _forms_of(view: View) -> Sequence[Form | str]:
    return [form for form in FORMS if form.dim == view.dim] if view.dim else [EXACT]


def _cosines(rows_BK: Tensor, directions_GK: Tensor, form: Form | str) -> Tensor:
    """Influence [B, G] of rows as that form stores them."""
    if isinstance(form, Form) and form.dtype in BITS:
        rows_BK = quantized(rows_BK, BITS[form.dtype])[0].float()
    return rows_BK @ directions_GK.T / torch.linalg.vector_norm(rows_BK, dim=1, keepdim=True)


@dataclass(frozen=True)
class View:
    """What is seen of a gradient: K numbers through a projection of that seed; all of it where K is 0."""

    dim: int
    seed: int = 0


class Views:
    """A model at a checkpoint whose gradients go through all projections at once."""

    def __init__(self, config: RunConfig, checkpoint: Checkpoint, seeds: Sequence[int]) -> None:
        self._form = config.features.adam
        self._gradients = PerExampleGradients(lora_at(config.model, checkpoint, pick_device()))
        self._terms = self._adam_terms(checkpoint)
        shapes = self._gradients.shapes
        self._projectors = {View(0): build_projector(ProjectionConfig(kind="identity"), shapes)}
        for dim, seed in itertools.product(sorted({form.dim for form in FORMS}), seeds):
            self._projectors[View(dim, seed)] = build_projector(ProjectionConfig(dim=dim, seed=seed), shapes)

    def _adam_terms(self, checkpoint: Checkpoint) -> dict[str, AdamTerms]:
        if self._form not in ("reference", "adamw"):
            return {}
        moments, adam = read_moments(checkpoint, self._gradients.shapes)
        return {name: adam_terms(self._form, found, adam) for name, found in moments.items()}

    def directions(self, corpus: Corpus, name: str) -> dict[View, Tensor]:
        """The target's directions [G, K]: by subtask the mean of its examples' unit gradients."""
        subtasks = [subtask or name for subtask in corpus.column("subtask")]
        names = sorted(set(subtasks))
        sums = {view: torch.zeros(len(names), projector.dim) for view, projector in self._projectors.items()}
        for positions, features in self.batches(corpus, name, is_pool=False):
            members = torch.tensor([names.index(subtasks[position]) for position in positions])
            for view, rows_BK in features.items():
                sums[view].index_add_(0, members, torch.nn.functional.normalize(rows_BK, dim=1))
        counts_G1 = torch.tensor([[subtasks.count(subtask)] for subtask in names])
        return {view: sums_GK / counts_G1 for view, sums_GK in sums.items()}

    def batches(self, corpus: Corpus, what: str, is_pool: bool) -> Iterator[tuple[list[int], dict[View, Tensor]]]:
        """Positions of some rows, and their features [B, K] in every view."""
        rows = corpus.rows(0, corpus.num_rows)
        with Progress(what, len(rows)) as progress:
            for positions in batches_by_length([row.num_tokens for row in rows], TOKENS_PER_BATCH):
                yield positions, self._features([rows[position] for position in positions], is_pool)
                progress.advance(len(positions))

    def _features(self, rows: Sequence[EncodedRow], is_pool: bool) -> dict[View, Tensor]:
        features = {view: torch.zeros(len(rows), projector.dim) for view, projector in self._projectors.items()}
        for members, part in alike_parts(self._gradients.model, pad_rows(rows)):
            found = {view: torch.zeros(len(members), rows_BK.shape[1]) for view, rows_BK in features.items()}
            self._gradients(part, self._consumer(found, is_pool))
            for view, rows_BK in found.items():
                features[view][members] = rows_BK
        return features

    def _consumer(self, found: dict[View, Tensor], is_pool: bool) -> Callable[[str, Tensor], None]:
        def consume(name: str, gradients_BOI: Tensor) -> None:
            if is_pool:
                gradients_BOI = adam_feature(gradients_BOI, self._form, terms=self._terms.get(name))
            for view, rows_BK in found.items():
                self._projectors[view].add(rows_BK, gradients_BOI, name)

        return consume


if __name__ == "__main__":
    main()
