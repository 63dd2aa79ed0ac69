"""Row formats: how a raw row, a dict of columns, becomes a list of messages, and which columns say its
format.

A conversation is spread over several rows, or several share one, in the OpenAssistant layouts alone: there a
row gives the nodes of message trees, and `conversations` the paths through them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from gradsift.data import Message
from gradsift.errors import DataError

Fields = Mapping[str, Any]
"""A row under the format's own field names."""

ROW_FIELDS = ("id", "subtask")
"""Fields that a row of any format may have beside the format's own."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Names that speakers go by, and the role that chat templates know them under."""

MAX_LISTED, MAX_NAME = 20, 40


@dataclass(frozen=True, slots=True)
class Turns:
    """How a turn says who speaks and what: the keys to look under, in order, and the roles' names."""

    role_keys: tuple[str, ...]
    content_keys: tuple[str, ...]
    roles: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Node:
    """A message of a tree; `parent` is None at the root."""

    id: str
    parent: str | None
    role: str
    text: str
    language: str | None
    usable: bool
    """Neither deleted, nor synthetic, nor rejected by the reviewers."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A path through a message tree, named after its last message."""

    id: str
    messages: list[Message]


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


def missing_column(field: str, columns: Mapping[str, str], there_are: Iterable[str]) -> str:
    """The text of the error about a field whose column isn't there."""
    column = columns.get(field, field)
    wanted = f"no column {column!r}" + (f" for {field}" if column != field else "")
    return f"{wanted}; the columns there are: {listed(there_are)}"


def listed(names: Iterable[str]) -> str:
    """Names in one line, however many and long they are."""
    shown = [str(name) for name in names]
    cut = [name if len(name) <= MAX_NAME else name[:MAX_NAME] + "…" for name in shown[:MAX_LISTED]]
    return ", ".join([*cut, "…"] if len(shown) > MAX_LISTED else cut) or "none"


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


# Values


def _text(fields: Fields, name: str) -> str:
    return _checked_text(fields[name], name)


def _optional_text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    return "" if value is None else _checked_text(value, name)


def _checked_text(value: Any, what: str) -> str:
    if value is None:
        raise DataError(f"{what} is null, not text")
    if not isinstance(value, str):
        raise DataError(f"{what} is {_kind(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{what} has half of a surrogate pair at character {error.start}") from error
    return value


def _flag(fields: Fields, name: str) -> bool | None:
    """True, False, or None where it isn't said; tables without types spell them out."""
    value = fields.get(name)
    if isinstance(value, str) and value.lower() in ("true", "false", ""):
        return {"true": True, "false": False, "": None}[value.lower()]
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"{name} is {_kind(value)}, not true or false")


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is {'null' if value is None else _kind(value)}, not a list")
    return list(value)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


# One conversation a row


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def _with_system(fields: Fields, messages: list[Message]) -> list[Message]:
    """A system column opens the conversation, unless a system turn does already (as in LLaMA-Factory)."""
    system = _optional_text(fields, "system")
    if not system or not messages or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _turn_messages(field: str, turns: Turns, fields: Fields) -> list[Message]:
    return _with_system(fields, _messages_in(fields[field], field, turns))


def _messages_in(value: Any, field: str, turns: Turns) -> list[Message]:
    return [_message(turn, f"{field}[{index}]", turns) for index, turn in enumerate(_list(value, field))]


def _message(turn: Any, what: str, turns: Turns) -> Message:
    """A turn as a message. Raises DataError where its role is unknown, or where it holds more than text."""
    if not isinstance(turn, dict):
        raise DataError(f"{what} is {'null' if turn is None else _kind(turn)}, not an object")
    # Arrow gives every turn every key, so an absent one may be there as null.
    if turn.get("tool_calls") or turn.get("function_call"):
        raise DataError(f"{what} calls a tool, which text can't stand for; leave such rows out")
    role = _first_of(turn, turns.role_keys, what)
    if not isinstance(role, str) or role not in turns.roles:
        raise DataError(f"{what} has the role {role!r}; known roles: {', '.join(turns.roles)}")
    content = _content(_first_of(turn, turns.content_keys, what), f"{what}.{turns.content_keys[0]}")
    return {"role": turns.roles[role], "content": content}


