"""TyDiQA (gold passage): questions on a passage in nine languages; gives back an example of each, and test questions.

A test question is asked as in the authors' evaluation code: the instruction in the question's language, one shot of
that language, the passage cut to 512 tokens and the question; what is generated up to a new line, of at most 50
tokens, is judged by SQuAD's F1 and exact match, and the overall figure is the mean over languages.
Deviates from it in that the shot is the language's validation example, not one drawn from the training set (which
isn't among the authors' files), and that a passage is cut where its 512th token ends instead of being decoded
from tokens, so that its text stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gradsift.data import Example
from gradsift.tasks import squad
from gradsift.tasks.files import Row, held_out_rows, is_json, json_object, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples, parted
from gradsift.tasks.question import EvaluationProtocol, Question, Scores, Shots, ShotText, in_natural_order, numbered

LAYOUT = ("dev/tydiqa-one-shot.json", "tydiqa-one-shot.json")
TEST_LAYOUT = ("test/tydiqa-goldp-v1.1-dev.json", "tydiqa-goldp-v1.1-dev.json")


class Wording(NamedTuple):
    """The fixed words of a prompt in one language."""

    instruction: str
    passage: str
    question: str
    answer: str


WORDINGS = {
    "english": Wording(
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "arabic": Wording(
        "أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.",
        "المقطع:",
        "السؤال:",
        "الإجابة:",
    ),
    "bengali": Wording(
        "প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।",
        "অধ্যায়:",
        "প্রশ্ন:",
        "উত্তর:",
    ),
    "finnish": Wording(
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.",
        "Kappale:",
        "Kysymys:",
        "Vastaus:",
    ),
    "indonesian": Wording(
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:",
        "Pertanyaan:",
        "Jawaban:",
    ),
    "korean": Wording(
        "주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.",
        "문단:",
        "질문:",
        "답변:",
    ),
    "russian": Wording(
        "Ответьте на следующий вопрос на основе информации в данном отрывке.",
        "Отрывок:",
        "Вопрос:",
        "Ответ:",
    ),
    "swahili": Wording(
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.",
        "Kifungu:",
        "Swali:",
        "Jibu:",
    ),
    "telugu": Wording(
        "ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.",
        "పేరా:",
        "ప్రశ్న:",
        "సమాధానం:",
    ),
}


def validation_examples(path: Path, target: str, hold_out: int = 0) -> list[Example]:
    """The examples in `path`, in file order; a language is a subtask, the first of the `answers` is learned.

    Every example of a language is taken; the authors stop at one, which is all that their file holds.
    """
    return as_examples(_prompts(path, hold_out)[0], target, path)


def held_out_examples(path: Path, target: str, hold_out: int) -> list[Example]:
    """The last `hold_out` examples of every language."""
    return as_examples(_prompts(path, hold_out)[1], target, path)


def _prompts(path: Path, hold_out: int) -> tuple[list[Prompt], list[Prompt]]:
    rows = [row for file in target_files(path, "tydiqa", LAYOUT) for row in _rows(file)]
    return parted(list(map(_prompt, rows)), lambda prompt: prompt.subtask, hold_out, path)


def test_questions(path: Path, shots_path: Path) -> list[Question]:
    """The test questions in `path`, each with the validation examples of its language in `shots_path`."""
    shown = [row for file in target_files(shots_path, "tydiqa", LAYOUT) for row in _rows(file)]
    shots = Shots((ShotText(_language(row), row.id, _shot(row)) for row in shown), shots_path)
    contexts = {language: tuple(_context(row) for row in shown if _language(row) == language) for language in WORDINGS}
    asked = [row for file in target_files(path, "tydiqa", TEST_LAYOUT) for row in _held_out(file, shots_path)]
    names = numbered(((_language(row), row.id) for row in asked), "test")
    return in_natural_order(
        (
            _asked(name, row, shots.of(_language(row)), contexts[_language(row)])
            for name, row in zip(names, asked, strict=True)
        ),
        path,
    )


def _judge(question: Question, output: str) -> Scores:
    return {
        "f1": squad.f1(output, question.answers),
        "exact_match": squad.exact_match(output, question.answers),
    }


EVALUATION = EvaluationProtocol(
    judge=_judge, num_shots=1, stop="\n", max_new_tokens=50, passage_tokens=512, averaged_over="subtasks"
)


def tydiqa_prompt(language: str, context: str, question: str) -> str:
    """The user turn: instruction, passage and question, in the language's words (a key of `WORDINGS`)."""
    words = WORDINGS[language]
    # Nothing stands between the instruction and the passage: so it is in the authors' validation prompts.
    return words.instruction + _passage_and_question(words, context, question)


