"""From conversations to token ids and labels: the loss is taken on assistant text and its end mark, in every turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from gradsift.data import Example
from gradsift.encoding.masks import IGNORED, Span, answer_window, num_leading, supervised_tokens
from gradsift.encoding.template import ChatTemplate
from gradsift.errors import ConfigError, TemplateError
from gradsift.machine import fingerprint


class EncodingConfig(BaseModel):
    """How conversations become tokens; part of what the rows of a store mean."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str = "auto"
    """`auto` (the tokenizer's own chat template, else tulu), `tulu`, `chatml`, or a Jinja file."""
    max_length: int = Field(2048, ge=2)
    """Tokens kept of a row, from the left."""


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


class Encoder:
    """Encodes examples, a list at a time, with one tokenizer, template and length."""

    def __init__(self, tokenizer: Any, config: EncodingConfig, num_embeddings: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._num_embeddings = num_embeddings
        self.max_length = config.max_length
        self.template = ChatTemplate(tokenizer, config.template)

    def meaning(self) -> dict[str, Any]:
        """What decides the tokens of a row, for the manifests."""
        backend = self.tokenizer.backend_tokenizer
        return {
            "tokenizer": fingerprint([_tokenizer_text(backend), self.tokenizer.special_tokens_map]),
            "template": f"{self.template.name}:{fingerprint(self.template.jinja)[:12]}",
            "max_length": self.max_length,
        }

    def save_tokenizer(self, folder: Path) -> None:
        """The tokenizer with the template in use, so that `apply_chat_template` gives what the model was trained on."""
        jinja = self.template.jinja
        if self.template.adds_special_tokens and self._begins_with_bos():
            jinja = "{{ bos_token }}" + jinja  # apply_chat_template adds no special tokens of its own
        before = self.tokenizer.chat_template
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
        results: list[EncodedRow | SetAside | None] = []
        rendered: list[tuple[int, str, list[Span]]] = []
        for index, example in enumerate(examples):
            outcome = self.render(example)
            results.append(outcome if isinstance(outcome, SetAside) else None)
            if not isinstance(outcome, SetAside):
                rendered.append((index, *outcome))
        texts = [text for _, text, _ in rendered]
        for (index, _, spans), (ids, offsets) in zip(rendered, self.tokenized(texts), strict=True):
            row = self._encoded(examples[index], ids, offsets, spans)
            if row is None and keep_answers:
                row = self._encoded(examples[index], *self._without_beginning(ids, offsets, spans[-1]), spans)
                row = row and replace(row, lost_beginning=True)
            results[index] = row or self._without_answer(examples[index])
        return [result for result in results if result is not None]

    def render(self, example: Example) -> tuple[str, list[Span]] | SetAside:
        """The text of an example and its supervised spans, or why it is set aside."""
        from jinja2 import TemplateError as JinjaError
        from jinja2 import TemplateSyntaxError

        answers = [message["content"] for message in example.messages if message["role"] == "assistant"]
        if not any(answer.strip() for answer in answers):
            reason = "every assistant text is empty" if answers else "no assistant turn"
            return SetAside(example.id, example.source, example.row, reason)
        try:
            if example.prefill is not None:
                return self._render_with_prefill(example)
            return self.template.conversation(example)
        except TemplateSyntaxError as error:
            raise TemplateError(
                f"the template {self.template.name} is not valid Jinja: {error.message}, line {error.lineno}"
            ) from error
        except JinjaError as error:
            return SetAside(example.id, example.source, example.row, f"the template refuses it: {error.message}")

    def prompt_and_completion(self, example: Example) -> tuple[str, str]:
        """The text before and after the point where the last assistant turn is learned from."""
        if example.prefill is not None:
            text, spans = self._render_with_prefill(example)
        else:
            text, spans = self.template.conversation(example)
        start, end = spans[-1]
        return text[:start], text[start:end]

    def tokenized(self, texts: Sequence[str]) -> list[tuple[list[int], list[Span]]]:
        """Token ids of rendered texts, and the characters of each; special tokens that are added have none.

        Raises ConfigError on an id that the model has no embedding of. Only ids that occur count: many tokenizers have
        a padding token beyond the model's embeddings, which no row holds.
        """
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=self.template.adds_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        self._require_embeddings(encoded["input_ids"])
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

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

    def _render_with_prefill(self, example: Example) -> tuple[str, list[Span]]:
        query = self.template.prompt(example.messages[:-1]) + (example.prefill or "")
        text = query + example.messages[-1]["content"]
        return text, [(len(query), len(text))]

    def _encoded(self, example: Example, ids: list[int], offsets: list[Span], spans: list[Span]) -> EncodedRow | None:
        """The row without what is too long of its end; None where no answer is left."""
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
