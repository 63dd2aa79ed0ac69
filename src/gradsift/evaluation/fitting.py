"""`PromptFitter`: questions made to fit the model's context; gives back token ids and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradsift.data import Example, Message, given
from gradsift.encoding import (
    NOWHERE,
    REFUSES,
    ConversationRefused,
    Encoder,
    SetAside,
    Span,
    answer_window,
    num_leading,
    supervised_tokens,
)
from gradsift.errors import DataError
from gradsift.tasks import Question


@dataclass(frozen=True, slots=True)
class Fitted:
    """A prompt as the model sees it, and the completion that is compared with it, if any."""

    prompt: str
    input_ids: list[int]
    """Prompt, then completion."""
    num_completion: int
    """How many of the ids are the completion's."""
    num_shots: int
    cut: bool
    """Whether the prompt lost its beginning, or the completion its end, because no shot was left to drop."""

    @property
    def prompt_ids(self) -> list[int]:
        """The ids without the completion's."""
        return self.input_ids[: len(self.input_ids) - self.num_completion]


class PromptFitter:
    """Fits questions into `context` tokens: a question that is too long loses its last shots, it alone."""

    def __init__(self, encoder: Encoder, context: int, num_shots: int) -> None:
        self._encoder, self._context, self._num_shots = encoder, context, num_shots

    def prompt(self, question: Question, num_new_tokens: int) -> Fitted:
        """The prompt that leaves room for that many new tokens."""
        room = self._context - num_new_tokens
        assert room > 0, "no room for a prompt"
        fitted = None
        for num_shots in self._shot_counts(question):
            (fitted,) = self._rows([(self._prompt_text(question, num_shots), "")], num_shots, room)
            if not fitted.cut:
                break
        assert fitted is not None
        return fitted

    def completed(self, question: Question, completions: Sequence[str]) -> list[Fitted]:
        """The prompt with each of the completions after it, all with the same shots.

        Raises DataError where the template refuses the conversation.
        """
        rows: list[Fitted] = []
        for num_shots in self._shot_counts(question):
            texts = [self._completed_text(question, num_shots, completion) for completion in completions]
            rows = self._rows(texts, num_shots, self._context)
            if not any(row.cut for row in rows):
                break
        return rows

    def shortened(self, text: str, num_tokens: int) -> str:
        """The text up to the end of its `num_tokens`-th token."""
        ((_, offsets),) = self._encoder.tokenized([text])
        ends = [end for start, end in offsets if end > start]
        return text if len(ends) <= num_tokens else text[: ends[num_tokens - 1]]

    def wanted_shots(self, question: Question) -> int:
        """The shots that its prompt has where they fit."""
        return min(self._num_shots, len(question.shots))

    def _shot_counts(self, question: Question) -> Iterator[int]:
        return iter(range(self.wanted_shots(question), -1, -1))

    def _prompt_text(self, question: Question, num_shots: int) -> str:
        try:
            return self._encoder.template.prompt(question.messages(num_shots), question.tools) + question.prefill
        except ConversationRefused as error:
            raise _refused(question, str(error).removeprefix(REFUSES)) from error

    def _completed_text(self, question: Question, num_shots: int, completion: str) -> tuple[str, str]:
        """The text before the completion and the completion, with its end mark where there is no prefill.

        So it is encoded as in training: a prefilled answer is learned without an end mark, a whole turn with it.
        """
        is_right = question.reply is not None and completion == question.completion
        answer = question.reply if is_right and question.reply else Message(role="assistant", content=completion)
        example = Example(
            id=question.id,
            messages=[*given(question.messages(num_shots)), {**answer, "learned": True}],
            source=question.subtask,
            prefill=question.prefill or None,
            tools=list(question.tools),
        )
        if isinstance(aside := self._encoder.render(example), SetAside):
            raise _refused(question, aside.reason)
        return self._encoder.prompt_and_completion(example)

    def _rows(self, texts: Sequence[tuple[str, str]], num_shots: int, room: int) -> list[Fitted]:
        tokenized = self._encoder.tokenized([prompt + completion for prompt, completion in texts])
        return [_row(text, tokens, num_shots, room) for text, tokens in zip(texts, tokenized, strict=True)]


def _row(text: tuple[str, str], tokens: tuple[list[int], list[Span]], num_shots: int, room: int) -> Fitted:
    """A prompt and its completion as tokens, cut where they are more than `room`."""
    (prompt, completion), (ids, offsets) = text, tokens
    start, end = _completion_tokens(offsets, len(prompt), len(prompt + completion))
    if end <= room:
        return Fitted(prompt, ids[:end], end - start, num_shots, cut=False)
    leading = num_leading(offsets)
    first, last = answer_window((start, end), leading, room)
    return Fitted(prompt[offsets[first][0] :], ids[:leading] + ids[first:last], last - start, num_shots, cut=True)


def _completion_tokens(offsets: Sequence[Span], start: int, end: int) -> tuple[int, int]:
    """Tokens [first, last) that hold a character of the completion; special tokens after the text don't count."""
    last = len(offsets)
    while last and offsets[last - 1] == NOWHERE:
        last -= 1
    positions = supervised_tokens(offsets, [(start, end)]).nonzero()[0]
    return (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (last, last)


def _refused(question: Question, reason: str) -> DataError:
    return DataError(f"held-out item {question.id!r} can't be asked: {reason}; leave it out, or use another template")
