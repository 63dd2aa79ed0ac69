"""Chat templates: which are used, what is learned under them, which rows and which templates are refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from templates import MARKED, UNMARKED

from gradsift.data.example import Example, Message
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.masks import IGNORED
from gradsift.encoding.refusals import mostly_shown
from gradsift.errors import TemplateError
from gradsift.model.loading import ModelConfig, load_tokenizer

DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}[system] Help.{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}%OPEN%"
    "{% set parts = m.content.split('</think>') %}"
    "{% if parts | length > 1 and loop.index0 > ns.last %}{{ parts[0].strip() }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].strip() }}{{ eos_token }}%CLOSE%{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
MARKED_THINKING = THINKING.replace("%OPEN%", "{% generation %}").replace("%CLOSE%", "{% endgeneration %}")
UNMARKED_THINKING = THINKING.replace("%OPEN%", "").replace("%CLOSE%", "")
LAST_MARKED_ALONE = (
    "{% for m in messages %}[{{ m.role }}]{% if loop.last %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
SYSTEM_IN_LAST_USER_TURN = (
    "{% set users = messages | selectattr('role', 'equalto', 'user') | list %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{% if m == users[-1] and messages[0].role == 'system' %}{{ messages[0].content }} "
    "{% endif %}{{ m.content }}[/INST]{% elif m.role == 'assistant' %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
REASONED = "<think>I count.</think> Two."
AGAIN = "<think> Again. </think> Three."


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))


def chat(*texts: str) -> list[Message]:
    return [Message(role="user" if index % 2 == 0 else "assistant", content=text) for index, text in enumerate(texts)]


def encoded(tokenizer: Any, folder: Path, jinja: str, messages: list[Message], **config: Any) -> EncodedRow | SetAside:
    path = folder / "own.jinja"
    path.write_text(jinja)
    encoder = Encoder(tokenizer, EncodingConfig(template=str(path), **config))
    return encoder.encode([Example("x", messages, "pool")])[0]


def learned(tokenizer: Any, folder: Path, jinja: str, messages: list[Message], **config: Any) -> str:
    """The supervised text of a conversation."""
    row = encoded(tokenizer, folder, jinja, messages, **config)
    assert isinstance(row, EncodedRow), row
    return str(tokenizer.decode(row.labels[row.labels != IGNORED]))


def aside(tokenizer: Any, folder: Path, jinja: str, messages: list[Message], **config: Any) -> SetAside:
    result = encoded(tokenizer, folder, jinja, messages, **config)
    assert isinstance(result, SetAside)
    return result


# Which template


@pytest.mark.parametrize("own", [MARKED, UNMARKED], ids=["marked", "by prefix"])
def test_auto_takes_the_tokenizers_template_without_a_second_bos(tokenizer: Any, own: str) -> None:
    tokenizer.chat_template = own
    row = Encoder(tokenizer, EncodingConfig()).encode([Example("x", chat("Hi", "Hello"), "pool")])[0]
    assert isinstance(row, EncodedRow)
    assert list(row.input_ids).count(tokenizer.bos_token_id) == 1


def test_auto_without_a_template_is_tulu(tokenizer: Any) -> None:
    assert Encoder(tokenizer, EncodingConfig()).meaning()["template"].startswith("tulu:")


def test_of_several_templates_the_default_is_taken_and_for_tools_the_one_for_them(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": MARKED, "tool_use": MARKED.replace("[", "{{ tools[0].function.name }}[")}
    encoder = Encoder(tokenizer, EncodingConfig())
    tools: Any = [{"type": "function", "function": {"name": "clock"}}]
    texts = [encoder.render(Example("x", chat("Hi", "Ho"), "pool", tools=given)) for given in ([], tools)]
    assert [text[0] for text in texts if not isinstance(text, SetAside)] == [
        "<s>[user] Hi[assistant] Ho</s>",
        "<s>clock[user] Hiclock[assistant] Ho</s>",
    ]


@pytest.mark.parametrize("template", [5, {"a": MARKED}, {"default": 5}], ids=["number", "no default", "no text"])
def test_a_tokenizers_template_of_another_kind_is_refused(tokenizer: Any, template: object) -> None:
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=r"the tokenizer's chat_template .*encoding\.template"):
        Encoder(tokenizer, EncodingConfig())


def test_a_file_that_is_not_utf_8_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "latin.jinja").write_bytes(b"caf\xe9 {{ messages }}")
    with pytest.raises(TemplateError, match=r"latin\.jinja is not text in UTF-8 \(byte 3\)"):
        Encoder(tokenizer, EncodingConfig(template=str(tmp_path / "latin.jinja")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{folder}", "is a folder"),
        ("{folder}/x", "there is no file"),
        ("x" * 5000, "can't be read"),
        ("~nobody9/x", "can't be read"),
    ],
)
def test_what_is_no_file_is_refused(tokenizer: Any, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        Encoder(tokenizer, EncodingConfig(template=name.format(folder=tmp_path)))


def test_template_that_is_not_jinja_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}")
    with pytest.raises(TemplateError, match="not valid Jinja"):
        Encoder(tokenizer, EncodingConfig(template=str(path))).encode([Example("x", chat("Hi", "Ho"), "pool")])


def test_unknown_template_names_the_nearest(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="'chatml'"):
        Encoder(tokenizer, EncodingConfig(template="chatlm"))


def test_a_template_that_asks_the_clock_is_known_by_what_the_clock_shows(tokenizer: Any, tmp_path: Path) -> None:
    own, dated = tmp_path / "a" / "t.jinja", tmp_path / "b" / "t.jinja"
    for path, more in ((own, ""), (dated, "{{ strftime_now('%Y') }}")):
        path.parent.mkdir()
        path.write_text(MARKED + more)
    names = [Encoder(tokenizer, EncodingConfig(template=str(path))).template.identity for path in (own, dated)]
    assert names[0] != names[1]
    assert Encoder(tokenizer, EncodingConfig(template=str(dated))).encode([Example("x", chat("Hi", "Ho"), "p")])


# What is learned: marks


def test_marks_say_what_is_learned_where_reasoning_is_dropped(tokenizer: Any, tmp_path: Path) -> None:
    messages = chat("How many?", REASONED, "And then?", AGAIN)
    text = learned(tokenizer, tmp_path, MARKED_THINKING, messages)
    assert text == "Two.</s><think> Again.\n</think>\n\nThree.</s>"


def test_a_template_that_marks_the_last_turn_alone_is_believed(tokenizer: Any, tmp_path: Path) -> None:
    assert learned(tokenizer, tmp_path, LAST_MARKED_ALONE, chat("Hi", "Ho", "And?", "Ha")) == "Ha</s>"


@pytest.mark.parametrize("jinja", [MARKED, UNMARKED, MARKED_THINKING], ids=["marked", "by prefix", "thinking"])
def test_a_turn_that_is_marked_as_given_is_not_learned(tokenizer: Any, tmp_path: Path, jinja: str) -> None:
    messages = chat("Which?", "yes", "Sure?", "yes", "Really?", "yes, yes")
    messages[1]["learned"] = False
    messages[5]["learned"] = False
    assert learned(tokenizer, tmp_path, jinja, messages) == "yes</s>"


@pytest.mark.parametrize("jinja", [MARKED, UNMARKED, MARKED_THINKING, UNMARKED_THINKING, SYSTEM_IN_LAST_USER_TURN])
def test_the_last_turn_alone_is_learned_where_the_config_says_so(tokenizer: Any, tmp_path: Path, jinja: str) -> None:
    messages = [Message(role="system", content="Brief."), *chat("Which?", "Paris.", "And?", "Lyon.")]
    assert learned(tokenizer, tmp_path, jinja, messages, supervise="last") == "Lyon.</s>"


def test_an_end_mark_that_is_marked_by_itself_goes_with_its_turn(tokenizer: Any, tmp_path: Path) -> None:
    apart = MARKED.replace("m.content + eos_token }}", "m.content }}{% endgeneration %}{% generation %}{{ eos_token }}")
    messages = chat("Which?", "Paris.", "And?", "Lyon.")
    assert learned(tokenizer, tmp_path, apart, messages, supervise="last") == "Lyon.</s>"


def test_marks_that_hold_two_turns_are_refused_where_one_is_learned(tokenizer: Any, tmp_path: Path) -> None:
    merged = "{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}"
    messages = chat("Hi", "Ho", "And?", "Ha")
    assert learned(tokenizer, tmp_path, merged, messages) == "HiHoAnd?Ha"
    assert "told apart by turn" in aside(tokenizer, tmp_path, merged, messages, supervise="last").reason


@pytest.mark.parametrize(
    ("learned_turns", "supervise", "said"),
    [((), "all", "no assistant turn is to be learned"), ((1,), "last", "the last assistant turn isn't to be learned")],
)
def test_a_row_with_nothing_to_learn_is_set_aside(
    tokenizer: Any, tmp_path: Path, learned_turns: tuple[int, ...], supervise: str, said: str
) -> None:
    messages = chat("Hi", "Ho", "And?", "Ha")
    for turn in (1, 3):
        messages[turn]["learned"] = turn in learned_turns
    result = aside(tokenizer, tmp_path, MARKED, messages, supervise=supervise)
    assert result.reason.startswith(said)
    assert not result.by_template


def test_the_learned_mark_is_not_shown_to_the_template(tokenizer: Any, tmp_path: Path) -> None:
    messages: list[Message] = [{**message, "learned": True} for message in chat("Hi", "Ho")]
    jinja = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    assert "learned" not in learned(tokenizer, tmp_path, jinja, messages)


def test_reasoning_is_handed_over_under_the_names_that_templates_know(tokenizer: Any, tmp_path: Path) -> None:
    messages: list[Message] = [*chat("Hi"), {"role": "assistant", "content": "Ho", "reasoning_content": "Well"}]
    jinja = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ m.reasoning_content }},{{ m.thinking }},"
        "{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert learned(tokenizer, tmp_path, jinja, messages) == "Well,Well,Ho"


# What is learned: by prefix


def test_white_space_laid_out_anew_is_no_other_text(tokenizer: Any, tmp_path: Path) -> None:
    text = learned(tokenizer, tmp_path, UNMARKED_THINKING, chat("How many?", REASONED))
    assert text == "<think>I count.\n</think>\n\nTwo.</s>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% generation %}{% endgeneration %}{{ m.content }}{% endfor %}",
        SYSTEM_IN_LAST_USER_TURN,
    ],
    ids=["no prefix", "last turn only", "no answers", "empty marks", "moving system text"],
)
def test_row_that_a_template_cannot_be_masked_for_is_set_aside(tokenizer: Any, tmp_path: Path, template: str) -> None:
    messages = [Message(role="system", content="Brief."), *chat("One?", "Two.", "Three?", "Four.")]
    result = aside(tokenizer, tmp_path, template, messages)
    assert result.reason.startswith("the template can't be masked for it: ")
    assert result.by_template


def test_no_empty_conversation_is_rendered_where_the_assistant_begins(tokenizer: Any, tmp_path: Path) -> None:
    messages = [Message(role="assistant", content="Hello."), *chat("Who are you?", "Me.")]
    text = learned(tokenizer, tmp_path, DEFAULT_SYSTEM, messages)
    assert text == "Hello.</s>Me.</s>"
    encoder = Encoder(tokenizer, EncodingConfig(template=str(tmp_path / "own.jinja")))
    assert encoder.template.prompt([]) == "[system] Help.[assistant]"


@pytest.mark.parametrize("template", ["tulu", "chatml"])
def test_the_opening_of_a_conversation_is_what_the_template_gives_for_none(tokenizer: Any, template: str) -> None:
    opened = Encoder(tokenizer, EncodingConfig(template=template)).template
    assert opened.prompt([]) == opened._render([], (), add_generation_prompt=True).text


# What goes on, what doesn't


def test_conversation_that_the_template_refuses_is_set_aside_with_its_reason(tokenizer: Any) -> None:
    messages = [*chat("Hi", "Ho"), Message(role="tool", content="42")]
    result = Encoder(tokenizer, EncodingConfig(template="tulu")).encode([Example("x", messages, "pool")])[0]
    assert isinstance(result, SetAside)
    assert "Tulu has no role tool" in result.reason


def test_the_run_is_refused_where_most_rows_are(tokenizer: Any) -> None:
    refused = SetAside("bad", "pool", 0, "the template refuses it: no", by_template=True)
    other = SetAside("empty", "pool", 1, "every assistant text is empty")
    assert list(mostly_shown([refused, other], "own")) == [refused, other]
    with pytest.raises(TemplateError, match=r"template own can't show 2 of 3 rows; the first, pool/bad: the"):
        list(mostly_shown([refused, other, refused], "own"))


@pytest.mark.parametrize(("jinja", "warned"), [(MARKED.replace(" + eos_token", ""), 1), (MARKED, 0), (UNMARKED, 0)])
def test_marks_without_an_end_mark_are_warned_of_once(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, jinja: str, warned: int
) -> None:
    (tmp_path / "own.jinja").write_text(jinja)
    encoder = Encoder(tokenizer, EncodingConfig(template=str(tmp_path / "own.jinja")))
    with caplog.at_level(logging.WARNING):
        encoder.encode([Example(str(index), chat("Hi", "Ho"), "pool") for index in range(3)])
    assert [record.getMessage() for record in caplog.records if "no end mark is supervised" in record.getMessage()] == [
        record.getMessage() for record in caplog.records
    ]
    assert len(caplog.records) == warned


# What is saved


@pytest.mark.parametrize("template", ["tulu", "chatml"])
def test_a_saved_built_in_template_renders_the_same_without_tags(tokenizer: Any, tmp_path: Path, template: str) -> None:
    encoder = Encoder(tokenizer, EncodingConfig(template=template))
    encoder.save_tokenizer(tmp_path)
    saved = load_tokenizer(ModelConfig(name_or_path=str(tmp_path)))
    assert "generation %}" not in saved.chat_template
    messages = chat("Hi", " Ho ", "And?", "Ha")
    outcome = encoder.render(Example("x", messages, "pool"))
    assert not isinstance(outcome, SetAside)
    assert saved.apply_chat_template(messages, tokenize=False) == "<s>" + outcome[0]


def test_a_users_template_is_saved_as_it_stands(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.chat_template = MARKED + "{{ strftime_now('%Y') }}"
    Encoder(tokenizer, EncodingConfig()).save_tokenizer(tmp_path / "saved")
    assert load_tokenizer(ModelConfig(name_or_path=str(tmp_path / "saved"))).chat_template == tokenizer.chat_template
