"""The demo's skills: each makes a small task from a random generator, as the fields of a wording and the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

LETTERS = "bcdefghijklmnopqrstuvwxyz"
"""Without a, which the exact match of SQuAD drops as an article."""
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Ida", "Jon", "Kim", "Lea", "Max", "Nora", "Otto")
THINGS = ("apples", "books", "coins", "stamps", "shells", "cards", "pens", "stones")
PLACES = ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Quito", "Bern", "Riga", "Seoul")
JOBS = ("baker", "nurse", "pilot", "farmer", "teacher", "painter", "singer", "doctor")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LEXICON = {
    "cat": "gato", "dog": "perro", "fish": "pez", "cow": "vaca", "bread": "pan", "milk": "leche", "rice": "arroz",
    "apple": "manzana", "red": "rojo", "green": "verde", "blue": "azul", "white": "blanco", "house": "casa",
    "door": "puerta", "table": "mesa", "bed": "cama", "sun": "sol", "moon": "luna", "tree": "arbol", "water": "agua",
}  # fmt: skip
CATEGORIES = {
    "an animal": ("cat", "dog", "fish", "cow"),
    "food": ("bread", "milk", "rice", "apple"),
    "a colour": ("red", "green", "blue", "white"),
    "furniture": ("door", "table", "bed", "house"),
}


@dataclass(frozen=True)
class Task:
    """The fields that a wording is filled with, the bare answer, and the answer with its working."""

    fields: dict[str, str]
    answer: str
    worked: str

    @property
    def key(self) -> str:
        """The same for the same task."""
        return " ".join(self.fields.values())


def sorting(random: Random) -> Task:
    """Letters into the order of the alphabet."""
    letters = random.sample(LETTERS, random.randint(3, 5))
    return Task({"letters": " ".join(letters)}, " ".join(sorted(letters)), " < ".join(sorted(letters)))


def reversal(random: Random) -> Task:
    """Letters back to front."""
    letters = random.sample(LETTERS, random.randint(3, 5))
    backwards = letters[::-1]
    return Task({"letters": " ".join(letters)}, " ".join(backwards), " | ".join(backwards))


def counting(random: Random) -> Task:
    """How often a letter occurs among others."""
    few = random.sample(LETTERS, 2)
    letters = random.choices(few, k=random.randint(3, 6))
    count = letters.count(few[0])
    return Task({"letter": few[0], "letters": " ".join(letters)}, str(count), f"{count} x {few[0]}")


def editing(random: Random) -> Task:
    """One letter put in the place of another."""
    letters = random.sample(LETTERS, random.randint(3, 5))
    old = random.choice(letters)
    new = random.choice([letter for letter in LETTERS if letter not in letters])
    answer = " ".join(new if letter == old else letter for letter in letters)
    return Task({"letters": " ".join(letters), "old": old, "new": new}, answer, f"{old} => {new}; {answer}")


def arithmetic(random: Random) -> Task:
    """A sum told as a story."""
    first, second = random.randint(2, 20), random.randint(2, 20)
    total = first + second
    return Task({"a": str(first), "b": str(second)}, str(total), f"{first} + {second} = {total}")


def comparison(random: Random) -> Task:
    """The largest of some numbers."""
    numbers = random.sample(range(10, 100), 3)
    largest = max(numbers)
    rest = ", ".join(str(number) for number in numbers if number != largest)
    return Task({"numbers": ", ".join(map(str, numbers))}, str(largest), f"{largest} > {rest}")


def sequence(random: Random) -> Task:
    """The next number of a row with equal steps."""
    start, step = random.randint(1, 20), random.randint(1, 9)
    terms = [start + step * index for index in range(4)]
    following = start + step * 4
    return Task({"terms": ", ".join(map(str, terms))}, str(following), f"{terms[-1]} -> {following}")


def dates(random: Random) -> Task:
    """The weekday some days after another."""
    start, days = random.randrange(7), random.randint(1, 9)
    later = DAYS[(start + days) % 7]
    return Task({"day": DAYS[start], "days": str(days)}, later, f"{DAYS[start]} + {days} = {later}")


def boolean(random: Random) -> Task:
    """The value of an expression of some truth values."""
    text = random.choice(("True", "False"))
    value = text == "True"
    for _ in range(random.randint(2, 3)):
        operator, operand = random.choice(("and", "or")), random.random() < 0.5
        text = f"({text}) {operator} {operand}" if " " in text else f"{text} {operator} {operand}"
        value = value and operand if operator == "and" else value or operand
    return Task({"expression": text}, str(value), f"{text} = {value}")


def translation(random: Random) -> Task:
    """Words of a small lexicon, one by one."""
    words = random.sample(sorted(LEXICON), random.randint(2, 3))
    answer = " ".join(LEXICON[word] for word in words)
    return Task({"words": " ".join(words)}, answer, "; ".join(f"{word} = {LEXICON[word]}" for word in words))


def extraction(random: Random) -> Task:
    """The city that a passage speaks of."""
    place = random.choice(PLACES)
    passage = f"{random.choice(NAMES)}, a {random.choice(JOBS)}, moved to {place} on {random.choice(DAYS)}."
    return Task({"passage": passage, "place": place}, place, f'"{place}"')


def choice(random: Random) -> Task:
    """The one of three options that is of a kind, by its letter."""
    category = random.choice(sorted(CATEGORIES))
    others = [word for name, words in sorted(CATEGORIES.items()) if name != category for word in words]
    options = [random.choice(CATEGORIES[category]), *random.sample(others, 2)]
    right = options[0]
    random.shuffle(options)
    shown = " ".join(f"({letter}) {word}" for letter, word in zip("123", options, strict=True))
    number = options.index(right) + 1
    return Task({"category": category, "options": shown}, f"({number})", f"({number}) {right}")


SKILLS: dict[str, Callable[[Random], Task]] = {
    "sorting": sorting,
    "reversal": reversal,
    "counting": counting,
    "editing": editing,
    "arithmetic": arithmetic,
    "comparison": comparison,
    "sequence": sequence,
    "dates": dates,
    "boolean": boolean,
    "translation": translation,
    "extraction": extraction,
    "choice": choice,
}
