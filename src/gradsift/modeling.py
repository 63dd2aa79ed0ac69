"""Models: base, tokenizer, LoRA adapter, finetuned model, and what identifies each of them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gradsift.artifact import fingerprint
from gradsift.errors import CheckpointError, ConfigError
from gradsift.runtime import pick_dtype

if TYPE_CHECKING:
    import torch
    from torch import nn

WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
ATTENTION_PATTERN = re.compile(r"(^|\.)[^.]*att(n|ention)[^.]*(\.|$)")
SAMPLED_BLOCKS = 64
SAMPLED_BLOCK_BYTES = 1 << 16


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


class LoraConfig(BaseModel):
    """The adapter, in PEFT's terms; the defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(128, ge=1)
    alpha: int = Field(512, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    target_modules: list[str] | str = "auto"
    """Names of linears; `auto`: the projections of the attention, on a Llama the paper's q, k, v and o; or, as in PEFT,
    `all-linear` or a regular expression."""


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's fast tokenizer."""
    from transformers import AutoTokenizer

    with _model_errors(config):
        tokenizer = AutoTokenizer.from_pretrained(
            config.name_or_path, trust_remote_code=config.trust_remote_code, revision=config.revision
        )
    if not tokenizer.is_fast:
        raise ConfigError(
            f"model.name_or_path: {config.name_or_path} has no fast tokenizer, which is needed to tell which tokens "
            "are the assistant's; convert it with transformers first"
        )
    return tokenizer


def load_base_model(config: ModelConfig, device: torch.device) -> nn.Module:
    """The causal language model in its dtype, on the device, without adapter."""
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"dtype": pick_dtype(config.dtype), "attn_implementation": "sdpa"}
    if config.quantization:
        arguments |= {"quantization_config": _quantization(config), "device_map": {"": device}}
    with _model_errors(config):
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            _absolute(config.name_or_path),
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
            **arguments,
        )
    return model if config.quantization else model.to(device)


def hidden_size(config: ModelConfig) -> int:
    """H, from the model's config alone."""
    from transformers import AutoConfig

    with _model_errors(config):
        described = AutoConfig.from_pretrained(
            config.name_or_path, trust_remote_code=config.trust_remote_code, revision=config.revision
        )
    return int(described.get_text_config().hidden_size)


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
def _model_errors(config: ModelConfig) -> Iterator[None]:
    """Turn what transformers says of a model that can't be loaded into one line."""
    name = config.name_or_path
    if _looks_like_path(name) and not Path(name).expanduser().is_dir():
        raise ConfigError(f"model.name_or_path: there is no folder {name}")
    try:
        yield
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) is not None:  # a full disk, not a wrong name
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"model.name_or_path: {name} can't be loaded: {reason}") from error


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def add_lora(base: nn.Module, config: LoraConfig) -> nn.Module:
    """The base with a fresh adapter; its initial weights follow torch's global seed."""
    import peft

    targets = attention_projections(base) if config.target_modules == "auto" else config.target_modules
    return _wrapped(
        base,
        peft.LoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(targets) if isinstance(targets, list) else targets,
            task_type="CAUSAL_LM",
        ),
        ConfigError,
    )


def attention_projections(base: nn.Module) -> list[str]:
    """Names of the linears inside attention modules, as PEFT takes them: sorted, with their parent where needed.

    Raises ConfigError where there is none.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    linears = [name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    inside = [name for name in linears if ATTENTION_PATTERN.search(name.rpartition(".")[0])]
    if not inside:
        raise ConfigError(
            f"lora.target_modules: {type(base).__name__} has no attention whose linears `auto` could take: name them"
        )
    elsewhere = {name.rpartition(".")[2] for name in set(linears) - set(inside)}
    parts = (name.split(".") for name in inside)
    return sorted({".".join(part[-2:]) if part[-1] in elsewhere else part[-1] for part in parts})


def load_finetuned(config: ModelConfig, folder: Path | None, device: torch.device) -> nn.Module:
    """The model with the adapter in `folder`, or the whole model in it, or, with None, the base: ready to answer."""
    import peft

    if folder is None:
        model = load_base_model(config, device)
    elif (folder / "adapter_config.json").is_file():
        base = load_base_model(config, device)
        with _old_names_in_peft():
            model = peft.PeftModel.from_pretrained(base, folder).to(device)
    else:
        model = load_base_model(config.model_copy(update={"name_or_path": str(folder)}), device)
    return model.eval().requires_grad_(False)


def add_saved_lora(base: nn.Module, folder: Path) -> nn.Module:
    """The base with an adapter of the shape that the checkpoint's adapter_config.json describes, weights unset."""
    import peft

    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder}: adapter_config.json can't be read: {error}") from error
    config.inference_mode = False
    return _wrapped(base, config, CheckpointError, f"{folder}: ")


def _wrapped(
    base: nn.Module, config: Any, error_class: type[CheckpointError] | type[ConfigError], place: str = ""
) -> nn.Module:
    import peft

    config.base_model_name_or_path = getattr(base, "name_or_path", None)
    try:
        with _old_names_in_peft():
            model: nn.Module = peft.get_peft_model(base, config)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise error_class(f"{place}the adapter doesn't fit the model: {reason}") from error
    return model


@contextlib.contextmanager
def _old_names_in_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.2x for a name that it has since renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def model_fingerprint(config: ModelConfig) -> str:
    """Identifies the base: its config and a sample of every weight file (64 blocks of 64 KiB, and its size).

    A sample, because a 7B model has 13 GB; training changes all weights, so no block stays as it was. A hub model is
    identified by the files in the local cache.
    """
    folder = _local_folder(config)
    weights = sorted(path for pattern in WEIGHT_PATTERNS for path in folder.glob(pattern))
    if not weights:
        raise ConfigError(f"model.name_or_path: there are no weights in {config.name_or_path}")
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    described.pop("transformers_version", None)
    return fingerprint([described, config.quantization, *(_sampled_sha256(path) for path in weights)])


def _local_folder(config: ModelConfig) -> Path:
    folder = Path(config.name_or_path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    with _model_errors(config):
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
