"""`Answerer`: a model's answers to questions; gives back choices, generated text, and the loss of right answers.

Prompts of about the same length are batched; every result comes in the order of the questions. In float32 the
company of a prompt changes its logits by rounding alone (about 1e-6), so a choice or a token can depend on the batch
size only where two candidates are that close. In bfloat16 logits are so coarse that ties are common: the same
batch size on the same machine gives the same answers, another batch size may not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gradsift.batching import batches_by_length, pad_rows
from gradsift.data import Example
from gradsift.encoding import IGNORED, EncodedRow, Encoder
from gradsift.errors import ConfigError, UserError
from gradsift.fitting import Fitted, PromptFitter
from gradsift.gradients import example_losses, only_positions
from gradsift.tasks.question import Question

AUTO_TOKENS = {"cpu": 8192, "cuda": 32768}
"""Tokens of a batch that is read once."""
AUTO_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Keys and values that a batch may keep while it is generated from."""
MAX_ROWS = 64
UNLIMITED = 1 << 62

BatchSize = int | Literal["auto"]
Report = Callable[[int, int], None]
"""Told of each batch how many rows and tokens it had."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ChoiceAnswer:
    """The log-likelihood of each choice after the prompt, in nats."""

    fitted: Fitted
    log_likelihoods: tuple[float, ...]
    num_tokens: tuple[int, ...]

    @property
    def best(self) -> int:
        """Position of the likeliest choice; the first where two are equal."""
        return max(range(len(self.log_likelihoods)), key=lambda index: (self.log_likelihoods[index], -index))


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """What was generated after the prompt, without stop text and end mark."""

    fitted: Fitted
    text: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss of the right answer: its sum over the answer's tokens, in nats."""

    fitted: Fitted
    nats: float

    @property
    def num_tokens(self) -> int:
        """Tokens of the right answer, its end mark counted where it is learned."""
        return self.fitted.num_completion


