"""The demo at tiny sizes: the whole way to the table, and again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gradsift.demo.run import TARGETS, DemoSizes, demo, named_targets
from gradsift.errors import ConfigError

TINY = DemoSizes(pool_rows=120, examples=4, held_out=6, seeds=(0, 1), epochs=2, projection=128, own_processes=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo with two targets, and what it said."""
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out, ("dates", "choice"), TINY)


def test_every_target_has_a_line_a_method(finished: tuple[Path, str]) -> None:
    _, text = finished
    for name in ("nothing", "LESS", "random", "BM25", "full pool"):
        assert sum(line.startswith(name) for line in text.splitlines()) == 2, name


def test_the_share_of_the_right_skill_is_that_of_the_selected_rows(finished: tuple[Path, str]) -> None:
    out, text = finished
    shares = []
    for seed in TINY.seeds:
        lines = (out / f"seed-{seed}" / "selection" / "dates" / "less.jsonl").read_text().splitlines()
        assert len(lines) == 6
        shares.append(sum(json.loads(line)["skill"] == "dates" for line in lines) / 6)
    line = next(line for line in text.splitlines() if line.startswith("LESS"))
    assert f" {sum(shares) / 2:.1%} ± " in line


def test_the_files_that_it_names_are_there(finished: tuple[Path, str]) -> None:
    out, text = finished
    assert str(out / "table.txt") in text
    assert (out / "table.txt").read_text() in text
    assert {path.name for path in (out / "targets").iterdir()} >= {"dates.jsonl", "dates-held-out.jsonl"}


def test_a_finished_demo_is_not_made_again(finished: tuple[Path, str]) -> None:
    out, first = finished
    model = out / "seed-1" / "model" / "dates" / "less" / "adapter_model.safetensors"
    made = model.stat().st_mtime_ns
    second = demo(out, ("dates", "choice"), TINY)
    assert model.stat().st_mtime_ns == made
    assert second.splitlines()[:-1] == first.splitlines()[:-1]


def test_the_full_pool_is_trained_on_once_for_all_targets(finished: tuple[Path, str]) -> None:
    out, _ = finished
    manifests = [out / "seed-0" / "model" / target / "full" / "manifest.json" for target in ("dates", "choice")]
    assert manifests[0].read_bytes() == manifests[1].read_bytes()


def test_targets_are_one_all_or_named() -> None:
    assert named_targets("") == TARGETS[:1]
    assert named_targets("all") == TARGETS
    assert named_targets("sorting,choice") == ("sorting", "choice")
    with pytest.raises(ConfigError, match="sorting"):
        named_targets("sortin")
