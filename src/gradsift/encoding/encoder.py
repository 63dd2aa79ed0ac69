"""From conversations to token ids and labels: the loss is taken on assistant text and its end mark, in every turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from gradsift.data import Example, said
from gradsift.encoding.masks import IGNORED, Span, answer_window, num_leading, supervised_tokens
from gradsift.encoding.rendering import ConversationRefused
from gradsift.encoding.template import ChatTemplate
from gradsift.encoding.tokenization import Tokenization, Tokens
from gradsift.errors import ConfigError
from gradsift.machine import fingerprint


class EncodingConfig(BaseModel):
    """How conversations become tokens; part of what the rows of a store mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = "auto"
    """`auto` (the tokenizer's own chat template, else tulu), `tulu`, `chatml`, or a Jinja file."""
    max_length: int = Field(2048, ge=2)
    """Tokens kept of a row, from the left."""
    supervise: Literal["all", "last"] = "all"
    """The assistant turns that are learned: all that aren't marked otherwise, or the last alone."""


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """An example as the model sees it; ids and labels are int32 [T]."""

    id: str
    source: str
    row: int
    subtask: str | None
    input_ids: npt.NDArray[np.int32]
    labels: npt.NDArray[np.int32]
    lost_beginning: bool = False
    """Whether the beginning was cut, so that the last answer fits; not kept in a corpus."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """Tokens that the loss is taken on; the first token is predicted from nothing."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True, slots=True)
class SetAside:
    """An example that no gradient can be taken of, and why."""

    id: str
    source: str
    row: int
    reason: str
    place: str = ""
    """File and line, where the row couldn't even be read."""
    by_template: bool = False
    """Whether the chat template can't show it, so that it may be the template that is at fault."""


