"""lm-evaluation-harness beside our own evaluation: its results and samples as files, done once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradsift.encoding import Encoder
from gradsift.evaluation.harness import HarnessConfig, run_harness
from gradsift.machine import atomic_open, file_sha256, fingerprint, finished_facts, renewed

if TYPE_CHECKING:
    from torch import nn


logger = logging.getLogger(__name__)

HARNESS_FILE = "harness.json"
HARNESS_SAMPLES_FILE = "harness_samples.jsonl"


def _checksums(config: HarnessConfig) -> dict[str, str]:
    """SHA-256 of every file beside the user's task files."""
    if config.include_path is None:
        return {}
    folder = Path(config.include_path).expanduser()
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): file_sha256(path) for path in files}


@dataclass(frozen=True)
class HarnessJob:
    """One model for lm-evaluation-harness, and where the outcome goes."""

    model: Callable[[], nn.Module]
    """As in `EvaluationJob`."""
    encoder: Encoder
    config: HarnessConfig
    batch_size: int | Literal["auto"]
    folder: Path
    inputs: Mapping[str, Any] = field(default_factory=dict)


def evaluate_with_harness(job: HarnessJob) -> dict[str, Any]:
    """The harness's results; read from `harness.json` where that was made from the same inputs.

    Every file in `include_path` counts among them; data that lie elsewhere don't.
    """
    path, samples_path = job.folder / HARNESS_FILE, job.folder / HARNESS_SAMPLES_FILE
    inputs = fingerprint([dict(job.inputs), job.encoder.meaning(), job.config.model_dump(), _checksums(job.config)])
    finished = finished_facts(path, [samples_path], ("results", "inputs"))
    if finished and finished["inputs"] == inputs:
        logger.info("evaluate: %s is up to date", path)
        return finished
    outcome = run_harness(job.model(), job.encoder, job.config, job.batch_size)
    with renewed(path, samples_path) as facts, atomic_open(samples_path) as file:
        for task, samples in sorted(outcome.samples.items()):
            for sample in samples:
                file.write(json.dumps({"task": task, **sample}, ensure_ascii=False, default=str).encode() + b"\n")
        facts |= {
            "results": outcome.results,
            "settings": job.config.model_dump(),
            "lm_eval": outcome.version,
            "inputs": inputs,
        }
    return facts
