"""Checkpoint folders as the Hugging Face Trainer leaves them, made without training, for tests that change them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

PLAIN: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
STATE = {
    "global_step": 4,
    "epoch": 1.0,
    "log_history": [{"step": step, "epoch": step / 4, "learning_rate": 1e-3 / step} for step in range(1, 5)],
}


def save_checkpoint(base: Path, folder: Path, seed: int = 0, **lora: Any) -> Path:
    """A checkpoint of an adapter of those settings, its matrices random, after four steps of AdamW."""
    import peft
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.get_peft_model(loaded, peft.LoraConfig(**{**PLAIN, **lora}))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data.add_(torch.randn(parameter.shape) * 0.1)
        model.save_pretrained(folder)
        torch.save(stepped(torch.optim.AdamW, trained).state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    return folder


def stepped(kind: Callable[..., torch.optim.Optimizer], trained: list[nn.Parameter], **options: Any) -> Any:
    """An optimizer of that kind after four steps on copies of the parameters, with random gradients."""
    copies = [parameter.detach().clone() for parameter in trained]
    optimizer = kind(copies, lr=1e-3, **options)
    for _ in range(4):
        for copy in copies:
            copy.grad = torch.randn(copy.shape) * 0.01
        optimizer.step()
    return optimizer


def copied(checkpoint: Path, folder: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(checkpoint, folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    """Lay values over those of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_optimizer(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Save the optimizer's state as `change` leaves it."""
    path = checkpoint / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
