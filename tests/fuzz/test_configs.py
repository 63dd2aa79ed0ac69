"""Configs and overrides that nobody would write: read, or refused in one line, within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fuzzing import cases, survives
from hypothesis import given
from hypothesis import strategies as st

from gradsift import pipeline

TEXT = """run_dir: runs/x
seed: 3
model: {name_or_path: m, dtype: float32}
pool:
  - {name: a, path: a.jsonl, columns: {id: key}, limit: 5}
  - &b {name: b, path: b.jsonl, sample: 3}
targets:
  - {name: t, path: t.jsonl, subtask_column: kind}
  - {name: u, task: mmlu, path: mmlu}
encoding: {template: tulu, max_length: 128}
warmup:
  fraction: 0.5
  learning_rate: 2e-5
  lora: &lora {r: 4, alpha: 16.0}
train: {lora: *lora, epochs: 2}
select: {fraction: 0.25, method: less}
compare: {methods: [less, {method: random, epochs: 1}], seeds: [0, 1]}
"""
NASTY = (
    *(
        " ",
        "\n",
        "\n  ",
        ":",
        ": ",
        "- ",
        ",",
        "{",
        "}",
        "[",
        "]",
        "[[[[",
        "{a: " * 50,
        "'",
        '"',
        "|",
        ">",
        "%",
        "@",
        "`",
        "\t",
    ),
    *(
        "&a ",
        "*a",
        "*b",
        "*lora",
        "<<: *b",
        "<<: ",
        "? ",
        "!",
        "!!int ",
        "!!float ",
        "!!bool x",
        "!!null ",
        "!!binary ",
    ),
    *(
        "!!python/name:os.system ",
        "!!timestamp ",
        "!!set ",
        "!!omap ",
        "!!str ",
        "---\n",
        "...\n",
        "#",
        "~",
        "null",
        "yes",
    ),
    *(
        "0",
        "-1",
        "-0",
        "1e999",
        "-1e400",
        ".nan",
        "-.inf",
        "1" * 30,
        "1" * 5000,
        "0x" + "f" * 5000,
        "0o9",
        "1:2:3",
        "1_0",
    ),
    *(
        "2024-13-45",
        "2024-01-01",
        "1.",
        ".",
        "..",
        "../x",
        "/",
        "\\",
        "\0",
        "\ufeff",
        "\ud800",
        "\u2028",
        "é",
        "²",
        "٣",
        "=",
        "~x/y",
    ),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\x41"',
        "x" * 300,
        "a: &c [*c]",
        "seed: 1\n",
        "pool: 1\n",
        "true: 1\n",
        "1: 2\n",
        "null: x\n",
    ),
)
KEYS = (
    *(
        "seed",
        "run_dir",
        "model",
        "model.dtype",
        "model.name_or_path",
        "model.quantization",
        "pool",
        "pool.0",
        "pool.a.path",
    ),
    *(
        "pool.0.limit",
        "pool.b.sample",
        "pool.0.columns",
        "pool.0.on_error",
        "pool.0.format",
        "pool.²",
        "pool.0.llamafactory",
    ),
    *("targets", "targets.0", "targets.t.limit", "targets.0.test_limit", "targets.0.hold_out", "targets.0.metric"),
    *(
        "encoding.max_length",
        "encoding.template",
        "warmup.fraction",
        "warmup.epochs",
        "warmup.checkpoints",
        "warmup.lora",
    ),
    *(
        "warmup.learning_rate",
        "warmup.lora.r",
        "warmup.lora.alpha",
        "warmup.lora.target_modules",
        "features.projection",
    ),
    *("features.projection.dim", "features.store_dtype", "score.combine", "select", "select.count", "select.gumbel"),
    *(
        "select.per_source_max",
        "select.overlap_ngrams",
        "select.near_threshold",
        "select.name",
        "train.model",
        "train.data",
    ),
    *("train.report_to", "evaluate.harness", "evaluate.limit"),
    *("compare.methods", "compare.seeds", "compare.fractions"),
    *(
        "executor.workers",
        "check.draws",
        "baselines.embedding",
        "",
        ".",
        "a..b",
        "nowhere",
        "seed.x",
        "warmup.lora.r.x",
    ),
)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config's place; what a command does with it is left out."""
    monkeypatch.setattr(pipeline, "run", lambda *_, **__: "done")
    return tmp_path / "config.yaml"


def text_as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


@st.composite
def edited_texts(draw: st.DrawFn) -> str:
    """The config with pieces put in, cut out or doubled, here and there."""
    text = TEXT
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        stop = min(len(text), start + draw(st.sampled_from([0, 0, 0, 1, 5, 40])))
        put = draw(st.sampled_from(NASTY) | st.text(max_size=3) | st.just(text[stop : stop + 30]))
        text = text[:start] + put + text[stop:]
    return text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(NASTY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@cases(350)
@given(text=edited_texts())
def test_edited_config_is_read_or_refused(config: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    config.write_bytes(text_as_bytes(text))
    survives(capsys, "run", config)


@cases(50)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(text_as_bytes))
def test_any_bytes_as_config_are_read_or_refused(
    config: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    config.write_bytes(content)
    survives(capsys, "run", config)


@cases(350)
@given(key=st.sampled_from(KEYS), value=VALUES.map(str) | st.sampled_from(NASTY))
def test_any_override_is_taken_or_refused(
    config: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    config.write_text(TEXT)
    survives(capsys, "run", config, f"{key}={value}")


@cases(100)
@given(section=st.sampled_from(KEYS[:1] + KEYS[8:60]), value=VALUES)
def test_any_value_in_a_place_is_taken_or_refused(
    config: Path, capsys: pytest.CaptureFixture[str], section: str, value: Any
) -> None:
    """As YAML itself writes it."""
    import yaml

    values = yaml.safe_load(TEXT)
    values[section.split(".")[0]] = value
    config.write_bytes(text_as_bytes(yaml.safe_dump(values, allow_unicode=True)))
    survives(capsys, "run", config)
