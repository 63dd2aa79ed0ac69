"""What a run was begun with, as far as it may change in place: tokenizer, template, base weights, examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from gradsift.data import Example
from gradsift.encoding import Corpus, EncodingConfig
from gradsift.errors import RunFolderError
from gradsift.machine import file_sha256, fingerprint
from gradsift.model import ModelConfig, model_fingerprint

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
"""A folder without any of them has its tokenizer from elsewhere."""
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}


def encoding_files(model: ModelConfig, encoding: EncodingConfig) -> dict[str, str] | None:
    """SHA-256 of the files that may decide a row's tokens, by name; None where they aren't all in one folder.

    Where none has changed, nothing has, and the tokenizer need not be loaded to know it.
    """
    folder = Path(model.name_or_path).expanduser()
    in_gguf = _has_gguf(model)
    if not in_gguf and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    beside = [path for path in sorted(folder.glob("*")) if path.suffix not in WEIGHTS]
    beside += [*sorted(folder.glob("*/*.jinja")), Path(encoding.template).expanduser()]
    files = {path.name: file_sha256(path) for path in beside if path.is_file()}
    return {**files, str(model.gguf_file): model_fingerprint(model)} if in_gguf else files


def base_weights(model: ModelConfig) -> str | None:
    """Fingerprint of a base in a folder; None of one that is elsewhere, or has no weights there: texts need none."""
    if _has_gguf(model):
        return model_fingerprint(model)
    folder = Path(model.name_or_path).expanduser()
    has_weights = any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
    return model_fingerprint(model) if has_weights and (folder / "config.json").is_file() else None


def _has_gguf(model: ModelConfig) -> bool:
    return model.gguf_file is not None and (Path(model.name_or_path).expanduser() / model.gguf_file).is_file()


def require_same_base(corpus: Corpus, now: str | None) -> None:
    """Raise RunFolderError where the base isn't the one that a run folder was begun with."""
    before = corpus.manifest.get("base_model")  # folders made before it was kept have none
    if None not in (before, now) and before != now:
        raise RunFolderError(
            f"the base model's weights or config have changed since {corpus.folder} was made: put them back as they "
            "were, or use another run_dir"
        )


def require_same_encoding(
    corpus: Corpus, files: Mapping[str, str] | None, meaning: Callable[[], Mapping[str, Any]]
) -> None:
    """Raise RunFolderError where a corpus was made with another tokenizer or template than there is now."""
    if files is not None and files == corpus.manifest.get("encoding_files"):
        return
    now = meaning()
    for key, before in corpus.manifest["encoding"].items():
        if now.get(key, before) != before:
            place = "its file, or the model's" if key == "template" else f"the model's {key}"
            raise RunFolderError(
                f"the {key} has changed since {corpus.folder} was made with it ({before!r}, now {now[key]!r}): put "
                f"{place} back as it was, or use another run_dir"
            )


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """Fingerprint of what a target's examples say."""
    return fingerprint([_said(example) for example in examples])


def _said(example: Example) -> dict[str, Any]:
    """The fields that aren't as they are by default: a field that comes later changes no earlier fingerprint."""
    values = {field.name: getattr(example, field.name) for field in fields(example)}
    defaults = {field.name: field.default for field in fields(example) if field.default is not MISSING}
    return {name: value for name, value in values.items() if name not in defaults or value != defaults[name]}


def require_same_examples(corpus: Corpus, target: str, examples: Sequence[Example]) -> None:
    """Raise RunFolderError where a target's examples aren't those that it was encoded from."""
    before = corpus.manifest.get("examples")  # folders made before it was kept have none
    if before is not None and before != examples_fingerprint(examples):
        raise RunFolderError(
            f"the examples of target {target} have changed since {corpus.folder} was made from them: put the file "
            f"back as it was, or delete {corpus.folder} and what was made from it, or give the new target another name"
        )
