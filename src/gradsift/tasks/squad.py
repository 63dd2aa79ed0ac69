"""SQuAD's exact match and F1: how well an output meets one of several gold answers."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

PUNCTUATION = str.maketrans("", "", string.punctuation)
"""ASCII's alone, as in the SQuAD 1.1 script: an Arabic or Bengali full stop stays part of its word."""


def normalised(text: str) -> str:
    """Lower case, without punctuation, without the articles a, an, the, its words parted by one space."""
    without_articles = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(PUNCTUATION))
    return " ".join(without_articles.split())


def exact_match(output: str, answers: Iterable[str]) -> float:
    """1.0 where the normalised output is one of the normalised answers, else 0.0."""
    return float(any(normalised(output) == normalised(answer) for answer in answers))


def f1(output: str, answers: Iterable[str]) -> float:
    """The best F1 over the answers, on bags of words; words are what white space parts, in any script.

    As in SQuAD 1.1 it is 0 where no word is shared, so also where both sides are empty.
    """
    return max((_f1(normalised(output).split(), normalised(answer).split()) for answer in answers), default=0.0)


def _f1(output: list[str], answer: list[str]) -> float:
    num_shared = sum((Counter(output) & Counter(answer)).values())
    if num_shared == 0:
        return 0.0
    precision, recall = num_shared / len(output), num_shared / len(answer)
    return 2 * precision * recall / (precision + recall)