def _first_of(turn: Mapping[str, Any], keys: Sequence[str], what: str) -> Any:
    there = [key for key in keys if key in turn]
    if not there:
        raise DataError(f"{what} has no {keys[0]!r}; it has: {listed(turn)}")
    return next((turn[key] for key in there if turn[key] is not None), None)


def _content(value: Any, what: str) -> str:
    """Text, or a list of text parts joined as they are."""
    if not isinstance(value, list):
        return _checked_text(value, what)
    parts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            shown = part.get("type") if isinstance(part, dict) else _kind(part)
            raise DataError(f"{what}[{index}] is a part of type {shown!r}; only text can be read")
        parts.append(_checked_text(part.get("text"), f"{what}[{index}].text"))
    return "".join(parts)


def _alpaca(fields: Fields) -> list[Message]:
    """Instruction and input on lines of their own, as LLaMA-Factory joins them."""
    messages = []
    for index, pair in enumerate(_list(fields.get("history") or [], "history")):
        texts = _list(pair, f"history[{index}]")
        if len(texts) != 2:
            raise DataError(f"history[{index}] has {len(texts)} texts, not a question and an answer")
        messages.append(_user(_checked_text(texts[0], f"history[{index}][0]")))
        messages.append(_assistant(_checked_text(texts[1], f"history[{index}][1]")))
    asked = [text for text in (_text(fields, "instruction"), _optional_text(fields, "input")) if text]
    messages += [_user("\n".join(asked)), _assistant(_text(fields, "output"))]
    return _with_system(fields, messages)


def _prompt_completion(fields: Fields) -> list[Message]:
    """TRL's: two texts, or two lists of messages put end to end."""
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _messages_in(prompt, "prompt", TURNS) + _messages_in(completion, "completion", TURNS)
    return [_user(_text(fields, "prompt")), _assistant(_text(fields, "completion"))]


def _flan(fields: Fields) -> list[Message]:
    """Inputs and targets as they are. Open-instruct ends inputs with a newline; Tulu's template trims it."""
    return [_user(_text(fields, "inputs")), _assistant(_text(fields, "targets"))]


def _cot(fields: Fields) -> list[Message]:
    r"""The rationale, then "Therefore, the answer is X." on a line of its own; a literal \n is a newline.

    One wording for all rows, where FLAN has many templates for the same three columns.
    """
    question, answer, rationale = (
        _text(fields, name).replace("\\n", "\n").strip() for name in ("question", "answer", "rationale")
    )
    conclusion = f"Therefore, the answer is {answer.rstrip('.')}."
    return [_user(question), _assistant(f"{rationale}\n{conclusion}" if rationale else conclusion)]


def _dolly(fields: Fields) -> list[Message]:
    """Instruction, blank line, context.

    That is open-instruct's fixed wording. For Tulu it drew one of fourteen wordings a row, so that the
    paper's Dolly rows differ from these in the words around the texts.
    """
    asked = [text for text in (_text(fields, "instruction"), _optional_text(fields, "context")) if text.strip()]
    return [_user("\n\n".join(asked)), _assistant(_text(fields, "response"))]


# Message trees (OpenAssistant)


def _node(fields: Fields, parent: Any) -> Node:
    """A message; only what says itself to be deleted, synthetic or rejected is unusable."""
    for name in ("message_id", "role", "text"):
        if name not in fields:
            raise DataError(f"a message has no {name!r}; it has: {listed(fields)}")
    role = ROLES.get(_text(fields, "role"))
    if role not in ("user", "assistant"):
        raise DataError(f"the role {fields['role']!r} is neither prompter nor assistant")
    return Node(
        id=str(fields["message_id"]),
        parent=str(parent) if parent else None,
        role=role,
        text=_text(fields, "text"),
        language=fields.get("lang"),
        usable=not _flag(fields, "deleted")
        and not _flag(fields, "synthetic")
        and _flag(fields, "review_result") is not False,
    )


