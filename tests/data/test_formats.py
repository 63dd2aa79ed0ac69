"""Row formats: the messages that a row gives, how formats are recognised, and what is said of rows that don't fit."""

from __future__ import annotations

from typing import Any

import pytest

from gradsift.data.example import Message
from gradsift.data.formats import FORMATS, fields_of, recognise
from gradsift.errors import DataError


def messages_of(name: str, row: dict[str, Any], columns: dict[str, str] | None = None) -> list[Message]:
    form = FORMATS[name]
    assert form.messages is not None
    return form.messages(fields_of(row, form, columns or {}))


def turns(*texts: str, system: str | None = None) -> list[Message]:
    """Texts of a user and an assistant in turn."""
    opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    return opening + [
        {"role": "user" if index % 2 == 0 else "assistant", "content": text} for index, text in enumerate(texts)
    ]


ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    "prompt_completion": {"prompt": "Hi", "completion": "Ho"},
    "alpaca": {"instruction": "Hi", "output": "Ho"},
    "dolly": {"instruction": "Hi", "response": "Ho"},
    "flan": {"inputs": "Hi", "targets": "Ho"},
    "cot": {"question": "Hi", "answer": "Ho", "rationale": "One greets back."},
    "oasst_trees": {
        "message_tree_id": "a",
        "prompt": {
            "message_id": "a",
            "role": "prompter",
            "text": "Hi",
            "replies": [{"message_id": "b", "role": "assistant", "text": "Ho"}],
        },
    },
    "oasst_messages": {"message_id": "a", "parent_id": None, "text": "Hi", "role": "prompter"},
}
ROW_FORMATS = [name for name, form in FORMATS.items() if form.messages]
REQUIRED = [(name, field) for name, form in FORMATS.items() for field in form.required]


def test_every_format_has_a_row_here() -> None:
    assert set(ROWS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_row_is_recognised_by_its_columns(name: str) -> None:
    assert recognise(ROWS[name]) == name


@pytest.mark.parametrize("name", [name for name in ROW_FORMATS if name != "cot"])
def test_row_gives_question_and_answer(name: str) -> None:
    assert messages_of(name, ROWS[name]) == turns("Hi", "Ho")


@pytest.mark.parametrize(("name", "field"), REQUIRED)
def test_field_is_found_in_the_column_it_is_mapped_to(name: str, field: str) -> None:
    row = {"renamed" if key == field else key: value for key, value in ROWS[name].items()}
    fields = fields_of(row, FORMATS[name], {field: "renamed"})
    assert fields[field] == ROWS[name][field]


@pytest.mark.parametrize(("name", "field"), REQUIRED)
def test_missing_column_is_named_with_those_there(name: str, field: str) -> None:
    row = {key: value for key, value in ROWS[name].items() if key != field} | {"other": 1}
    with pytest.raises(DataError, match=rf"no column '{field}'.*: .*other"):
        fields_of(row, FORMATS[name], {})


def test_missing_mapped_column_is_named_with_its_field() -> None:
    with pytest.raises(DataError, match="no column 'answer' for output; the columns there are: instruction, reply"):
        fields_of({"instruction": "Hi", "reply": "Ho"}, FORMATS["alpaca"], {"output": "answer"})


# Values of the wrong type

TEXT_FIELDS = [
    (name, field)
    for name in ("alpaca", "dolly", "flan", "cot", "prompt_completion")
    for field in (*FORMATS[name].required, *FORMATS[name].optional)
    if field not in ("history", "tools")
]


@pytest.mark.parametrize(("name", "field"), TEXT_FIELDS)
def test_number_in_place_of_text_is_refused(name: str, field: str) -> None:
    with pytest.raises(DataError, match=f"{field} is a number, not text"):
        messages_of(name, ROWS[name] | {field: 3})


@pytest.mark.parametrize(("name", "field"), [pair for pair in TEXT_FIELDS if pair[1] in FORMATS[pair[0]].required])
def test_null_in_a_required_field_is_refused(name: str, field: str) -> None:
    with pytest.raises(DataError, match=f"{field} is null, not text"):
        messages_of(name, ROWS[name] | {field: None})


@pytest.mark.parametrize(("name", "field"), [pair for pair in TEXT_FIELDS if pair[1] in FORMATS[pair[0]].optional])
def test_null_in_an_optional_field_is_as_if_absent(name: str, field: str) -> None:
    assert messages_of(name, ROWS[name] | {field: None}) == messages_of(name, ROWS[name])


@pytest.mark.parametrize("value", ["text", {"role": "user"}, None, 3])
@pytest.mark.parametrize(("name", "field"), [("messages", "messages"), ("sharegpt", "conversations")])
def test_turns_that_are_no_list_are_refused(name: str, field: str, value: object) -> None:
    with pytest.raises(DataError, match=f"{field} is .*, not a list"):
        messages_of(name, {field: value})


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("Hi", r"messages\[0\] is text, not an object"),
        (None, r"messages\[0\] is null, not an object"),
        ({"content": "Hi"}, r"messages\[0\] has no 'role'; it has: content"),
        ({"role": "user"}, r"messages\[0\] has no 'content'; it has: role"),
        ({"role": "user", "content": None}, r"messages\[0\]\.content is null"),
        ({"role": "user", "content": 3}, r"messages\[0\]\.content is a number"),
        ({"role": "wizard", "content": "Hi"}, "role 'wizard'; known roles: .*user"),
        ({"role": 3, "content": "Hi"}, "role 3; known roles"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, "names no function; it has: id"),
        ({"role": "user", "content": "Hi", "tool_calls": [{"name": "f"}]}, "calls a tool, but its role is 'user'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "type 'image_url'; only text"),
        ({"role": "user", "content": ["Hi"]}, "type 'text'; only text|is a part"),
        ({"role": "user", "content": "\ud83d"}, "surrogate"),
    ],
)
def test_turn_that_cannot_be_read_is_described(turn: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        messages_of("messages", {"messages": [turn]})


# messages and sharegpt


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_no_turns_pass_on_as_no_messages(name: str) -> None:
    assert messages_of(name, {FORMATS[name].required[0]: [], "system": "Be kind."}) == []


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("prompter", "user"),
        ("gpt", "assistant"),
        ("assistant", "assistant"),
        ("bot", "assistant"),
        ("chatgpt", "assistant"),
        ("system", "system"),
        ("tool", "tool"),
        ("observation", "tool"),
    ],
)
@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_role_is_normalised(name: str, given: str, role: str) -> None:
    keys = ("role", "content") if name == "messages" else ("from", "value")
    row = {FORMATS[name].required[0]: [dict(zip(keys, (given, "Hi"), strict=True))]}
    assert messages_of(name, row)[0]["role"] == role


