"""`Writer`: greedy generation from batches of fitted prompts; gives back text up to the stop text or end mark.

A batch is written in rounds, each as long as all before it together, and answers that have ended leave the batch
between rounds: a few answers that ramble on to the limit don't make the others pay for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from gradsift.data import Example
from gradsift.encoding import ConversationRefused, Encoder
from gradsift.evaluation.fitting import Fitted
from gradsift.model import num_embeddings, position_sides

FIRST_ROUND = 16
"""Tokens of the first round."""


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """What was generated after the prompt, without stop text and end mark."""

    fitted: Fitted
    text: str
    num_tokens: int


@dataclass
class _Batch:
    """Rows that are still being written, padded on the left."""

    positions: list[int]
    """Of the rows among the prompts."""
    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    cache: DynamicCache | None
    """None: transformers' own affair, and a single round."""


class Writer:
    """Writes with one model and encoder."""

    def __init__(self, model: nn.Module, encoder: Encoder, max_new_tokens: int, stop: str | None) -> None:
        # PEFT's wrapper adds nothing to generation that a LoRA model needs; the base below has the adapter in it.
        self._model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._tokenizer = encoder.tokenizer
        self._end_ids, end_text = end_marks(self._model, encoder)
        self._stops = [text for text in (stop, end_text) if text]
        self._max_new_tokens, self._num_embeddings = max_new_tokens, num_embeddings(self._model)

    def write(self, prompts: Sequence[Fitted]) -> list[GeneratedAnswer]:
        """An answer per prompt, in order."""
        batch = self._started(prompts)
        length = batch.input_ids_BT.shape[1]
        answers: dict[int, GeneratedAnswer] = {}
        for num_tokens in self._rounds(batch):
            self._extend(batch, length, num_tokens)
            is_last = batch.input_ids_BT.shape[1] - length >= self._max_new_tokens
            for position, ids in zip(batch.positions, batch.input_ids_BT[:, length:].tolist(), strict=True):
                answer, has_ended = self._answer(prompts[position], ids)
                if has_ended or is_last:
                    answers[position] = answer
            if len(answers) == len(prompts):
                break
            _drop(batch, answers)
        return [answers[position] for position in range(len(prompts))]

    def _started(self, prompts: Sequence[Fitted]) -> _Batch:
        device = next(self._model.parameters()).device
        input_ids_BT, attention_mask_BT = left_padded([prompt.input_ids for prompt in prompts], self._pad_id)
        cache = plain_cache(self._model)
        if cache is not None:
            cache.layers = [_RoomyLayer(input_ids_BT.shape[1] + self._max_new_tokens) for _ in cache.layers]
        return _Batch(list(range(len(prompts))), input_ids_BT.to(device), attention_mask_BT.to(device), cache)

    def _rounds(self, batch: _Batch) -> Iterator[int]:
        """Tokens of each round."""
        done = 0
        while done < self._max_new_tokens:
            left = self._max_new_tokens - done
            num_tokens = left if batch.cache is None else min(left, max(done, FIRST_ROUND))
            yield num_tokens
            done += num_tokens

    def _extend(self, batch: _Batch, prompt_length: int, num_tokens: int) -> None:
        before = batch.input_ids_BT.shape[1]
        cache = {} if batch.cache is None else {"past_key_values": batch.cache}
        with self._own_settings(num_tokens) as settings:
            batch.input_ids_BT = self._model.generate(
                input_ids=batch.input_ids_BT,
                attention_mask=batch.attention_mask_BT,
                generation_config=settings,
                stopping_criteria=self._criteria(prompt_length),
                **cache,
            )
        new = batch.input_ids_BT.shape[1] - before
        ones = batch.attention_mask_BT.new_ones(len(batch.positions), new)
        batch.attention_mask_BT = torch.cat([batch.attention_mask_BT, ones], dim=1)

    @property
    def _pad_id(self) -> int:
        """Any id that the model has: padding is masked."""
        known = [self._tokenizer.pad_token_id, *self._end_ids, 0]
        return next(int(token) for token in known if token is not None and token < self._num_embeddings)

    @contextlib.contextmanager
    def _own_settings(self, num_tokens: int) -> Iterator[GenerationConfig]:
        """Greedy settings, in place of the model's own."""
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=self._end_ids or None,
            pad_token_id=self._pad_id,
        )
        with _settings_of(self._model, settings):
            yield settings

    def _criteria(self, prompt_length: int) -> StoppingCriteriaList:
        if not self._stops:
            return StoppingCriteriaList()
        longest = max(len(stop.encode()) for stop in self._stops)

        def stopped(input_ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            # A token has at least a byte of text, so a stop text lies within as many tokens as it has bytes.
            tails = input_ids_BT[:, max(prompt_length, input_ids_BT.shape[1] - longest) :]
            texts = self._tokenizer.batch_decode(tails, **PLAIN)
            found = [any(stop in text for stop in self._stops) for text in texts]
            return torch.tensor(found, device=input_ids_BT.device)

        return StoppingCriteriaList([stopped])

    def _answer(self, prompt: Fitted, ids: list[int]) -> tuple[GeneratedAnswer, bool]:
        """The answer in the ids, and whether it has ended."""
        ends = [position for position, token in enumerate(ids) if token in self._end_ids]
        kept = ids[: ends[0]] if ends else ids
        whole = text = self._tokenizer.decode(kept, **PLAIN)
        for stop in self._stops:
            text = text.partition(stop)[0]
        num_tokens = sum(token != self._pad_id for token in kept)
        return GeneratedAnswer(prompt, text, num_tokens), bool(ends) or text != whole


PLAIN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def plain_cache(model: Any) -> DynamicCache | None:
    """An empty cache of keys and values; None where the model keeps more (sliding windows, recurrent states)."""
    cache = DynamicCache(config=model.config)
    plain = bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
    return cache if plain else None


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values written into room set apart for them: transformers' own layer copies all of them every step."""

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._room: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys and values so far, the new ones at their end: [B, heads, T, width]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self._room is None:
            self._room = self._moved(self.keys, key_states, start), self._moved(self.values, value_states, start)
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep those rows alone."""
        super().batch_select_indices(indices)
        self._room = None

    def _moved(self, held: Tensor, new: Tensor, length: int) -> Tensor:
        batch, heads, num_new, width = new.shape
        room = new.new_empty(batch, heads, max(self._capacity, length + num_new), width)
        if length:
            room[:, :, :length] = held
        return room


def _drop(batch: _Batch, answers: dict[int, GeneratedAnswer]) -> None:
    """Take the rows that have an answer out of the batch."""
    kept = [index for index, position in enumerate(batch.positions) if position not in answers]
    if len(kept) == len(batch.positions):
        return
    indices = torch.tensor(kept, device=batch.input_ids_BT.device)
    batch.positions = [batch.positions[index] for index in kept]
    batch.input_ids_BT, batch.attention_mask_BT = batch.input_ids_BT[indices], batch.attention_mask_BT[indices]
    if batch.cache is not None:
        batch.cache.batch_select_indices(indices)


def writing_sides(model: nn.Module, lengths: Sequence[int], max_new_tokens: int) -> list[Hashable]:
    """Which prompts of these lengths may be written from together.

    One that stays on a side of the model's positions to its last token may with all others that do; one that crosses
    over, or is beyond, is written alone. Of a model whose rows see padding on their left, only prompts of one length.
    """
    longest = [length + max_new_tokens for length in lengths]
    (first,) = position_sides(model, [1])
    sides: list[Hashable] = list(position_sides(model, longest))
    padded = bears_left_padding(model)
    return [
        (0 if padded else length) if side == first else ("alone", place)
        for place, (length, side) in enumerate(zip(lengths, sides, strict=True))
    ]


@torch.no_grad()
def bears_left_padding(model: Any) -> bool:
    """Whether a prompt's next token is the same with padding on its left: not where the model ignores the mask."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids_1T = torch.arange(1, 6, device=next(base.parameters()).device)[None]
    settings = GenerationConfig(do_sample=False, max_new_tokens=1, pad_token_id=0)
    settings.output_logits = settings.return_dict_in_generate = True
    found = []
    for num_padded in (0, 3):
        input_ids_1T = functional.pad(ids_1T, (num_padded, 0))
        mask_1T = functional.pad(torch.ones_like(ids_1T), (num_padded, 0))
        with _settings_of(base, settings):
            output = base.generate(input_ids=input_ids_1T, attention_mask=mask_1T, generation_config=settings)
        found.append(output.logits[0].float())
    difference = (found[1] - found[0]).norm() / found[0].norm()
    return bool(difference < (1e-3 if next(base.parameters()).dtype == torch.float32 else 5e-2))


@contextlib.contextmanager
def _settings_of(model: Any, settings: GenerationConfig) -> Iterator[None]:
    """The model's own sampling defaults are put aside, for transformers would mix them in."""
    before, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = before


def left_padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 [B, T]; the rows end together, so that the next token of each comes next."""
    longest = max(map(len, rows))
    input_ids_BT = torch.full((len(rows), longest), pad_id)
    attention_mask_BT = torch.zeros((len(rows), longest), dtype=torch.int64)
    for index, ids in enumerate(rows):
        input_ids_BT[index, longest - len(ids) :] = torch.tensor(ids)
        attention_mask_BT[index, longest - len(ids) :] = 1
    return input_ids_BT, attention_mask_BT


def end_marks(model: Any, encoder: Encoder) -> tuple[list[int], str | None]:
    """Tokens that end an answer, and the text that does where the template's end mark is no token.

    They are the tokenizer's and the model's end tokens, and what the template puts after an assistant text.
    """
    tokenizer = encoder.tokenizer
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])}
    probe = Example("", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "")
    try:
        mark = encoder.prompt_and_completion(probe)[1].strip().removeprefix("x").strip()
    except ConversationRefused:  # such a template needs other conversations; the tokenizer's end mark it has too
        mark = ""
    if mark in {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        ids.add(tokenizer.convert_tokens_to_ids(mark))
        mark = ""
    return sorted(token for token in ids if token is not None), mark or None
