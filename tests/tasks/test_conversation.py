"""Users' own conversations as questions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradsift.data.example import Example, Message
from gradsift.errors import DataError
from gradsift.tasks.conversation import OWN_PROTOCOLS, held_out_questions

SOMEWHERE = Path("held_out.jsonl")


def turns(*texts: str) -> list[Message]:
    return [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 3, texts, strict=False)]


def test_question_is_the_conversation_up_to_the_last_assistant_turn() -> None:
    example = Example("x", turns("Hi.", "Hello.", "1 + 1?", "2", "Thanks."), "own", subtask="sums")
    (question,) = held_out_questions([example], "own", SOMEWHERE)
    assert question.messages(0) == turns("Hi.", "Hello.", "1 + 1?")
    assert (question.completion, question.answers, question.subtask) == ("2", ("2",), "sums")


def test_an_example_without_a_subtask_is_of_the_target() -> None:
    (question,) = held_out_questions([Example("x", turns("1?", "1"), "own")], "own", SOMEWHERE)
    assert question.subtask == "own"


def test_a_conversation_that_the_assistant_opens_has_no_user_turn() -> None:
    messages: list[Message] = [{"role": "system", "content": "Greet."}, {"role": "assistant", "content": "Hello."}]
    (question,) = held_out_questions([Example("x", messages, "own")], "own", SOMEWHERE)
    assert question.messages(0) == messages[:1]


def test_reading_leaves_the_example_as_it_is() -> None:
    example = Example("x", turns("1?", "1"), "own")
    held_out_questions([example], "own", SOMEWHERE)
    assert example.messages == turns("1?", "1")


def test_an_example_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="'x' has no assistant turn"):
        held_out_questions([Example("x", turns("1?"), "own")], "own", SOMEWHERE)


def test_f1_comes_first_where_it_is_the_metric() -> None:
    (question,) = held_out_questions([Example("x", turns("Where?", "In Lima."), "own")], "own", SOMEWHERE)
    judge = OWN_PROTOCOLS["f1"].judge
    assert judge is not None
    assert judge(question, "lima") == {"f1": pytest.approx(2 / 3), "exact_match": 0.0}
