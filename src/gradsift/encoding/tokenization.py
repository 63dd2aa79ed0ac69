"""Tokenization: the token ids of rendered texts and the characters of each token, spaces included.

Of a long text that is cut anyway, a part is tokenized that gives exactly the tokens of the whole.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.encoding.masks import NOWHERE, Span

CHARACTERS_PER_TOKEN = 16
"""Characters that a part has for each of its tokens, to begin with."""
SHORT = 100_000
"""Characters of a text that is tokenized whole, whatever is kept of it."""
MAX_WHOLE = 2_000_000
"""Characters of the longest text that is tokenized whole, some 10 s and 2 GB; also of all texts at a time."""
WINDOW = 512
"""Characters on each side of a cut that are tokenized to see whether it changes a token."""
SPACES = ("▁", "Ġ", " ")
"""How vocabularies write a space: that of SentencePiece, that of bytes, and as it is."""
MAX_TRIED = 256
"""Places where a cut is tried."""
PLACES = re.compile(r"(?<=[^\W\d_])(?=[\s.,;:!?，。、；：！？])")
"""Where a cut may be: after a letter, before a space or a punctuation mark."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids, and the characters of each; NOWHERE for special tokens that are added."""

    ids: list[int]
    offsets: list[Span]

    @property
    def num_in_text(self) -> int:
        """Tokens up to the last one of the text."""
        return next((index for index in range(len(self.ids), 0, -1) if self.offsets[index - 1] != NOWHERE), 0)


