"""`Chooser`: the likeliest of the choices after a prompt, by their log-likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradsift.encoding import pad_rows
from gradsift.evaluation.answer_losses import AnswerLoss, completion_losses, unsupervised_row
from gradsift.evaluation.batches import Batches, Report
from gradsift.evaluation.fitting import Fitted
from gradsift.evaluation.generation import plain_cache
from gradsift.evaluation.shared_prompts import MIN_SHARED, num_shared_tokens, prompt_families
from gradsift.model import only_positions, position_sides

if TYPE_CHECKING:
    from transformers import DynamicCache


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


class Chooser:
    """Reads the choices of one model, which is in evaluation mode on its device."""

    def __init__(self, model: nn.Module, batches: Batches) -> None:
        self._model, self._batches = model, batches
        self._device = next(model.parameters()).device

    def choose(self, rows: Sequence[Sequence[Fitted]], report: Report) -> list[ChoiceAnswer]:
        """The log-likelihoods of every question's choices, each choice a completion after the question's prompt.

        Choices of one token after the same prompt are read from one forward pass, others from one each.
        """
        by_token = iter(self._choose_by_token([choices for choices in rows if _share_a_prompt(choices)], report))
        apart = [choices for choices in rows if not _share_a_prompt(choices)]
        flat = [row for choices in apart for row in choices]
        losses = iter(completion_losses(self._model, flat, self._batches, lambda _, tokens: report(0, tokens)))
        report(len(apart), 0)
        return [
            next(by_token) if _share_a_prompt(choices) else _chosen(choices, [-next(losses) for _ in choices])
            for choices in rows
        ]

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
            tokens = self._batches.kept_tokens if is_shared else self._batches.read_tokens
            lengths = list(map(len, prompts))
            found = self._batches.run(members, lengths, tokens, choose, position_sides(self._model, lengths))
            answers |= dict(zip(positions, found, strict=True))
        return [answers[position] for position in range(len(choices))]

    def _next_token(self, prompts: Sequence[list[int]]) -> Tensor:
        """Log-likelihood of every token after each prompt, float32 [B, V]; logits are formed there alone.

        What all of the prompts begin with is read once, where it is long enough to be worth it.
        """
        num_shared = num_shared_tokens(prompts) if len(prompts) > 1 else 0
        is_alike = len({*position_sides(self._model, [num_shared, *map(len, prompts)])}) == 1
        is_read = num_shared >= MIN_SHARED and is_alike
        cache = self._read(prompts[0][:num_shared], len(prompts)) if is_read else None
        start = num_shared if cache else 0
        batch = pad_rows([unsupervised_row(ids[start:]) for ids in prompts]).to(self._device)
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


def _share_a_prompt(rows: Sequence[Fitted]) -> bool:
    """Whether every completion is one token after the same ids."""
    return all(row.num_completion == 1 and row.prompt_ids == rows[0].prompt_ids for row in rows)


def _chosen(rows: Sequence[Fitted], log_likelihoods: Sequence[float]) -> ChoiceAnswer:
    return ChoiceAnswer(rows[0], tuple(log_likelihoods), tuple(row.num_completion for row in rows))
