"""Which families of causal language models gradsift works with: a toy of each, through its loading, probe and engine.

For every family that the installed transformers knows: a random model of some layers, saved and loaded as a user's is,
an adapter, the probe, and the features (`identity`, `sgd`, float32) of a padded batch against plain autograd of each
row alone. Prints a table in Markdown:

    python scripts/sweep_architectures.py [FAMILY ...] [--seconds 120] [--out table.md]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import peft  # noqa: F401  every family's process is a fork of this one
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_architectures import POSITIONS, SCALED_ROPES, VOCABULARY, save_toy
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

from gradsift.encoding import EncodedRow, pad_rows
from gradsift.errors import ConfigError, UserError
from gradsift.features import FeatureMaker
from gradsift.gradients import PerExampleGradients, ProjectionConfig, UncoveredLayers, build_projector, probe
from gradsift.model import LoraConfig, ModelConfig, add_lora, describe_model, load_base_model
from gradsift.model.positions import looks_at_the_batch

LENGTHS = (23, 4, 9, 17, 30)


@dataclass(frozen=True)
class Outcome:
    """What came of one family."""

    family: str
    verdict: str
    """`works`, `refused`, `not built`, or `wrong`."""
    detail: str = ""
    attention: str = ""
    positions: str = ""
    error: float | None = None
    scaled: str = ""

    def row(self) -> str:
        """A line of the table."""
        error = "" if self.error is None else f"{self.error:.0e}"
        cells = (self.family, self.verdict, self.attention, self.positions, error, self.scaled, self.detail)
        return "| " + " | ".join(cells) + " |"


def toy_rows() -> list[EncodedRow]:
    """Random rows of different lengths, the second half of each supervised."""
    generator = np.random.default_rng(0)
    rows = []
    for length in LENGTHS:
        ids = generator.integers(3, VOCABULARY, length).astype(np.int32)
        labels = np.where(np.arange(length) < length // 2, -100, ids).astype(np.int32)
        rows.append(EncodedRow(str(length), "toy", 0, None, ids, labels))
    return rows


def toy_adapter(folder: Path, targets: str | list[str]) -> nn.Module:
    """The toy with LoRA on these modules, every matrix random."""
    model = add_lora(toy(folder), LoraConfig(r=2, alpha=4, dropout=0.0, target_modules=targets))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def toy(folder: Path) -> nn.Module:
    """The toy as a user's model is loaded."""
    return load_base_model(ModelConfig(name_or_path=str(folder), dtype="float32"), torch.device("cpu")).eval()


def usual_targets(base: nn.Module) -> Iterator[str | list[str]]:
    """What a user would set in turn: `auto`, the Llama's names, those into and out of a recurrence, all."""
    names = {path.rpartition(".")[2] for path, module in base.named_modules() if isinstance(module, nn.Linear)}
    yield "auto"
    yield sorted(names & {"q_proj", "k_proj", "v_proj", "o_proj"})
    yield sorted(names & {"in_proj", "x_proj", "query", "key", "value", "q", "k", "v"})
    yield "all-linear"


def usable_targets(folder: Path) -> tuple[str | list[str], str]:
    """The first of the usual targets that works, or what the probe says would do; and what was refused before it."""
    refusals: list[str] = []
    for targets in filter(None, usual_targets(toy(folder))):
        try:
            probe(toy_adapter(folder, targets), toy_rows())
        except UncoveredLayers as refusal:
            refusals.append(one_line(refusal))
            if refusal.target_modules:
                probe(toy_adapter(folder, refusal.target_modules), toy_rows())
                return refusal.target_modules, refusals[0]
        except UserError as refusal:
            refusals.append(one_line(refusal))
        else:
            return targets, refusals[0] if refusals else ""
    raise ConfigError(refusals[0])


def autograd_features(model: nn.Module, rows: Sequence[EncodedRow]) -> Tensor:
    """Each row's gradient by plain autograd of the row alone: float32 [B, P]."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    features = []
    for row in rows:
        ids_1T, labels_T = torch.tensor(row.input_ids)[None].long(), torch.tensor(row.labels).long()
        logits_TV = model.eval()(input_ids=ids_1T, use_cache=False).logits[0].float()
        loss = functional.cross_entropy(logits_TV[:-1], labels_T[1:], ignore_index=-100)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        features.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in pairs]))
    return torch.stack(features)


def largest_error(folder: Path, targets: str | list[str]) -> float:
    """The largest relative error of a row's features against autograd; raises UserError where gradsift refuses."""
    rows, model = toy_rows(), toy_adapter(folder, targets)
    probe(model, rows)
    fresh = toy_adapter(folder, targets)  # nothing that a rotary embedding remembers
    expected_BP = autograd_features(fresh, rows)
    gradients = PerExampleGradients(model)
    maker = FeatureMaker(gradients, "sgd", {}, build_projector(ProjectionConfig(kind="identity"), gradients.shapes))
    error_B = (maker(pad_rows(rows)) - expected_BP).norm(dim=1) / expected_BP.norm(dim=1)
    return float(error_B.max())


