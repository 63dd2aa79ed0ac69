"""The evaluate stage: the models trained for a run's targets, each on its target's held-out questions."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from gradsift.encoding import EncodingConfig
from gradsift.errors import DataError, RunFolderError
from gradsift.evaluation import (
    EvaluateConfig,
    EvaluationJob,
    HarnessJob,
    evaluate_target,
    evaluate_with_harness,
    require_harness,
    write_report,
)
from gradsift.machine import RunFolder, pick_device
from gradsift.model import ModelConfig, load_encoder, load_finetuned, model_fingerprint
from gradsift.stages.train import trained_settings
from gradsift.tasks import TargetConfig, held_out

logger = logging.getLogger(__name__)

BASE = "base"
"""In place of a method's name: the model before training."""


@dataclass(frozen=True)
class EvaluateStage:
    """Evaluates the models trained for a run's targets."""

    run: RunFolder
    model: ModelConfig
    """The model that was trained."""
    encoding: EncodingConfig
    config: EvaluateConfig

    def require_inputs(self, targets: Sequence[TargetConfig]) -> None:
        """Raise UserError where held-out items can't be read, or the harness lacks something: before the training."""
        for target in targets:
            if target.has_held_out:
                _require_held_out(target)
        if self.config.harness is not None:
            require_harness(self.config.harness)

    def evaluate(self, target: TargetConfig, selection: str) -> None:
        """Evaluate the model trained on the target's selection of that name; one with nothing held out is skipped."""
        self._evaluate(target, selection, self.run.model(target.name, selection))
        if self.config.base:
            self.evaluate_base(target)

    def evaluate_base(self, target: TargetConfig, name: str = BASE) -> None:
        """Evaluate the model as it is before training."""
        self._evaluate(target, name, None)

    def _evaluate(self, target: TargetConfig, name: str, trained: Path | None) -> None:
        metrics_path = self.run.evaluation(target.name, name)
        model = cache(partial(load_finetuned, self.model, trained, pick_device()))
        encoder = load_encoder(self.model, self.encoding)
        base = model_fingerprint(self.model)
        source = trained_settings(self.run, target.name, name) if trained else {"base": base}
        if trained:
            _require_as_trained(trained, source, base, encoder.meaning())
        folder = metrics_path.with_suffix("")
        if target.has_held_out:
            evaluate_target(EvaluationJob(model, encoder, target, self.config, folder, metrics_path, source))
        else:
            logger.info("evaluate %s: nothing held out (targets.test_path), skipped", target.name)
        if self.config.harness is not None:
            evaluate_with_harness(
                HarnessJob(model, encoder, self.config.harness, self.config.batch_size, folder, source)
            )
        if self.run.evaluations.is_dir():
            write_report(self.run.evaluations)


def _require_as_trained(folder: Path, trained: Mapping[str, Any], base: str, meaning: Mapping[str, Any]) -> None:
    """Raise RunFolderError where a model was trained on another base, or with another tokenizer or template."""
    now = {"model.fingerprint": base, **{f"encoding.{key}": value for key, value in meaning.items()}}
    before = {"model.fingerprint": trained["model"].get("fingerprint", base)}
    before |= {f"encoding.{key}": value for key, value in trained.get("meaning", {}).items()}
    for key, value in before.items():
        if now.get(key, value) != value:
            raise RunFolderError(
                f"{folder} was trained with {key} {value!r}, now {now[key]!r}: put the model's files and the template "
                "back as they were, or delete the folder to train again"
            )


def _require_held_out(target: TargetConfig) -> None:
    try:
        held_out(target)
    except DataError as error:
        remedy = "say where they are by its test_path, or leave evaluation out with --until train"
        raise DataError(f"{error} (held-out items of target {target.name}: {remedy})") from error
