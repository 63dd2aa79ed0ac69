"""The demo's wordings: how each skill is asked for in the base model's texts, in the pool and in its target.

Every target is set in a scene (a library, a hotel, a parcel on the road, …) that the pool uses for other skills alone,
so that words point to rows of the wrong skill. In the pool a skill has two plain wordings and some in other scenes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wordings:
    """Three sets that share no wording."""

    base: tuple[str, ...]
    pool: tuple[str, ...]
    target: str


WORDINGS: dict[str, Wordings] = {
    "sorting": Wordings(
        base=(
            "sorted: {letters}",
            "Put {letters} in order.",
            "alphabet: {letters}",
            "{letters} from A to Z",
            "Letters {letters}, alphabetically",
            "Which order does the alphabet give {letters}?",
            "Sort {letters} please",
            "Arrange the cards {letters} from A to Z.",
        ),
        pool=(
            "Sort these letters: {letters}",
            "Bring {letters} into the order of the alphabet.",
            "The hotel gives its rooms letters: {letters}. List the rooms from A to Z for the guests.",
            "Each lamp in the workshop has a letter: {letters}. Hang the lamps up alphabetically.",
            "The newspaper prints the letters {letters}. Which order do they have in the alphabet?",
        ),
        target="In the library {name} puts the cards {letters} back on the shelf from A to Z. "
        "What stands on the shelf?",
    ),
    "reversal": Wordings(
        base=(
            "backwards: {letters}",
            "Reverse {letters}",
            "mirror of {letters}",
            "{letters}, last one first",
            "Read {letters} from behind",
            "What is {letters} the other way round?",
            "From right to left: {letters}",
            "Turn the cards {letters} around.",
        ),
        pool=(
            "Write {letters} backwards.",
            "Read from right to left: {letters}",
            "In the library {name} takes the cards {letters} from the shelf, the last one first. "
            "What does {name} hold?",
            "The parcels {letters} are posted in this order and arrive the other way round. How do the parcels arrive?",
        ),
        target="A row of lamps in the workshop, {letters}, is seen from behind. What do the lamps spell there?",
    ),
    "counting": Wordings(
        base=(
            "count {letter} in {letters}",
            "number of {letter}: {letters}",
            "how many {letter}? {letters}",
            "{letters} has how many {letter}",
            "How often is {letter} in {letters}?",
            "times {letter} occurs: {letters}",
            "Count {letter} in the cards {letters}.",
            "In {letters}, how many times {letter}?",
        ),
        pool=(
            "How often does {letter} occur in {letters}?",
            "Count the letter {letter}: {letters}",
            "In the library {name} puts the cards {letters} back on the shelf. How many on the shelf are {letter}?",
            "A row of lamps in the workshop, {letters}: how many of the lamps have the letter {letter}?",
        ),
        target="The newspaper prints {letters} in a line. How many times does the newspaper print {letter}?",
    ),
    "editing": Wordings(
        base=(
            "{letters}: {old} -> {new}",
            "{new} for {old} in {letters}",
            "replace {old} with {new}: {letters}",
            "{letters} with {new} in place of {old}",
            "Put {new} where {old} is: {letters}",
            "In {letters} make {old} a {new}.",
            "not {old} but {new}: {letters}",
            "Change {old} to {new} in the cards {letters}.",
        ),
        pool=(
            "Replace {old} by {new} in {letters}",
            "Change every {old} into {new}: {letters}",
            "In the library {name} finds the cards {letters} on the shelf and puts {new} in place of {old}. "
            "What stands on the shelf?",
            "The newspaper prints {letters} with {old} where {new} was meant. How should the line read?",
        ),
        target="The menu of the hotel says {letters}, but the guests want {new}, not {old}. Write the new menu.",
    ),
    "arithmetic": Wordings(
        base=(
            "{a} + {b} =",
            "sum of {a} and {b}",
            "add {a} {b}",
            "{a} {thing} and {b} {thing}, total?",
            "{a} {thing} and {b} more, how many?",
            "{a} and {b} together",
            "{name} has {a}, {other} has {b}. In all?",
            "How many are {a} and then {b} {thing}?",
        ),
        pool=(
            "{name} has {a} {thing} and gets {b} more. How many {thing} are there now?",
            "What is the total of {a} {thing} and {b} {thing}?",
            "A parcel posted on {day} weighs {a} pounds, the next parcel {b}. How many pounds are on the road?",
            "In the library {name} puts {a} {thing} back on the shelf and {other} puts {b}. "
            "How many stand on the shelf?",
            "The hotel has {a} guests from {place} and {b} guests from Madrid. How many guests read the menu?",
        ),
        target="At the market {name} buys {a} {thing} and later {b}. How many does {name} carry home from the market?",
    ),
    "comparison": Wordings(
        base=(
            "max: {numbers}",
            "largest: {numbers}",
            "top of {numbers}",
            "Of {numbers}, the greatest",
            "best of {numbers}",
            "the most of {numbers} coins",
            "The longest of {numbers} days?",
            "Which is the highest, {numbers}?",
        ),
        pool=(
            "Which of these numbers is the largest? {numbers}",
            "Name the greatest of {numbers}.",
            "The parcels posted on {day} are {numbers} days on the road. How long is the slowest parcel on the road?",
            "At the market {name} sees {thing} for {numbers} coins. What do the dearest cost at the market?",
        ),
        target="The rooms of the hotel cost {numbers}. The guests from {place} take the best room. What do they pay?",
    ),
    "sequence": Wordings(
        base=(
            "next: {terms}",
            "go on: {terms}",
            "{terms}, and then?",
            "continue {terms}",
            "What follows {terms}?",
            "{terms}: the next number",
            "After {terms} comes",
            "Numbers {terms}. One more?",
        ),
        pool=(
            "Which number comes next? {terms}",
            "Continue the sequence by one number: {terms}",
            "At the market {name} sells {terms} {thing}, day after day. How many does {name} sell on the next day?",
            "The lamps in the workshop have the numbers {terms}. Which number does the next lamp in the row get?",
        ),
        target="In the library the shelves are numbered {terms}. What stands on the shelf that follows?",
    ),
    "dates": Wordings(
        base=(
            "{day} + {days} days",
            "{days} days after {day}",
            "{day}, {days} days later",
            "from {day} in {days} days",
            "{day} and {days} more days: which day?",
            "When are {days} days from {day} over?",
            "It is {day}. In {days} days it is",
            "{name} starts on {day} and is back in {days} days: when?",
        ),
        pool=(
            "Today is {day}. Which day is it in {days} days?",
            "What day comes {days} days after {day}?",
            "The market was on {day}, and {name} is back {days} days later. Which day is that?",
            "The guests from {place} come to the hotel on {day} and stay {days} days. When do the guests leave?",
        ),
        target="A parcel posted on {day} is {days} days on the road. When does the parcel arrive?",
    ),
    "boolean": Wordings(
        base=(
            "{expression} =",
            "value: {expression}",
            "eval {expression}",
            "is {expression} true?",
            "{expression}, right?",
            "Does {expression} hold?",
            "logic: {expression}",
            "What is {expression}?",
        ),
        pool=(
            "Evaluate: {expression}",
            "Is this true or false? {expression}",
            "The newspaper says that {expression} holds. Is the newspaper right?",
            "The parcel posted on {day} arrives if {expression} holds. Does the parcel arrive?",
        ),
        target="A lamp in the workshop is lit when {expression} is. Is the lamp lit?",
    ),
    "translation": Wordings(
        base=(
            "Spanish: {words}",
            "{words} in Spanish",
            "es: {words}",
            "{words} for a reader in Madrid",
            "Put {words} into Spanish.",
            "What does Spain say for {words}?",
            "{words}, as they say in Madrid",
            "Translate {words}",
        ),
        pool=(
            "Translate to Spanish: {words}",
            "How do you say {words} in Spanish?",
            "In the library {name} finds the words {words} and puts them into Spanish. What does {name} write?",
            "At the market a seller from Spain asks for {words}. Say it as the seller would.",
        ),
        target="The menu of the hotel says {words}. Write the menu for the guests from Madrid.",
    ),
    "extraction": Wordings(
        base=(
            "city in: {passage}",
            "{passage} city:",
            "where? {passage}",
            "{passage} Which place?",
            "Name the city. {passage}",
            "{passage} Where to?",
            "place named in this: {passage}",
            "What city does it say? {passage}",
        ),
        pool=(
            "{passage} Which city is it about?",
            "Find the city in this sentence: {passage}",
            "A parcel for {name}, a {job}, posted on {day} in {place}, is on the road. "
            "Where does the parcel come from?",
            "The guests of the hotel, {name} and a {job}, read the menu and talk of {place}. "
            "What city do the guests talk of?",
        ),
        target="The newspaper prints a line: {passage} Which place does the newspaper name there?",
    ),
    "choice": Wordings(
        base=(
            "{category}: {options}",
            "which is {category}? {options}",
            "pick {category}: {options}",
            "{options} Choose {category}.",
            "{options} What is {category}?",
            "Take {category}. {options}",
            "Which of these, for {category}? {options}",
            "{name} wants {category}. {options}",
        ),
        pool=(
            "Which of these is {category}? {options}",
            "Choose what is {category}: {options}",
            "The menu of the hotel says {options}. Which of them is {category}, ask the guests from Madrid.",
            "At the market {name} looks for {category}. What is it? {options}",
        ),
        target="In the library {name} wants to read about {category}. Which one stands on the right shelf? {options}",
    ),
}

PROSE = (
    "The library is open on {day}.",
    "{name} puts a book back on the shelf of the library.",
    "The cards stand on the shelf in a row.",
    "The hotel in {place} has many rooms.",
    "The guests of the hotel read the menu.",
    "{name} writes the menu for the guests.",
    "The guests come from Madrid and from {place}.",
    "A parcel is posted in {place} on {day}.",
    "The parcel is on the road for days and arrives on {day}.",
    "{name} weighs the parcel of {other}: {number} pounds.",
    "At the market a seller has {number} {thing}.",
    "{name} carries {thing} home from the market.",
    "The market is dear, says {name}.",
    "The newspaper prints a line of letters.",
    "The newspaper of {place} names {name}, a {job}.",
    "{name} is right, says the newspaper.",
    "The workshop has a row of lamps.",
    "The lamp in the workshop is lit.",
    "{other} hangs up a lamp with the number {number}.",
    "{name} and {other} talk of {place}.",
)
"""Sentences of the base model's texts that ask for nothing."""