class Answerer:
    """Asks one model; it must be in evaluation mode, on its device."""

    def __init__(self, model: nn.Module, encoder: Encoder, batch_size: BatchSize = "auto") -> None:
        assert not model.training, "a model that answers is in evaluation mode"
        self._model, self._encoder, self._batch_size = model, encoder, batch_size
        self._device = next(model.parameters()).device
        self.context = context_length(model, encoder)

    def fitter(self, num_shots: int) -> PromptFitter:
        """Fits questions into this model's context."""
        return PromptFitter(self._encoder, self.context, num_shots)

    def new_tokens(self, wanted: int | None, default: int) -> int:
        """Tokens of a generated answer: those wanted, else the default, but half the context at most.

        Raises ConfigError where those wanted leave no room for a prompt.
        """
        if wanted is None:
            return min(default, self.context // 2)
        if wanted >= self.context:
            raise ConfigError(
                f"evaluate.max_new_tokens is {wanted}, but a prompt and its answer together have {self.context} tokens "
                "(encoding.max_length, or the model's positions where fewer): give a smaller number"
            )
        return wanted

    @torch.no_grad()
    def choose(self, questions: Sequence[Question], num_shots: int, report: Report) -> list[ChoiceAnswer]:
        """The log-likelihoods of every question's choices.

        Choices of one token after the same prompt are read from one forward pass, others from one each.
        """
        fitter = self.fitter(num_shots)
        rows = [fitter.completed(question, question.choices) for question in questions]
        by_token = iter(self._choose_by_token([choices for choices in rows if _share_a_prompt(choices)], report))
        apart = [choices for choices in rows if not _share_a_prompt(choices)]
        losses = iter(self._losses([row for choices in apart for row in choices], report))
        return [
            next(by_token) if _share_a_prompt(choices) else _chosen(choices, [-next(losses) for _ in choices])
            for choices in rows
        ]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Fitted], max_new_tokens: int, stop: str | None, report: Report
    ) -> list[GeneratedAnswer]:
        """What the model writes after each prompt, the likeliest token at every step."""
        writer = _Writer(self._model, self._encoder, max_new_tokens, stop)
        lengths = [len(prompt.input_ids) + max_new_tokens for prompt in prompts]
        tokens = AUTO_CACHE_BYTES[self._device.type] // _cache_bytes(self._model)

        def write(batch: Sequence[Fitted]) -> list[GeneratedAnswer]:
            answers = writer.write(batch)
            report(len(batch), sum(len(row.input_ids) for row in batch) + sum(answer.num_tokens for answer in answers))
            return answers

        return self._in_batches(prompts, lengths, tokens, write)

    @torch.no_grad()
    def answer_losses(self, questions: Sequence[Question], num_shots: int, report: Report) -> list[AnswerLoss | None]:
        """The loss of every question's completion; None where it has none."""
        fitter = self.fitter(num_shots)
        rows = [
            fitter.completed(question, [question.completion])[0] if question.completion else None
            for question in questions
        ]
        losses = iter(self._losses([row for row in rows if row is not None], report))
        return [None if row is None else AnswerLoss(row, next(losses)) for row in rows]

    def _losses(self, rows: Sequence[Fitted], report: Report) -> list[float]:
        """The sum of each row's loss over its completion's tokens, in nats."""

        def losses(batch: Sequence[Fitted]) -> list[float]:
            encoded = [_encoded(row) for row in batch]
            means_B = example_losses(self._model, pad_rows(encoded).to(self._device))
            report(len(batch), sum(row.num_tokens for row in encoded))
            return [float(mean) * row.num_supervised for mean, row in zip(means_B.tolist(), encoded, strict=True)]

        lengths = [len(row.input_ids) for row in rows]
        return self._in_batches(rows, lengths, AUTO_TOKENS[self._device.type], losses)

    def _choose_by_token(self, choices: Sequence[Sequence[Fitted]], report: Report) -> list[ChoiceAnswer]:
        def choose(batch: Sequence[Sequence[Fitted]]) -> list[ChoiceAnswer]:
            prompts = [rows[0].prompt_ids for rows in batch]
            likelihoods_BV = self._next_token(prompts)
            report(len(batch), sum(map(len, prompts)))
            tokens = [[row.input_ids[-1] for row in rows] for rows in batch]
            return [
                _chosen(rows, row_V[ids].tolist())
                for rows, row_V, ids in zip(batch, likelihoods_BV, tokens, strict=True)
            ]

        lengths = [len(rows[0].prompt_ids) for rows in choices]
        return self._in_batches(choices, lengths, AUTO_TOKENS[self._device.type], choose)

    def _next_token(self, prompts: Sequence[list[int]]) -> Tensor:
        """Log-likelihood of every token after each prompt, float32 [B, V]; logits are formed there alone."""
        batch = pad_rows([_row_of(ids) for ids in prompts]).to(self._device)
        last_BT = torch.zeros_like(batch.input_ids_BT, dtype=torch.bool)
        last_BT[torch.arange(len(prompts)), torch.tensor([len(ids) - 1 for ids in prompts])] = True
        with only_positions(self._model, last_BT):
            output = self._model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
        logits_BV: Tensor = output.logits.squeeze(0).float()
        return logits_BV.log_softmax(dim=-1).cpu()

    def _in_batches(
        self,
        items: Sequence[Any],
        lengths: Sequence[int],
        auto_tokens: int,
        run: Callable[[Sequence[Any]], list[Result]],
    ) -> list[Result]:
        """What `run` gives of each item, in their order; batches are of items of about the same length."""
        automatic = self._batch_size == "auto"
        tokens, rows = (auto_tokens, MAX_ROWS) if automatic else (UNLIMITED, int(self._batch_size))
        results: dict[int, Result] = {}
        for positions in batches_by_length(lengths, tokens, rows):
            batch = [items[position] for position in positions]
            results |= dict(zip(positions, _halved_where_too_large(batch, run), strict=True))
        return [results[position] for position in range(len(items))]


def _halved_where_too_large(batch: Sequence[Any], run: Callable[[Sequence[Any]], list[Result]]) -> list[Result]:
    try:
        return run(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise UserError(
                "out of memory on one question: lower encoding.max_length, or load the model in another dtype"
            ) from None
    torch.cuda.empty_cache()
    middle = len(batch) // 2
    return _halved_where_too_large(batch[:middle], run) + _halved_where_too_large(batch[middle:], run)


def context_length(model: nn.Module, encoder: Encoder) -> int:
    """Tokens that a prompt and its answer may have: encoding.max_length, or the model's positions where fewer."""
    positions = getattr(_text_config(model), "max_position_embeddings", None)
    return encoder.max_length if positions is None else min(encoder.max_length, int(positions))


def _text_config(model: nn.Module) -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]


