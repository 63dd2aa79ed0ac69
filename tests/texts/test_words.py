"""Words in every script."""

from __future__ import annotations

import pytest

from gradsift.texts.words import WORD, words_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The CAT, sat: 42!", ["the", "cat", "sat", "42"]),
        ("సమాధానం ఇవ్వండి", ["సమాధానం", "ఇవ్వండి"]),  # vowel signs are marks, inside the word
        ("الإجابة هي", ["الإجابة", "هي"]),
        ("東京都", ["東京", "京都"]),
        ("猫", ["猫"]),
        ("ไทย", ["ไท", "ทย"]),
        ("GPT猫だ", ["gpt", "猫だ"]),
        ("답변: 서울", ["답변", "서울"]),
        ("… — !", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words_in(text) == expected


def test_every_ascii_character_is_taken_as_the_pattern_takes_it() -> None:
    text = "".join(f"a{chr(code)}B {chr(code)} " for code in range(128))
    assert words_in(text) == WORD.findall(text.casefold())
