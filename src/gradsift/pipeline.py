"""The order of the stages: pool in; selected file, trained model and its metrics out."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version

from gradsift import __version__
from gradsift.baselines import BASELINES, EMBEDDING, REPRESENTATIONS, TOV
from gradsift.config import RunConfig, keep_config
from gradsift.errors import RunFolderError
from gradsift.features import Origin, SoleOrigin
from gradsift.influence_check import InfluenceCheck, InfluenceSettings, write_influence_report
from gradsift.machine import is_read_only, locked, write_json
from gradsift.model import Checkpoint
from gradsift.selection import checkpoint_weights
from gradsift.stages import (
    BaselineStage,
    EmbeddingStage,
    EncodeStage,
    EvaluateStage,
    FeaturesStage,
    SelectStage,
    TovStage,
    TrainStage,
    candidates_for,
    finished_warmup,
    require_same_base,
    run_warmup,
    saved_checkpoints,
    say_what_is_kept,
    score_by_influence,
    score_by_number,
)
from gradsift.summary import summary

logger = logging.getLogger(__name__)

VERSIONED = ("torch", "transformers", "peft", "tokenizers", "datasets", "accelerate", "numpy", "safetensors")


def encode_stage(config: RunConfig) -> None:
    """Pool and targets as token ids."""
    stage = EncodeStage(config.run, config.model, config.encoding, config.seed)
    stage.pool(config.pool)
    for target in config.targets:
        stage.target(target)


def warmup_stage(config: RunConfig) -> None:
    """LoRA checkpoints of a short training, or the user's own; `tov`'s training on each target; others need none."""
    for own in methods_of(config):
        if own.select.method == "less":
            _require_warmup(own)
        if own.select.method == TOV:
            for target in own.targets:
                tov_of(own).tune(target.name)


def _require_warmup(config: RunConfig) -> None:
    if config.warmup.checkpoints is not None:
        return
    require_same_base(config.run, config.model)
    if not finished_warmup(config.run):
        run_warmup(config.run, config.model, config.warmup, config.seed)


def features_stage(config: RunConfig) -> None:
    """Projected gradients of pool and targets at every checkpoint, or what a baseline matches instead of them."""
    for own in methods_of(config):
        if own.select.method == EMBEDDING:
            embedding_of(own).collect(own.targets)
        elif own.select.method not in BASELINES:
            _make_features(own)


def _make_features(config: RunConfig) -> None:
    if config.select.method == "less" and config.warmup.checkpoints is None:
        require_same_base(config.run, config.model)
    candidates = candidates_of(config)
    if candidates is not None:
        say_what_is_kept(config.run, candidates)
    stage = FeaturesStage(config.run, config.model, config.features, config.executor)
    names = [] if _is_number(config) else [target.name for target in config.targets]
    stage.collect(origins_of(config), names, candidates)


def score_stage(config: RunConfig) -> None:
    """Influence of every pool row on every target, or the score that a baseline gives it."""
    for own in methods_of(config):
        _score(own)


def _score(config: RunConfig) -> None:
    method, names = str(config.select.method), [target.name for target in config.targets]
    if method in BASELINES:
        stage = BaselineStage(config.run, config.pool, config.score, config.seed)
        for target in config.targets:
            stage.score(target, method)
    elif method == TOV:
        tov_of(config).score(names, config.score)
    elif _is_number(config):
        score_by_number(config.run, method, names, config.score)
    else:
        scored = candidates_of(config) or dict.fromkeys(names)
        score_by_influence(config.run, origins_of(config), scored, config.score, method)


def select_stage(config: RunConfig) -> None:
    """The best rows for every target."""
    SelectStage(config.run, config.pool, config.select, config.seed).select(config.targets)


def train_stage(config: RunConfig) -> None:
    """A model trained on each target's selection."""
    stage = TrainStage(
        config.run,
        config.target_model,
        config.target_encoding,
        config.train,
        config.pool,
        config.seed,
    )
    for target in config.targets:
        stage.train(target.name, config.select.label)


def evaluate_stage(config: RunConfig) -> None:
    """The trained models' answers to the targets' held-out questions, and the metrics made of them."""
    stage = evaluation_of(config)
    for target in config.targets:
        stage.evaluate(target, config.select.label)


STAGES: dict[str, Callable[[RunConfig], None]] = {
    "encode": encode_stage,
    "warmup": warmup_stage,
    "features": features_stage,
    "score": score_stage,
    "select": select_stage,
    "train": train_stage,
    "evaluate": evaluate_stage,
}


def evaluation_of(config: RunConfig) -> EvaluateStage:
    """The stage that evaluates the config's models."""
    return EvaluateStage(config.run, config.target_model, config.target_encoding, config.evaluate)