def _cache_bytes(model: nn.Module) -> int:
    """Bytes that the keys and values of one token take; a guess on the large side for architectures that share them."""
    config = _text_config(model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype = next(model.parameters()).dtype
    return int(2 * config.num_hidden_layers * heads * width * max(dtype.itemsize, 2))


def _share_a_prompt(rows: Sequence[Fitted]) -> bool:
    """Whether every completion is one token after the same ids."""
    return all(row.num_completion == 1 and row.prompt_ids == rows[0].prompt_ids for row in rows)


def _chosen(rows: Sequence[Fitted], log_likelihoods: Sequence[float]) -> ChoiceAnswer:
    return ChoiceAnswer(rows[0], tuple(log_likelihoods), tuple(row.num_completion for row in rows))


def _encoded(row: Fitted) -> EncodedRow:
    encoded = _row_of(row.input_ids)
    start = encoded.num_tokens - row.num_completion
    encoded.labels[start:] = encoded.input_ids[start:]
    return encoded


def _row_of(ids: Sequence[int]) -> EncodedRow:
    input_ids = np.asarray(ids, dtype=np.int32)
    return EncodedRow("", "", 0, None, input_ids, np.full(len(ids), IGNORED, dtype=np.int32))


class _Writer:
    """Generates from batches of prompts, padded on the left."""

    def __init__(self, model: nn.Module, encoder: Encoder, max_new_tokens: int, stop: str | None) -> None:
        # PEFT's wrapper adds nothing to generation that a LoRA model needs; the base below has the adapter in it.
        self._model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._tokenizer = encoder.tokenizer
        self._end_ids, end_text = end_marks(self._model, encoder)
        self._stops = [text for text in (stop, end_text) if text]
        self._max_new_tokens = max_new_tokens

    def write(self, prompts: Sequence[Fitted]) -> list[GeneratedAnswer]:
        """An answer per prompt, in order."""
        device = next(self._model.parameters()).device
        input_ids_BT, attention_mask_BT = (part.to(device) for part in _left_padded(prompts, self._pad_id))
        with self._own_settings() as settings:
            written_BT = self._model.generate(
                input_ids=input_ids_BT,
                attention_mask=attention_mask_BT,
                generation_config=settings,
                stopping_criteria=self._criteria(input_ids_BT.shape[1]),
            )
        rows = written_BT[:, input_ids_BT.shape[1] :].tolist()
        return [self._answer(prompt, ids) for prompt, ids in zip(prompts, rows, strict=True)]

    @property
    def _pad_id(self) -> int:
        pad = self._tokenizer.pad_token_id
        return int(pad) if pad is not None else next(iter(self._end_ids), 0)

    @contextlib.contextmanager
    def _own_settings(self) -> Iterator[Any]:
        """Greedy settings; the model's own sampling defaults are put aside, for transformers would mix them in."""
        from transformers import GenerationConfig

        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=self._end_ids or None,
            pad_token_id=self._pad_id,
        )
        before, self._model.generation_config = self._model.generation_config, settings
        try:
            yield settings
        finally:
            self._model.generation_config = before

    def _criteria(self, prompt_length: int) -> Any:
        from transformers import StoppingCriteriaList

        if not self._stops:
            return StoppingCriteriaList()
        longest = max(len(stop.encode()) for stop in self._stops)

        def stopped(input_ids_BT: Tensor, scores: Any, **_: Any) -> Tensor:
            # A token has at least a byte of text, so a stop text lies within as many tokens as it has bytes.
            tails = input_ids_BT[:, max(prompt_length, input_ids_BT.shape[1] - longest) :]
            texts = self._tokenizer.batch_decode(tails, **_PLAIN)
            found = [any(stop in text for stop in self._stops) for text in texts]
            return torch.tensor(found, device=input_ids_BT.device)

        return StoppingCriteriaList([stopped])

    def _answer(self, prompt: Fitted, ids: list[int]) -> GeneratedAnswer:
        ends = [position for position, token in enumerate(ids) if token in self._end_ids]
        ids = ids[: ends[0]] if ends else ids
        text = self._tokenizer.decode(ids, **_PLAIN)
        for stop in self._stops:
            text = text.partition(stop)[0]
        return GeneratedAnswer(prompt, text, len(ids))


_PLAIN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


def _left_padded(prompts: Sequence[Fitted], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask of the prompts, int64 [B, T]; they end together, so that the next token of each comes next."""
    longest = max(len(prompt.input_ids) for prompt in prompts)
    input_ids_BT = torch.full((len(prompts), longest), pad_id)
    attention_mask_BT = torch.zeros((len(prompts), longest), dtype=torch.int64)
    for index, prompt in enumerate(prompts):
        start = longest - len(prompt.input_ids)
        input_ids_BT[index, start:] = torch.tensor(prompt.input_ids)
        attention_mask_BT[index, start:] = 1
    return input_ids_BT, attention_mask_BT


def end_marks(model: Any, encoder: Encoder) -> tuple[list[int], str | None]:
    """Tokens that end an answer, and the text that does where the template's end mark is no token.

    They are the tokenizer's and the model's end tokens, and what the template puts after an assistant text.
    """
    tokenizer = encoder.tokenizer
    given = getattr(model.generation_config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])}
    probe = Example("", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}], "")
    mark = encoder.prompt_and_completion(probe)[1].strip().removeprefix("x").strip()
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if mark in special:
        ids.add(tokenizer.convert_tokens_to_ids(mark))
        mark = ""
    return sorted(token for token in ids if token is not None), mark or None
