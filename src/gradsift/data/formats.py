"""Row formats: how a raw row, a dict of columns, becomes a list of messages, and which columns say its format.

A conversation is spread over several rows, or several share one, in the OpenAssistant layouts alone: there a
row gives the nodes of message trees, and `conversations` the paths through them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gradsift.data.example import Message
from gradsift.data.message_trees import NODE_FLAGS, Node, message_node, tree_nodes
from gradsift.data.turns import (
    SHAREGPT_TURNS,
    TURNS,
    Turns,
    assistant_turn,
    given,
    messages_in,
    turn_messages,
    user_turn,
    with_system,
)
from gradsift.data.values import Fields, checked_list, checked_text, listed, missing_column, optional_text, text_of
from gradsift.errors import DataError

ROW_FIELDS = ("id", "subtask")
"""Fields that a row of any format may have beside the format's own."""


@dataclass(frozen=True, slots=True)
class Format:
    """The fields of a format and what becomes of them: either `messages` or `nodes` is set."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    messages: Callable[[Fields], list[Message]] | None = None
    """The conversation in a row."""
    nodes: Callable[[Fields], list[Node]] | None = None
    """The messages in a row, where rows and conversations don't go together one to one."""
    tree_per_row: bool = False
    """Whether a row is a whole tree; else the whole table is read before the trees are known."""
    headerless: tuple[str, ...] = ()
    """Columns of this format's tab-separated files, which are published without a header."""


def fields_of(row: Mapping[str, Any], form: Format, columns: Mapping[str, str]) -> Fields:
    """The format's fields of a row; `columns` maps a field to the user's column where they differ.

    Raises DataError naming a required column that isn't there, and the columns that are.
    """
    for field in form.required:
        if columns.get(field, field) not in row:
            raise DataError(missing_column(field, columns, row))
    names = ((field, columns.get(field, field)) for field in (*form.required, *form.optional))
    return {field: row[column] for field, column in names if column in row}


def recognise(
    columns: Collection[str], renamed: Mapping[str, str] | None = None, among: Collection[str] | None = None
) -> str:
    """The name of the first format of FORMATS, in its order, whose required columns are all there.

    `renamed` maps fields to the user's columns: only formats that have those fields are looked at. `among`
    narrows the choice. Raises DataError listing the columns where nothing fits.
    """
    names = [name for name in FORMATS if among is None or name in among]
    for name in names:
        if _fits(FORMATS[name], columns, renamed or {}):
            return name
    raise DataError(
        f"no format fits; the columns there are: {listed(columns)}; say with `format` which one it is "
        f"({', '.join(names)}), and with `columns` which field is in which column"
    )


def _fits(form: Format, columns: Collection[str], renamed: Mapping[str, str]) -> bool:
    known = {*form.required, *form.optional, *ROW_FIELDS}
    return set(renamed) <= known and all(renamed.get(field, field) in columns for field in form.required)


def _alpaca(fields: Fields) -> list[Message]:
    """Instruction and input on lines of their own, as LLaMA-Factory joins them."""
    messages = []
    for index, pair in enumerate(checked_list(fields.get("history") or [], "history")):
        texts = checked_list(pair, f"history[{index}]")
        if len(texts) != 2:
            raise DataError(f"history[{index}] has {len(texts)} texts, not a question and an answer")
        messages.append(user_turn(checked_text(texts[0], f"history[{index}][0]")))
        messages.append(assistant_turn(checked_text(texts[1], f"history[{index}][1]")))
    asked = [text for text in (text_of(fields, "instruction"), optional_text(fields, "input")) if text]
    messages += [user_turn("\n".join(asked)), assistant_turn(text_of(fields, "output"))]
    return with_system(fields, messages)


def _prompt_completion(fields: Fields) -> list[Message]:
    """TRL's: two texts, or two lists of messages put end to end, of which the completion alone is learned."""
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return given(messages_in(prompt, "prompt", TURNS)) + messages_in(completion, "completion", TURNS)
    return [user_turn(text_of(fields, "prompt")), assistant_turn(text_of(fields, "completion"))]


def _flan(fields: Fields) -> list[Message]:
    """Inputs and targets as they are. Open-instruct ends inputs with a newline; Tulu's template trims it."""
    return [user_turn(text_of(fields, "inputs")), assistant_turn(text_of(fields, "targets"))]


def _cot(fields: Fields) -> list[Message]:
    r"""The rationale, then "Therefore, the answer is X." on a line of its own; a literal \n is a newline.

    One wording for all rows, where FLAN has many templates for the same three columns.
    """
    question, answer, rationale = (
        text_of(fields, name).replace("\\n", "\n").strip() for name in ("question", "answer", "rationale")
    )
    conclusion = f"Therefore, the answer is {answer.rstrip('.')}."
    return [user_turn(question), assistant_turn(f"{rationale}\n{conclusion}" if rationale else conclusion)]


def _dolly(fields: Fields) -> list[Message]:
    """Instruction, blank line, context.

    That is open-instruct's fixed wording. For Tulu it drew one of fourteen wordings a row, so that the
    paper's Dolly rows differ from these in the words around the texts.
    """
    asked = [text for text in (text_of(fields, "instruction"), optional_text(fields, "context")) if text.strip()]
    return [user_turn("\n\n".join(asked)), assistant_turn(text_of(fields, "response"))]


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("system", "tools"), partial(turn_messages, "messages", TURNS)),
    "sharegpt": Format(
        ("conversations",), ("system", "tools"), partial(turn_messages, "conversations", SHAREGPT_TURNS)
    ),
    "prompt_completion": Format(("prompt", "completion"), ("tools",), _prompt_completion),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history", "tools"), _alpaca),
    "dolly": Format(("instruction", "response"), ("context",), _dolly),
    "flan": Format(("inputs", "targets"), messages=_flan),
    "cot": Format(("question", "answer", "rationale"), messages=_cot, headerless=("question", "answer", "rationale")),
    "oasst_trees": Format(("message_tree_id", "prompt"), nodes=tree_nodes, tree_per_row=True),
    "oasst_messages": Format(("message_id", "parent_id", "text", "role"), NODE_FLAGS, nodes=message_node),
}
"""The formats, in the order in which `recognise` tries them: where two fit, the first one wins."""


def sharegpt_with(turns: Turns) -> Format:
    """The sharegpt format with other keys and names of roles."""
    return replace(FORMATS["sharegpt"], messages=partial(turn_messages, "conversations", turns))
