"""A run that is killed at any rename: the same command ends with the bytes of an undisturbed run, and so does going
back to the settings from before."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import conversation, gradsift, tiny_run, write_jsonl

EARLIER = ("score.combine=max", "select.count=6", "select.overlap_ngrams=5", "evaluate.max_new_tokens=4")
LATER = ("score.combine=mean", "select.count=9", "select.overlap_ngrams=3", "select.strategy=mean")
MADE = ("pool", "targets", "scores", "selection", "evaluation")
"""Not the features: safetensors writes the entries of a header in any order."""

Gradsift = Callable[..., int]


class Killed(BaseException):
    """In place of a signal that nothing catches."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a config and its run, finished up to the selection."""
    folder = tmp_path_factory.mktemp("finished")
    held_out = write_jsonl(folder / "held.jsonl", [conversation("h0", "How much is 9 and 9?", "18.", kind="even")])
    config = tiny_run(folder, tiny_model_folder)
    text = config.read_text().replace("  subtask_column: kind", f"  subtask_column: kind\n  test_path: {held_out}")
    config.write_text(text.replace("fraction: 0.25", "count: 6"))
    assert gradsift("run", config, *EARLIER, "--until", "select") == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Gradsift:
    """The command line on a copy of that run."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return lambda *arguments: gradsift(
        arguments[0], finished / "config.yaml", f"run_dir={tmp_path / 'run'}", *arguments[1:]
    )


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Makes the n-th rename, counted from 0, the last thing before the process dies; a negative n lets it live."""
    left = [-1]
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if left[0] == 0:
            left[0] = -1
            raise Killed
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    yield lambda count: left.__setitem__(0, count)


def made(run_folder: Path) -> dict[str, bytes]:
    """What the run holds, by name."""
    files = (path for name in MADE for path in (run_folder / name).rglob("*") if path.is_file())
    return {str(path.relative_to(run_folder)): path.read_bytes() for path in files}


def killed_at_every_rename(kill_at: Callable[[int], None], command: Callable[[], int]) -> Iterator[int]:
    """Kills the command at its first rename, then its second, …, until it gets through; after each, the number."""
    for count in range(100):
        kill_at(count)
        try:
            assert command() == 0
        except Killed:
            yield count
            continue
        finally:
            kill_at(-1)
        return
    raise AssertionError("it never gets through")


def test_other_settings_killed_at_any_rename_leave_nothing_behind(
    finished: Path, tmp_path: Path, run: Gradsift, kill_at: Callable[[int], None]
) -> None:
    """Scores, overlap and selection with other settings, killed, then the earlier settings, then the others again."""
    assert run("run", *EARLIER, *LATER, "--until", "select") == 0
    later = made(tmp_path / "run")
    earlier = made(finished / "run")
    assert later != earlier
    kills = 0
    for _ in killed_at_every_rename(kill_at, lambda: run("run", *EARLIER, *LATER, "--until", "select")):
        assert run("run", *EARLIER, "--until", "select") == 0
        assert made(tmp_path / "run") == earlier
        kills += 1
    assert kills >= 6
    assert made(tmp_path / "run") == later


@pytest.mark.slow
def test_a_first_run_killed_at_any_rename_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, run: Gradsift, kill_at: Callable[[int], None]
) -> None:
    """Encoding, features, scores and selection made from nothing, killed at each rename; the warmup is there."""
    kills = 0
    for folder in begin_again(tmp_path / "run"):
        kill_at(kills)
        try:
            assert run("run", *EARLIER, "--until", "select") == 0
            break
        except Killed:
            kills += 1
        finally:
            kill_at(-1)
        assert run("run", *EARLIER, "--until", "select") == 0
        assert made(folder) == made(finished / "run")
    assert kills > 25


def begin_again(run_folder: Path) -> Iterator[Path]:
    """The run folder again and again, without what comes from the pool and the targets, but for the warmup."""
    while True:
        for name in ("pool", "targets", "features", "scores", "selection"):
            shutil.rmtree(run_folder / name, ignore_errors=True)
        yield run_folder


def test_an_evaluation_killed_at_any_rename_leaves_nothing_behind(
    tmp_path: Path, run: Gradsift, kill_at: Callable[[int], None]
) -> None:
    assert run("run", *EARLIER) == 0
    earlier, other = made(tmp_path / "run"), "evaluate.max_new_tokens=2"
    for _ in killed_at_every_rename(kill_at, lambda: run("run", *EARLIER, other)):
        assert run("run", *EARLIER) == 0
        assert made(tmp_path / "run") == earlier
    assert made(tmp_path / "run") != earlier
