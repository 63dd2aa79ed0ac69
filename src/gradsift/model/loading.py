"""The base model and its tokenizer, by hub name or folder."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError

from gradsift.errors import ConfigError, UserError
from gradsift.machine import pick_dtype
from gradsift.model.gguf_files import dequantised, gguf_file, require_reader
from gradsift.model.merging import find_adapter, merge_adapter
from gradsift.model.positions import forget_lengths

if TYPE_CHECKING:
    import torch
    from torch import nn


logger = logging.getLogger(__name__)

UNLOADABLE = (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError)
"""What transformers raises of a model that can't be loaded."""


class ModelConfig(BaseModel):
    """The base model, by hub name or folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name_or_path: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on a CUDA card that has it, else float32."""
    quantization: Literal["nf4", "int8"] | None = None
    """Load the base through bitsandbytes (QLoRA); None: not quantised."""
    trust_remote_code: bool = False
    revision: str | None = None
    gguf_file: str | None = Field(None, min_length=1)
    """A GGUF file in that folder or repository, which is the model: weights (dequantised), config and tokenizer. Where
    an adapter is named, its base's."""

    @model_validator(mode="after")
    def _a_gguf_is_dequantised(self) -> ModelConfig:
        if self.gguf_file is not None and self.quantization is not None:
            raise ValueError("a GGUF's weights are unpacked: leave gguf_file or quantization out")
        return self


def _pretrained_source(config: ModelConfig) -> dict[str, Any]:
    """What every `from_pretrained` of transformers is told of where a model is: no adapter, but its base.

    Raises ConfigError where a GGUF file isn't there, is none, or can't be read without its package.
    """
    source = {
        "pretrained_model_name_or_path": _absolute(config.name_or_path),
        "trust_remote_code": config.trust_remote_code,
        "revision": config.revision,
    }
    if config.gguf_file is None:
        return source
    require_reader()
    path = gguf_path(config)
    # A name alone is looked up in the current folder before the model's.
    in_folder = Path(config.name_or_path).expanduser().is_dir()
    return {**source, "gguf_file": str(path.absolute()) if in_folder else config.gguf_file}


def _read(kind: Any, config: ModelConfig) -> Any:
    """The model's config or tokenizer, `kind` being transformers' class.

    The header of a GGUF takes seconds to read, and is read once, as long as the file stays as it is.
    """
    source = _pretrained_source(config)
    if config.gguf_file is None:
        return kind.from_pretrained(**source)
    state = gguf_path(config).stat()
    return copy.deepcopy(_read_once(kind, tuple(source.items()), (state.st_size, state.st_mtime_ns)))


@functools.lru_cache(maxsize=8)
def _read_once(kind: Any, source: tuple[tuple[str, Any], ...], _state: tuple[int, int]) -> Any:
    return kind.from_pretrained(**dict(source))


def gguf_path(config: ModelConfig) -> Path:
    """The GGUF file that the config names. Raises ConfigError where it isn't there, or is none."""
    assert config.gguf_file is not None
    with model_errors(config):
        return gguf_file(config.name_or_path, config.gguf_file, config.revision)


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's fast tokenizer; an adapter's own where it has one, else its base's."""
    from transformers import AutoTokenizer

    adapter = find_adapter(config.name_or_path, config.revision)
    own = config.model_copy(update={"gguf_file": None})
    source = config if adapter is None else own if adapter.has_tokenizer else base_config(config)
    with model_errors(source):
        try:
            tokenizer = _read(AutoTokenizer, source)
        except Exception as error:  # tokenizers knows no narrower one for a damaged file
            if source.gguf_file is not None or isinstance(error, OSError | ValueError | UserError):
                raise
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"model.name_or_path: the tokenizer of {config.name_or_path} can't be loaded: "
                f"{type(error).__name__}: {reason}; mend tokenizer.json, tokenizer_config.json or chat_template.jinja"
            ) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.name_or_path: {config.name_or_path} has no fast tokenizer, which is needed to tell which tokens "
            "are the assistant's; convert it with transformers first"
        )
    return tokenizer


