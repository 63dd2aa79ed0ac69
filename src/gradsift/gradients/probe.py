"""The probe: two short rows through the engine and through plain autograd, before any work is done with a model.

It finds the layers whose gradients can't be had, all of them at once, and the models whose rows see their company.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from gradsift.encoding import IGNORED, Batch, EncodedRow, pad_rows
from gradsift.errors import ConfigError
from gradsift.gradients.layers import listed
from gradsift.gradients.per_example import PerExampleGradients
from gradsift.gradients.projection import ProjectionConfig, Projector, build_projector
from gradsift.model import alike_parts

PROBE_TOKENS = 24
"""Of the longer row, where the rows have as many."""
PROBE_DIM = 1024
"""Of the sketch in which both gradients are compared: two that differ in one place differ in it."""
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 0.5, torch.float16: 0.5}
"""Relative error at which a gradient is called another one. Rounding makes 1e-5, and in 16 bits some percent, but it
can send a token to another expert; what sees its company is wrong by about 1."""
WRAPPER = "base_model.model."
"""What PEFT puts before the names of the model's modules."""
MODEL_FAULTS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError)
"""What models raise that can't be run on rows of tokens alone."""


class UncoveredLayers(ConfigError):
    """An adapter of which some layers' gradients can't be had."""

    def __init__(self, reason: str, target_modules: list[str] | str) -> None:
        self.target_modules = target_modules
        """What would do: names, or a regular expression where names don't tell layers apart."""
        named = f"[{', '.join(target_modules)}]" if isinstance(target_modules, list) else f"'{target_modules}'"
        remedy = f"set lora.target_modules to {named}" if target_modules else "no layer of it can be covered"
        super().__init__(f"{reason}; {remedy}")


def probe(model: nn.Module, rows: Sequence[EncodedRow]) -> None:
    """Raise ConfigError where the adapter's gradients of single examples can't be had; the model stays as it was."""
    gradients = PerExampleGradients(model)
    try:
        probe_gradients(gradients, rows)
    finally:
        gradients.release()


def probe_gradients(gradients: PerExampleGradients, rows: Sequence[EncodedRow]) -> None:
    """The same with a model that hands out gradients; `rows` give the tokens.

    The error names the layers that aren't covered, and the target_modules that would do.
    """
    device = next(gradients.model.parameters()).device
    batch = pad_rows(short_rows(rows)).to(device)
    with _random_where_zero(gradients), _as_one_line(gradients.model):
        uncovered: dict[str, str] = {}
        for _, part in alike_parts(gradients.model, batch):
            uncovered |= gradients.uncovered(part)
        if uncovered:
            raise UncoveredLayers(_reason(uncovered), target_names(gradients, set(uncovered)))
        error = _relative_error(gradients, batch)
    dtype = next(gradients.model.parameters()).dtype
    if not error <= TOLERANCE.get(dtype, max(TOLERANCE.values())):  # another dtype is of quantised weights
        raise ConfigError(
            f"{_name(gradients.model)}: the gradient of a row in a batch is not that of the row alone (relative error "
            f"{error:.2g}): the model sees the rows beside it, or tokens that come later; it can't be used"
        )


