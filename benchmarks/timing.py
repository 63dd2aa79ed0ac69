"""What the benchmarks share: times taken side by side, the models and batches timed, and the table of goals."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradsift.encoding import IGNORED, Batch
from gradsift.model import LoraConfig, ModelConfig, add_lora, load_base_model

SHARED = Path(__file__).resolve().parents[2] / "shared"
VOCABULARY = 4096


@dataclass(frozen=True)
class Goal:
    """One line of the table: what was measured, the bound, and the figure."""

    what: str
    figure: float
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the figure keeps the bound."""
        low = self.at_least is None or self.figure >= self.at_least
        return low and (self.at_most is None or self.figure <= self.at_most)

    def line(self) -> str:
        """A row of a Markdown table."""
        bounds = [f"≤ {self.at_most:g}" if self.at_most is not None else ""]
        bounds += [f"≥ {self.at_least:g}" if self.at_least is not None else ""]
        has_goal = any(bounds)
        verdict = ("yes" if self.holds else "**no**") if has_goal else "–"
        return f"| {self.what} | {''.join(bounds) or '–'} | {self.figure:,.3g} | {verdict} | {self.note} |"


def print_header(wall: bool = False) -> None:
    """Say which machine and what is timed, and begin the table."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    clock = "wall clock" if wall or not single_threaded() else "CPU time of the process"
    load = os.getloadavg()[0]
    print(f"{machine()}; {torch.get_num_threads()} torch threads; {clock}; load {load:.1f} at the start\n")
    print("| what | goal | figure | holds | how |\n| --- | --- | --- | --- | --- |", flush=True)


def machine() -> str:
    """Device, cores and versions in a line."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(*goals: Goal) -> None:
    """Print rows of the table as they come."""
    for goal in goals:
        print(goal.line(), flush=True)


def single_threaded() -> bool:
    """Whether CPU time is a fair clock: one thread that nothing but its own work holds up."""
    return torch.get_num_threads() == 1 and not torch.cuda.is_available()


def now() -> float:
    """Seconds on the clock of `print_header`."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if single_threaded() else time.perf_counter()


def seconds(function: Callable[[], object]) -> float:
    """How long one call takes."""
    start = now()
    function()
    return now() - start


def side_by_side(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The least time of each, called in turns after one call that doesn't count."""
    best = dict.fromkeys(functions, float("inf"))
    for function in functions.values():
        function()
    for _ in range(rounds):
        for name, function in functions.items():
            best[name] = min(best[name], seconds(function))
    return best


def lora_model(dtype: str, rank: int, folder: Path | None = None) -> nn.Module:
    """A model with a random adapter: the one in `folder`, else a random Llama of 12 M parameters."""
    torch.manual_seed(0)
    if folder is not None and folder.is_dir():
        base = load_base_model(ModelConfig(name_or_path=str(folder), dtype=dtype), torch.device("cpu"))
    else:
        base = random_llama().to(getattr(torch, dtype))
    model = add_lora(base, LoraConfig(r=rank, dropout=0.0)).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.01)
    return model


def random_llama(**sizes: int) -> nn.Module:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    defaults = {
        "vocab_size": VOCABULARY,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "max_position_embeddings": 1024,
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**{**defaults, **sizes}, tie_word_embeddings=True))
    model.name_or_path = "random"  # PEFT warns of a model without a name
    return model


def random_batch(rows: int, tokens: int, supervised: int) -> Batch:
    """Random tokens, the last ones of each row supervised."""
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(4, VOCABULARY, (rows, tokens), generator=generator)
    labels_BT = input_ids_BT.clone()
    labels_BT[:, : tokens - supervised] = IGNORED
    return Batch(input_ids_BT, torch.ones_like(input_ids_BT), labels_BT)


def plain_step(model: nn.Module) -> Callable[[Batch], None]:
    """A plain LoRA training step, forward and backward: `model(**batch).loss.backward()`, no per-example anything.

    In bf16 the adapter is bf16 too, which is the faster plain step: PEFT would keep it in float32.
    """
    dtype = next(parameter.dtype for parameter in model.parameters())
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)

    def step(batch: Batch) -> None:
        model.zero_grad(set_to_none=True)
        arguments = {"input_ids": batch.input_ids_BT, "attention_mask": batch.attention_mask_BT}
        model(**arguments, labels=batch.labels_BT, use_cache=False).loss.backward()

    return step