def load_base_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The causal language model in its dtype, on the device, without adapter; one that it names is merged into it.

    transformers chooses the attention: the fastest that the model knows and that is exact in float32 (`sdpa`), else
    `eager`. Rotary embeddings that remember the longest row so far forget it before each pass.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    adapter = find_adapter(config.name_or_path, config.revision)
    if adapter is not None:
        base = base_config(config)
        logger.info("model: %s is an adapter of %s, which it is merged into", adapter.folder, base.name_or_path)
        return merge_adapter(load_base_model(base, device), adapter, config.quantization)
    arguments: dict[str, Any] = {"dtype": pick_dtype(config.dtype)}
    if config.quantization:
        arguments |= {"quantization_config": _quantization(config), "device_map": {"": device}}
    with model_errors(config):
        if config.gguf_file is not None:
            arguments |= {"config": _read(AutoConfig, config), **dequantised()}
        found: tuple[nn.Module, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
            **_pretrained_source(config), output_loading_info=True, **arguments
        )
    model, report = found
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise ConfigError(
            f"model.name_or_path: the files of {config.name_or_path} lack {len(names)} of the model's tensors "
            f"({names[0]}, …), which would be random: get them whole"
        )
    forget_lengths(model)
    return model if config.quantization else model.to(device)


def empty_model(config: ModelConfig) -> nn.Module:
    """The causal language model made from its config alone, without weights (on the device `meta`); of an adapter, its
    base."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    base = base_config(config)
    with model_errors(base):
        described = _read(AutoConfig, base)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(described, trust_remote_code=base.trust_remote_code)
    return model


def hidden_size(config: ModelConfig) -> int:
    """H, from the model's config alone."""
    from transformers import AutoConfig

    base = base_config(config)
    with model_errors(base):
        described = _read(AutoConfig, base)
    return int(described.get_text_config().hidden_size)


def base_config(config: ModelConfig) -> ModelConfig:
    """The base's config where the model named is an adapter, else the config as it is.

    Raises ConfigError naming both where the base isn't there.
    """
    adapter = find_adapter(config.name_or_path, config.revision)
    if adapter is None:
        return config
    base = config.model_copy(update={"name_or_path": adapter.base, "revision": adapter.revision})
    if _looks_like_path(adapter.base) and not Path(adapter.base).expanduser().is_dir():
        raise ConfigError(f"model.name_or_path: {adapter.folder} is an adapter: {adapter.no_base}")
    return base


def _absolute(name: str) -> str:
    """The whole path of a folder: adapters remember it, and are loaded from anywhere; a hub name stays as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _quantization(config: ModelConfig) -> Any:
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise ConfigError("model.quantization needs bitsandbytes: pip install bitsandbytes")
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=pick_dtype(config.dtype),
    )


@contextlib.contextmanager
def model_errors(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers says of a model that can't be loaded into one line."""
    name, file = config.name_or_path, config.gguf_file
    if _looks_like_path(name) and not Path(name).expanduser().is_dir():
        remedy = ": name its folder, and the file in model.gguf_file" if name.endswith(".gguf") else ""
        raise ConfigError(f"model.name_or_path: there is no folder {name}{remedy}")
    # Of a damaged GGUF it raises whatever it stumbles over.
    expected: tuple[type[Exception], ...] = UNLOADABLE if file is None else (Exception,)
    try:
        yield
    except UserError:
        raise
    except expected as error:
        if getattr(error, "errno", None) is not None:  # a full disk, not a wrong name
            raise
        reason = f"{' '.join(str(error).split())[:300]}{_unnamed_gguf(config)}"
        if file is None:
            raise ConfigError(f"model.name_or_path: {name} can't be loaded: {reason}") from error
        raise ConfigError(
            f"model.gguf_file: {file} in {name} can't be loaded: {type(error).__name__}: {reason}"
        ) from error


def _unnamed_gguf(config: ModelConfig) -> str:
    folder = Path(config.name_or_path).expanduser()
    found = sorted(path.name for path in folder.glob("*.gguf")) if folder.is_dir() else []
    return f"; its folder holds {found[0]}: name it in model.gguf_file" if found and config.gguf_file is None else ""


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1
