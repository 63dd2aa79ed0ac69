"""Tokenization: characters of tokens, spaces included; and parts of long texts that give the tokens of the whole."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from gradsift.encoding import tokenization
from gradsift.encoding.masks import NOWHERE, supervised_tokens
from gradsift.encoding.tokenization import Tokenization

CODE = "def add(a, b):\n    c = a + b\n    if c:\n        return c\n\n"
TEXTS = [CODE * 3, "The cat sat on a mat, and then the dog said: why not? " * 3, "été à Zürich. 猫が座った。"]
SPECIALS = ["<unk>", "<s>", "</s>"]
LLAMA3 = r"(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(trim: bool = False) -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train(backend, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    backend.add_tokens(["    ", "        "])
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=trim), template])
    return _fast(backend)


def by_words_of_a_regex() -> Any:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    _train(backend, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return _fast(backend)


def sentencepiece() -> Any:
    """As Llama 2: no pre-tokenizer at all."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(backend, initial_alphabet=sorted({*"".join(TEXTS).replace(" ", "▁"), *"abcdefghijklmnopqrstuvwxyz"}))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return _fast(backend)


def unigram() -> Any:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    return _fast(backend)


def words_that_cross_spaces() -> Any:
    """Tokens such as `of the`: no space is a place to cut."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    _train(backend, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    return _fast(backend)


def _train(backend: Any, initial_alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIALS, initial_alphabet=initial_alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.decoder = decoders.ByteLevel()


def _fast(backend: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "byte-level": byte_level,
    "byte-level, trimmed": lambda: byte_level(trim=True),
    "regex and NFC": by_words_of_a_regex,
    "sentencepiece": sentencepiece,
    "unigram": unigram,
    "across spaces": words_that_cross_spaces,
}


# Characters of tokens


def test_trimmed_offsets_change_no_token_and_no_character() -> None:
    text = f"Write it. 🙂 é\n{CODE}  \n"
    (whole,), (trimmed,) = (Tokenization(byte_level(trim), True).whole([text]) for trim in (False, True))
    assert trimmed == whole


def test_every_character_belongs_to_a_token_where_offsets_are_trimmed() -> None:
    text = f"<s>{CODE}  \n🙂  é "
    (tokens,) = Tokenization(byte_level(trim=True), True).whole([text])
    spans = [span for span in tokens.offsets if span != NOWHERE]
    assert {at for start, end in spans for at in range(start, end)} == set(range(len(text)))
    assert all(end > start for start, end in spans)


def test_tokens_of_spaces_are_supervised_where_offsets_are_trimmed() -> None:
    (tokens,) = Tokenization(byte_level(trim=True), True).whole([f"Write it.\n{CODE}    "])
    start = len("Write it.\n")
    supervised = supervised_tokens(tokens.offsets, [(start, start + len(CODE) + 4)])
    first = next(index for index, (begin, _) in enumerate(tokens.offsets) if begin >= start)
    assert supervised.tolist() == [index >= first for index in range(len(tokens.ids))]


def test_special_tokens_that_are_added_are_nowhere() -> None:
    (tokens,) = Tokenization(byte_level(), True).whole(["<s>Hi"])
    assert tokens.ids[:2] == [1, 1]
    assert tokens.offsets[:2] == [NOWHERE, (0, 3)]


def test_a_token_of_no_character_counts_where_it_stands() -> None:
    offsets = [NOWHERE, (0, 2), (2, 2), (2, 4), (4, 4), NOWHERE]
    assert supervised_tokens(offsets, [(2, 4)]).tolist() == [False, False, True, True, False, False]
    assert supervised_tokens(offsets, [(0, 2)]).tolist() == [False, True, False, False, False, False]


# Parts of long texts

PIECES = ["the cat", "sat on", "a mat,", "x=1", "   ", "\n\n", "def f(x):", "été", "猫が座った。", "123456", "e\u0301"]
PIECES += ["🙂🙂", "</s>", "<s>", "aaaaaaaaaaaa", "\t", "don't", "        ", "!?", "\r\n", "ﬁn"]


def mixed_text(draw: random.Random, length: int) -> str:
    text = ""
    while len(text) < length:
        text += draw.choice(PIECES) + draw.choice([" ", " ", " ", "", "\n"])
    return text


@pytest.fixture
def short_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "SHORT", 2000)


@pytest.mark.usefixtures("short_is_shorter")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_beginning_is_that_of_the_whole(name: str) -> None:
    part_of, draw = Tokenization(TOKENIZERS[name](), True), random.Random(0)
    num_parts = 0
    for num_tokens in (4, 16, 40) * 6:
        text = mixed_text(draw, draw.choice([6000, 20000]))
        (whole,), (part,) = part_of.whole([text]), part_of.beginnings([text], num_tokens)
        assert part is not None
        count = len(part.ids)
        assert (part.ids, part.offsets) == (whole.ids[:count], whole.offsets[:count])
        assert count >= num_tokens
        num_parts += count < len(whole.ids)
    assert num_parts == (0 if name == "across spaces" else 18)


@pytest.mark.usefixtures("short_is_shorter")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_around_an_answer_is_that_of_the_whole(name: str) -> None:
    part_of, draw = Tokenization(TOKENIZERS[name](), True), random.Random(1)
    for num_tokens, length in ((4, 3), (16, 50), (40, 9000)) * 6:
        text = mixed_text(draw, 20000)
        start = draw.randrange(0, len(text) - 3)
        answer = start, min(start + length, len(text))
        (whole,), part = part_of.whole([text]), part_of.around(text, answer, num_tokens)
        assert part is not None
        leading = [token for token, span in zip(whole.ids, whole.offsets, strict=True) if span == NOWHERE][:1]
        inside = [pair for pair in zip(part.ids, part.offsets, strict=True) if pair[1] != NOWHERE]
        everything = list(zip(whole.ids, whole.offsets, strict=True))
        first = everything.index(inside[0])
        assert everything[first : first + len(inside)] == inside
        assert part.ids[: len(leading)] == leading
        before = sum(end <= answer[0] for _, (_, end) in inside)
        after = sum(begin >= answer[0] for _, (begin, _) in inside)
        assert before >= num_tokens or inside[0][1][0] == 0
        assert after >= num_tokens or inside[-1][1][1] >= answer[1]


def test_a_text_of_millions_of_characters_takes_no_longer_than_what_is_kept_of_it() -> None:
    part_of, text = Tokenization(byte_level(), True), "the cat sat on a mat, and " * 400_000
    began = time.perf_counter()
    (beginning,), around = part_of.beginnings([text], 2048), part_of.around(text, (len(text) - 5, len(text)), 2048)
    assert time.perf_counter() - began < 5  # the whole takes twenty
    assert beginning is not None
    assert around is not None
    assert max(len(beginning.ids), len(around.ids)) < 60_000


def test_a_text_that_is_too_long_and_has_no_place_to_cut_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "MAX_WHOLE", 150_000)
    part_of = Tokenization(byte_level(), True)
    assert part_of.beginnings(["x" * 200_000], 16) == [None]
    assert part_of.around("x" * 200_000, (199_000, 200_000), 16) is None
    assert part_of.beginnings(["x" * 120_000], 16) != [None]


def test_texts_are_tokenized_in_groups_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"text number {index}" * index for index in range(9)]
    part_of = Tokenization(byte_level(), True)
    together = part_of.whole(texts)
    monkeypatch.setattr(tokenization, "MAX_WHOLE", 40)
    assert part_of.whole(texts) == together