def _message_node(fields: Fields) -> list[Node]:
    return [_node(fields, fields["parent_id"])]


def _tree_nodes(fields: Fields) -> list[Node]:
    """The messages nested in a tree, parents before their replies."""
    nodes: list[Node] = []
    waiting: list[tuple[Any, str | None]] = [(fields["prompt"], None)]
    while waiting:
        message, parent = waiting.pop()
        if not isinstance(message, dict):
            raise DataError(f"a message of the tree is {_kind(message)}, not an object")
        nodes.append(_node(message, parent))
        replies = _list(message.get("replies") or [], "replies")
        waiting.extend((reply, nodes[-1].id) for reply in reversed(replies))
    return nodes


def conversations(nodes: Sequence[Node], language: str | None = None) -> Iterator[Conversation]:
    """One conversation a root-to-leaf path, depth first, replies in the order of `nodes`.

    An unusable message goes with everything below it, and so does one whose parent isn't there. A path that
    ends in a question is cut back to its last answer; the same conversation comes once. With a `language`,
    every message of the path has to be in it. Raises DataError where a message id stands twice.
    """
    twice = [name for name, count in Counter(node.id for node in nodes).items() if count > 1]
    if twice:
        raise DataError(f"the message id {twice[0]!r} stands twice")
    done = set()
    for path in _usable_paths(nodes):
        while path and path[-1].role != "assistant":
            path.pop()
        if not path or path[-1].id in done:
            continue
        done.add(path[-1].id)
        if language is None or all(node.language == language for node in path):
            yield Conversation(path[-1].id, [{"role": node.role, "content": node.text} for node in path])


def _usable_paths(nodes: Sequence[Node]) -> Iterator[list[Node]]:
    replies: dict[str | None, list[Node]] = {}
    for node in nodes:
        if node.usable:
            replies.setdefault(node.parent, []).append(node)
    waiting = [[root] for root in reversed(replies.get(None, []))]
    while waiting:
        path = waiting.pop()
        below = replies.get(path[-1].id)
        if below is None:
            yield path
        else:
            waiting.extend([*path, reply] for reply in reversed(below))


TURNS = Turns(("role", "from"), ("content", "value"), ROLES)
SHAREGPT_TURNS = Turns(("from", "role"), ("value", "content"), ROLES)

_NODE_FLAGS = ("lang", "deleted", "synthetic", "review_result")

FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), ("system",), partial(_turn_messages, "messages", TURNS)),
    "sharegpt": Format(("conversations",), ("system",), partial(_turn_messages, "conversations", SHAREGPT_TURNS)),
    "prompt_completion": Format(("prompt", "completion"), messages=_prompt_completion),
    "alpaca": Format(("instruction", "output"), ("input", "system", "history"), _alpaca),
    "dolly": Format(("instruction", "response"), ("context",), _dolly),
    "flan": Format(("inputs", "targets"), messages=_flan),
    "cot": Format(("question", "answer", "rationale"), messages=_cot, headerless=("question", "answer", "rationale")),
    "oasst_trees": Format(("message_tree_id", "prompt"), nodes=_tree_nodes, tree_per_row=True),
    "oasst_messages": Format(("message_id", "parent_id", "text", "role"), _NODE_FLAGS, nodes=_message_node),
}
"""The formats, in the order in which `recognise` tries them: where two fit, the first one wins."""


def sharegpt_with(turns: Turns) -> Format:
    """The sharegpt format with other keys and names of roles."""
    return replace(FORMATS["sharegpt"], messages=partial(_turn_messages, "conversations", turns))