def positions_of(folder: Path, table: int | None) -> str:
    """The model's table of positions, checked: a row that long runs, and where it has none, a longer one too."""
    model = toy(folder)
    length = POSITIONS + 8 if table is None else table
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(length)[None] % 200 + 5, use_cache=False)
    except (IndexError, RuntimeError, ValueError) as error:
        return f"{table}, but a row of {length} fails: {one_line(error)}"
    return "any" if table is None else "table"


def examine(family: str) -> Outcome:
    """What comes of the family; raises nothing that says something about it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "toy"
        try:
            save_toy(family, folder)
        except Exception as error:
            return Outcome(family, "not built", one_line(error))
        try:
            described = describe_model(ModelConfig(name_or_path=str(folder)))
            positions = positions_of(folder, described.num_positions)
            targets, refused = usable_targets(folder)
            error = largest_error(folder, targets)
        except UserError as refusal:
            return Outcome(family, "refused", one_line(refusal))
        verdict = "works" if error < 1e-3 else "wrong"
        scaled_ropes = [with_scaled_rope(family, Path(name), rope, targets) for rope in SCALED_ROPES]
    names = targets if isinstance(targets, str) else ", ".join(targets)
    detail = f"`{names.replace('|', '/')}`; `auto`: {refused}" if refused else ""
    ropes = "; ".join(filter(None, scaled_ropes))
    return Outcome(family, verdict, detail, described.attention, positions, error, ropes)


def with_scaled_rope(family: str, place: Path, rope: str, targets: str | list[str]) -> str:
    """The error with that rotary embedding, or nothing where the family has none that can be scaled so."""
    folder = place / rope
    try:
        save_toy(family, folder, rope)
    except Exception:
        return ""
    try:
        assert looks_at_the_batch(AutoConfig.from_pretrained(folder)), f"{family}: {rope} was not noticed"
        return f"{rope} {largest_error(folder, targets):.0e}"
    except Exception as error:
        return f"{rope}: {one_line(error)[:80]}"


def one_line(error: BaseException) -> str:
    """The error's text in a cell of a table."""
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    text = re.sub(rf"{tempfile.gettempdir()}/\S+", "the toy", " ".join(str(error).split()))
    return (name + text).replace("|", "/").replace("<", "‹")[:160]


def examined_apart(family: str, seconds: float) -> Outcome:
    """The same in a process of its own, which is ended after that many seconds."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_outcome, args=(family, sender))
    process.start()
    sender.close()
    try:
        outcome = receiver.recv() if receiver.poll(seconds) else Outcome(family, "not built", f"over {seconds:.0f} s")
    except EOFError:
        outcome = Outcome(family, "not built", "its process died")
    process.kill()
    process.join()
    return outcome


def _send_outcome(family: str, sender: Connection) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            outcome = examine(family)
        except Exception as error:
            outcome = Outcome(family, "crashed", one_line(error))
    sender.send(outcome)


def families() -> Iterator[str]:
    """Every family that has a causal language model, once a class of model."""
    seen = set()
    configs = {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}
    for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if family in configs and configs[family] not in seen:
            seen.add(configs[family])
            yield family


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown, with what they were made with."""
    counts = {
        verdict: sum(outcome.verdict == verdict for outcome in outcomes)
        for verdict in dict.fromkeys(outcome.verdict for outcome in outcomes)
    }
    made_with = ", ".join(f"{name} {version(name)}" for name in ("transformers", "peft", "torch"))
    head = "| family | | attention | positions | error | with a scaled rope | target modules, reasons |"
    lines = [f"{made_with}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()), ""]
    return "\n".join([*lines, head, "| --- " * 7 + "|", *(outcome.row() for outcome in outcomes)]) + "\n"


def main() -> None:
    """Examine the families that were named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--seconds", type=float, default=120, help="that one family may take")
    parser.add_argument("--out", type=Path, help="write the table there too")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes = []
    for family in arguments.families or families():
        outcomes.append(examined_apart(family, arguments.seconds))
        print(outcomes[-1].row(), file=sys.stderr, flush=True)
    print(table(outcomes))
    if arguments.out:
        arguments.out.write_text(table(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main()
