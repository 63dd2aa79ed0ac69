"""The method `tov`: the base trained on a target's examples, and the fall of the pool's losses as scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.baselines import TOV, Drop, loss_drop
from gradsift.encoding import Corpus
from gradsift.errors import RunFolderError
from gradsift.features import SoleOrigin, TunedOrigin
from gradsift.machine import MANIFEST, RunFolder, pick_device, read_record
from gradsift.model import ModelConfig, add_lora, load_base_model, quiet_peft
from gradsift.selection import ScoreConfig
from gradsift.stages.baseline import stored_numbers, write_numbers
from gradsift.stages.train import (
    TrainConfig,
    is_trained,
    require_whole,
    training_facts,
    training_settings,
    vouched_training,
)
from gradsift.training import Training, TrainingConfig, finetune

logger = logging.getLogger(__name__)

BEFORE = SoleOrigin("loss")
"""Where a row's loss before the training comes from: the store of the method `loss`."""


class TovConfig(TrainingConfig):
    """The LoRA training on a target's examples; what the config leaves out of TrainingConfig's keys is the warmup's."""

    drop: Drop = "absolute"
    """A row's score: how far its loss falls, in nats a token, or by the loss before."""


@dataclass(frozen=True)
class TovStage:
    """Trains the base on each target's examples, all subtasks together, and scores the pool's rows by it.

    One training and one pass over the pool a target: a model a subtask would cost a pass each, 57 of them for MMLU.
    """

    run: RunFolder
    model: ModelConfig
    config: TovConfig
    seed: int

    def tune(self, target: str) -> None:
        """Train on the target's examples, from the last epoch where there is one; a finished training stays."""
        folder, corpus = self.run.tuned(target), Corpus(self.run.target(target))
        settings = self._settings(corpus)
        if is_trained(folder, settings):
            logger.info("tov %s: was trained before", target)
            return
        rows = corpus.rows(0, corpus.num_rows)
        with vouched_training(folder, settings) as facts:
            model = self._fresh_model()
            log = finetune(model, Training(f"baselines.{TOV}", rows, self.config, self.seed, folder))
            with quiet_peft():
                model.save_pretrained(folder)
            facts |= training_facts(rows, log, self.config.epochs)

    def _settings(self, corpus: Corpus) -> dict[str, Any]:
        """What decides the trained adapter."""
        shared = self.config.model_dump(include=set(TrainingConfig.model_fields))
        return {
            **training_settings(TrainConfig.model_validate(shared), self.model, self.seed),
            "encoding": corpus.manifest["encoding"],
            "data": {"target": corpus.manifest["fingerprint"]},
        }

    def _fresh_model(self) -> Any:
        """The base with a fresh adapter, whose numbers follow the seed."""
        from transformers import set_seed

        set_seed(self.seed)
        return add_lora(load_base_model(self.model, pick_device()), self.config.lora)

    def origins(self, targets: Sequence[str]) -> list[SoleOrigin | TunedOrigin]:
        """What the pool's losses are made with: the base, and the base trained on each target."""
        return [BEFORE, *(self._tuned(target) for target in targets)]

    def _tuned(self, target: str) -> TunedOrigin:
        """Raises RunFolderError where the target has no finished training, or its adapter isn't what was trained."""
        folder = self.run.tuned(target)
        if not (folder / MANIFEST).is_file():
            raise RunFolderError(f"{folder}: nothing was trained on target {target} yet: run `gradsift warmup` first")
        record = read_record(folder / MANIFEST)
        require_whole(record)
        return TunedOrigin(target, folder, record.files)

    def score(self, targets: Sequence[str], config: ScoreConfig) -> None:
        """Write the fall of each row's loss as its score, the same for all subtasks of a target."""
        before_N1, meaning = stored_numbers(self.run, BEFORE)
        for target in targets:
            after_N1, after = stored_numbers(self.run, self._tuned(target))
            drop_N1 = loss_drop(before_N1, after_N1, self.config.drop)
            write_numbers(self.run, target, TOV, drop_N1, [self.config.drop, meaning, after], config)
