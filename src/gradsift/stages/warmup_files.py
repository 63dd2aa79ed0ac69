"""What a warmup left behind, compared with what its manifest says of it: its checkpoints, their files, its base."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gradsift.errors import RunFolderError
from gradsift.machine import MANIFEST, RunFolder, fingerprint, read_json, write_json
from gradsift.model import (
    ADAPTER_CONFIG,
    CHECKPOINT_JSON,
    Checkpoint,
    ModelConfig,
    content_sha256,
    list_checkpoints,
    model_fingerprint,
)

BASE_FILE = "base.json"
TRAINERS_ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
"""What the Trainer sets for AdamW: every warmup's."""


class LoraSettings(BaseModel):
    """The adapter that the warmup trained."""

    r: int
    alpha: int


class WarmupSettings(BaseModel):
    """What of a warmup's settings its files are compared with."""

    lora: LoraSettings


class WarmupManifest(BaseModel):
    """What the manifest of a finished warmup says; those from before checksums lack `files` and `base_model`."""

    settings: WarmupSettings
    checkpoints: list[str]
    files: dict[str, dict[str, str]] | None = None
    base_model: str | None = None


def checkpoint_files(checkpoint: Checkpoint) -> dict[str, str]:
    """Checksums of a checkpoint's files; of the adapter's config, of what counts of it."""
    weights = [checkpoint.adapter_file] + ([checkpoint.moments_file] if checkpoint.moments_file else [])
    return {
        **{path.name: content_sha256(path) for path in weights},
        ADAPTER_CONFIG: fingerprint(checkpoint.adapter),
        CHECKPOINT_JSON: fingerprint(read_json(checkpoint.path / CHECKPOINT_JSON)),
    }


def finished_warmup(run: RunFolder) -> list[Checkpoint]:
    """The checkpoints of a warmup that is done; an empty list of one that isn't.

    Raises RunFolderError where a checkpoint was taken away, added or changed since.
    """
    if not (run.warmup / MANIFEST).is_file():
        return []
    manifest = read_manifest(run)
    _require_names(run, manifest.checkpoints)
    found = list_checkpoints(run.warmup)
    if manifest.files is not None:
        for checkpoint in found:
            _require_files(run, checkpoint, manifest.files.get(checkpoint.name, {}))
        return found
    for checkpoint in found:
        _require_settings(run, checkpoint, manifest.settings)
    return [dataclasses.replace(checkpoint, is_dated=True) for checkpoint in found]


def keep_base(run: RunFolder, trainer: Path, model: ModelConfig) -> None:
    """Note in the Trainer's folder which base is trained, so that no other one goes on from its checkpoints."""
    path = trainer / BASE_FILE
    if not path.is_file():
        write_json(path, {"base_model": model_fingerprint(model)})
    try:
        noted = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged: delete {run.warmup} to train again") from error
    _require_base(run, model, noted.get("base_model"))


def require_same_base(run: RunFolder, model: ModelConfig) -> None:
    """Raise RunFolderError where the base isn't the one that the finished warmup was trained on."""
    if (run.warmup / MANIFEST).is_file():
        _require_base(run, model, read_manifest(run).base_model)


def _require_base(run: RunFolder, model: ModelConfig, trained_on: str | None) -> None:
    if trained_on is not None and trained_on != model_fingerprint(model):
        raise RunFolderError(
            f"model.name_or_path: {model.name_or_path} is not what the warmup in {run.warmup} was trained on (its "
            "weights or its config were changed): put the model back, or use another run_dir"
        )


def read_manifest(run: RunFolder) -> WarmupManifest:
    """The manifest of a finished warmup."""
    path = run.warmup / MANIFEST
    try:
        return WarmupManifest.model_validate(read_json(path))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunFolderError(f"{path} is damaged ({reason}): {_remedy(run)}") from error


def _remedy(run: RunFolder) -> str:
    return f"put it back, or delete {run.warmup} and {run.path / 'features'} to train again"


def _require_names(run: RunFolder, names: Sequence[str]) -> None:
    there = {path.name for path in run.warmup.glob("checkpoint-*")}
    for name in names:
        if name not in there or not (run.warmup / name / CHECKPOINT_JSON).is_file():
            raise RunFolderError(f"{run.warmup / name} was taken away after the warmup: {_remedy(run)}")
    for name in sorted(there - set(names)):
        raise RunFolderError(
            f"{run.warmup / name} is no checkpoint of this warmup: move it elsewhere (checkpoints of your own go into "
            "warmup.checkpoints, in another run_dir)"
        )


def _require_files(run: RunFolder, checkpoint: Checkpoint, wanted: Mapping[str, str]) -> None:
    found = checkpoint_files(checkpoint)
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise RunFolderError(f"{checkpoint.path / name} was changed after the warmup: {_remedy(run)}")


def _require_settings(run: RunFolder, checkpoint: Checkpoint, settings: WarmupSettings) -> None:
    """Of a warmup from before checksums: what its settings say of the adapter's config and of Adam."""
    for path, key, said, found in _known(checkpoint, settings):
        if said != found:
            where = f"{path} says {key} {found!r}, the warmup had {said!r}"
            raise RunFolderError(f"{where}: it was changed after the warmup: {_remedy(run)}")


def _known(checkpoint: Checkpoint, settings: WarmupSettings) -> Iterator[tuple[Path, str, Any, Any]]:
    path, lora = checkpoint.path / ADAPTER_CONFIG, settings.lora
    plain = dict.fromkeys(("rank_pattern", "alpha_pattern", "use_rslora", "layers_to_transform", "layer_replication"))
    for key, said in {"r": lora.r, "lora_alpha": lora.alpha, **plain}.items():
        yield path, key, said, checkpoint.adapter.get(key)
    path = checkpoint.path / CHECKPOINT_JSON
    facts = read_json(path)
    for key, setting in {"step": int(checkpoint.name.rpartition("-")[2]), **TRAINERS_ADAM}.items():
        yield path, key, setting, facts[key]
