"""Which tokens are supervised, under every kind of template."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from templates import MARKED, UNMARKED
from tokenizers import processors

from gradsift.data.example import Example, Message
from gradsift.encoding import tokenization
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig, SetAside
from gradsift.encoding.masks import IGNORED
from gradsift.model.loading import ModelConfig, load_tokenizer


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder)))


def chat(*texts: str) -> list[Message]:
    return [Message(role="user" if index % 2 == 0 else "assistant", content=text) for index, text in enumerate(texts)]


def supervised(tokenizer: Any, config: EncodingConfig, messages: list[Message]) -> str:
    """The supervised text of a conversation."""
    row = Encoder(tokenizer, config).encode([Example("x", messages, "pool")])[0]
    assert isinstance(row, EncodedRow)
    assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))
    return str(tokenizer.decode(row.labels[row.labels != IGNORED]))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("tulu", "Paris.</s>\nLyon.</s>\n"),
        ("chatml", "Paris.<|im_end|>Lyon.<|im_end|>"),
        (MARKED, "Paris.</s>Lyon.</s>"),
        (UNMARKED, "Paris.</s>Lyon.</s>"),
    ],
    ids=["tulu", "chatml", "marked", "by prefix"],
)
def test_every_assistant_turn_and_its_end_mark_are_supervised(
    tokenizer: Any, tmp_path: Path, template: str, expected: str
) -> None:
    if template.startswith("{{"):
        path = tmp_path / "chat.jinja"
        path.write_text(template)
        template = str(path)
    messages = chat("Which city?", "Paris.", "And then?", "Lyon.")
    assert supervised(tokenizer, EncodingConfig(template=template), messages) == expected


def test_repeated_answers_are_all_supervised(tokenizer: Any) -> None:
    messages = chat("Say yes", "yes", "yes", "yes")
    assert supervised(tokenizer, EncodingConfig(template="tulu"), messages) == "yes</s>\nyes</s>\n"


def test_rows_are_cut_on_the_right(tokenizer: Any) -> None:
    example = Example("x", chat("Hi", "a long answer " * 20), "pool")
    whole = Encoder(tokenizer, EncodingConfig(template="tulu")).encode([example])[0]
    cut = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=40)).encode([example])[0]
    assert isinstance(whole, EncodedRow)
    assert isinstance(cut, EncodedRow)
    assert list(cut.input_ids) == list(whole.input_ids[:40])
    assert list(cut.labels) == list(whole.labels[:40])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (chat("Hi", "", "Still?", "  "), "every assistant text is empty"),
        (chat("Hi"), "no assistant turn"),
        ([], "no assistant turn"),
        (chat("a long question " * 30, "yes"), "no assistant text within 32 tokens"),
    ],
)
def test_rows_without_a_supervised_token_are_set_aside(tokenizer: Any, messages: list[Message], reason: str) -> None:
    results = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=32)).encode([Example("x", messages, "p")])
    assert isinstance(results[0], SetAside)
    assert results[0].reason.startswith(reason)


@pytest.mark.parametrize("answer", ["yes", "a long answer " * 30], ids=["short answer", "long answer"])
def test_a_kept_answer_costs_the_beginning(tokenizer: Any, answer: str) -> None:
    example = Example("x", chat("a long question " * 30, answer), "p")
    encoder = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=32))
    whole = Encoder(tokenizer, EncodingConfig(template="tulu")).encode([example])[0]
    (row,) = encoder.encode([example], keep_answers=True)
    assert isinstance(whole, EncodedRow)
    assert isinstance(row, EncodedRow)
    assert (row.num_tokens, row.lost_beginning, row.input_ids[0]) == (32, True, tokenizer.bos_token_id)
    supervised = whole.input_ids[whole.labels != IGNORED]
    kept = row.labels[row.labels != IGNORED]
    assert list(kept) == list(supervised[: len(kept)])
    assert len(kept) == min(len(supervised), 30)  # besides the first token and one of the prompt
    tail = list(row.input_ids[1 : 32 - len(kept)])
    end = list(whole.labels).index(supervised[0])
    assert tail == list(whole.input_ids[end - len(tail) : end])


def test_a_row_that_fits_is_the_same_with_kept_answers(tokenizer: Any) -> None:
    example = Example("x", chat("Hi", "a long answer " * 20), "p")
    encoder = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=40))
    (row,), (kept,) = encoder.encode([example]), encoder.encode([example], keep_answers=True)
    assert isinstance(row, EncodedRow)
    assert isinstance(kept, EncodedRow)
    assert (list(kept.input_ids), list(kept.labels), kept.lost_beginning) == (
        list(row.input_ids),
        list(row.labels),
        False,
    )


def test_an_answer_without_room_is_set_aside(tokenizer: Any) -> None:
    example = Example("x", chat("a long question", "yes"), "p")
    (row,) = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=2)).encode([example], keep_answers=True)
    assert isinstance(row, SetAside)


def test_set_aside_rows_keep_the_order_of_the_others(tokenizer: Any) -> None:
    examples = [Example(str(index), chat("Hi", answer), "p") for index, answer in enumerate(["one", "", "three"])]
    results = Encoder(tokenizer, EncodingConfig(template="tulu")).encode(examples)
    assert [(result.id, type(result)) for result in results] == [
        ("0", EncodedRow),
        ("1", SetAside),
        ("2", EncodedRow),
    ]


def test_prefill_is_given_and_no_end_mark_is_learned(tokenizer: Any) -> None:
    example = Example("x", chat("Which?", " B"), "target", prefill="The answer is:")
    encoder = Encoder(tokenizer, EncodingConfig(template="tulu"))
    row = encoder.encode([example])[0]
    assert isinstance(row, EncodedRow)
    assert tokenizer.decode(row.labels[row.labels != IGNORED]) == " B"
    assert encoder.prompt_and_completion(example) == ("<|user|>\nWhich?\n<|assistant|>\nThe answer is:", " B")


def test_the_meaning_says_which_turns_are_learned_where_not_all_are(tokenizer: Any) -> None:
    meanings = [Encoder(tokenizer, EncodingConfig(supervise=turns)).meaning() for turns in ("all", "last")]
    assert meanings[1] == {**meanings[0], "supervise": "last"}  # so that stores from before the key say the same


def test_tokens_of_spaces_are_learned_under_a_tokenizer_that_trims_offsets(tokenizer: Any) -> None:
    code = "def f(a):\n    b = a\n    if b:\n        return b\n"
    example = Example("x", chat("Write it.", code), "pool")
    rows, meanings = [], []
    for trims in (False, True):
        with_spaces = copy.deepcopy(tokenizer)
        backend = with_spaces.backend_tokenizer
        backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trims), backend.post_processor])
        encoder = Encoder(with_spaces, EncodingConfig(template="chatml"))
        rows += encoder.encode([example])
        meanings.append(encoder.meaning())
    assert all(isinstance(row, EncodedRow) for row in rows)
    assert rows[1].labels.tolist() == rows[0].labels.tolist()
    assert tokenizer.decode(rows[1].labels[rows[1].labels != IGNORED]) == code + "<|im_end|>"
    assert meanings[0]["tokenizer"] != meanings[1]["tokenizer"]


@pytest.mark.parametrize("keep_answers", [False, True])
@pytest.mark.parametrize("long", ["question", "answer"])
def test_a_long_row_is_what_it_would_be_if_all_of_it_were_tokenized(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, long: str, keep_answers: bool
) -> None:
    texts = {"question": "What is it?", "answer": "It is one."} | {long: "One day, she went to the park. " * 900}
    example = Example("x", chat(*texts.values()), "p")
    encoder = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=64))
    (whole,) = encoder.encode([example], keep_answers)
    monkeypatch.setattr(tokenization, "SHORT", 1000)
    tokenized: list[int] = []
    monkeypatch.setattr(
        tokenization.Tokenization,
        "_tokens",
        lambda self, group, original=tokenization.Tokenization._tokens: (
            tokenized.extend(map(len, group)) or original(self, group)
        ),
    )
    (part,) = encoder.encode([example], keep_answers)
    assert max(tokenized) < 10_000
    if isinstance(whole, SetAside):
        assert part == whole
        assert (long, keep_answers) == ("question", False)
    else:
        assert isinstance(part, EncodedRow)
        assert part.input_ids.tolist() == whole.input_ids.tolist()
        assert part.labels.tolist() == whole.labels.tolist()
        assert part.lost_beginning == whole.lost_beginning


def test_a_text_that_can_be_neither_cut_nor_tokenized_is_set_aside(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "MAX_WHOLE", 120_000)
    encoder = Encoder(tokenizer, EncodingConfig(template="tulu", max_length=64))
    examples = [Example("x", chat("Hi", "z" * 130_000), "p"), Example("y", chat("Hi", "Ho"), "p")]
    for keep_answers in (False, True):
        long, short = encoder.encode(examples, keep_answers)
        assert isinstance(long, SetAside)
        assert "have no place where they can be cut" in long.reason
        assert isinstance(short, EncodedRow)
