"""Chat templates: a conversation as text, and where in it are the turns that are learned.

Where that is, is read from the template's generation marks, else found by rendering the conversation up to each turn
and checking that each rendering is a prefix of the whole; a conversation that allows neither is refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsift.data import Example, Message
from gradsift.encoding.masks import Span
from gradsift.encoding.probes import with_turns_named, without_place_for_tools
from gradsift.encoding.rendering import MOMENT, ConversationRefused, Rendered, Renderer
from gradsift.errors import TemplateError, nearest
from gradsift.machine import fingerprint

logger = logging.getLogger(__name__)

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

GENERATION_TAG = re.compile(r"\{% (?:end)?generation %\}")
TOKENIZERS_OWN = "tokenizer"
"""Name of the template that comes with the tokenizer."""
CANT_BE_MASKED = "the template can't be masked for it: "
NOBODYS = "nobodys text"
MAX_NAME = 100

TEMPLATE_VARIABLES = {"date_string": MOMENT.strftime("%d Jul %Y")}
"""Llama 3 templates print today's date unless given one: rows must not change from day to day."""

Tools = Sequence[Mapping[str, Any]]
"""Definitions of the tools that may be called."""


class ChatTemplate:
    """A Jinja chat template and whether the tokenizer adds its special tokens to what it renders."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        self.name, self.jinja, self.adds_special_tokens = _resolve(tokenizer, name)
        self._tool_jinja = _tool_template(tokenizer) if self.name == TOKENIZERS_OWN else None
        self._renderer = Renderer(self.name, self.jinja)
        self._tool_renderer = Renderer(self.name, self._tool_jinja) if self._tool_jinja else self._renderer
        self._variables = {**tokenizer.special_tokens_map, **TEMPLATE_VARIABLES}
        self._end_marks = tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})
        self._has_warned = False

    @property
    def identity(self) -> str:
        """Its name, and a fingerprint of its text; of one that asks the clock, also of what the clock shows."""
        parts = [text for text in (self.jinja, self._tool_jinja) if text is not None]
        if any("strftime_now" in text for text in parts):
            parts.append(MOMENT.isoformat())
        return f"{self.name}:{fingerprint(parts if len(parts) > 1 else self.jinja)[:12]}"

    @property
    def saved(self) -> str | None:
        """What a tokenizer that is saved gets for its template; None where it has it already.

        The built-in ones without generation tags, which other tools than transformers don't know.
        """
        if self.name == TOKENIZERS_OWN:
            return None
        return GENERATION_TAG.sub("", self.jinja) if self.name in BUILT_IN_TEMPLATES else self.jinja

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> str:
        """The conversation so far and the opening of an assistant turn."""
        if not messages:
            return self._first_opening(tools)
        return self._render(messages, tools, add_generation_prompt=True).text

    def conversation(self, example: Example, turns: Sequence[int]) -> tuple[str, list[Span]]:
        """The rendered conversation and the spans of those of its turns.

        Raises ConversationRefused where they can't be told from the rest, or the template itself refuses it.
        """
        self._require_places_for_tools(example)
        rendered = self._render(example.messages, example.tools)
        if self._renderer_for(example.tools).has_marks:
            spans = self._marked(example, turns, rendered)
        else:
            spans = [self._span_by_prefix(example, turn, rendered.text) for turn in turns]
        self._warn_without_end_mark(rendered.text[spans[-1][0] : spans[-1][1]], example.messages[turns[-1]])
        return rendered.text, spans

    def _renderer_for(self, tools: Tools) -> Renderer:
        return self._tool_renderer if tools else self._renderer

    def _render(self, messages: Sequence[Message], tools: Tools, add_generation_prompt: bool = False) -> Rendered:
        return self._renderer_for(tools).render(
            {
                "documents": None,
                **self._variables,
                "messages": [_as_templates_take_it(message) for message in messages],
                "tools": list(tools) or None,
                "add_generation_prompt": add_generation_prompt,
            }
        )

    def _first_opening(self, tools: Tools) -> str:
        """What stands before an assistant text that opens a conversation.

        Templates look at the first message: an empty conversation is never rendered. What opens an assistant turn is
        seen in another conversation, and found before a text that is no one's.
        """
        asked: list[Message] = [{"role": "user", "content": NOBODYS}]
        before, after = self._render(asked, tools).text, self.prompt(asked, tools)
        text = self._render([{"role": "assistant", "content": NOBODYS}], tools).text
        place = text.find(NOBODYS)
        opening = after.removeprefix(before)
        begin = text.rfind(opening, 0, place) if place >= 0 else -1
        if begin < 0 or not after.startswith(before):
            raise ConversationRefused(
                CANT_BE_MASKED + "the assistant speaks first, and what opens its turn isn't found"
            )
        return text[: begin + len(opening)]

    def _require_places_for_tools(self, example: Example) -> None:
        jinja = self._tool_jinja if example.tools and self._tool_jinja else self.jinja
        lacking = without_place_for_tools(example, jinja, lambda probe: self._render(probe.messages, probe.tools).text)
        if lacking is not None:
            raise ConversationRefused(f"the template has no place for {lacking}")

    def _marked(self, example: Example, turns: Sequence[int], rendered: Rendered) -> list[Span]:
        """The generation marks of those turns: they are believed, whatever they hold."""
        marks = rendered.marks
        answers = [turn for turn, message in enumerate(example.messages) if message["role"] == "assistant"]
        if list(turns) != answers:
            owners = self._owners(example, rendered)
            marks = [mark for mark, owner in zip(marks, owners, strict=True) if owner in turns]
        marks = [(start, end) for start, end in marks if end > start]
        if not marks:
            raise ConversationRefused(CANT_BE_MASKED + "its generation marks hold nothing of it")
        return marks

    def _owners(self, example: Example, rendered: Rendered) -> list[int]:
        """The turn of each mark, found by rendering the conversation with names in its turns' texts."""
        named, name = with_turns_named(example.messages, rendered.text)
        probe = self._render(named, example.tools)
        texts = [probe.text[start:end] for start, end in probe.marks]
        owners = [{int(turn) for turn in name.findall(text)} for text in texts]
        for index, (start, _) in enumerate(probe.marks):
            if not owners[index] and index and probe.marks[index - 1][1] == start:
                owners[index] = owners[index - 1]  # an end mark that is marked by itself
        if len(owners) != len(rendered.marks) or any(len(owner) != 1 for owner in owners):
            raise ConversationRefused(CANT_BE_MASKED + "its generation marks can't be told apart by turn")
        return [owner.pop() for owner in map(set, owners)]

    def _span_by_prefix(self, example: Example, turn: int, text: str) -> Span:
        messages, content = example.messages, example.messages[turn]["content"] or ""
        before = self.prompt(messages[:turn], example.tools)
        after = text if turn + 1 == len(messages) else self._render(messages[: turn + 1], example.tools).text
        if not (after.startswith(before) and text.startswith(after)):
            raise ConversationRefused(
                CANT_BE_MASKED + f"rendered up to turn {turn + 1}, it is not a prefix of the whole conversation"
            )
        # White space is laid out anew by templates that take the reasoning out of a text.
        if "".join(content.split()) not in "".join(text[len(before) : len(after)].split()):
            raise ConversationRefused(CANT_BE_MASKED + "it doesn't show every assistant text")
        return len(before), self._end_of_turn(after)

    def _end_of_turn(self, text: str) -> int:
        """End of the last turn without the white space that follows an end mark."""
        trimmed = text.rstrip()
        return len(trimmed) if trimmed.endswith(self._end_marks) else len(text)

    def _warn_without_end_mark(self, learned: str, message: Message) -> None:
        """Say it once where nothing that is learned ends a turn."""
        content = (message["content"] or "").strip()
        if not self._has_warned and content and learned.rstrip().endswith(content):
            self._has_warned = True
            logger.warning(
                "the template %s: no end mark is supervised, so that a model trained on it doesn't learn to end its "
                "answers; put the end mark inside the template's {%% generation %%} marks",
                self.name,
            )


