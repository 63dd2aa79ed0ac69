"""TyDiQA (gold passage): questions on a passage in nine languages; gives back an example of each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gradsift.data import Example
from gradsift.tasks.files import Row, is_json, json_object, target_files, validation_rows
from gradsift.tasks.prompt import Prompt, as_examples

LAYOUT = ("dev/tydiqa-one-shot.json", "tydiqa-one-shot.json")


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


def validation_examples(path: Path, target: str) -> list[Example]:
    """The examples in `path`, in file order; a language is a subtask, the first of the `answers` is learned.

    Every example of a language is taken; the authors stop at one, which is all that their file holds.
    """
    rows = [row for file in target_files(path, "tydiqa", LAYOUT) for row in _rows(file)]
    return as_examples(map(_prompt, rows), target, path)


def tydiqa_prompt(language: str, context: str, question: str) -> str:
    """The user turn: instruction, passage and question, in the language's words (a key of `WORDINGS`)."""
    words = WORDINGS[language]
    # Nothing stands between the instruction and the passage: so it is in the authors' prompts.
    return f"{words.instruction}{words.passage} {context}\n{words.question} {question}"


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
    language = row.text("subtask")
    if language not in WORDINGS:
        raise row.error(f"unknown language {language!r}; known: {', '.join(sorted(WORDINGS))}")
    question = tydiqa_prompt(language, row.text("context"), row.text("question"))
    return Prompt(language, question, WORDINGS[language].answer, f" {_first_answer(row)}", row.id)


def _first_answer(row: Row) -> str:
    answer = row.items("answers")[0]
    text = answer.get("text") if isinstance(answer, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise row.error(f"the first of the 'answers' is {answer!r}; it must be an object with a 'text'")
    return text
