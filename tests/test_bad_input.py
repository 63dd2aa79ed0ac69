"""Input that can't be used: one clear line, exit status 2, and nothing finished is lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from checkpoints import edit_json
from runs import conversation, gradsift, small_pool, tiny_run, write_jsonl


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert gradsift(*arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gradsift: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def config(tmp_path: Path, tiny_model_folder: Path) -> Path:
    return tiny_run(tmp_path, tiny_model_folder)


def test_unknown_key_names_the_nearest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", config, "warmup.learning_rte=1")
    assert "warmup.learning_rte" in line
    assert "'learning_rate'" in line


def test_unknown_key_in_a_list_names_the_nearest(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "'path'" in refused(capsys, "run", config, "pool.pool.pth=x")


@pytest.mark.parametrize("fraction", ["0", "1.5", "-0.1"])
@pytest.mark.parametrize("section", ["warmup", "select"])
def test_fraction_outside_its_range(
    config: Path, capsys: pytest.CaptureFixture[str], section: str, fraction: str
) -> None:
    line = refused(capsys, "run", config, f"{section}.fraction={fraction}")
    assert f"{section}.fraction" in line
    assert fraction.rstrip("0").rstrip(".") in line


@pytest.mark.parametrize("key", ["pool.0.path", "targets.0.path"])
def test_missing_file_is_named(config: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    assert "./nowhere.jsonl" in refused(capsys, "run", config, f"{key}=./nowhere.jsonl")


def test_missing_config_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing.yaml" in refused(capsys, "run", tmp_path / "nothing.yaml")


def test_missing_model_folder_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "./no-model" in refused(capsys, "run", config, "model.name_or_path=./no-model")


def test_wrong_column_lists_those_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", config, "pool.0.columns={messages: turns}")
    assert "turns" in line
    assert "id, messages" in line


def test_wrong_subtask_column_lists_those_there(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "run", config, "targets.0.subtask_column=topic")
    assert "topic" in line
    assert "kind" in line


def cut_line(pool: Path, number: int) -> None:
    lines = pool.read_text().splitlines()
    lines[number - 1] = lines[number - 1][:-3]
    pool.write_text("\n".join(lines))


def test_broken_json_names_file_and_line(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_line(tmp_path / "pool.jsonl", 5)
    line = refused(capsys, "run", config, "pool.0.on_error=refuse")
    assert "pool.jsonl" in line
    assert "line 5" in line


def test_bad_row_of_a_target_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_line(tmp_path / "target.jsonl", 2)
    assert "target.jsonl, line 2: is not valid JSON" in refused(capsys, "encode", config)


def test_empty_pool(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool.jsonl").write_text("")
    assert "pool.jsonl" in refused(capsys, "run", config)


def test_pool_without_a_usable_row_says_why(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [conversation("a", "Why?", " ")])
    assert "every assistant text is empty" in refused(capsys, "run", config)


def test_target_without_examples(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "target.jsonl").write_text("\n")
    assert "target.jsonl" in refused(capsys, "run", config)


def test_template_that_cannot_be_masked(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    template = tmp_path / "last.jinja"
    template.write_text("{{ messages | length }}: {{ messages[-1].content }}")
    line = refused(capsys, "run", config, f"encoding.template={template}")
    assert "last.jinja" in line
    assert "can't be masked" in line


def test_duplicate_ids_name_both_rows(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = small_pool()
    rows[9]["id"] = rows[2]["id"]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    line = refused(capsys, "run", config)
    assert rows[2]["id"] in line
    assert "3" in line
    assert "10" in line


def test_checkpoint_that_does_not_fit_the_model(
    config: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("run", config, "--until", "warmup") == 0
    saved = min((tmp_path / "run" / "warmup").glob("checkpoint-*"))
    other = tmp_path / "other"
    shutil.copytree(tiny_model_folder, other)
    _halve_the_model(other)
    values = yaml.safe_load(config.read_text())
    values |= {"run_dir": str(tmp_path / "second"), "warmup": {"checkpoints": [str(saved)]}}
    values["model"]["name_or_path"] = str(other)
    config.write_text(yaml.safe_dump(values))
    line = refused(capsys, "run", config)
    assert saved.name in line
    assert "shape" in line


def _halve_the_model(folder: Path) -> None:
    """Replace the model by one of half the width."""
    from transformers import AutoConfig, AutoModelForCausalLM

    smaller = AutoConfig.from_pretrained(folder)
    smaller.hidden_size //= 2
    smaller.head_dim = smaller.hidden_size // smaller.num_attention_heads
    AutoModelForCausalLM.from_config(smaller).save_pretrained(folder)


@pytest.mark.parametrize(
    "override", ["encoding.max_length=64", "features.projection.dim=32", "warmup.lora.r=2", "seed=1", "pool.0.limit=9"]
)
def test_run_folder_made_with_other_settings_names_the_key(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    assert gradsift("run", config) == 0
    selection = tmp_path / "run" / "selection" / "sums" / "less.jsonl"
    before = selection.read_bytes()
    line = refused(capsys, "run", config, override)
    assert override.partition("=")[0] in line
    assert selection.read_bytes() == before


def test_mistake_found_on_the_way_can_be_mended_in_the_same_run_folder(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "./nowhere.jsonl" in refused(capsys, "run", config, "pool.0.path=./nowhere.jsonl")
    assert "nothing_proj" in refused(capsys, "run", config, "warmup.lora.target_modules=[nothing_proj]")
    assert gradsift("run", config) == 0


def test_changed_pool_file_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("run", config, "--until", "encode") == 0
    write_jsonl(tmp_path / "pool.jsonl", small_pool(30))
    assert "has changed" in refused(capsys, "run", config)


def test_checkpoints_that_all_carry_no_weight_are_refused(
    config: Path, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A warmup of a single step trains at the whole rate; a checkpoint that says 0 carries no weight."""
    assert gradsift("run", config, "--until", "warmup", "warmup.epochs=1", "warmup.batch_size=12") == 0
    checkpoint = tmp_path / "run" / "warmup" / "checkpoint-1"
    edit_json(checkpoint / "checkpoint.json", learning_rate=0)
    (tmp_path / "other").mkdir()
    other = tiny_run(tmp_path / "other", tiny_model_folder, warmup={"checkpoints": [str(checkpoint)]})
    assert "learning rate above 0" in refused(capsys, "run", other)