@pytest.mark.parametrize("name", ["messages", "sharegpt"])
def test_system_column_opens_the_conversation(name: str) -> None:
    assert messages_of(name, ROWS[name] | {"system": "Be kind."}) == turns("Hi", "Ho", system="Be kind.")


def test_system_turn_goes_before_the_system_column() -> None:
    row = {"conversations": [{"from": "system", "value": "Be brief."}], "system": "Be kind."}
    assert messages_of("sharegpt", row) == [{"role": "system", "content": "Be brief."}]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]
    assert messages_of("messages", {"messages": [{"role": "user", "content": parts}]}) == turns("Hi there")


def test_sharegpt_reads_turns_in_openai_keys() -> None:
    assert messages_of("sharegpt", {"conversations": ROWS["messages"]["messages"]}) == turns("Hi", "Ho")


def test_absent_tool_calls_stored_as_null_are_ignored() -> None:
    turn = {"role": "user", "content": "Hi", "tool_calls": None}
    assert messages_of("messages", {"messages": [turn]}) == turns("Hi")


# The other formats


def test_alpaca_puts_the_input_on_a_line_of_its_own() -> None:
    row = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert messages_of("alpaca", row) == turns("Add.\n1 and 2", "3")


def test_alpaca_history_comes_before_the_instruction() -> None:
    row = {"instruction": "And you?", "output": "Ho", "history": [["Who?", "Me."]]}
    assert messages_of("alpaca", row) == turns("Who?", "Me.", "And you?", "Ho")


def test_alpaca_system_opens_the_conversation() -> None:
    row = ROWS["alpaca"] | {"system": "Be kind.", "history": [["Who?", "Me."]]}
    assert messages_of("alpaca", row) == turns("Who?", "Me.", "Hi", "Ho", system="Be kind.")


@pytest.mark.parametrize(
    ("history", "said"),
    [
        ("Who?", "history is text, not a list"),
        ([["Who?"]], r"history\[0\] has 1 texts"),
        ([[1, "a"]], "is a number"),
    ],
)
def test_alpaca_history_of_another_shape_is_refused(history: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        messages_of("alpaca", ROWS["alpaca"] | {"history": history})


def test_prompt_and_completion_may_be_messages() -> None:
    row = {
        "prompt": [{"role": "user", "content": "Hi"}],
        "completion": [{"role": "assistant", "content": "Ho"}],
    }
    assert messages_of("prompt_completion", row) == turns("Hi", "Ho")


def test_prompt_and_completion_of_two_kinds_are_refused() -> None:
    with pytest.raises(DataError, match="prompt is a list, not text"):
        messages_of("prompt_completion", {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Ho"})


def test_dolly_context_follows_a_blank_line() -> None:
    row = {"instruction": "Who?", "context": "It was me.", "response": "You."}
    assert messages_of("dolly", row) == turns("Who?\n\nIt was me.", "You.")


def test_cot_ends_with_the_answer() -> None:
    row = {"question": r"2 + 2?\nOptions:\n- 4", "answer": "4", "rationale": r"Two,\ntwice."}
    assert messages_of("cot", row) == turns("2 + 2?\nOptions:\n- 4", "Two,\ntwice.\nTherefore, the answer is 4.")


def test_cot_answer_ends_with_one_full_stop() -> None:
    row = {"question": "Who?", "answer": "Me.", "rationale": "I did."}
    assert messages_of("cot", row)[1]["content"].endswith("the answer is Me.")


# Recognition


def test_recognition_of_nothing_lists_the_columns_and_the_formats() -> None:
    with pytest.raises(DataError, match=r"columns there are: text, label; .*\(messages, .*oasst_messages\)"):
        recognise(["text", "label"])


def test_recognition_prefers_the_first_of_two_formats_that_fit() -> None:
    assert recognise(["instruction", "output", "messages"]) == "messages"


def test_recognition_looks_through_renamed_columns() -> None:
    assert recognise(["instruction", "context", "response"], {"input": "context", "output": "response"}) == "alpaca"


def test_recognition_skips_formats_without_a_renamed_field() -> None:
    assert recognise(["instruction", "output", "messages", "extra"], {"input": "extra"}) == "alpaca"


def test_recognition_keeps_to_the_formats_allowed() -> None:
    assert recognise(["instruction", "output", "messages"], among=["alpaca"]) == "alpaca"


@pytest.mark.parametrize("columns", [[f"column{index}" for index in range(50)], ["x" * 5000]])
def test_listed_columns_are_cut_to_a_readable_length(columns: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        recognise(columns)
    assert len(str(caught.value)) < 1000
