"""Positions: which rows may share a batch where a model looks at the length of the longest of them.

`longrope` (Phi-3) takes one of two sets of frequencies by the longest position of the batch, `dynamic` (NTK) makes them
anew from it and remembers it. Doge's attention keeps some keys of a row that is longer than its window, and padding can
be among them. A row is to be seen as it is when it is alone: rows share a batch only where the model
treats each of them as it would alone, and what it remembers is forgotten before every pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from gradsift.encoding import Batch

LONGROPE = ("longrope", "su")
"""The second is its name in early configs."""

Side = tuple[int, ...]


def position_sides(model: nn.Module, lengths: Sequence[int]) -> list[Side]:
    """What the model's position code makes of a row of each length: rows may share a batch where it is the same."""
    scalings = list(_scalings(model.config))
    return [tuple(scaling.side(length) for scaling in scalings) for length in lengths]


def alike_parts(model: nn.Module, batch: Batch) -> list[tuple[list[int], Batch]]:
    """The batch in parts whose rows may go through the model together, each with its rows' places in the batch.

    A part is as long as its own longest row: padding doesn't decide a side.
    """
    num_rows = len(batch.input_ids_BT)
    if not looks_at_the_batch(model.config):
        return [(list(range(num_rows)), batch)]
    lengths: list[int] = batch.attention_mask_BT.sum(dim=1).tolist()
    parts: dict[Side, list[int]] = {}
    for row, side in enumerate(position_sides(model, lengths)):
        parts.setdefault(side, []).append(row)
    return [(rows, batch.part(rows, max(lengths[row] for row in rows))) for rows in parts.values()]


def looks_at_the_batch(config: Any) -> bool:
    """Whether a row's positions would depend on the rows beside it."""
    return any(True for _ in _scalings(config))


class _Longrope:
    """One set of frequencies up to the length of the first training, another beyond it."""

    def __init__(self, thresholds: set[int]) -> None:
        self._thresholds = thresholds

    def side(self, length: int) -> int:
        return sum(length > threshold for threshold in self._thresholds)


class _Dynamic:
    """Something of each length's own, beyond the shortest of these lengths: such a row bears no padding."""

    def __init__(self, thresholds: set[int]) -> None:
        self._threshold = min(thresholds, default=0)

    def side(self, length: int) -> int:
        return length if length > self._threshold else 0


def _scalings(config: Any) -> Iterator[_Longrope | _Dynamic]:
    text = config.get_text_config()
    if window := getattr(text, "keep_window_size", None):
        yield _Dynamic({int(window)})
    for rope in _ropes(text):
        kind = str(rope.get("rope_type", rope.get("type")))
        if kind in LONGROPE:
            yield _Longrope(_lengths(rope, text, "original_max_position_embeddings") or _lengths({}, text))
        elif "dynamic" in kind:
            yield _Dynamic(_lengths(rope, text))


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """The settings of every rotary embedding: one, or one a kind of layer."""
    settings = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if isinstance(settings, Mapping):
        yield settings
        yield from (value for value in settings.values() if isinstance(value, Mapping))


def _lengths(rope: Mapping[str, Any], text: Any, *names: str) -> set[int]:
    """The lengths of the first training that the settings name."""
    names = names or ("original_max_position_embeddings", "max_position_embeddings")
    found = [rope.get(name) for name in names] + [getattr(text, name, None) for name in names]
    return {int(length) for length in found if length}


def forget_lengths(model: nn.Module) -> None:
    """Let every rotary embedding that remembers the longest row so far forget it before each pass."""
    for module in model.modules():
        if hasattr(module, "original_max_seq_len") and "dynamic" in str(getattr(module, "rope_type", "")):
            module.register_forward_pre_hook(_forget)


def _forget(module: nn.Module, _: tuple[Any, ...]) -> None:
    kinds: Any = module.rope_type
    by_prefix = {f"{layer}_": kind for layer, kind in kinds.items()} if isinstance(kinds, Mapping) else {"": kinds}
    for prefix in (prefix for prefix, kind in by_prefix.items() if "dynamic" in kind):
        fresh = getattr(module, f"{prefix}original_inv_freq").to(getattr(module, f"{prefix}inv_freq").device)
        module.register_buffer(f"{prefix}inv_freq", fresh, persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