def methods_of(config: RunConfig) -> Iterator[RunConfig]:
    """The config with one method in place of all that are fused, for each; one that picks candidates before `less`."""
    for method in config.select.methods:
        own = _with_method(config, method)
        screen = screen_of(own)
        if screen is not None:
            yield screen
        yield own


def _with_method(config: RunConfig, method: str) -> RunConfig:
    return config.model_copy(update={"select": config.select.model_copy(update={"method": method})})


def origins_of(config: RunConfig) -> Sequence[Origin]:
    """What the method's features are made with: the checkpoints, or one model."""
    method = str(config.select.method)
    if method == TOV:
        return tov_of(config).origins([target.name for target in config.targets])
    return checkpoints_of(config) if method == "less" else [SoleOrigin(method)]


def screen_of(config: RunConfig) -> RunConfig | None:
    """The config of the method that picks the rows that `less` takes gradients of; None where that is every row."""
    candidates = config.features.candidates
    if config.select.method != "less" or candidates is None:
        return None
    return _with_method(config, candidates.method)


def embedding_of(config: RunConfig) -> EmbeddingStage:
    """What embeds the texts of pool and targets."""
    return EmbeddingStage(config.run, config.pool, config.baselines.embedding, config.features, config.seed)


def require_embedder(configs: Iterable[RunConfig]) -> None:
    """Raise ConfigError where one of them has `embedding` among its methods, or to pick candidates, and its model can't
    be loaded. They have the same `baselines`."""
    needing = next((own for config in configs for own in methods_of(config) if own.select.method == EMBEDDING), None)
    if needing is not None:
        embedding_of(needing).require_model()


def candidates_of(config: RunConfig) -> dict[str, list[int]] | None:
    """By target, the rows that `less` takes gradients of; None: every row. What picks them is scored first."""
    screen, settings = screen_of(config), config.features.candidates
    if screen is None or settings is None:
        return None
    score_stage(screen)
    return {target.name: candidates_for(config.run, target.name, settings) for target in config.targets}


def tov_of(config: RunConfig) -> TovStage:
    """What trains on the targets' examples, and scores by it."""
    return TovStage(config.run, config.model, config.baselines.tov, config.seed)


def _is_number(config: RunConfig) -> bool:
    """Whether the method gives each row of the pool a number, and looks at no features of a target."""
    method = str(config.select.method)
    return method == TOV or (method in REPRESENTATIONS and REPRESENTATIONS[method].is_score)


def checkpoints_of(config: RunConfig) -> list[Checkpoint]:
    """The user's checkpoints, or those of the finished warmup; raises UserError where they carry no weight."""
    saved = config.warmup.checkpoints is not None
    found = saved_checkpoints(config.warmup) if saved else finished_warmup(config.run)
    if not found:
        raise RunFolderError(f"{config.run_dir} has no finished warmup: run `gradsift warmup` first, or `gradsift run`")
    checkpoint_weights([checkpoint.learning_rate for checkpoint in found])
    return found


def run(config: RunConfig, until: str = "evaluate", only: str | None = None) -> str:
    """Do the stages up to `until`, or `only` one after encoding; finished work is skipped. The closing summary."""
    names = list(STAGES)
    wanted = ["encode", only] if only else names[: names.index(until) + 1]
    seconds: dict[str, float] = {}
    with locked(config.run.path):
        keep_config(config)
        write_environment(config)
        if "less" in config.select.methods and config.warmup.checkpoints is not None:
            checkpoints_of(config)  # what can't be used is said before any work
        if "features" in wanted:
            require_embedder([config])
        if "evaluate" in wanted:
            evaluation_of(config).require_inputs(config.targets)
        for name in dict.fromkeys(wanted):
            start = time.monotonic()
            STAGES[name](config)
            seconds[name] = time.monotonic() - start
    return summary(config.run, [target.name for target in config.targets], config.select, seconds)


def check_influence(config: RunConfig) -> str:
    """Measure the method itself on this run's model, pool and targets; the tables of what was found."""
    features = config.features
    settings = InfluenceSettings(
        features.adam, features.projection, features.store_dtype, config.score, config.warmup.max_grad_norm
    )
    stage = InfluenceCheck(config.run, config.model, config.check, settings)
    with locked(config.run.path):
        keep_config(config)
        write_environment(config)
        encode_stage(config)
        _require_warmup(config)
        checkpoints = checkpoints_of(config)
        parts = stage.measure(checkpoints, [target.name for target in config.targets])
        return write_influence_report(stage, parts, [target.name for target in config.targets])


def write_environment(config: RunConfig) -> None:
    """Write versions, machine, seed and command into the run folder; they stay where that is read-only."""
    if is_read_only(config.run.path):
        return
    facts = {
        "gradsift": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in VERSIONED},
        "seed": config.seed,
        "command": sys.argv,
    }
    write_json(config.run.environment, facts)
