"""`Answerer`: a model's answers to questions; gives back choices, generated text, and the loss of right answers.

Prompts of about the same length are batched; every result comes in the order of the questions. In float32 the
company of a prompt changes its logits by rounding alone (about 1e-6), so a choice or a token can depend on the batch
size only where two candidates are that close. In bfloat16 logits are so coarse that ties are common: the same
batch size on the same machine gives the same answers, another batch size may not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gradsift.batching import batches_by_length, pad_rows
from gradsift.encoding import IGNORED, EncodedRow, Encoder
from gradsift.errors import ConfigError, UserError
from gradsift.fitting import Fitted, PromptFitter
from gradsift.generation import GeneratedAnswer, Writer, plain_cache
from gradsift.losses import example_losses, only_positions
from gradsift.tasks.question import Question

if TYPE_CHECKING:
    from transformers import DynamicCache

AUTO_TOKENS = {"cpu": 8192, "cuda": 32768}
"""Tokens of a batch that is read once."""
AUTO_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""Keys and values that a batch may keep while it is generated from."""
MAX_ROWS = 64
MIN_PROMPT = 16
"""Tokens that a prompt must have room for."""
MIN_SHARED = 32
"""Tokens that prompts must begin with in common to be read once."""
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

    def losses(self) -> list[AnswerLoss]:
        """The same, as the loss of each choice."""
        pairs = zip(self.log_likelihoods, self.num_tokens, strict=True)
        return [AnswerLoss(self.fitted, -likelihood, num_tokens) for likelihood, num_tokens in pairs]


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """The loss of the right answer: its sum over the answer's tokens, in nats."""

    fitted: Fitted
    nats: float
    num_tokens: int
    """Its end mark is counted where it is learned."""


class Answerer:
    """Asks one model; it must be in evaluation mode, on its device."""

    def __init__(self, model: nn.Module, encoder: Encoder, batch_size: BatchSize = "auto") -> None:
        assert not model.training, "a model that answers is in evaluation mode"
        self._model, self._encoder, self._batch_size = model, encoder, batch_size
        self._device = next(model.parameters()).device
        self.context = context_length(model, encoder)
        if self.context < 2 * MIN_PROMPT:
            raise ConfigError(
                f"encoding.max_length leaves {self.context} tokens for a prompt and its answer: evaluation needs "
                f"{2 * MIN_PROMPT}"
            )

    def fitter(self, num_shots: int) -> PromptFitter:
        """Fits questions into this model's context."""
        return PromptFitter(self._encoder, self.context, num_shots)

    def new_tokens(self, wanted: int | None, default: int) -> int:
        """Tokens of a generated answer: those wanted, else the default, but half the context at most.

        Raises ConfigError where those wanted leave no room for a prompt.
        """
        if wanted is None:
            return min(default, self.context // 2)
        if wanted > self.context - MIN_PROMPT:
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
        flat = [row for choices in apart for row in choices]
        losses = iter(self._losses(flat, lambda _, tokens: report(0, tokens)))
        report(len(apart), 0)
        return [
            next(by_token) if _share_a_prompt(choices) else _chosen(choices, [-next(losses) for _ in choices])
            for choices in rows
        ]

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Fitted], max_new_tokens: int, stop: str | None, report: Report
    ) -> list[GeneratedAnswer]:
        """What the model writes after each prompt, the likeliest token at every step."""
        writer = Writer(self._model, self._encoder, max_new_tokens, stop)
        lengths = [len(prompt.input_ids) + max_new_tokens for prompt in prompts]

        def write(batch: Sequence[Fitted]) -> list[GeneratedAnswer]:
            answers = writer.write(batch)
            report(len(batch), sum(len(row.input_ids) for row in batch) + sum(answer.num_tokens for answer in answers))
            return answers

        return self._in_batches(prompts, lengths, self._cached_tokens(), write)

    @torch.no_grad()
    def answer_losses(self, questions: Sequence[Question], num_shots: int, report: Report) -> list[AnswerLoss | None]:
        """The loss of every question's completion; None where it has none."""
        fitter = self.fitter(num_shots)
        rows = [
            fitter.completed(question, [question.completion])[0] if question.completion else None
            for question in questions
        ]
        losses = iter(self._losses([row for row in rows if row is not None], report))
        return [None if row is None else AnswerLoss(row, next(losses), row.num_completion) for row in rows]

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
            likelihoods_BV = self._next_token([rows[0].prompt_ids for rows in batch])
            report(len(batch), sum(len(rows[0].prompt_ids) for rows in batch))
            tokens = [[row.input_ids[-1] for row in rows] for rows in batch]
            return [
                _chosen(rows, row_V[ids].tolist())
                for rows, row_V, ids in zip(batch, likelihoods_BV, tokens, strict=True)
            ]

        answers: dict[int, ChoiceAnswer] = {}
        for positions in prompt_families([rows[0].prompt_ids for rows in choices]):
            members = [choices[position] for position in positions]
            prompts = [rows[0].prompt_ids for rows in members]
            is_shared = num_shared_tokens(prompts) >= MIN_SHARED
            tokens = self._cached_tokens() if is_shared else AUTO_TOKENS[self._device.type]
            found = self._in_batches(members, list(map(len, prompts)), tokens, choose)
            answers |= dict(zip(positions, found, strict=True))
        return [answers[position] for position in range(len(choices))]

    def _next_token(self, prompts: Sequence[list[int]]) -> Tensor:
        """Log-likelihood of every token after each prompt, float32 [B, V]; logits are formed there alone.

        What all of the prompts begin with is read once, where it is long enough to be worth it.
        """
        num_shared = num_shared_tokens(prompts) if len(prompts) > 1 else 0
        cache = self._read(prompts[0][:num_shared], len(prompts)) if num_shared >= MIN_SHARED else None
        start = num_shared if cache else 0
        batch = pad_rows([_row_of(ids[start:]) for ids in prompts]).to(self._device)
        last_BT = torch.zeros_like(batch.input_ids_BT, dtype=torch.bool)
        last_BT[torch.arange(len(prompts)), batch.attention_mask_BT.sum(dim=1).cpu() - 1] = True
        read_BT = batch.attention_mask_BT.new_ones(len(prompts), start)
        with only_positions(self._model, last_BT.flatten().nonzero()[:, 0]):
            output = self._model(
                input_ids=batch.input_ids_BT,
                attention_mask=torch.cat([read_BT, batch.attention_mask_BT], dim=1),
                past_key_values=cache,
                use_cache=cache is not None,
            )
        logits_BV: Tensor = output.logits.squeeze(0).float()
        return logits_BV.log_softmax(dim=-1).cpu()

    def _read(self, ids: Sequence[int], num_rows: int) -> DynamicCache | None:
        """Keys and values of the ids for that many rows; None where the model keeps something else."""
        cache = plain_cache(self._model)
        if cache is None:
            return None
        ids_1T = torch.tensor([ids], device=self._device)
        with only_positions(self._model, ids_1T.new_empty(0)):
            self._model(input_ids=ids_1T, past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(num_rows)
        return cache

    def _cached_tokens(self) -> int:
        return AUTO_CACHE_BYTES[self._device.type] // _cache_bytes(self._model)

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
    """Bytes that the keys and values of one token take; a guess on the large side where an architecture keeps less."""
    config = _text_config(model)
    num_heads = getattr(config, "num_attention_heads", None) or 1
    num_kept = getattr(config, "num_key_value_heads", None) or num_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    value_bytes = max(next(model.parameters()).dtype.itemsize, 2)  # quantised weights don't make quantised keys
    return int(2 * config.num_hidden_layers * num_kept * width * value_bytes)


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
