"""What identifies a base model: a fingerprint of its config and its weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gradsift.errors import ConfigError
from gradsift.machine import file_sha256, fingerprint
from gradsift.model.gguf_files import header_sha256
from gradsift.model.loading import ModelConfig, base_config, gguf_path, model_errors
from gradsift.model.merging import find_adapter

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK_BYTES = 1 << 16


def model_fingerprint(config: ModelConfig) -> str:
    """Identifies the base: its config and a sample of every weight file (64 blocks of 64 KiB, and its size).

    A sample, because a 7B model has 13 GB; training changes all weights, so no block stays as it was. What it can
    miss: a change of single tensors in files above 4 MiB (an embedding put in place, one layer edited). A hub model is
    identified by the files in the local cache; a base with an adapter merged into it by both; a GGUF file by its first
    32 MiB, with config and vocabulary, and the same sample.
    """
    adapter = find_adapter(config.name_or_path, config.revision)
    if adapter is not None:
        return fingerprint([model_fingerprint(base_config(config)), adapter.meaning, file_sha256(adapter.weights)])
    if config.gguf_file is not None:
        path = gguf_path(config)
        return fingerprint(["gguf", header_sha256(path), _sampled_sha256(path)])
    folder = _local_folder(config)
    weights = sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern))
    if not weights:
        raise ConfigError(f"model.name_or_path: there are no weights in {config.name_or_path}")
    described = _described(folder / "config.json")
    described.pop("transformers_version", None)
    return fingerprint([described, config.quantization, *(_sampled_sha256(path) for path in weights)])


def _described(path: Path) -> dict[str, Any]:
    try:
        described: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"model.name_or_path: {path} can't be read as a model's config: {error}") from error
    return described


def _local_folder(config: ModelConfig) -> Path:
    folder = Path(config.name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with model_errors(config):
        return Path(
            snapshot_download(
                config.name_or_path,
                revision=config.revision,
                allow_patterns=["*.json", *WEIGHT_PATTERNS],
            )
        )


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    step = max(size // SAMPLED_BLOCKS, SAMPLED_BLOCK_BYTES)
    with path.open("rb") as file:
        for start in range(0, size, step):
            file.seek(start)
            digest.update(file.read(SAMPLED_BLOCK_BYTES))
    return digest.hexdigest()
