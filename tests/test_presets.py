"""Presets: what keys are where they are left out, and which preset a run folder has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs import gradsift, tiny_run

from gradsift.config import RunConfig, load_config
from gradsift.gradients import ProjectionConfig
from gradsift.presets import PAPER, filled

BEFORE = {
    "projection": {"kind": "sketch", "dim": 8192, "seed": 0},
    "adam": "reference",
    "store_dtype": "float16",
    "shard_rows": 8,
}
"""The features of a tiny run by the defaults of before there were presets."""
PAPER_RUN: dict[str, Any] = {"features": {"shard_rows": 8}}
"""What a user wrote then."""


def config(**sections: Any) -> RunConfig:
    needed = {
        "run_dir": "x",
        "model": {"name_or_path": "m"},
        "pool": {"path": "p.jsonl"},
        "targets": {"name": "t", "path": "t"},
    }
    return RunConfig.model_validate({**needed, **sections})


def files(folder: Path) -> dict[str, bytes]:
    """Everything in a run folder but what names the call."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    named = ("config.yaml", "environment.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.name not in named}


def as_before_presets(run: Path) -> None:
    """Write the folder's config as it was before there were presets."""
    kept = yaml.safe_load((run / "config.yaml").read_text())
    newer = ("representation_dtype", "candidates", "normalize", "less_strategy", "random_share", "tov", "gguf_file")
    without = {
        section: {key: value for key, value in keys.items() if key not in newer} if isinstance(keys, dict) else keys
        for section, keys in kept.items()
        if section != "preset"
    }
    (run / "config.yaml").write_text(yaml.safe_dump(without, sort_keys=False))


# Keys left out


def test_left_out_keys_are_the_presets_section_by_section() -> None:
    assert filled({"a": {"b": 1}, "c": 2}, {"a": {"b": 5, "d": 6}, "c": 7, "e": {"f": 8}}) == {
        "a": {"b": 1, "d": 6},
        "c": 2,
        "e": {"f": 8},
    }


def test_what_is_no_section_is_left_to_be_refused() -> None:
    assert filled({"a": None, "b": 3}, {"a": {"c": 1}, "b": {"d": 2}}) == {"a": None, "b": 3}


def test_the_paper_is_a_sketch_of_8192_in_float16() -> None:
    found = config(preset="paper")
    features = {**PAPER["features"], "representation_dtype": "float16"}  # None: as the stores
    assert found.features.model_dump(include=set(features)) == features
    assert (found.warmup.lora.r, found.train.lora.r, found.score.normalize) == (128, 128, "none")


def test_every_key_of_the_paper_is_one_of_the_config() -> None:
    dumped = config(preset="paper").model_dump()
    assert filled(dumped, PAPER) == dumped
    assert RunConfig.model_validate(filled(PAPER, dumped)).model_dump() == dumped


def test_the_users_own_keys_win() -> None:
    found = config(preset="paper", features={"projection": {"dim": 64}}, warmup={"lora": {"r": 4}})
    assert (found.features.projection.dim, found.features.projection.kind, found.features.store_dtype) == (
        64,
        "sketch",
        "float16",
    )
    assert (found.warmup.lora.r, found.warmup.lora.alpha) == (4, 512)


# The stored dtype


@pytest.mark.parametrize(
    ("features", "gradients", "representations"),
    [
        ({}, "int1", "float16"),
        ({"projection": {"seed": 3}}, "int1", "float16"),
        ({"projection": {"dim": 131072}}, "float16", "float16"),
        ({"projection": {"kind": "rademacher"}}, "float16", "float16"),
        ({"projection": ProjectionConfig(dim=64)}, "float16", "float16"),
        ({"projection": {"dim": 64}, "store_dtype": "int8"}, "int8", "int8"),
        ({"store_dtype": "float32"}, "float32", "float32"),
        ({"store_dtype": "int4", "representation_dtype": "float32"}, "int4", "float32"),
    ],
)
def test_one_bit_is_for_the_default_projection_of_gradients(
    features: dict[str, Any], gradients: str, representations: str
) -> None:
    found = config(features=features).features
    assert found.dtype_of(is_pool=True) == gradients
    assert found.dtype_of(is_pool=True, is_representation=True) == representations


@pytest.mark.parametrize(
    ("projection", "dim"),
    [
        ({"kind": "rademacher"}, 8192),
        ({"kind": "rademacher", "seed": 1}, 8192),
        ({"kind": "rademacher", "dim": 64}, 64),
        ({"kind": "sketch"}, 131072),
        (ProjectionConfig(kind="rademacher"), 8192),
    ],
)
def test_a_dense_projection_is_as_small_as_the_papers_unless_told(projection: Any, dim: int) -> None:
    assert config(features={"projection": projection}).features.projection.dim == dim


@pytest.mark.parametrize("dtype", ["float16", "int8", "int1"])
def test_a_representations_dtype_that_is_the_stores_is_the_same_said_or_not(dtype: str) -> None:
    said = config(features={"store_dtype": dtype, "representation_dtype": dtype})
    assert said == config(features={"store_dtype": dtype})
    assert said == config(features={"store_dtype": dtype, "representation_dtype": None})


