"""State files damaged in many ways: the next command makes them again or refuses them by name, and is never wrong.

A finished tiny run is made once. A case damages one of its files and runs the same command again: exit status 0 with
the bytes of the undisturbed run, or 2 with one line. GRADSIFT_FUZZ=1000 tries a thousand cases in place of 300.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from runs import conversation, gradsift, tiny_run, write_jsonl

NUM_CASES = int(os.environ.get("GRADSIFT_FUZZ") or 300)
RESULTS = ("selection/sums/less.jsonl", "evaluation/sums/less/predictions.jsonl")
"""What must be as it was, or refused."""
UNREAD = {"environment.json", ".lock"}

Damage = Callable[[Path, Random, Path], None]


def emptied(path: Path, random: Random, run: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path, random: Random, run: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(max(1, len(content)))])


def one_bit_flipped(path: Path, random: Random, run: Path) -> None:
    content = bytearray(path.read_bytes() or b" ")
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def overwritten_in_the_middle(path: Path, random: Random, run: Path) -> None:
    content = path.read_bytes()
    start = random.randrange(max(1, len(content)))
    path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])


def replaced(path: Path, random: Random, run: Path) -> None:
    path.write_bytes(random.choice([b"{}", b"[]", b"null", b"3", b'"text"', b"no JSON", b"\xff\xfe\x00", b"[" * 9999]))


def without_a_key(path: Path, random: Random, run: Path) -> None:
    if path.suffix != ".json":
        return truncated(path, random, run)
    facts = json.loads(path.read_text())
    if isinstance(facts, dict) and facts:
        del facts[random.choice(sorted(facts))]
    path.write_text(json.dumps(facts))
    return None


def with_another_value(path: Path, random: Random, run: Path) -> None:
    if path.suffix != ".json":
        return one_bit_flipped(path, random, run)
    facts = json.loads(path.read_text())
    if isinstance(facts, dict) and facts:
        facts[random.choice(sorted(facts))] = random.choice([None, 7, "x", [], {}])
    path.write_text(json.dumps(facts))
    return None


def deleted(path: Path, random: Random, run: Path) -> None:
    path.unlink()


def a_folder_in_its_place(path: Path, random: Random, run: Path) -> None:
    path.unlink()
    path.mkdir()


def swapped_with_one_like_it(path: Path, random: Random, run: Path) -> None:
    others = [run / other for other in state_files(run) if other.suffix == path.suffix]
    other = random.choice(others)
    content, other_content = path.read_bytes(), other.read_bytes()
    path.write_bytes(other_content)
    other.write_bytes(content)


DAMAGES: tuple[Damage, ...] = (
    emptied,
    truncated,
    one_bit_flipped,
    one_bit_flipped,
    overwritten_in_the_middle,
    replaced,
    without_a_key,
    with_another_value,
    deleted,
    a_folder_in_its_place,
    swapped_with_one_like_it,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with a config and its run, trained and evaluated."""
    folder = tmp_path_factory.mktemp("finished")
    held_out = write_jsonl(folder / "held.jsonl", [conversation("h0", "How much is 9 and 9?", "18.", kind="even")])
    config = tiny_run(folder, tiny_model_folder, evaluate={"max_new_tokens": 2})
    config.write_text(
        config.read_text().replace("  subtask_column: kind", f"  subtask_column: kind\n  test_path: {held_out}")
    )
    assert gradsift("run", config) == 0
    return folder


@pytest.fixture
def restored(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the run."""
    shutil.copytree(finished / "run", tmp_path / "run")
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run")


def state_files(run: Path) -> list[Path]:
    """Every file of a run that a command reads, in a fixed order, by its name in the run."""
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file() and path.name not in UNREAD)
    return sorted(files)


@pytest.mark.parametrize("case", range(NUM_CASES))
def test_a_damaged_file_is_made_again_or_refused(
    case: int, finished: Path, restored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random, files = Random(case), state_files(restored)
    path = restored / files[case % len(files)]
    damage = random.choice(DAMAGES)
    damage(path, random, restored)
    until = "evaluate" if files[case % len(files)].parts[0] in ("model", "evaluation") else "select"
    status = gradsift("run", finished / "config.yaml", f"run_dir={restored}", "--until", until)
    said = capfd.readouterr().err
    assert status in (0, 2), f"{damage.__name__} {path}: {said}"
    assert "Traceback" not in said
    if status == 0:
        for name in RESULTS:
            assert (restored / name).read_bytes() == (finished / "run" / name).read_bytes(), (
                f"{damage.__name__} {path}: another {name}"
            )