class Tokenization:
    """A tokenizer with or without the special tokens that it adds.

    A cut is sound where no token reaches over it whatever stands around: the pre-tokenizer parts the text there, or no
    token of the vocabulary holds the two characters there. Pre-tokenizers look ahead no further than the run of
    letters or blanks that follows, and added tokens no further than their own length: a window around the cut shows
    whether they do.
    """

    def __init__(self, tokenizer: Any, adds_special_tokens: bool) -> None:
        self._tokenizer = _with_whole_offsets(tokenizer)
        self.was_trimming = self._tokenizer is not tokenizer
        self._adds_special_tokens = adds_special_tokens
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()  # which a tokenizer's file may ask for
        self._backend.no_padding()
        self._vocabulary: frozenset[str] = frozenset()
        self._pairs: frozenset[str] = frozenset()

    def whole(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of the texts."""
        return [tokens for group in _groups(texts) for tokens in self._tokens(group)]

    def _tokens(self, texts: Sequence[str]) -> list[Tokens]:
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=self._adds_special_tokens,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
            verbose=False,
        )
        rows = zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        return [Tokens(ids, _offsets(offsets, added)) for ids, offsets, added in rows]

    def beginnings(self, texts: Sequence[str], num_tokens: int) -> list[Tokens | None]:
        """Of each text at least its first `num_tokens` tokens, or all; None where it is too long for either."""
        is_long = [self._is_long(text, num_tokens) for text in texts]
        short: Iterator[Tokens | None] = iter(
            self.whole([text for text, long in zip(texts, is_long, strict=True) if not long])
        )
        return [
            self._beginning(text, num_tokens) if long else next(short)
            for text, long in zip(texts, is_long, strict=True)
        ]

    def around(self, text: str, answer: Span, num_tokens: int) -> Tokens | None:
        """The leading special tokens and those of a part of the text; None where it is too long.

        The part holds `num_tokens` tokens before the answer's beginning or all, and as many after it or all of it.
        """
        if self._is_long(text, num_tokens):
            for margin in self._margins(text, num_tokens):
                tokens = self._part(text, answer[0] - margin, min(answer[0] + margin, answer[1]))
                if tokens is None:
                    break
                if _reaches(tokens, answer, num_tokens):
                    return tokens
        return self._if_not_too_long(text)

    def _if_not_too_long(self, text: str) -> Tokens | None:
        return self.whole([text])[0] if len(text) <= MAX_WHOLE else None

    def _is_long(self, text: str, num_tokens: int) -> bool:
        return len(text) > max(SHORT, 4 * CHARACTERS_PER_TOKEN * num_tokens)

    def _margins(self, text: str, num_tokens: int) -> Iterator[int]:
        margin = CHARACTERS_PER_TOKEN * num_tokens + WINDOW
        while 2 * margin < len(text):
            yield margin
            margin *= 4

    def _beginning(self, text: str, num_tokens: int) -> Tokens | None:
        for margin in self._margins(text, num_tokens):
            cut = self._cut(text, margin)
            if cut is None or cut > MAX_WHOLE:
                break
            (tokens,) = self.whole([text[:cut]])
            if tokens.num_in_text >= num_tokens:
                return Tokens(tokens.ids[: tokens.num_in_text], tokens.offsets[: tokens.num_in_text])
        return self._if_not_too_long(text)

    def _part(self, text: str, low: int, high: int) -> Tokens | None:
        """The tokens from the first cut after `low` to the first after `high`; None where there is no such cut.

        What begins a text may be tokenized otherwise than in its midst (a space is put before it), so that the part is
        begun before its first cut, and the tokens before that are left out.
        """
        begin = first = 0
        if low > 4 * WINDOW:
            begin = self._cut(text, low - 4 * WINDOW) or 0
            first = (self._cut(text, begin + WINDOW) or 0) if begin else 0
            if not first:
                return None
        last = self._cut(text, high) or len(text)
        if last - begin > MAX_WHOLE:
            return None
        (tokens,) = self.whole([text[begin:last]])
        kept = [
            (token, span if span == NOWHERE else (span[0] + begin, span[1] + begin))
            for token, span in zip(tokens.ids, tokens.offsets, strict=True)
            if span == NOWHERE or span[0] + begin >= first
        ]
        return Tokens([token for token, _ in kept], [span for _, span in kept])

    def _cut(self, text: str, position: int) -> int | None:
        """The first sound cut from `position` on, of those tried."""
        for tried, place in enumerate(PLACES.finditer(text, max(position, 1))):
            if tried == MAX_TRIED:
                break
            if self._is_sound(text, place.start()):
                return place.start()
        return None

    def _is_sound(self, text: str, cut: int) -> bool:
        left = min(cut, WINDOW)
        window = text[cut - left : cut + WINDOW]
        if not (self._parts(window, left) or self._never_joins(text[cut - 1], text[cut])):
            return False
        before, after = self._sides(window, left)
        nearer_before, nearer_after = self._sides(window[left // 2 :], left - left // 2)
        return None not in (before, nearer_before) and before == self._plain(window[:left])[0] and after == nearer_after

    def _sides(self, window: str, cut: int) -> tuple[list[int] | None, list[int]]:
        """The tokens before and after the cut; None where one reaches over it."""
        ids, offsets = self._plain(window)
        count = sum(end <= cut for _, end in offsets)
        is_parted = all(start >= cut for start, _ in offsets[count:])
        return (ids[:count] if is_parted else None), ids[count:]

    def _plain(self, text: str) -> tuple[list[int], list[Span]]:
        encoded = self._backend.encode(text, add_special_tokens=False)
        return encoded.ids, encoded.offsets

    def _parts(self, window: str, offset: int) -> bool:
        """Whether the pre-tokenizer parts the window there."""
        normalizer, pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        if pre_tokenizer is None or (normalizer is not None and normalizer.normalize_str(window) != window):
            return False
        return any(start == offset for _, (start, _) in pre_tokenizer.pre_tokenize_str(window))

    def _never_joins(self, left: str, right: str) -> bool:
        """Whether both characters are tokens, and no token of the vocabulary holds the one after the other.

        Where the vocabulary is one of bytes, this is known of an ASCII letter and a space alone.
        """
        vocabulary, pairs = self._read_vocabulary()
        space = next((mark for mark in SPACES if mark in vocabulary), None)
        if space is None or (space != SPACES[0] and not (left.isascii() and right == " ")):
            return False
        pair = left + (space if right == " " else right)
        normalizer = self._backend.normalizer
        if normalizer is not None and normalizer.normalize_str(left + right)[-2:] not in (left + right, pair):
            return False
        return left in vocabulary and pair[1] in vocabulary and pair not in pairs

    def _read_vocabulary(self) -> tuple[frozenset[str], frozenset[str]]:
        """All tokens, and all pairs of characters in them."""
        if not self._vocabulary:
            self._vocabulary = frozenset(self._tokenizer.get_vocab())
            self._pairs = frozenset(token[at : at + 2] for token in self._vocabulary for at in range(len(token) - 1))
        return self._vocabulary, self._pairs


def _groups(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in their order, as many at a time as are MAX_WHOLE characters, one at least."""
    group: list[str] = []
    size = 0
    for text in texts:
        if group and size + len(text) > MAX_WHOLE:
            yield group
            group, size = [], 0
        group.append(text)
        size += len(text)
    if group:
        yield group


def _offsets(offsets: list[Span], added: list[int]) -> list[Span]:
    """The offsets with NOWHERE for the special tokens that were added: a few at the ends."""
    position = -1
    for _ in range(sum(added)):
        position = added.index(1, position + 1)
        offsets[position] = NOWHERE
    return offsets


def _reaches(tokens: Tokens, answer: Span, num_tokens: int) -> bool:
    """Whether a part holds enough tokens before the answer's beginning, and after it."""
    inside = [span for span in tokens.offsets if span != NOWHERE]
    if not inside:
        return False
    before = sum(end <= answer[0] for _, end in inside)
    after = sum(start >= answer[0] for start, _ in inside)
    return (before >= num_tokens or inside[0][0] == 0) and (after >= num_tokens or inside[-1][1] >= answer[1])


def _with_whole_offsets(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it that leaves the spaces in its tokens' offsets; the ids are the same."""
    from tokenizers import Tokenizer

    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if not _stop_trimming(described.get("post_processor")):
        return tokenizer
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(described)).post_processor
    return changed


def _stop_trimming(processor: Any) -> bool:
    """Change the description of a post-processor that cuts spaces out of offsets, at any depth; whether it did."""
    if isinstance(processor, dict):
        trims = processor.get("trim_offsets") is True
        if trims:
            processor["trim_offsets"] = False
        return any([trims, *map(_stop_trimming, processor.values())])
    return isinstance(processor, list) and any(list(map(_stop_trimming, processor)))
