"""The demo's data: small tasks of eight skills, each in several wordings, as rows of an instruction pool.

Everything follows from a seed. The last wording of a skill is never used in the pool: it is the target's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Lea", "Max", "Nora", "Otto")
THINGS = ("apples", "books", "coins", "stamps", "shells", "cards", "pens", "stones")
PLACES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Bern", "Riga", "Seoul")
JOBS = ("baker", "nurse", "pilot", "farmer", "teacher", "painter", "singer", "doctor")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEXICON = {
    "cat": "gato", "dog": "perro", "house": "casa", "water": "agua", "bread": "pan", "red": "rojo",
    "green": "verde", "sun": "sol", "moon": "luna", "tree": "arbol", "fish": "pez", "milk": "leche",
    "hand": "mano", "night": "noche", "book": "libro", "door": "puerta",
}  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """The fields that a wording is filled with, and the answer."""

    fields: dict[str, str]
    answer: str


def sorting(random: Random) -> Task:
    """Letters into the order of the alphabet."""
    letters = random.sample(LETTERS, random.randint(4, 6))
    return Task({"letters": " ".join(letters)}, " ".join(sorted(letters)))


def addition(random: Random) -> Task:
    """A sum told as a story."""
    first, second = random.randint(2, 20), random.randint(2, 20)
    names = random.sample(NAMES, 2)
    fields = {
        "a": str(first),
        "b": str(second),
        "thing": random.choice(THINGS),
        "name": names[0],
        "other": names[1],
    }
    return Task(fields, str(first + second))


def boolean(random: Random) -> Task:
    """The value of an expression of three truth values."""
    text = random.choice(("True", "False"))
    value = text == "True"
    for _ in range(2):
        operator, operand = random.choice(("and", "or")), random.random() < 0.5
        text = f"({text}) {operator} {operand}" if " " in text else f"{text} {operator} {operand}"
        value = value and operand if operator == "and" else value or operand
    return Task({"expression": text}, str(value))


def reversal(random: Random) -> Task:
    """A string of letters, back to front."""
    letters = random.choices(LETTERS, k=random.randint(4, 6))
    return Task({"text": "-".join(letters)}, "-".join(reversed(letters)))


def translation(random: Random) -> Task:
    """Words of a small lexicon, one by one."""
    words = random.sample(sorted(LEXICON), random.randint(2, 4))
    return Task({"words": " ".join(words)}, " ".join(LEXICON[word] for word in words))


def extraction(random: Random) -> Task:
    """The place that a sentence speaks of."""
    place = random.choice(PLACES)
    sentence = f"{random.choice(NAMES)}, a {random.choice(JOBS)}, moved to {place} with {random.choice(NAMES)}."
    return Task({"sentence": sentence}, place)


def dates(random: Random) -> Task:
    """The weekday some days after another."""
    start, days = random.randrange(7), random.randint(1, 6)
    return Task({"day": DAYS[start], "days": str(days)}, DAYS[(start + days) % 7])


def counting(random: Random) -> Task:
    """How often a letter occurs among others."""
    letters = random.choices("abc", k=random.randint(4, 8))
    letter = random.choice("abc")
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
    return Task({"letter": letter, "letters": " ".join(letters)}, words[letters.count(letter)])


SKILLS: dict[str, Callable[[Random], Task]] = {
    "sorting": sorting,
    "addition": addition,
    "boolean": boolean,
    "reversal": reversal,
    "translation": translation,
    "extraction": extraction,
    "dates": dates,
    "counting": counting,
}

WORDINGS: dict[str, tuple[str, ...]] = {
    "sorting": (
        "Sort these letters: {letters}",
        "Put the letters in order. {letters}",
        "Which order do these letters have in the alphabet? {letters}",
        "Here are some letters, please arrange them alphabetically: {letters}",
    ),
    "addition": (
        "{name} has {a} {thing} and gets {b} more. How many {thing} are there now?",
        "There are {a} {thing} in one box and {b} in another. How many in all?",
        "{name} found {a} {thing}, {other} found {b}. How many did they find together?",
        "On Monday {name} bought {a} {thing}, on Friday {b}. What is the total?",
    ),
    "boolean": (
        "What is the value of {expression}?",
        "Evaluate: {expression}",
        "Is this true or false? {expression}",
        "Work out the logical expression {expression} and give its result.",
    ),
    "reversal": (
        "Write {text} backwards.",
        "Reverse this: {text}",
        "Read from the right: {text}",
        "Turn the string {text} around, last character first.",
    ),
    "translation": (
        "Translate to Spanish: {words}",
        "What is the Spanish for {words}?",
        "Say this in Spanish. {words}",
        "A visitor from Madrid asks what these mean, word by word: {words}",
    ),
    "extraction": (
        "{sentence} Which city is it about?",
        "Find the city in this sentence: {sentence}",
        "Where to? {sentence}",
        "Read on and name the place that is mentioned: {sentence}",
    ),
    "dates": (
        "Today is {day}. Which day is it in {days} days?",
        "What day comes {days} days after {day}?",
        "{day} plus {days} days is",
        "A parcel sent on {day} takes {days} days. On which weekday does it arrive?",
    ),
    "counting": (
        "How many times does {letter} occur in {letters}?",
        "Count the letter {letter}: {letters}",
        "In {letters}, how often do you see {letter}?",
        "Go through {letters} and tell me the number of {letter}s.",
    ),
}


def pool_rows(count: int, seed: int) -> list[Row]:
    """`count` rows in random order, the skills in equal parts, in every wording but the target's."""
    random = Random(f"pool {seed}")
    names = list(SKILLS)
    rows = [row(names[index % len(names)], f"row-{index:05d}", random) for index in range(count)]
    random.shuffle(rows)
    return rows


def target_rows(skill: str, count: int, seed: int) -> list[Row]:
    """`count` examples of a skill, in the wording that the pool doesn't use."""
    random = Random(f"target {seed}")
    wording = WORDINGS[skill][-1]
    return [filled(wording, skill, f"{skill}-{index}", SKILLS[skill](random)) for index in range(count)]


def row(skill: str, identifier: str, random: Random) -> Row:
    """A row of the pool."""
    wording = random.choice(WORDINGS[skill][:-1])
    return filled(wording, skill, identifier, SKILLS[skill](random))


def filled(wording: str, skill: str, identifier: str, task: Task) -> Row:
    """The row that a wording and a task make."""
    question = {"role": "user", "content": wording.format(**task.fields)}
    answer = {"role": "assistant", "content": task.answer}
    return {"id": identifier, "skill": skill, "messages": [question, answer]}
