"""A model's answers against naive twins: each prompt alone, with the logits of every position."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import LENGTH_READERS, load_toy, save_toy
from conftest import MakeModel
from torch.nn import functional

from gradsift.encoding.encoder import Encoder
from gradsift.errors import ConfigError
from gradsift.evaluation.answering import Answerer
from gradsift.evaluation.batches import Batches, BatchSize
from gradsift.evaluation.choices import Chooser
from gradsift.evaluation.context import context_length
from gradsift.evaluation.fitting import Fitted
from gradsift.evaluation.shared_prompts import MIN_SHARED, num_shared_tokens, prompt_families
from gradsift.tasks.question import Question

SENTENCE = "Once upon a time there was a little girl named Lily who liked to play outside in the park"

LETTERS = ("A", "B", "C")
"""One token each."""
PHRASES = (" the park", " Lily", " a little girl")
"""Several tokens each."""


def first_words(count: int) -> str:
    return " ".join(SENTENCE.split()[:count])


def question(index: int, **fields: Any) -> Question:
    """Questions of different lengths."""
    defaults: dict[str, Any] = {
        "id": f"q/{index}",
        "subtask": "even" if index % 2 == 0 else "odd",
        "heading": "Answer the question.\n",
        "shots": ("Who? A: I\n", "What? A: it\n"),
        "question": first_words(1 + (5 * index) % 19) + "?",
        "prefill": "The answer is:",
        "answers": ("A",),
        "choices": LETTERS,
        "completion": " " + first_words(1 + index % 4),
    }
    return Question(**{**defaults, **fields})


QUESTIONS = [question(index) for index in range(7)]


def nothing(*_: int) -> None:
    """No progress."""


@pytest.fixture
def model(make_lora_model: MakeModel) -> Any:
    return make_lora_model().eval()


@pytest.fixture
def answerer(model: Any, tiny_encoder: Encoder) -> Answerer:
    return Answerer(model, tiny_encoder)


def naive_nats(model: Any, row: Fitted) -> float:
    """Loss of the completion, token by token, from the logits of the row alone."""
    ids = torch.tensor([row.input_ids])
    with torch.no_grad():
        logits_TV = model(input_ids=ids).logits[0]
    start = len(row.prompt_ids)
    losses = [
        float(functional.cross_entropy(logits_TV[position - 1], ids[0, position]))
        for position in range(start, len(row.input_ids))
    ]
    return sum(losses)


@pytest.mark.parametrize("choices", [LETTERS, PHRASES])
def test_likelihoods_of_choices_equal_those_of_full_logits(
    model: Any, answerer: Answerer, choices: tuple[str, ...]
) -> None:
    questions = [question(index, choices=choices) for index in range(3)]
    answers = answerer.choose(questions, 2, nothing)
    fitter = answerer.fitter(2)
    for item, answer in zip(questions, answers, strict=True):
        expected = [-naive_nats(model, row) for row in fitter.completed(item, choices)]
        assert answer.log_likelihoods == pytest.approx(expected, rel=1e-5)


def test_the_likeliest_choice_is_the_best(answerer: Answerer) -> None:
    answer = answerer.choose([question(1, choices=PHRASES)], 2, nothing)[0]
    assert answer.log_likelihoods[answer.best] == max(answer.log_likelihoods)


def test_choices_of_one_token_and_of_several_come_in_the_order_of_the_questions(answerer: Answerer) -> None:
    questions = [question(index, choices=PHRASES if index % 2 else LETTERS[:2]) for index in range(5)]
    together = answerer.choose(questions, 2, nothing)
    alone = [answerer.choose([item], 2, nothing)[0] for item in questions]
    for one, other in zip(together, alone, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)


def alike(count: int) -> list[Question]:
    """Questions whose prompts begin with the same long shots."""
    shots = tuple(f"Is it {index}? A: {SENTENCE}.\n" for index in range(2))
    return [question(index, shots=shots) for index in range(count)]


@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_what_prompts_begin_with_is_read_once_and_changes_nothing(
    model: Any, tiny_encoder: Encoder, batch_size: BatchSize
) -> None:
    questions = alike(7)
    answerer = Answerer(model, tiny_encoder, batch_size)
    prompts = [answerer.fitter(2).completed(item, LETTERS)[0].prompt_ids for item in questions]
    assert num_shared_tokens(prompts) >= MIN_SHARED
    for item, answer in zip(questions, answerer.choose(questions, 2, nothing), strict=True):
        expected = [-naive_nats(model, row) for row in answerer.fitter(2).completed(item, LETTERS)]
        assert answer.log_likelihoods == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [([[1, 2, 3], [1, 2, 4, 5]], 2), ([[1, 2], [1, 2, 3]], 1), ([[1, 2], [1, 2]], 1), ([[1], [2]], 0)],
)
def test_shared_tokens_leave_one_of_each_prompt(prompts: list[list[int]], expected: int) -> None:
    assert num_shared_tokens(prompts) == expected


def test_families_are_of_prompts_that_begin_alike() -> None:
    first, second = list(range(MIN_SHARED)), list(range(5, 5 + MIN_SHARED))
    prompts = [[*first, 1], [7, 7], [*second, 1], [*second, 2, 3], [8, 8]]
    assert prompt_families(prompts) == [[2, 3], [0, 1, 4]]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_choices_do_not_depend_on_the_batch_size(
    model: Any, tiny_encoder: Encoder, answerer: Answerer, batch_size: BatchSize
) -> None:
    answers = Answerer(model, tiny_encoder, batch_size).choose(QUESTIONS, 2, nothing)
    expected = answerer.choose(QUESTIONS, 2, nothing)
    assert [answer.best for answer in answers] == [answer.best for answer in expected]
    for answer, other in zip(answers, expected, strict=True):
        assert answer.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16, "auto"])
def test_answer_loss_equals_a_naive_loop(model: Any, tiny_encoder: Encoder, batch_size: BatchSize) -> None:
    answerer = Answerer(model, tiny_encoder, batch_size)
    losses = answerer.answer_losses(QUESTIONS, 2, nothing)
    rows = [answerer.fitter(2).completed(item, [str(item.completion)])[0] for item in QUESTIONS]
    for loss, row in zip(losses, rows, strict=True):
        assert loss is not None
        assert loss.nats == pytest.approx(naive_nats(model, row), rel=1e-5)
        assert loss.num_tokens == row.num_completion


def test_a_question_whose_answer_is_not_known_has_no_loss(answerer: Answerer) -> None:
    losses = answerer.answer_losses([question(0, completion=None), question(1)], 2, nothing)
    assert [loss is None for loss in losses] == [True, False]


def test_prefilled_letter_has_the_same_loss_as_a_choice_and_as_an_answer(answerer: Answerer) -> None:
    item = question(3, completion="B")
    (loss,) = answerer.answer_losses([item], 2, nothing)
    (answer,) = answerer.choose([item], 2, nothing)
    assert loss is not None
    assert loss.nats == pytest.approx(-answer.log_likelihoods[1], rel=1e-5)


def test_letters_are_read_from_one_forward_pass(answerer: Answerer) -> None:
    rows = [answerer.fitter(2).completed(item, LETTERS) for item in QUESTIONS]
    seen: list[int] = []
    answerer.choose(QUESTIONS, 2, lambda _, tokens: seen.append(tokens))
    assert sum(seen) == sum(len(choices[0].prompt_ids) for choices in rows)


def test_losses_of_choices_know_their_tokens(answerer: Answerer) -> None:
    item = question(1, choices=PHRASES)
    (answer,) = answerer.choose([item], 2, nothing)
    rows = answerer.fitter(2).completed(item, PHRASES)
    assert [loss.num_tokens for loss in answer.losses()] == [row.num_completion for row in rows]
    assert [-loss.nats for loss in answer.losses()] == list(answer.log_likelihoods)


@pytest.mark.parametrize("choices", [LETTERS, PHRASES])
def test_progress_counts_every_question(answerer: Answerer, choices: tuple[str, ...]) -> None:
    counted: list[int] = []
    questions = [question(index, choices=choices) for index in range(len(QUESTIONS))]
    answerer.choose(questions, 2, lambda count, _: counted.append(count))
    assert sum(counted) == len(QUESTIONS)


def test_context_is_the_shorter_of_encoding_and_model(model: Any, tiny_encoder: Encoder) -> None:
    assert context_length(model, tiny_encoder) == 512
    tiny_encoder.max_length = 100
    assert context_length(model, tiny_encoder) == 100
    tiny_encoder.max_length = 4096
    assert context_length(model, tiny_encoder) == 512


@pytest.mark.parametrize(("wanted", "default", "expected"), [(None, 50, 50), (None, 512, 256), (400, 50, 400)])
def test_a_default_answer_takes_half_of_the_context_at_most(
    answerer: Answerer, wanted: int | None, default: int, expected: int
) -> None:
    assert answerer.new_tokens(wanted, default) == expected


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused(answerer: Answerer) -> None:
    with pytest.raises(ConfigError, match=r"max_new_tokens is 500, but .* have 512 tokens"):
        answerer.new_tokens(500, 50)


def test_a_context_too_short_for_any_question_is_refused(model: Any, tiny_encoder: Encoder) -> None:
    tiny_encoder.max_length = 31
    with pytest.raises(ConfigError, match="max_length leaves 31 tokens"):
        Answerer(model, tiny_encoder)


@pytest.mark.parametrize("kind", LENGTH_READERS)
@pytest.mark.parametrize("shared", [0, 40], ids=["no common beginning", "a common beginning"])
def test_company_does_not_change_likelihoods_where_the_model_looks_at_the_batch(
    kind: str, shared: int, tmp_path: Path
) -> None:
    family, settings = LENGTH_READERS[kind]
    model = load_toy(save_toy(family, tmp_path, settings))
    prompts = [[*range(5, 5 + shared), *range(90, 90 + length)] for length in (3, 8, 11, 12, 13, 30)]
    rows = [[Fitted("", [*prompt, letter], 1, 0, cut=False) for letter in (60, 61)] for prompt in prompts]

    def chosen(batch_size: BatchSize) -> list[tuple[float, ...]]:
        with torch.no_grad():
            answers = Chooser(model, Batches(model, batch_size)).choose(rows, nothing)
        return [answer.log_likelihoods for answer in answers]

    for found, expected in zip(chosen(16), chosen(1), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
