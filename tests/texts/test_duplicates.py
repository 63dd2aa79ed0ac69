"""Which texts count as seen before."""

from __future__ import annotations

import sys

import pytest

from gradsift.errors import ConfigError
from gradsift.texts.duplicates import Duplicates, new_duplicates

TEXT = " ".join(f"word{index}" for index in range(60))


@pytest.fixture
def near() -> Duplicates:
    pytest.importorskip("datasketch")
    found = new_duplicates("near", 0.8)
    assert found is not None
    return found


def test_exact_duplicates_differ_in_case_and_white_space_alone() -> None:
    found = new_duplicates("exact", 0.8)
    assert found is not None
    texts = ["What is 2+2?", "what  is\n2+2? ", "What is 2-2?", "What is 2+2?"]
    assert [found.holds(text) for text in texts] == [False, True, False, True]


def test_none_are_looked_for_unless_asked() -> None:
    assert new_duplicates("none", 0.8) is None


def test_a_word_changed_in_many_is_nearly_the_same(near: Duplicates) -> None:
    """Of 56 runs of 5 words the last alone differs: Jaccard 55 / 57."""
    assert not near.holds(TEXT)
    assert near.holds(TEXT.replace("word59", "another"))


def test_half_another_text_is_not(near: Duplicates) -> None:
    assert not near.holds(TEXT)
    assert not near.holds(" ".join(TEXT.split()[:30]) + " " + " ".join(f"other{index}" for index in range(30)))


def test_short_and_wordless_texts_are_compared_whole(near: Duplicates) -> None:
    assert [near.holds(text) for text in ("Yes.", "yes", "No.", "?", "!", "?")] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


def test_a_text_that_was_passed_over_does_not_count_as_kept(near: Duplicates) -> None:
    """The third is like the second, which was like the first; the third is not like the first."""
    words = TEXT.split()
    near.holds(TEXT)
    assert near.holds(" ".join([*words[4:], "a", "b", "c"]))
    assert not near.holds(" ".join([*words[20:], "a", "b", "c"]))


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradsift\[dedup\]'"):
        new_duplicates("near", 0.8)
