"""A model that is named by a folder of an adapter: found out, and merged into its base."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.errors import CheckpointError, ConfigError
from gradsift.model.adapter_files import ADAPTER_CONFIG, adapter_file, adapter_meaning, tensor_shapes
from gradsift.model.facts import AdapterFacts, checked, damaged, read_object

if TYPE_CHECKING:
    from torch import nn


WHOLE_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class NamedAdapter:
    """An adapter that `model.name_or_path` names in a model's place."""

    folder: Path
    config: Mapping[str, Any]
    base: str
    """The base's folder or hub name, as the adapter's config gives it."""
    revision: str | None

    @property
    def weights(self) -> Path:
        """The adapter's weights."""
        return adapter_file(self.folder)

    @property
    def meaning(self) -> dict[str, Any]:
        """What of its config counts."""
        return adapter_meaning(self.config)

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was saved with it."""
        return (self.folder / "tokenizer_config.json").is_file()

    @property
    def no_base(self) -> str:
        """What is said where its base isn't there."""
        return (
            f"its base {self.base} isn't there; put it there, correct base_model_name_or_path in {ADAPTER_CONFIG}, "
            "or name a whole model"
        )


def find_adapter(name: str, revision: str | None) -> NamedAdapter | None:
    """The adapter of that folder or hub name; None where it is none. Raises ConfigError where it can't be used."""
    folder = _adapter_folder(name, revision)
    if folder is None:
        return None
    place = f"model.name_or_path: {name} is an adapter"
    if any((folder / file).is_file() for file in WHOLE_MODEL_FILES):
        raise ConfigError(f"{place} and a whole model in one folder: move one of them to a folder of its own")
    try:
        values = read_object(folder / ADAPTER_CONFIG)
        facts = checked(folder / ADAPTER_CONFIG, values, AdapterFacts)
        adapter_file(folder)
    except CheckpointError as error:
        raise ConfigError(f"{place}: {error}") from error
    if not facts.base_model_name_or_path:
        raise ConfigError(f"{place} whose {ADAPTER_CONFIG} names no base (base_model_name_or_path)")
    if _adapter_folder(facts.base_model_name_or_path, facts.revision) is not None:
        raise ConfigError(f"{place} of another adapter, {facts.base_model_name_or_path}: merge that one first")
    return NamedAdapter(folder, values, facts.base_model_name_or_path, facts.revision)


def _adapter_folder(name: str, revision: str | None) -> Path | None:
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # ~nobody/x
        raise ConfigError(f"model.name_or_path: {name} is no path: {error}") from error
    if folder.is_dir():
        return folder if (folder / ADAPTER_CONFIG).is_file() else None
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        return None
    return _cached_adapter(name, revision)


@functools.cache
def _cached_adapter(name: str, revision: str | None) -> Path | None:
    """The folder of an adapter on the hub, where transformers' own look-up, which follows, would find one."""
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        if find_adapter_config_file(name, revision=revision) is None:
            return None
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "adapter_model.*"]))
    except (OSError, ValueError):
        return None  # said when the model itself is loaded


def with_saved_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """The base with the adapter in the folder, of any kind, as PEFT loads it.

    Raises CheckpointError where a file isn't whole; PEFT would make tensors that are missing up.
    """
    import peft
    import torch

    read_object(folder / ADAPTER_CONFIG)
    path = adapter_file(folder)
    saved = set(tensor_shapes(path))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # a fresh adapter's numbers follow the seed
            warnings.simplefilter("ignore")  # of names that transformers has changed, tied weights, missing keys
            model: nn.Module = peft.PeftModel.from_pretrained(base, str(folder))
            wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, OSError, re.error) as error:
        raise damaged(folder, f"PEFT can't load it: {error}") from error
    if wanted.keys() - saved:
        raise damaged(path, f"it lacks {min(wanted.keys() - saved)}")
    return model


def merge_adapter(base: nn.Module, adapter: NamedAdapter, quantization: str | None) -> nn.Module:
    """The base with the adapter merged into its weights, in its dtype, as PEFT's merge_and_unload does it."""
    place = f"model.name_or_path: {adapter.folder} is an adapter"
    if quantization is not None:
        raise ConfigError(f"{place}, which can't be merged into a base quantised to {quantization}: merge and save it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's own, of tied weights
            model: nn.Module = with_saved_adapter(base, adapter.folder).merge_and_unload()  # type: ignore[operator]
    except (CheckpointError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{place}, which can't be merged into {adapter.base}: {reason}") from error
    model.name_or_path = str(adapter.folder.resolve())  # type: ignore[assignment]
    return model