def _as_templates_take_it(message: Message) -> dict[str, Any]:
    """The message under the keys that chat templates look at; reasoning under both names that they know."""
    known = {key: value for key, value in message.items() if key != "learned"}
    if "reasoning_content" in message:
        known["thinking"] = message["reasoning_content"]
    return known


def _resolve(tokenizer: Any, name: str) -> tuple[str, str, bool]:
    """(name, Jinja text, whether to add special tokens) for a config value."""
    if name == "auto" and tokenizer.chat_template is not None:
        return TOKENIZERS_OWN, _tokenizers_own(tokenizer), False
    if name == "auto":
        name = "tulu"
    if name in BUILT_IN_TEMPLATES:
        return name, BUILT_IN_TEMPLATES[name], True
    return _from_file(name)


def _tokenizers_own(tokenizer: Any) -> str:
    """The template in a tokenizer's folder: a text, or several by name, of which `default` is taken."""
    template = tokenizer.chat_template
    names = sorted(map(str, template)) if isinstance(template, dict) else []
    chosen = template.get("default") if isinstance(template, dict) else template
    if isinstance(chosen, str):
        return chosen
    found = f"has no text named default among {', '.join(names)}" if names else "isn't a text"
    raise TemplateError(
        f"the tokenizer's chat_template {found}: mend tokenizer_config.json, or give encoding.template a Jinja file"
    )


def _tool_template(tokenizer: Any) -> str | None:
    """The template that transformers takes where there are tools, if the tokenizer has one of its own for them."""
    template = tokenizer.chat_template
    chosen = template.get("tool_use") if isinstance(template, dict) else None
    return chosen if isinstance(chosen, str) else None


def _from_file(name: str) -> tuple[str, str, bool]:
    try:
        path = Path(name).expanduser()
        if path.is_file():
            return path.name, path.read_text(encoding="utf-8"), False
        is_folder = path.is_dir()
    except UnicodeDecodeError as error:
        raise TemplateError(f"encoding.template: {name} is not text in UTF-8 (byte {error.start})") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise TemplateError(f"encoding.template: {name[:MAX_NAME]} can't be read: {error}") from error
    if is_folder:
        raise TemplateError(f"encoding.template: {name} is a folder, not a Jinja file")
    if path.suffix or "/" in name:
        raise TemplateError(f"encoding.template: there is no file {name}")
    raise TemplateError(f"encoding.template: unknown template {name!r}{nearest(name, ['auto', *BUILT_IN_TEMPLATES])}")
