"""Prompts that fit the model's context: which shots they keep, and what is cut when none is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradsift.data.example import Example, Message
from gradsift.encoding.encoder import EncodedRow, Encoder, EncodingConfig
from gradsift.encoding.masks import IGNORED
from gradsift.errors import DataError
from gradsift.evaluation.fitting import PromptFitter
from gradsift.tasks.conversation import held_out_questions
from gradsift.tasks.question import Question

CONTEXT = 128


def question(text: str = "What is it?", **fields: Any) -> Question:
    defaults: dict[str, Any] = {
        "id": "q",
        "subtask": "s",
        "heading": "Answer.\n",
        "shots": tuple(f"Shot {index} is about the park.\n" for index in range(3)),
        "question": text,
        "prefill": "The answer is:",
        "answers": ("a",),
    }
    return Question(**{**defaults, **fields})


@pytest.fixture
def fitter(tiny_encoder: Encoder) -> PromptFitter:
    return PromptFitter(tiny_encoder, CONTEXT, num_shots=3)


def test_a_prompt_that_fits_keeps_its_shots(fitter: PromptFitter, tiny_encoder: Encoder) -> None:
    fitted = fitter.prompt(question(), num_new_tokens=8)
    assert fitted.prompt == (
        "<|user|>\nAnswer.\nShot 0 is about the park.\nShot 1 is about the park.\nShot 2 is about the park.\n"
        "What is it?\n<|assistant|>\nThe answer is:"
    )
    assert fitted.input_ids == tiny_encoder.tokenizer(fitted.prompt)["input_ids"]
    assert (fitted.num_shots, fitted.cut, fitted.num_completion) == (3, False, 0)


@pytest.mark.parametrize("num_new_tokens", [8, 60, 75])
def test_a_prompt_that_is_too_long_loses_its_last_shots(fitter: PromptFitter, num_new_tokens: int) -> None:
    fitted = fitter.prompt(question(), num_new_tokens)
    assert len(fitted.input_ids) + num_new_tokens <= CONTEXT
    assert not fitted.cut
    assert f"Shot {fitted.num_shots}" not in fitted.prompt
    assert all(f"Shot {index}" in fitted.prompt for index in range(fitted.num_shots))


def test_shots_are_lost_by_the_long_question_alone(fitter: PromptFitter) -> None:
    long = question("Tell me about the little girl. " * 3)
    assert [fitter.prompt(item, 8).num_shots for item in (question(), long, question())] == [3, 0, 3]


def test_without_a_shot_left_the_beginning_is_cut_and_the_special_tokens_stay(
    fitter: PromptFitter, tiny_encoder: Encoder
) -> None:
    fitted = fitter.prompt(question("word " * 200), num_new_tokens=8)
    assert (len(fitted.input_ids), fitted.num_shots, fitted.cut) == (CONTEXT - 8, 0, True)
    assert fitted.input_ids[0] == tiny_encoder.tokenizer.bos_token_id
    assert fitted.prompt.endswith("word\n<|assistant|>\nThe answer is:")
    assert tiny_encoder.tokenizer.decode(fitted.input_ids[1:]) == fitted.prompt


def test_completions_come_after_the_same_shots(fitter: PromptFitter) -> None:
    short, long = fitter.completed(question(), [" Lily", " a little girl named Lily who likes to play in the park"])
    assert (short.num_shots, short.prompt) == (long.num_shots, long.prompt)
    assert short.num_shots < 3


def test_completion_tokens_are_those_after_the_prompts(fitter: PromptFitter, tiny_encoder: Encoder) -> None:
    (row,) = fitter.completed(question(), [" Lily"])
    assert row.prompt_ids == tiny_encoder.tokenizer(row.prompt)["input_ids"]
    assert tiny_encoder.tokenizer.decode(row.input_ids[-row.num_completion :]) == " Lily"


def test_a_completion_longer_than_the_context_loses_its_end(fitter: PromptFitter, tiny_encoder: Encoder) -> None:
    (row,) = fitter.completed(question(), [" one two" * 100])
    assert (len(row.input_ids), row.cut) == (CONTEXT, True)
    assert row.num_completion == CONTEXT - 2  # the special token and one of the prompt's stay
    assert tiny_encoder.tokenizer.decode(row.input_ids[-row.num_completion :]).startswith(" one two")


def supervised(row: EncodedRow) -> list[int]:
    return [int(token) for token in row.labels if token != IGNORED]


@pytest.mark.parametrize("template", ["tulu", "chatml"])
def test_a_users_last_turn_is_encoded_as_in_training(tiny_encoder: Encoder, template: str) -> None:
    encoder = Encoder(tiny_encoder.tokenizer, EncodingConfig(template=template, max_length=512))
    messages: list[Message] = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    own = question("Name?", heading="", shots=(), prefill="", history=tuple(messages))
    (row,) = PromptFitter(encoder, 512, 0).completed(own, ["Lily"])
    conversation = [*messages, {"role": "user", "content": "Name?"}, {"role": "assistant", "content": "Lily"}]
    (trained,) = encoder.encode([Example("x", conversation, "own")])  # type: ignore[list-item]
    assert isinstance(trained, EncodedRow)
    assert row.input_ids == trained.input_ids[: len(row.input_ids)].tolist()
    last = np.flatnonzero(trained.labels != IGNORED)[-row.num_completion :]
    assert row.input_ids[-row.num_completion :] == trained.input_ids[last].tolist()
    assert len(supervised(trained)) > row.num_completion  # the first answer is supervised there, and no part of this


def test_text_is_shortened_at_the_end_of_a_token(fitter: PromptFitter, tiny_encoder: Encoder) -> None:
    text = "Once upon a time there was a little girl."
    shortened = fitter.shortened(text, 5)
    assert text.startswith(shortened)
    assert len(tiny_encoder.tokenizer(shortened, add_special_tokens=False)["input_ids"]) == 5
    assert fitter.shortened(text, 500) == text


def test_a_conversation_that_the_template_refuses_is_named(fitter: PromptFitter) -> None:
    odd = question(history=({"role": "tool", "content": "x"},))
    with pytest.raises(DataError, match="held-out item 'q' can't be asked: Tulu has no role tool"):
        fitter.prompt(odd, 8)
    with pytest.raises(DataError, match="held-out item 'q' can't be asked: the template refuses it"):
        fitter.completed(odd, ["x"])


WITH_TOOLS = (
    "{{ bos_token }}{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_a_held_out_call_is_asked_for_as_it_is_learned(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "tools.jinja").write_text(WITH_TOOLS)
    encoder = Encoder(tiny_encoder.tokenizer, EncodingConfig(template=str(tmp_path / "tools.jinja"), max_length=512))
    call: Any = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    messages: list[Message] = [
        {"role": "user", "content": "Is it warm?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    example = Example("x", messages, "own", tools=[{"type": "function", "function": {"name": "weather"}}])
    (own,) = held_out_questions([example], "own", tmp_path)
    (trained,) = encoder.encode([example])
    assert isinstance(trained, EncodedRow)
    assert own.completion is not None
    fitter = PromptFitter(encoder, 512, 0)
    (row,) = fitter.completed(own, [own.completion])
    assert row.input_ids == trained.input_ids.tolist()
    assert row.input_ids[-row.num_completion :] == supervised(trained)
    assert fitter.prompt(own, 8).prompt_ids == row.prompt_ids


def test_a_conversation_that_begins_with_the_answer_is_asked_for(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "first.jinja").write_text("{{ messages[0].role }}:" + WITH_TOOLS)
    encoder = Encoder(tiny_encoder.tokenizer, EncodingConfig(template=str(tmp_path / "first.jinja"), max_length=512))
    example = Example("x", [{"role": "assistant", "content": "Hello."}], "own")
    (own,) = held_out_questions([example], "own", tmp_path)
    assert PromptFitter(encoder, 512, 0).prompt(own, 8).prompt == "assistant:<s>[assistant]"
