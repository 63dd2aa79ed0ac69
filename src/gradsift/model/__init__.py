"""Models: base, tokenizer, LoRA adapter and its checkpoints with Adam's moments; an example's loss."""

from __future__ import annotations

from gradsift.model.adapter_files import ADAPTER_CONFIG
from gradsift.model.adapters import LoraConfig, add_lora, add_saved_lora, lora_at, quiet_peft
from gradsift.model.checkpoints import (
    CHECKPOINT_JSON,
    Checkpoint,
    adapter_shapes,
    content_sha256,
    import_checkpoint,
    list_checkpoints,
    load_adapter,
    load_checkpoint,
    read_moments,
)
from gradsift.model.description import describe_model, load_encoder, num_embeddings
from gradsift.model.finetuned import load_finetuned
from gradsift.model.identity import model_fingerprint
from gradsift.model.loading import ModelConfig, empty_model, hidden_size, load_base_model, load_tokenizer
from gradsift.model.losses import example_losses, hidden_states
from gradsift.model.moments import AdamSettings, Moments
from gradsift.model.positions import alike_parts, position_sides
from gradsift.model.tail import Shortcuts, find_shortcuts, only_positions

__all__ = [
    "ADAPTER_CONFIG",
    "CHECKPOINT_JSON",
    "AdamSettings",
    "Checkpoint",
    "LoraConfig",
    "ModelConfig",
    "Moments",
    "Shortcuts",
    "adapter_shapes",
    "add_lora",
    "add_saved_lora",
    "alike_parts",
    "content_sha256",
    "describe_model",
    "empty_model",
    "example_losses",
    "find_shortcuts",
    "hidden_size",
    "hidden_states",
    "import_checkpoint",
    "list_checkpoints",
    "load_adapter",
    "load_base_model",
    "load_checkpoint",
    "load_encoder",
    "load_finetuned",
    "load_tokenizer",
    "lora_at",
    "model_fingerprint",
    "num_embeddings",
    "only_positions",
    "position_sides",
    "quiet_peft",
    "read_moments",
]
