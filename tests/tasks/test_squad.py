"""SQuAD's metrics on cases whose values were worked out by hand with the rules of the SQuAD 1.1 script."""

from __future__ import annotations

from itertools import product

import pytest

from gradsift.tasks.squad import exact_match, f1, normalised

CASES = [
    # output, gold answers, exact match, F1
    ("Lima", ["Lima"], 1, 1),
    ("lima", ["LIMA"], 1, 1),
    ("The Eiffel Tower", ["Eiffel Tower"], 1, 1),
    ("an apple a day", ["apple day"], 1, 1),
    ("U.S.A.", ["USA"], 1, 1),
    ("New\n  York", ["New York"], 1, 1),
    ("Eiffel Tower, Paris.", ["Eiffel Tower"], 0, 4 / 5),  # 2 shared; 2/3 and 2/2
    ("in 1889", ["May 1889", "1889"], 0, 2 / 3),  # against the second: 1/2 and 1/1; against the first 1/2 and 1/2
    ("1889", ["in 1889", "1889"], 1, 1),
    ("no no no", ["no"], 0, 1 / 2),  # a word counts as often as both have it: 1/3 and 1/1
    ("no no", ["no no no"], 0, 4 / 5),  # 2/2 and 2/3
    ("theatre", ["atre"], 0, 0),  # no article inside a word
    ("A-levels", ["levels"], 0, 0),  # punctuation goes first: "alevels"
    ("twenty-one", ["twenty one"], 0, 0),  # "twentyone"
    ("", ["Paris"], 0, 0),
    ("...", ["Paris"], 0, 0),
    ("the", ["a"], 1, 0),  # both sides empty: equal, and no word is shared
    ("في عام 1889 م", ["1889 م"], 0, 2 / 3),  # 2/4 and 2/2
    ("باريس،", ["باريس"], 0, 0),  # an Arabic comma is no ASCII punctuation
    ("باريس.", ["باريس"], 1, 1),
    ("హైదరాబాద్ నగరం", ["హైదరాబాద్"], 0, 2 / 3),  # 1/2 and 1/1
    ("హైదరాబాద్", ["హైదరాబాద్"], 1, 1),
    ("1988년 서울", ["서울"], 0, 2 / 3),  # 1/2 and 1/1
    ("서울에서", ["서울"], 0, 0),  # a particle makes it another word
    ("กรุงเทพมหานคร", ["กรุงเทพมหานคร"], 1, 1),
    ("กรุงเทพ มหานคร", ["กรุงเทพมหานคร"], 0, 0),  # words are what white space parts
    ("হুন সেন।", ["হুন সেন"], 0, 1 / 2),  # the danda stays: 1/2 and 1/2
    ("Москва, Россия", ["москва"], 0, 2 / 3),  # 1/2 and 1/1
    ("Helsingin yliopisto", ["yliopisto Helsingin"], 0, 1),  # order doesn't count in F1
]


@pytest.mark.parametrize(("output", "answers", "expected", "_"), CASES)
def test_exact_match(output: str, answers: list[str], expected: float, _: float) -> None:
    assert exact_match(output, answers) == expected


@pytest.mark.parametrize(("output", "answers", "_", "expected"), CASES)
def test_f1(output: str, answers: list[str], _: float, expected: float) -> None:
    assert f1(output, answers) == pytest.approx(expected)


def test_every_output_against_every_answer_equals_the_reference_script() -> None:
    reference = pytest.importorskip("lm_eval.tasks.qasper.metrics")  # a copy of the SQuAD 1.1 script
    outputs = [case[0] for case in CASES]
    answers = [answer for case in CASES for answer in case[1]]
    for output, answer in product(outputs, answers):
        assert f1(output, [answer]) == reference.f1_abstractive([output], [answer])
        assert normalised(output) == reference.normalize_answer(output)
        same = reference.normalize_answer(output) == reference.normalize_answer(answer)
        assert exact_match(output, [answer]) == float(same)


def test_no_gold_answer_is_never_met() -> None:
    assert (exact_match("x", []), f1("x", [])) == (0.0, 0.0)


def test_normalised_text_keeps_its_letters_in_any_script() -> None:
    assert normalised("  The “Ångström” (Å), 서울! ") == "“ångström” å 서울"
