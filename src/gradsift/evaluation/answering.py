"""`Answerer`: a model's answers to questions; gives back choices, generated text, and the loss of right answers.

Prompts of about the same length are batched; every result comes in the order of the questions. In float32 the
company of a prompt changes its logits by rounding alone (about 1e-6), so a choice or a token can depend on the batch
size only where two candidates are that close. In bfloat16 logits are so coarse that ties are common: the same
batch size on the same machine gives the same answers, another batch size may not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gradsift.encoding import Encoder
from gradsift.errors import ConfigError
from gradsift.evaluation.answer_losses import AnswerLoss, completion_losses
from gradsift.evaluation.batches import Batches, BatchSize, Report
from gradsift.evaluation.choices import ChoiceAnswer, Chooser
from gradsift.evaluation.context import context_length
from gradsift.evaluation.fitting import Fitted, PromptFitter
from gradsift.evaluation.generation import GeneratedAnswer, Writer, writing_sides
from gradsift.tasks import Question

MIN_PROMPT = 16
"""Tokens that a prompt must have room for."""


class Answerer:
    """Asks one model; it must be in evaluation mode, on its device."""

    def __init__(self, model: nn.Module, encoder: Encoder, batch_size: BatchSize = "auto") -> None:
        assert not model.training, "a model that answers is in evaluation mode"
        self._model, self._encoder, self._batches = model, encoder, Batches(model, batch_size)
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
        """The log-likelihoods of every question's choices."""
        fitter = self.fitter(num_shots)
        rows = [fitter.completed(question, question.choices) for question in questions]
        return Chooser(self._model, self._batches).choose(rows, report)

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

        sides = writing_sides(self._model, [len(prompt.input_ids) for prompt in prompts], max_new_tokens)
        return self._batches.run(prompts, lengths, self._batches.kept_tokens, write, sides)

    @torch.no_grad()
    def answer_losses(self, questions: Sequence[Question], num_shots: int, report: Report) -> list[AnswerLoss | None]:
        """The loss of every question's completion; None where it has none."""
        fitter = self.fitter(num_shots)
        rows = [
            fitter.completed(question, [question.completion])[0] if question.completion else None
            for question in questions
        ]
        asked = [row for row in rows if row is not None]
        losses = iter(completion_losses(self._model, asked, self._batches, report))
        return [None if row is None else AnswerLoss(row, next(losses), row.num_completion) for row in rows]
