"""Inputs that change in place are noticed by every stage that reads them, and by what was made from them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import conversation, gradsift, tiny_run, write_jsonl

from gradsift.machine.records import read_record, write_record

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>\n{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}</s>{% endgeneration %}{% else %}{{ message.content }}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a config, a model, a template and a finished run of its own."""
    folder = tmp_path_factory.mktemp("made")
    held_out = write_jsonl(folder / "held.jsonl", [conversation("h0", "How much is 9 and 9?", "18.", kind="even")])
    model = Path(shutil.copytree(tiny_model_folder, folder / "model"))
    (folder / "template.jinja").write_text(TEMPLATE)
    encoding = {"template": str(folder / "template.jinja"), "max_length": 128}
    config = tiny_run(folder, model, encoding=encoding, evaluate={"max_new_tokens": 2})
    text = config.read_text().replace("  subtask_column: kind", f"  subtask_column: kind\n  test_path: {held_out}")
    config.write_text(text)
    assert gradsift("run", config) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    """That folder, put back as it was afterwards."""
    shutil.copytree(made, tmp_path / "before")
    yield made
    shutil.rmtree(made)
    shutil.copytree(tmp_path / "before", made)


def edited_template(folder: Path) -> None:
    path = folder / "template.jinja"
    path.write_text(path.read_text().replace("<assistant>", "<bot>").replace("<{{", "[{{"))


def edited_tokenizer(folder: Path) -> None:
    path = folder / "model" / "tokenizer.json"
    values: dict[str, Any] = json.loads(path.read_text())
    values["model"]["merges"].pop()
    path.write_text(json.dumps(values))


def edited_examples(folder: Path) -> None:
    path = folder / "target.jsonl"
    path.write_text(path.read_text().replace("It is 2.", "It is 3."))


def edited_pool(folder: Path) -> None:
    path = folder / "pool.jsonl"
    path.write_text(path.read_text().replace("Say it.", "Tell it.", 1))


def edited_base(folder: Path) -> None:
    flip(folder / "model" / "model.safetensors")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


CHANGES = {
    "the base model's weights or config have changed since": edited_base,
    "the template has changed since": edited_template,
    "the tokenizer has changed since": edited_tokenizer,
    "the examples of target sums have changed since": edited_examples,
    "pool source pool has changed since": edited_pool,
}


@pytest.mark.parametrize("said", CHANGES)
def test_every_stage_names_what_has_changed(folder: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    CHANGES[said](folder)
    for stage in ("encode", "warmup", "features", "score", "select", "train", "evaluate"):
        capsys.readouterr()
        assert gradsift(stage, folder / "config.yaml") == 2
        assert said in capsys.readouterr().err


def test_files_written_anew_that_mean_the_same_are_the_same(folder: Path) -> None:
    path = folder / "model" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert gradsift("run", folder / "config.yaml") == 0


def test_another_model_that_changed_after_its_training_is_not_evaluated_with(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(folder / "model", folder / "other")
    own = ("select.name=other", f"train.model={other}", "train.method=lora")
    assert gradsift("run", folder / "config.yaml", *own) == 0
    flip(other / "model.safetensors")
    assert gradsift("evaluate", folder / "config.yaml", *own) == 2
    assert "was trained with model.fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "tokenizer.json"])
def test_a_finished_model_that_lost_a_file_is_refused(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "run" / "model" / "sums" / "less" / name).unlink()
    for stage in ("train", "evaluate"):
        assert gradsift(stage, folder / "config.yaml") == 2
        assert f"{name}: isn't what was trained" in capsys.readouterr().err


def test_a_model_that_was_trained_again_is_evaluated_again(folder: Path) -> None:
    metrics, model = folder / "run" / "evaluation" / "sums" / "less.json", folder / "run" / "model" / "sums" / "less"
    before, record = read_record(metrics).facts["inputs"], read_record(model / "manifest.json")
    flip(model / "adapter_model.safetensors")
    write_record(model / "manifest.json", record.facts, [model / name for name in record.files])
    assert gradsift("evaluate", folder / "config.yaml") == 0
    assert read_record(metrics).facts["inputs"] != before


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_truncated_selection_is_refused_by_name(
    folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "run" / "selection" / "sums" / f"less{suffix}"
    path.write_bytes(path.read_bytes()[:-20])
    assert gradsift("run", folder / "config.yaml", "--until", "select") == 2
    assert f"less{suffix}: " in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1"])
def test_truncated_scores_are_made_again(folder: Path, content: bytes) -> None:
    path = folder / "run" / "scores" / "sums" / "less.parquet"
    before = path.read_bytes()
    path.write_bytes(content)
    assert gradsift("run", folder / "config.yaml", "--until", "select") == 0
    assert path.read_bytes() == before


def test_a_finished_run_that_is_read_only_prints_its_summary(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever would write is refused, as a read-only file system does; the config kept is an older version's."""
    kept = folder / "run" / "config.yaml"
    kept.write_text(kept.read_text() + "# with fewer keys\n")
    opened, access = Path.open, os.access

    def refuse(self: Path, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return opened(self, mode, *more, **named)

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    capsys.readouterr()
    assert gradsift("run", folder / "config.yaml") == 0
    assert "held-out questions" in capsys.readouterr().out