def test_the_kept_config_says_what_was_left_out() -> None:
    kept = config().model_dump(mode="json")
    assert kept["features"]["store_dtype"] == "int1"
    assert RunConfig.model_validate(kept).model_dump(mode="json") == kept


def test_a_run_by_default_stores_gradients_at_one_bit(tmp_path: Path, tiny_model_folder: Path) -> None:
    path = tiny_run(tmp_path, tiny_model_folder, features={})
    for method in ("less", "rds"):
        assert gradsift("run", path, "--until", "select", f"select.method={method}") == 0
    stores = tmp_path / "run" / "features" / "pool"
    meanings = {
        folder.name: json.loads((folder / "manifest.json").read_text())["meaning"] for folder in stores.iterdir()
    }
    assert meanings["rds"]["dtype"] == "float16"
    assert {(item["dtype"], item["projection"]["dim"]) for name, item in meanings.items() if name != "rds"} == {
        ("int1", 131072)
    }


def test_representations_at_one_bit_are_spoken_of(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run(tmp_path, tiny_model_folder, features={"store_dtype": "int1"}, select={"method": "rds"})
    assert gradsift("run", path, "--until", "features") == 0
    assert "features/pool/rds is stored at int1, like the gradients: features.rep" in capsys.readouterr().err
    assert gradsift("run", path, "--until", "features") == 0
    assert "stored at" not in capsys.readouterr().err


# Run folders


@pytest.mark.parametrize(
    ("kept", "now"),
    [
        ({"store_dtype": "int1", "representation_dtype": "float16"}, {}),
        ({"store_dtype": "int1", "representation_dtype": None}, {"store_dtype": "int1"}),
        ({"store_dtype": "float16", "representation_dtype": None}, {"store_dtype": "float16"}),
        ({"store_dtype": "float16", "representation_dtype": "float16"}, {"store_dtype": "float16"}),
    ],
)
def test_kept_dtypes_that_mean_the_same_are_accepted(
    tmp_path: Path, tiny_model_folder: Path, kept: dict[str, Any], now: dict[str, Any]
) -> None:
    path = tiny_run(tmp_path, tiny_model_folder, features={**now, "tokens_per_batch": 512})
    assert gradsift("run", path, "--until", "features") == 0
    values = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert values["preset"] == "gradsift"
    values["features"] |= kept
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    assert gradsift("run", path, "--until", "features") == 0
    assert gradsift("run", path, "--until", "features", "features.store_dtype=int8") == 2


def test_the_paper_is_byte_for_byte_its_keys_written_out(tmp_path: Path, tiny_model_folder: Path) -> None:
    written = tiny_run(tmp_path, tiny_model_folder, features=BEFORE)
    assert gradsift("run", written, "--until", "select", "select.less_strategy=top") == 0
    named = tiny_run(tmp_path, tiny_model_folder, run_dir=str(tmp_path / "named"), preset="paper", **PAPER_RUN)
    assert gradsift("run", named, "--until", "select") == 0
    for made in ("scores", "selection"):
        assert files(tmp_path / "named" / made) == files(tmp_path / "run" / made)


def test_a_folder_of_before_presets_stays_as_it_is(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run(tmp_path, tiny_model_folder, **PAPER_RUN)
    for method in ("less", "rds"):
        assert gradsift("run", path, f"select.method={method}", "preset=paper") == 0
    as_before_presets(tmp_path / "run")
    before = files(tmp_path / "run")
    capsys.readouterr()
    for method in ("less", "rds"):
        assert gradsift("run", path, f"select.method={method}") == 0
    assert "keeps the preset it was begun with: paper" in capsys.readouterr().err
    assert files(tmp_path / "run") == before
    assert load_config(path).preset == "paper"


def test_an_influence_check_of_before_presets_is_finished(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = {"draws": 3, "checkpoint_draws": 0, "batches": 0, "steps": 0, "stability_rows": 4, "rademacher_dims": []}
    path = tiny_run(tmp_path, tiny_model_folder, check=check, **PAPER_RUN)
    assert gradsift("check", path, "--influence", "preset=paper") == 0
    as_before_presets(tmp_path / "run")
    capsys.readouterr()
    assert gradsift("check", path, "--influence") == 0
    assert capsys.readouterr().err.count("is finished") == 3


def test_another_preset_than_the_folders_is_refused_by_the_first_key(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_run(tmp_path, tiny_model_folder, **PAPER_RUN)
    assert gradsift("run", path, "--until", "features", "preset=paper") == 0
    assert gradsift("run", path, "--until", "features", "preset=gradsift") == 2
    assert "features.projection.dim was 8192, now 131072" in capsys.readouterr().err


def test_a_preset_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gradsift("run", tiny_run(tmp_path, Path("model")), "preset=papr") == 2
    assert "preset: input should be 'gradsift' or 'paper', not 'papr'" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "- a\n", "preset: [\n", "preset: other\n", "preset: [paper]\n"])
def test_a_kept_config_that_says_no_preset_leaves_the_default(tmp_path: Path, content: str) -> None:
    path = tiny_run(tmp_path, Path("model"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    assert load_config(path).preset == "gradsift"
