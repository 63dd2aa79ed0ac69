"""Message trees, and the conversations that are paths through them."""

from __future__ import annotations

from typing import Any

import pytest

from gradsift.data.formats import FORMATS
from gradsift.data.message_trees import Node, conversations
from gradsift.errors import DataError

ROW: dict[str, Any] = {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"}


# Message trees


def node(name: str, parent: str | None, text: str | None = None, *, language: str = "en", usable: bool = True) -> Node:
    """A message whose role goes by its name: q… asks, a… answers."""
    return Node(name, parent, "user" if name[0] == "q" else "assistant", text or name, language, usable)


def paths(nodes: list[Node], language: str | None = None) -> list[list[str]]:
    return [[message["content"] for message in found.messages] for found in conversations(nodes, language)]


def test_every_leaf_gives_a_conversation_in_the_order_of_the_replies() -> None:
    nodes = [node("q1", None), node("a1", "q1"), node("a2", "q1"), node("q2", "a1"), node("a3", "q2")]
    assert paths(nodes) == [["q1", "a1", "q2", "a3"], ["q1", "a2"]]


def test_conversation_is_named_after_its_last_answer() -> None:
    nodes = [node("q1", None), node("a1", "q1"), node("q2", "a1")]
    assert [found.id for found in conversations(nodes)] == ["a1"]


def test_path_that_ends_in_a_question_is_cut_back() -> None:
    assert paths([node("q1", None), node("a1", "q1"), node("q2", "a1")]) == [["q1", "a1"]]


def test_paths_that_are_cut_to_the_same_come_once() -> None:
    nodes = [node("q1", None), node("a1", "q1"), node("q2", "a1"), node("q3", "a1")]
    assert paths(nodes) == [["q1", "a1"]]


def test_tree_without_an_answer_gives_nothing() -> None:
    assert paths([node("q1", None)]) == []


def test_unusable_message_goes_with_everything_below_it() -> None:
    nodes = [
        node("q1", None),
        node("a1", "q1", usable=False),
        node("q2", "a1"),
        node("a2", "q2"),
        node("a3", "q1"),
    ]
    assert paths(nodes) == [["q1", "a3"]]


def test_message_whose_parent_is_absent_is_left_out() -> None:
    assert paths([node("q1", None), node("a1", "q1"), node("a2", "gone")]) == [["q1", "a1"]]


def test_replies_may_stand_before_what_they_reply_to() -> None:
    assert paths([node("a1", "q1"), node("q1", None)]) == [["q1", "a1"]]


def test_language_has_to_be_that_of_every_message() -> None:
    nodes = [node("q1", None), node("a1", "q1"), node("a2", "q1", language="de")]
    assert paths(nodes, "en") == [["q1", "a1"]]


def test_language_of_a_question_that_is_cut_off_does_not_count() -> None:
    assert paths([node("q1", None), node("a1", "q1"), node("q2", "a1", language="de")], "en") == [["q1", "a1"]]


def test_message_id_that_stands_twice_is_refused() -> None:
    with pytest.raises(DataError, match="'a1' stands twice"):
        paths([node("q1", None), node("a1", "q1"), node("a1", "q1")])


def test_deep_tree_needs_no_deep_stack() -> None:
    chain: dict[str, Any] = {"message_id": "a1999", "role": "assistant", "text": "end"}
    for index in reversed(range(1999)):
        chain = {"message_id": str(index), "role": "prompter", "text": "on", "replies": [chain]}
    to_nodes = FORMATS["oasst_trees"].nodes
    assert to_nodes is not None
    assert len(to_nodes({"message_tree_id": "0", "prompt": chain})) == 2000


@pytest.mark.parametrize(
    ("flag", "usable"),
    [
        ({"deleted": True}, False),
        ({"synthetic": True}, False),
        ({"review_result": False}, False),
        ({"deleted": "True"}, False),
        ({"review_result": None}, True),
        ({"deleted": "", "synthetic": "false", "review_result": "true"}, True),
        ({}, True),
    ],
)
def test_message_is_usable_unless_it_says_otherwise(flag: dict[str, object], usable: bool) -> None:
    to_nodes = FORMATS["oasst_messages"].nodes
    assert to_nodes is not None
    assert to_nodes(ROW | flag)[0].usable is usable


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"role": "wizard"}, "role 'wizard' is neither prompter nor assistant"),
        ({"text": None}, "text is null"),
        ({"deleted": 3}, "deleted is a number, not true or false"),
    ],
)
def test_message_that_cannot_be_read_is_described(changed: dict[str, object], said: str) -> None:
    to_nodes = FORMATS["oasst_messages"].nodes
    assert to_nodes is not None
    with pytest.raises(DataError, match=said):
        to_nodes(ROW | changed)


def test_tree_without_a_message_text_is_described() -> None:
    to_nodes = FORMATS["oasst_trees"].nodes
    assert to_nodes is not None
    with pytest.raises(DataError, match="a message has no 'text'; it has: message_id, role"):
        to_nodes({"message_tree_id": "a", "prompt": {"message_id": "a", "role": "prompter"}})