def _passage_and_question(words: Wording, context: str, question: str) -> str:
    return f"{words.passage} {context}\n{words.question} {question}"


def _shot(row: Row) -> str:
    words = WORDINGS[_language(row)]
    asked = _passage_and_question(words, _context(row), row.text("question"))
    return f"{asked}\n{words.answer} {_answers(row)[0]}\n\n"


def _asked(name: str, row: Row, shots: tuple[str, ...], shots_contexts: tuple[str, ...]) -> Question:
    language, context = _language(row), _context(row)
    words, answers = WORDINGS[language], _answers(row)
    return Question(
        id=name,
        subtask=language,
        # Here a blank line does stand after the instruction: so it is in the authors' evaluation prompts.
        heading=f"{words.instruction}\n\n",
        shots=shots,
        question=_passage_and_question(words, context, row.text("question")),
        prefill=words.answer,
        answers=answers,
        completion=f" {answers[0]}",
        passages=(context, *shots_contexts),
    )


def _held_out(file: Path, shots_path: Path) -> list[Row]:
    return _squad_rows(file) if is_json(file) else held_out_rows(file, shots_path)


def _squad_rows(file: Path) -> list[Row]:
    """Rows of a file in SQuAD's layout; the language is what an id begins with ("arabic-…-0")."""
    whole = Row(json_object(file), file)
    rows = []
    for number, article in enumerate(_inner(whole, "data", "article")):
        for paragraph in _inner(article, "paragraphs", f"article {number}, paragraph"):
            for item in _inner(paragraph, "qas", f"article {number}, question"):
                language = item.text("id").partition("-")[0]
                fields = {**item.fields, "context": paragraph.text("context"), "subtask": language}
                rows.append(Row(fields, file, label=f"question {item.id}"))
    return rows


def _inner(row: Row, name: str, label: str) -> list[Row]:
    """The objects of a list field, each a row of its own."""
    items = row.items(name)
    for fields in items:
        if not isinstance(fields, dict):
            raise row.error(f"field {name!r} holds {str(fields)[:60]!r}, not an object")
    return [Row(fields, row.path, label=f"{label} {index}") for index, fields in enumerate(items)]


def _rows(file: Path) -> list[Row]:
    return _one_shot_rows(file) if is_json(file) else validation_rows(file)


def _one_shot_rows(file: Path) -> list[Row]:
    """Rows of the authors' file, a list of examples per language."""
    whole = Row(json_object(file), file)
    rows = []
    for language in whole.fields:
        for index, fields in enumerate(whole.items(language)):
            label = f"example {index} of {language!r}"
            if not isinstance(fields, dict):
                raise whole.error(f"{label} is {fields!r}, not an object")
            rows.append(Row({**fields, "subtask": language}, file, label=label))
    return rows


def _prompt(row: Row) -> Prompt:
    language = _language(row)
    question = tydiqa_prompt(language, _context(row), row.text("question"))
    return Prompt(language, question, WORDINGS[language].answer, f" {_answers(row)[0]}", row.id)


def _language(row: Row) -> str:
    language = row.text("subtask")
    if language not in WORDINGS:
        raise row.error(f"unknown language {language!r}; known: {', '.join(sorted(WORDINGS))}")
    return language


def _context(row: Row) -> str:
    return row.text("context")


def _answers(row: Row) -> tuple[str, ...]:
    texts = []
    for index, answer in enumerate(row.items("answers")):
        text = answer.get("text") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text.strip():
            which = "the first" if index == 0 else f"number {index + 1}"
            raise row.error(f"{which} of the 'answers' is {answer!r}; it must be an object with a 'text'")
        texts.append(text)
    return tuple(texts)
