"""What prompts begin with in common, and which of them belong together for it."""

from __future__ import annotations

from collections.abc import Sequence

MIN_SHARED = 32
"""Tokens that prompts must begin with in common to be read once."""


def num_shared_tokens(prompts: Sequence[list[int]]) -> int:
    """Tokens that all prompts begin with; one of each is left over, for something must be read to answer."""
    least, most = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    differing = (index for index, pair in enumerate(zip(least, most, strict=False)) if pair[0] != pair[1])
    return min(limit, next(differing, limit))


def prompt_families(prompts: Sequence[list[int]]) -> list[list[int]]:
    """Positions of the prompts: those that stand together and begin alike, then all those that have no such fellow."""
    families: list[list[int]] = []
    for position, prompt in enumerate(prompts):
        if families and num_shared_tokens([prompts[families[-1][0]], prompt]) >= MIN_SHARED:
            families[-1].append(position)
        else:
            families.append([position])
    single = [family[0] for family in families if len(family) == 1]
    return [family for family in families if len(family) > 1] + ([single] if single else [])
