"""The model that a training left behind, adapter or whole, ready to answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradsift.model.loading import ModelConfig, load_base_model
from gradsift.model.merging import with_saved_adapter

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_finetuned(config: ModelConfig, folder: Path | None, device: torch.device) -> nn.Module:
    """The model with the adapter in `folder`, or the whole model in it, or, with None, the base: ready to answer."""
    if folder is None:
        model = load_base_model(config, device)
    elif (folder / "adapter_config.json").is_file():
        model = with_saved_adapter(load_base_model(config, device), folder).to(device)
    else:
        saved = config.model_copy(update={"name_or_path": str(folder), "gguf_file": None})
        model = load_base_model(saved, device)
    return model.eval().requires_grad_(False)