def short_rows(rows: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Two short rows of these rows' tokens, of different lengths, everything but the first token supervised."""
    longer = max(2, min(PROBE_TOKENS, max(row.num_tokens for row in rows)))
    shorter = max(2, longer // 2 - 1)
    ids = np.concatenate([row.input_ids[:longer] for row in rows[:longer]])
    first, second = np.split(np.resize(ids, longer + shorter), [longer])
    return [EncodedRow(f"probe {len(part)}", "", 0, None, part, _all_but_the_first(part)) for part in (first, second)]


def _all_but_the_first(ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    labels = ids.copy()
    labels[0] = IGNORED
    return labels


def _relative_error(gradients: PerExampleGradients, batch: Batch) -> float:
    """The larger of the two rows' errors, between its gradient in the batch and plain autograd of the row alone."""
    projector = build_projector(ProjectionConfig(dim=PROBE_DIM), gradients.shapes)
    expected_BK = torch.stack([_alone(gradients, batch, row, projector) for row in range(len(batch.input_ids_BT))])
    found_BK = torch.zeros_like(expected_BK)
    for rows, part in alike_parts(gradients.model, batch):
        features_BK = torch.zeros_like(found_BK[rows])
        gradients(part, lambda name, block_BOI, into_BK=features_BK: projector.add(into_BK, block_BOI, name))  # type: ignore[misc]
        found_BK[rows] = features_BK
    error_B = (found_BK - expected_BK).norm(dim=1) / expected_BK.norm(dim=1).clamp_min(1e-30)
    return float(error_B.max())


def _alone(gradients: PerExampleGradients, batch: Batch, row: int, projector: Projector) -> Tensor:
    """The sketch [K] of a row's gradient by autograd, as PEFT computes it."""
    length = int(batch.attention_mask_BT[row].sum())
    ids_1T = batch.input_ids_BT[row : row + 1, :length]
    weights = {name: linear.weight for layer in gradients.layers for name, linear in (layer.first, layer.second)}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        logits_1TV = gradients.model(input_ids=ids_1T, use_cache=False).logits
        loss = functional.cross_entropy(logits_1TV[0, :-1].float(), ids_1T[0, 1:])
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    feature_1K = torch.zeros(1, projector.dim, device=ids_1T.device)
    for name, gradient_OI in zip(weights, found, strict=True):
        if gradient_OI is not None:
            projector.add(feature_1K, gradient_OI[None].float(), name)
    return feature_1K[0]


@contextlib.contextmanager
def _random_where_zero(gradients: PerExampleGradients) -> Iterator[None]:
    """Fill the matrices that are zero, as B is in a fresh adapter: else half of the gradients would be zero.

    Torch's own random numbers are not touched.
    """
    generator = torch.Generator().manual_seed(0)
    zero = [linear.weight for layer in gradients.layers for _, linear in (layer.first, layer.second)]
    zero = [weight for weight in zero if not weight.any()]
    with torch.no_grad():
        for weight in zero:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zero:
                weight.zero_()


@contextlib.contextmanager
def _as_one_line(model: nn.Module) -> Iterator[None]:
    """Turn what a model raises that can't be run into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except MODEL_FAULTS as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"{_name(model)} can't be run on rows of tokens alone: {reason}") from error


def _reason(uncovered: dict[str, str]) -> str:
    paths = sorted(path.removeprefix(WRAPPER) for path in uncovered)
    more = f" (and {len(paths) - 1} more: {listed(paths, 3)})" if len(paths) > 1 else ""
    return next(iter(uncovered.values())).removeprefix(WRAPPER) + more


def target_names(gradients: PerExampleGradients, uncovered: set[str]) -> list[str] | str:
    """Names by which PEFT takes the layers that are covered and no other of the model; else a regular expression."""
    covered = {layer.path.removeprefix(WRAPPER) for layer in gradients.layers if layer.path not in uncovered}
    modules = ((path.removeprefix(WRAPPER), module) for path, module in gradients.model.named_modules())
    others = [path for path, module in modules if path not in covered and _is_linear(path, module)]
    names = {_shortest_name(path, others) for path in covered}
    return _pattern(covered, others) if "" in names else sorted(names)


def _shortest_name(path: str, others: Sequence[str]) -> str:
    """The shortest ending of the path that no other has, its layer's number left out; an empty text where none is."""
    parts = path.split(".")
    own = parts[-2:] if parts[-2:-1] and not parts[-2].isdigit() else parts[-1:]
    endings = (".".join(own[-count:]) for count in range(1, len(own) + 1))
    return next((end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others)), "")


def _pattern(covered: set[str], others: Sequence[str]) -> str:
    """A regular expression of the covered paths with any number for a layer's, but for those that others match."""
    parents: dict[str, set[str]] = {}
    for path in covered:
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", r"\\d+", re.escape(path).replace(r"\.", "."))
        if not any(re.fullmatch(pattern, other) for other in others):
            parent, _, name = pattern.rpartition(".")
            parents.setdefault(parent, set()).add(name)
    return "|".join(f"{parent}.{_any_of(names)}" for parent, names in sorted(parents.items()))


def _any_of(names: set[str]) -> str:
    return f"({'|'.join(sorted(names))})" if len(names) > 1 else next(iter(names))


def _is_linear(path: str, module: nn.Module) -> bool:
    """Whether PEFT could put an adapter there."""
    is_inside = any(part in ("base_layer", "lora_A", "lora_B", "lora_dropout") for part in path.split("."))
    return not is_inside and (hasattr(module, "lora_A") or isinstance(module, nn.Linear | Conv1D))


def _name(model: nn.Module) -> str:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return type(base).__name__
