"""Message trees (OpenAssistant): the messages that a row gives, and the conversations that are paths through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradsift.data.example import Message
from gradsift.data.turns import ROLES
from gradsift.data.values import Fields, checked_list, flag_of, kind_of, listed, name_of, text_of
from gradsift.errors import DataError


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


def _node(fields: Fields, parent: Any) -> Node:
    """A message; only what says itself to be deleted, synthetic or rejected is unusable."""
    for name in ("message_id", "role", "text"):
        if name not in fields:
            raise DataError(f"a message has no {name!r}; it has: {listed(fields)}")
    role = ROLES.get(text_of(fields, "role"))
    if role not in ("user", "assistant"):
        raise DataError(f"the role {fields['role']!r} is neither prompter nor assistant")
    return Node(
        id=name_of(fields["message_id"], "message_id"),
        parent=name_of(parent, "parent_id") if parent else None,
        role=role,
        text=text_of(fields, "text"),
        language=fields.get("lang"),
        usable=not flag_of(fields, "deleted")
        and not flag_of(fields, "synthetic")
        and flag_of(fields, "review_result") is not False,
    )


def message_node(fields: Fields) -> list[Node]:
    """The message in a row."""
    return [_node(fields, fields["parent_id"])]


def tree_nodes(fields: Fields) -> list[Node]:
    """The messages nested in a tree, parents before their replies."""
    nodes: list[Node] = []
    waiting: list[tuple[Any, str | None]] = [(fields["prompt"], None)]
    while waiting:
        message, parent = waiting.pop()
        if not isinstance(message, dict):
            raise DataError(f"a message of the tree is {kind_of(message)}, not an object")
        nodes.append(_node(message, parent))
        replies = checked_list(message.get("replies") or [], "replies")
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


NODE_FLAGS = ("lang", "deleted", "synthetic", "review_result")
