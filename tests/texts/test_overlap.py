"""Which texts give a target's items away."""

from __future__ import annotations

import random

import pytest

from gradsift.texts.overlap import ItemNgrams
from gradsift.texts.words import words_in

ITEM = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def holds(text: str, *items: str, size: int = 13) -> bool:
    return ItemNgrams(items or (ITEM,), size).stand_in(words_in(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ITEM, True),
        (f"Before it: {ITEM.upper()}, and after.", True),
        (ITEM.replace(" ", " -- "), True),
        (ITEM.rsplit(" ", 1)[0], True),  # its first 13 words
        (ITEM.rsplit(" ", 2)[0], False),  # 12 of them
        (ITEM.replace("seven", "7"), False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_give_an_item_away(text: str, expected: bool) -> None:
    assert holds(text) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is 2 + 2?\n4", True),
        ("Tell me: what is 2 + 2? 4!", True),
        ("What is 2 + 2? It is 4", False),
        ("What is 2 + 3? 4", False),
    ],
)
def test_a_short_item_is_given_away_by_all_of_it(text: str, expected: bool) -> None:
    assert holds(text, "What is 2 + 2?\n4", ITEM) is expected


def test_a_short_item_is_found_at_the_end_and_no_further() -> None:
    assert holds("so a b", "a b")
    assert not holds("so a", "a b")


def test_an_item_without_words_gives_nothing_away() -> None:
    assert not holds("!", "?", " ")
    assert not len(ItemNgrams(["?"], 13))


def test_the_instruction_that_all_items_share_gives_none_of_them_away() -> None:
    instruction = "Read the following message from a customer and say in one word what it is about:"
    items = [f"{instruction} {word} item number {word}" for word in ("first", "second", "third")]
    assert not holds(f"{instruction} something else", *items)
    assert holds(f"{instruction} second item number second", *items)


def test_the_same_item_twice_is_one_item() -> None:
    assert holds(ITEM, ITEM, ITEM.upper())


def test_unspaced_scripts_count_pairs_of_characters() -> None:
    assert holds("問:日本の首都は東京である、と言う。", "日本の首都は東京である", size=5)


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_a_search_of_every_run_finds(seed: int) -> None:
    """The naive twin, over a vocabulary so small that runs are shared by chance."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return " ".join(rng.choices("abc", k=length))

    items, texts = sorted({text(rng.randint(2, 8)) for _ in range(6)}), [text(rng.randint(1, 12)) for _ in range(40)]
    runs = [{item} if len(item.split()) < 4 else _windows(item.split(), 4) for item in items]
    telling = {run for item in runs for run in item if sum(run in other for other in runs) == 1}
    expected = [any(f" {run} " in f" {text} " for run in telling) for text in texts]
    assert [holds(text, *items, size=4) for text in texts] == expected


def _windows(found: list[str], size: int) -> set[str]:
    return {" ".join(found[start : start + size]) for start in range(len(found) - size + 1)}
