"""From conversations to token ids and labels: the chat template, and which tokens the loss is taken on.

Only assistant text and its end mark are supervised, in every turn. Where they stand is read from the template's
generation marks, else found by rendering the conversation turn by turn and checking that each rendering is a prefix
of the next; a template that allows neither is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from gradsift.artifact import fingerprint
from gradsift.data import Example, Message
from gradsift.errors import TemplateError, nearest

IGNORED = -100
"""Label of a token that is not supervised, as in transformers."""

BUILT_IN_TEMPLATES = {
    "tulu": (
        "{% for message in messages %}"
        "{% if message.role == 'assistant' %}"
        "{{ '<|assistant|>\n' }}"
        "{% generation %}{{ message.content | trim + eos_token + '\n' }}{% endgeneration %}"
        "{% elif message.role in ('system', 'user') %}"
        "{{ '<|' + message.role + '|>\n' + message.content | trim + '\n' }}"
        "{% else %}{{ raise_exception('Tulu has no role ' + message.role) }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' }}"
        "{% if message.role == 'assistant' %}"
        "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
"""Tulu: METHOD section 3; the newline after the end mark is supervised there."""

TEMPLATE_VARIABLES = {"date_string": "26 Jul 2024"}
"""Llama 3 templates print today's date unless given one: rows must not change from day to day."""

Span = tuple[int, int]
"""Characters [start, end) of a rendered conversation."""


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


class ChatTemplate:
    """A Jinja chat template and whether the tokenizer adds its special tokens to what it renders."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name, self.jinja, self.adds_special_tokens = _resolve(tokenizer, name)
        self._variables = {**tokenizer.special_tokens_map, **TEMPLATE_VARIABLES}
        self._end_marks = tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self._has_marks = re.search(r"\{%-?\s*generation\s*-?%\}", self.jinja) is not None

    def prompt(self, messages: Sequence[Message]) -> str:
        """The conversation so far and the opening of an assistant turn."""
        return self._render(messages, add_generation_prompt=True)[0]

    def conversation(self, example: Example) -> tuple[str, list[Span]]:
        """The rendered conversation and the spans of its assistant text.

        Raises TemplateError where they can't be told apart, jinja2.TemplateError where the template itself refuses
        the conversation.
        """
        text, marked = self._render(example.messages)
        spans = marked if self._has_marks else self._spans_by_prefix(example, text)
        answers = [message["content"].strip() for message in example.messages if message["role"] == "assistant"]
        found = "".join(text[start:end] for start, end in spans)
        if any(answer not in found for answer in answers):
            raise TemplateError(
                f"the template {self.name} can't be masked: it doesn't show, or doesn't mark, every assistant text of "
                f"{example.source}/{example.id}"
            )
        return text, spans

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, spans = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self.jinja,
            return_assistant_tokens_mask=self._has_marks,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )
        return texts[0], [tuple(span) for span in spans[0]] if spans else []

    def _spans_by_prefix(self, example: Example, text: str) -> list[Span]:
        spans = []
        for turn, message in enumerate(example.messages):
            if message["role"] != "assistant":
                continue
            before = self.prompt(example.messages[:turn])
            after = self._render(example.messages[: turn + 1])[0]
            if not (after.startswith(before) and text.startswith(after)):
                raise TemplateError(
                    f"the template {self.name} can't be masked: rendered up to turn {turn + 1}, {example.source}/"
                    f"{example.id} is not a prefix of the whole conversation; give encoding.template a Jinja file "
                    "with {% generation %} marks around the assistant text"
                )
            spans.append((len(before), self._end_of_turn(after)))
        return spans

    def _end_of_turn(self, text: str) -> int:
        """End of the last turn without the white space that follows an end mark."""
        trimmed = text.rstrip()
        return len(trimmed) if trimmed.endswith(self._end_marks) else len(text)


def _resolve(tokenizer: Any, name: str) -> tuple[str, str, bool]:
    """(name, Jinja text, whether to add special tokens) for a config value."""
    if name == "auto" and tokenizer.chat_template is not None:
        return "tokenizer", tokenizer.get_chat_template(), False
    if name == "auto":
        name = "tulu"
    if name in BUILT_IN_TEMPLATES:
        return name, BUILT_IN_TEMPLATES[name], True
    path = Path(name).expanduser()
    if path.is_file():
        return path.name, path.read_text(encoding="utf-8"), False
    if path.suffix or "/" in name:
        raise TemplateError(f"encoding.template: there is no file {name}")
    raise TemplateError(f"encoding.template: unknown template {name!r}{nearest(name, ['auto', *BUILT_IN_TEMPLATES])}")


class Encoder:
    """Encodes examples, a list at a time, with one tokenizer, template and length."""

    def __init__(self, tokenizer: Any, config: EncodingConfig) -> None:
        self.tokenizer = tokenizer
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
        """Token ids of rendered texts, and the characters of each; special tokens that are added have none."""
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=self.template.adds_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))

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


def answer_window(answer: Span, leading: int, room: int) -> Span:
    """The tokens [first, last) of a row that is too long, which fill `room` together with its leading special tokens.

    The answer's, without its end where it is too long itself, and of those before it the nearest, one at least.
    """
    start, end = answer
    last = min(end, start + room - leading - 1)
    return max(last - (room - leading), leading), last


def num_leading(offsets: Sequence[Span]) -> int:
    """Special tokens that begin a row: they stay when its beginning is cut."""
    return next((index for index, (start, end) in enumerate(offsets) if end > start), len(offsets))


def supervised_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens hold a character of a span: bool [T]. Tokens of no character are never supervised."""
    starts, ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2).T
    supervised = np.zeros(len(starts), dtype=np.bool_)
    for start, end in spans:
        supervised |= (ends > start) & (starts < end)
    return supervised & (ends > starts)


def _tokenizer_text(backend: Any) -> str:
    """The tokenizer's definition without the truncation and padding that calls leave in it."""
    text: str = backend.to_str()
    return re.sub(r'"(truncation|padding)":(null|\{[^}]*\})', "", text)
