"""Toys of many families: random models of two layers, saved and loaded as a user's are, with an adapter on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradsift.encoding.encoder import EncodedRow
from gradsift.model.adapters import LoraConfig, add_lora
from gradsift.model.loading import ModelConfig, load_base_model

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "state_size": 8,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "index_topk": 8,
    "sliding_window": 16,
}
ORIGINAL = 12
"""Positions of the first training, in toys whose rotary embedding is stretched."""
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.1, 1.7, 2.6, 3.9],
}
SHORT = {"max_position_embeddings": ORIGINAL}
BY_LAYER = {"layer_types": ["sliding_attention", "full_attention"]}
LENGTH_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, **SHORT}),
    "dynamic in a part of the head": (
        "gpt_neox",
        {"rope_parameters": {**DYNAMIC, "partial_rotary_factor": 0.5}, **SHORT},
    ),
    "dynamic by layer": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": DYNAMIC, "full_attention": DYNAMIC}, **BY_LAYER, **SHORT},
    ),
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": ORIGINAL}),
    "longrope with another length in the config": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 20},
    ),
    "longrope of another scale": ("phimoe", {"rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.3}}),
    "longrope of a llama": ("llama", {"rope_parameters": LONGROPE}),
    "longrope by layer": (
        "gemma3_text",
        {"rope_parameters": {"sliding_attention": LONGROPE, "full_attention": DYNAMIC}, **BY_LAYER, **SHORT},
    ),
    "a window of keys": ("doge", {"keep_window_size": ORIGINAL}),
}
"""Toys whose positions, or keys, depend on the longest row of a batch."""


def save_toy(kind: str, folder: Path, settings: Mapping[str, Any] | None = None) -> Path:
    """A random model of that family in `folder`, in the sizes that its config knows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    default = AutoConfig.for_model(kind)
    fixed = {name for name in SIZES if getattr(getattr(type(default), name, None), "fset", name) is None}
    known = {name: value for name, value in SIZES.items() if hasattr(default, name) and name not in fixed}
    sizes = known | dict(settings or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(folder)
    return folder


def load_toy(folder: Path) -> nn.Module:
    """The model as gradsift loads it."""
    return load_base_model(ModelConfig(name_or_path=str(folder), dtype="float32"), torch.device("cpu")).eval()


def with_adapter(base: nn.Module, targets: str | list[str] = "auto") -> nn.Module:
    """The model with LoRA, every matrix random."""
    model = add_lora(base, LoraConfig(r=2, alpha=4, dropout=0.0, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def alone(folder: Path, row: EncodedRow, targets: str | list[str] = "auto") -> tuple[float, Tensor]:
    """The loss and the gradient [P] of one row by plain autograd, in a model as transformers and PEFT load it."""
    from transformers import AutoModelForCausalLM

    model = with_adapter(AutoModelForCausalLM.from_pretrained(folder), targets)
    ids_1T, labels_T = torch.tensor(row.input_ids)[None].long(), torch.tensor(row.labels).long()
    loss = functional.cross_entropy(model(input_ids=ids_1T).logits[0, :-1].float(), labels_T[1:])
    gradients = torch.autograd.grad(loss, [weight for weight in model.parameters() if weight.requires_grad])
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


def all_alone(
    folder: Path, rows: Sequence[EncodedRow], targets: str | list[str] = "auto"
) -> tuple[list[float], Tensor]:
    """The same of each row: losses, and gradients [B, P]."""
    found = [alone(folder, row, targets) for row in rows]
    return [loss for loss, _ in found], torch.stack([gradient for _, gradient in found])
