"""Chat templates: a conversation as text, and where in it the assistant speaks.

Where that is, is read from the template's generation marks, else found by rendering the conversation turn by turn and
checking that each rendering is a prefix of the next; a template that allows neither is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradsift.data import Example, Message
from gradsift.encoding.masks import Span
from gradsift.errors import TemplateError, nearest

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