def test_stage_before_its_time_says_what_to_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gradsift warmup" in refused(capsys, "features", config)


def test_full_disk_keeps_what_was_finished(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradsift.store import writer

    assert gradsift("run", config, "--until", "warmup") == 0
    real, calls = writer.save_file, []

    def full_at_the_third(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(writer, "save_file", full_at_the_third)
    assert "no space left" in refused(capsys, "run", config)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "features").rglob("shard-*")}
    assert len(kept) == 2
    assert gradsift("run", config) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_disk_too_small_for_the_features_is_said_before_they_are_made(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradsift("run", config, "--until", "warmup") == 0
    usage = shutil.disk_usage(config.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "GB free" in refused(capsys, "run", config)


def test_debug_shows_the_traceback(config: Path) -> None:
    from gradsift.errors import ConfigError

    with pytest.raises(ConfigError):
        gradsift("run", config, "--debug", "warmup.epochs=0")


def test_rows_set_aside_are_listed(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*small_pool(), conversation("silent", "Hello?", "")]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    assert gradsift("run", config) == 0
    aside = [json.loads(line) for line in (tmp_path / "run" / "pool" / "set_aside.jsonl").read_text().splitlines()]
    assert [row["id"] for row in aside] == ["silent"]
    assert "25 rows read, 1 set aside" in capsys.readouterr().out


BAD_LINES = [
    b'{"id": "cut", "messages": [{"role": "us',
    b'{"id": "tool", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": 7}]}',
    b'{"id": "image", "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}',
    b'{"id": "bytes", "messages": "\xff"}',
    b'{"id": "none"}',
]


@pytest.fixture
def pool_with_bad_rows(config: Path, tmp_path: Path) -> Path:
    """The small pool, with a bad line before each of its first rows."""
    pool = tmp_path / "pool.jsonl"
    lines = pool.read_bytes().splitlines()
    mixed = [line for pair in zip(BAD_LINES, lines, strict=False) for line in pair]
    pool.write_bytes(b"\n".join([*mixed, *lines[len(BAD_LINES) :]]) + b"\n")
    return pool


def test_bad_rows_are_set_aside_counted_and_listed(
    config: Path, tmp_path: Path, pool_with_bad_rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("run", config, "--until", "encode") == 0
    printed = capsys.readouterr()
    assert "29 rows read, 5 set aside" in printed.out
    assert "5 of 29 rows can't be read and are set aside" in printed.err
    aside = [json.loads(line) for line in (tmp_path / "run" / "pool" / "set_aside.jsonl").read_text().splitlines()]
    assert [row["place"] for row in aside] == [f"{pool_with_bad_rows}, line {line}" for line in (1, 3, 5, 7, 9)]
    assert [row["row"] for row in aside] == [0, 2, 4, 6, 8]
    assert [row["id"] for row in aside] == ["0000000", "tool", "image", "0000006", "none"]
    assert all(row["reason"] for row in aside)
    manifest = json.loads((tmp_path / "run" / "pool" / "manifest.json").read_text())
    assert manifest["per_source"] == {"pool": {"read": 29, "set_aside": 5}}


@pytest.mark.parametrize("method", ["less", "bm25", "length"])
def test_bad_rows_change_nothing_for_the_others(
    config: Path, tmp_path: Path, pool_with_bad_rows: Path, method: str
) -> None:
    def selected(run: str, pool: str) -> list[dict[str, Any]]:
        select = f"select={{count: 6, method: {method}, deduplicate: exact}}"
        settings = [f"run_dir={tmp_path / run}", f"pool.0.path={pool}", "warmup.fraction=1.0", select]
        assert gradsift("run", config, "--until", "select", *settings) == 0
        lines = (tmp_path / run / "selection" / "sums" / f"{method}.jsonl").read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    good = write_jsonl(tmp_path / "good.jsonl", small_pool())
    assert selected("a", str(pool_with_bad_rows)) == selected("b", str(good))


def test_file_trained_on_leaves_its_bad_rows_out(config: Path, tmp_path: Path, pool_with_bad_rows: Path) -> None:
    data = f"train.data=[{{name: mine, path: {pool_with_bad_rows}}}]"
    assert gradsift("run", config, "--until", "train", "pool.0.path=" + str(tmp_path / "pool.jsonl"), data) == 0
    facts = json.loads((tmp_path / "run" / "model" / "sums" / "less" / "manifest.json").read_text())
    assert (facts["num_rows"], sum(facts["set_aside"].values())) == (24, 5)


def test_pipe_as_pool_is_refused(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "is a pipe" in refused(capsys, "run", config, f"pool.0.path={tmp_path / 'pipe.jsonl'}")


def test_folder_made_before_a_key_was_there_is_gone_on_with(config: Path, tmp_path: Path) -> None:
    assert gradsift("run", config, "--until", "encode") == 0
    kept = tmp_path / "run" / "config.yaml"
    values = yaml.safe_load(kept.read_text())
    del values["pool"][0]["on_error"], values["seed"]
    kept.write_text(yaml.safe_dump(values))
    assert gradsift("run", config, "--until", "encode") == 0


@pytest.mark.parametrize("content", [b"", b"[1]", b"a: [", b"\xff", b"pool: 1"])
def test_damaged_config_of_a_run_folder_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    assert gradsift("run", config, "--until", "encode") == 0
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    line = refused(capsys, "run", config)
    assert "run" in line
    assert "config.yaml" in line or "made with other settings" in line


# The machine


def test_file_in_place_of_the_run_folder(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file where a folder belongs" in refused(capsys, "run", config, f"run_dir={tmp_path / 'file'}")
    line = refused(capsys, "run", config, f"run_dir={tmp_path / 'file' / 'run'}")
    assert f"{tmp_path / 'file' / 'run'}: " in line
    assert "folder belongs" in line


def test_file_that_may_not_be_read_is_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.open

    def forbidden(path: Path, *arguments: Any, **keys: Any) -> Any:
        if path.name == "pool.jsonl":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *arguments, **keys)

    monkeypatch.setattr(Path, "open", forbidden)
    assert "pool.jsonl: permission denied" in refused(capsys, "run", config)


def test_failing_disk_is_not_called_a_full_one(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    line = refused(capsys, "run", config)
    assert "input/output error" in line
    assert "no space" not in line


def test_finished_folder_that_is_read_only_still_reports(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gradsift("run", config, f"targets.0.test_path={tmp_path / 'target.jsonl'}") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    printed = capsys.readouterr().out

    def read_only(path: Any, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "access", lambda *_: False)
    for name in ("mkdir", "unlink", "replace", "write_bytes", "write_text"):
        monkeypatch.setattr(Path, name, read_only)
    assert gradsift("run", config, f"targets.0.test_path={tmp_path / 'target.jsonl'}") == 0
    assert capsys.readouterr().out.splitlines()[:-1] == printed.splitlines()[:-1]
    assert {path: path.read_bytes() for path in before} == before
    assert "read-only file system" in refused(capsys, "run", config, "select.fraction=0.1")


def test_target_examples_that_lose_their_beginning_are_named(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = [
        conversation("long", "How much is one and one? " * 80, "Two.", kind="sums"),
        conversation("short", "Hello?", "Hi.", kind="sums"),
    ]
    write_jsonl(tmp_path / "target.jsonl", examples)
    assert gradsift("encode", config) == 0
    printed = capsys.readouterr().out
    assert "2 examples of 1 subtask" in printed
    assert "1 too long, without their beginning: long" in printed
