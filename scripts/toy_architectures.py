"""Toys of every family of causal language models, from the sizes that its config knows: what the sweep is made on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

POSITIONS = 48
VOCABULARY = 320
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "use_cache": False,
    "sliding_window": 16,
    "tie_word_embeddings": False,
    "image_size": 32,
    "patch_size": 16,
    "depth": 1,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "state_size": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "rotary_dim": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "d_model": 32,
    "attention_types": [[["global", "local"], 1]],
    "attention_chunk_size": 8,
    "index_topk": 8,
    "keep_window_size": 8,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "max_target_positions": POSITIONS,
}
"""Sizes of a toy; each family takes those that its config knows."""
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
OWN: dict[str, dict[str, Any]] = {
    "blt": {"encoder_hash_byte_group_vocab": 500},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "dots3_note": {"per_layer_config": {}},
    "dots3_note_text": {"per_layer_config": {}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "prophetnet": {"num_hidden_layers": None},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [6, 8]},
    "xlnet": {"max_position_embeddings": None, "d_head": 8},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba2": {"layer_types": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs besides."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"head_dim": None},
    {"num_hidden_layers": 4, "num_key_value_heads": 4},
    {"num_hidden_layers": 8},
    {**MAMBA},
    {**MAMBA, "num_hidden_layers": 4, "num_key_value_heads": 4},
    {"num_heads": 8, "head_dim": 8, "n_groups": 1, "expand": 2, "num_key_value_heads": 4},
    {"hidden_size": 64, "head_dim": 16, "num_key_value_heads": 4},
    {"hidden_size": 128, "head_dim": 32, "num_key_value_heads": 4, "intermediate_size": 128},
)
"""What is tried in turn where a family can't be built, or run, in the sizes above."""
SCALED_ROPES: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {"rope_type": "longrope", "factor": 4.0},
}
ORIGINAL_POSITIONS = 12


def toy_config(family: str, variant: Mapping[str, Any]) -> Any:
    """The family's config in small; parts that stand in configs of their own (text, vision, audio) too."""
    keywords = small(AutoConfig.for_model(family), {**SMALL, **variant}) | OWN.get(family, {})
    keywords.pop("model_type", None)
    return AutoConfig.for_model(family, **{name: value for name, value in keywords.items() if value is not None})


def small(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a config as keywords, in small."""
    kept = {"model_type": config.model_type} if config.model_type else {}
    parts = {name: small(getattr(config, name), sizes) for name in config.sub_configs if getattr(config, name, None)}
    return {**kept, **known(config, sizes), **parts}


def known(config: Any, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that the config has a place for."""
    return {name: value for name, value in sizes.items() if value is not None and knows(config, name)}


def knows(config: Any, name: str) -> bool:
    """Whether the config has a place for it; one that it keeps by layer is left as it is."""
    own = getattr(type(config), name, None)
    if isinstance(own, property) and own.fset is None:
        return False
    try:
        return hasattr(config, name)
    except Exception:
        return False


def save_toy(family: str, folder: Path, rope: str | None = None) -> None:
    """A random toy of the family in `folder`, in the first sizes in which it runs; raises the last try's error."""
    failed: Exception | None = None
    for variant in VARIANTS:
        try:
            config = toy_config(family, variant)
            if rope is not None:
                config = scaled(config, rope)
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            if sum(parameter.numel() for parameter in model.parameters()) > 50_000_000:
                raise ValueError("no small model of it could be made")
            model(input_ids=torch.arange(3, 11)[None], use_cache=False)
        except Exception as error:
            failed = failed or error
            continue
        model.save_pretrained(folder)
        return
    assert failed is not None
    raise failed


def scaled(config: Any, rope: str) -> Any:
    """The config with a rotary embedding that looks at the longest row; raises ValueError where it has no rope."""
    text = config.get_text_config()
    before = getattr(text, "rope_parameters", None)
    if not isinstance(before, Mapping):
        raise ValueError("no rotary embedding")
    if rope == "dynamic":
        text.max_position_embeddings = ORIGINAL_POSITIONS
    text.original_max_position_embeddings = ORIGINAL_POSITIONS
    by_layer = {kind: scaled_settings(text, one, rope) for kind, one in before.items() if isinstance(one, Mapping)}
    text.rope_parameters = by_layer or scaled_settings(text, before, rope)
    return config


def scaled_settings(text: Any, before: Mapping[str, Any], rope: str) -> dict[str, Any]:
    """The settings of one rotary embedding."""
    settings = {**before, **SCALED_ROPES[rope]}
    if rope != "longrope":
        return settings
    width = getattr(text, "qk_rope_head_dim", None) or getattr(text, "head_dim", None)
    width = width or text.hidden_size // text.num_attention_heads
    factors = int(width * before.get("partial_rotary_factor", 1.0)) // 2
    settings |= {
        "short_factor": [1.0] * factors,
        "long_factor": np.random.default_rng(0).uniform(1, 4, factors).round(2).tolist(),
        "original_max_position_embeddings": ORIGINAL_POSITIONS,
    }
    return settings | ({"short_mscale": 1.0, "long_mscale": 1.3} if text.model_type == "phimoe" else {})
