"""A base model in a GGUF file, the format of llama.cpp: where the file is, and what transformers needs to read it."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gradsift.errors import ConfigError

MAGIC = b"GGUF"
HEADER_BYTES = 1 << 25
"""The first 32 MiB: architecture, vocabulary and template stand there, 10 MB with a vocabulary of 260,000."""


def gguf_file(name: str, file: str, revision: str | None) -> Path:
    """The file in that folder, or of that repository on the hub.

    Raises ConfigError where it isn't there or is no GGUF, and whatever the hub's client raises.
    """
    folder = Path(name).expanduser()
    path = folder / file if folder.is_dir() else _from_hub(name, file, revision)
    if not path.is_file():
        others = ", ".join(sorted(other.name for other in folder.glob("*.gguf"))[:5])
        raise ConfigError(f"model.gguf_file: there is no file {file} in {name}; GGUF files there: {others or 'none'}")
    with path.open("rb") as opened:
        if opened.read(len(MAGIC)) != MAGIC:
            raise ConfigError(f"model.gguf_file: {path} is no GGUF file, or a damaged one: get it again")
    return path


def _from_hub(name: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    if Path(file).is_file():  # transformers takes a file of that name from the current folder, if there is one
        raise ConfigError(
            f"model.gguf_file: {file} is a file here too, which would be read in place of that of {name}: name its "
            "folder in model.name_or_path, or call gradsift from another folder"
        )
    return Path(hf_hub_download(name, file, revision=revision))


def require_reader() -> None:
    """Raise ConfigError where the package that reads GGUF isn't installed."""
    if find_spec("gguf") is None:
        raise ConfigError("model.gguf_file needs the package gguf: pip install 'gradsift[gguf]'")


def dequantised() -> dict[str, Any]:
    """What `from_pretrained` is told so that the weights are unpacked; versions before GgufConfig always do it."""
    import transformers

    gguf_config = getattr(transformers, "GgufConfig", None)
    return {} if gguf_config is None else {"quantization_config": gguf_config(dequantize=True)}


def header_sha256(path: Path) -> str:
    """SHA-256 of the beginning of the file, which holds the whole header."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(HEADER_BYTES)).hexdigest()
