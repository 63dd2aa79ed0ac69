"""Chat templates: which are used, which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradsift.data.example import Example, Message
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.errors import TemplateError
from gradsift.model.loading import ModelConfig, load_tokenizer

MARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
UNMARKED = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))


def chat(*texts: str) -> list[Message]:
    return [Message(role="user" if index % 2 == 0 else "assistant", content=text) for index, text in enumerate(texts)]


@pytest.mark.parametrize("own", [MARKED, UNMARKED], ids=["marked", "by prefix"])
def test_auto_takes_the_tokenizers_template_without_a_second_bos(tokenizer: Any, own: str) -> None:
    tokenizer.chat_template = own
    row = Encoder(tokenizer, EncodingConfig()).encode([Example("x", chat("Hi", "Hello"), "pool")])[0]
    assert isinstance(row, EncodedRow)
    assert list(row.input_ids).count(tokenizer.bos_token_id) == 1


def test_auto_without_a_template_is_tulu(tokenizer: Any) -> None:
    assert Encoder(tokenizer, EncodingConfig()).meaning()["template"].startswith("tulu:")


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages[-1:] %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{% generation %}{% endgeneration %}{{ m.content }}{% endfor %}",
    ],
    ids=["no prefix", "last turn only", "no answers", "empty marks"],
)
def test_template_that_cannot_be_masked_is_refused(tokenizer: Any, tmp_path: Path, template: str) -> None:
    path = tmp_path / "bad.jinja"
    path.write_text(template)
    encoder = Encoder(tokenizer, EncodingConfig(template=str(path)))
    with pytest.raises(TemplateError, match=r"bad\.jinja can't be masked"):
        encoder.encode([Example("x", chat("One?", "Two.", "Three?", "Four."), "pool")])


def test_template_that_is_not_jinja_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("{% for m in messages %}")
    with pytest.raises(TemplateError, match="not valid Jinja"):
        Encoder(tokenizer, EncodingConfig(template=str(path))).encode([Example("x", chat("Hi", "Ho"), "pool")])


def test_conversation_that_the_template_refuses_is_set_aside_with_its_reason(tokenizer: Any) -> None:
    messages = [*chat("Hi", "Ho"), Message(role="tool", content="42")]
    result = Encoder(tokenizer, EncodingConfig(template="tulu")).encode([Example("x", messages, "pool")])[0]
    assert isinstance(result, SetAside)
    assert "Tulu has no role tool" in result.reason


def test_unknown_template_names_the_nearest(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="'chatml'"):
        Encoder(tokenizer, EncodingConfig(template="chatlm"))