class Encoder:
    """Encodes examples, a list at a time, with one tokenizer, template and length."""

    def __init__(self, tokenizer: Any, config: EncodingConfig, num_embeddings: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        self.max_length = config.max_length
        self.template = ChatTemplate(tokenizer, config.template)
        self._supervise = config.supervise
        self._tokenization = Tokenization(tokenizer, self.template.adds_special_tokens)

    def meaning(self) -> dict[str, Any]:
        """What decides the tokens of a row, for the manifests; `supervise` where it isn't what it always was.

        Rows of a tokenizer that trims offsets were once made without the tokens of spaces: it goes by another name now.
        """
        tokenizer = [_tokenizer_text(self.tokenizer.backend_tokenizer), self.tokenizer.special_tokens_map]
        facts = {
            "tokenizer": fingerprint([*tokenizer, "with spaces"] if self._tokenization.was_trimming else tokenizer),
            "template": self.template.identity,
            "max_length": self.max_length,
        }
        return facts if self._supervise == "all" else {**facts, "supervise": self._supervise}

    def save_tokenizer(self, folder: Path) -> None:
        """The tokenizer with the template in use, so that `apply_chat_template` gives what the model was trained on."""
        before = self.tokenizer.chat_template
        if (jinja := self.template.saved) is not None:
            if self.template.adds_special_tokens and self._begins_with_bos():
                jinja = "{{ bos_token }}" + jinja  # apply_chat_template adds no special tokens of its own
            self.tokenizer.chat_template = jinja
        self.tokenizer.save_pretrained(folder)
        self.tokenizer.chat_template = before

    def _begins_with_bos(self) -> bool:
        bos = self.tokenizer.bos_token_id
        return bos is not None and self.tokenizer("").input_ids[:1] == [bos]

    def encode(self, examples: Sequence[Example], keep_answers: bool = False) -> list[EncodedRow | SetAside]:
        """One result an example, in order.

        A row longer than `max_length` loses its end. One of which no answer would be left is set aside, or with
        `keep_answers` loses its beginning instead, as a question does that is too long to be asked.
        """
        outcomes = [self.render(example) for example in examples]
        texts = [outcome[0] for outcome in outcomes if not isinstance(outcome, SetAside)]
        tokens = iter(self._tokenization.beginnings(texts, self.max_length))
        return [
            outcome if isinstance(outcome, SetAside) else self._row(example, outcome, next(tokens), keep_answers)
            for example, outcome in zip(examples, outcomes, strict=True)
        ]

    def render(self, example: Example) -> tuple[str, list[Span]] | SetAside:
        """The text of an example and its supervised spans, or why it is set aside."""
        if (reason := self._nothing_learned(example)) is not None:
            return SetAside(example.id, example.source, example.row, reason)
        try:
            return self._rendered(example)
        except ConversationRefused as error:
            return SetAside(example.id, example.source, example.row, str(error), by_template=True)

    def prompt_and_completion(self, example: Example) -> tuple[str, str]:
        """The text before and after the point where the last learned turn is learned from.

        Raises ConversationRefused where the template can't show it.
        """
        text, spans = self._rendered(example)
        start, end = spans[-1]
        return text[:start], text[start:end]

    def tokenized(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Token ids of rendered texts, and the characters of each; special tokens that are added have NOWHERE.

        Raises ConfigError on an id that the model has no embedding of. Only ids that occur count: many tokenizers have
        a padding token beyond the model's embeddings, which no row holds.
        """
        found = [(tokens.ids, tokens.offsets) for tokens in self._tokenization.whole(texts)]
        self._require_embeddings([ids for ids, _ in found])
        return found

    def _require_embeddings(self, rows: Sequence[Sequence[int]]) -> None:
        if self._num_embeddings is None:
            return
        largest = max((max(ids) for ids in rows if ids), default=0)
        if largest >= self._num_embeddings:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens and the model embeddings of {self._num_embeddings}: "
                f"the rows hold {token!r}, id {largest}; use the tokenizer and template that the model was trained "
                "with, or resize its embeddings and save it"
            )

    def _learned_turns(self, example: Example) -> list[int]:
        turns = [turn for turn, message in enumerate(example.messages) if message["role"] == "assistant"]
        if self._supervise == "last":
            turns = turns[-1:]
        return [turn for turn in turns if example.messages[turn].get("learned", True)]

    def _nothing_learned(self, example: Example) -> str | None:
        """Why there is nothing to learn of an example, if so."""
        if not any(message["role"] == "assistant" for message in example.messages):
            return "no assistant turn"
        turns = self._learned_turns(example)
        if not turns:
            which = "no assistant turn is" if self._supervise == "all" else "the last assistant turn isn't"
            return f"{which} to be learned: so it is marked (weight, train), or it stands in the prompt"
        if not any(said(example.messages[turn]).strip() for turn in turns):
            return "every assistant text is empty"
        return None

    def _rendered(self, example: Example) -> tuple[str, list[Span]]:
        if example.prefill is None:
            return self.template.conversation(example, self._learned_turns(example))
        query = self.template.prompt(example.messages[:-1], example.tools) + example.prefill
        text = query + (example.messages[-1]["content"] or "")
        return text, [(len(query), len(text))]

    def _row(
        self, example: Example, rendered: tuple[str, list[Span]], tokens: Tokens | None, keep_answers: bool
    ) -> EncodedRow | SetAside:
        text, spans = rendered
        row = self._encoded(example, tokens.ids, tokens.offsets, spans) if tokens else None
        if row is None and keep_answers:
            tokens = self._tokenization.around(text, spans[-1], self.max_length)
        if tokens is None:
            reason = f"its {len(text):,} characters have no place where they can be cut, and are too many to tokenize"
            return SetAside(example.id, example.source, example.row, reason)
        if row is None and keep_answers:
            row = self._encoded(example, *self._without_beginning(tokens.ids, tokens.offsets, spans[-1]), spans)
            row = row and replace(row, lost_beginning=True)
        return row or self._without_answer(example)

    def _encoded(self, example: Example, ids: list[int], offsets: list[Span], spans: list[Span]) -> EncodedRow | None:
        """The row without what is too long of its end; None where no answer is left."""
        self._require_embeddings([ids[: self.max_length]])
        input_ids = np.asarray(ids[: self.max_length], dtype=np.int32)
        supervised = supervised_tokens(offsets[: self.max_length], spans)
        labels = np.where(supervised, input_ids, np.int32(IGNORED)).astype(np.int32)
        row = EncodedRow(example.id, example.source, example.row, example.subtask, input_ids, labels)
        return row if row.num_supervised else None

    def _without_beginning(self, ids: list[int], offsets: list[Span], answer: Span) -> tuple[list[int], list[Span]]:
        """The tokens up to the answer's end, without those that are too many at the beginning."""
        positions = supervised_tokens(offsets, [answer]).nonzero()[0]
        if not len(positions):
            return [], []
        leading = num_leading(offsets)
        first, last = answer_window((int(positions[0]), int(positions[-1]) + 1), leading, self.max_length)
        return ids[:leading] + ids[first:last], offsets[:leading] + offsets[first:last]

    def _without_answer(self, example: Example) -> SetAside:
        reason = f"no assistant text within {self.max_length} tokens (encoding.max_length)"
        return SetAside(example.id, example.source, example.row, reason)


def _tokenizer_text(backend: Any) -> str:
    """The tokenizer's definition without the truncation and padding that calls leave in it."""
    text: str = backend.to_str()
    return re.sub(r'"(truncation|padding)":(null|\{[^}]*\})', "", text)
