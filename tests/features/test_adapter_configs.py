"""What an adapter's config says beyond shapes: each checkpoint works with its own, and an edit is noticed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_json, save_checkpoint
from runs import gradsift, largest_relative_error, stored_features, tiny_run

from gradsift.encoding import Corpus
from gradsift.influence_check.experiments import Bench
from gradsift.influence_check.steps import StepSettings
from gradsift.machine import RunFolder
from gradsift.model import ModelConfig, load_checkpoint

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"lora_alpha": 64},
    "alpha-pattern": {"alpha_pattern": {"layers.1.self_attn.q_proj": 32}},
    "rank-pattern": {"rank_pattern": {"v_proj": 2}},
    "rank-stabilised": {"use_rslora": True},
    "one-layer": {"layers_to_transform": [1]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
IDENTITY = {"projection": {"kind": "identity"}, "adam": "sgd", "store_dtype": "float32", "shard_rows": 8}


@pytest.fixture(scope="module")
def run_at_all(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A run whose checkpoints have each another config."""
    folder = tmp_path_factory.mktemp("configs")
    checkpoints = [str(save_checkpoint(tiny_model_folder, folder / kind, **lora)) for kind, lora in KINDS.items()]
    config = tiny_run(folder, tiny_model_folder, warmup={"checkpoints": checkpoints}, features=IDENTITY)
    assert gradsift("run", config, "--until", "features") == 0
    return folder


def peft_gradients(base: Path, checkpoint: Path, pool: Path) -> dict[str, torch.Tensor]:
    """Gradients of every row alone, by plain autograd of the model that PEFT itself loads, in its order."""
    import peft
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model = peft.PeftModel.from_pretrained(loaded, checkpoint, is_trainable=True).eval()
    corpus, found = Corpus(pool), {}
    for row in corpus.rows(0, corpus.num_rows):
        model.zero_grad()
        ids, labels = (torch.tensor(values)[None].long() for values in (row.input_ids, row.labels))
        model(input_ids=ids, labels=labels).loss.backward()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found[row.id] = torch.cat([parameter.grad.flatten() for parameter in trained])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_gradients_of_the_model_that_peft_loads(
    run_at_all: Path, tiny_model_folder: Path, kind: str
) -> None:
    expected = peft_gradients(tiny_model_folder, run_at_all / kind, run_at_all / "run" / "pool")
    found = stored_features(run_at_all / "run" / "features" / "pool" / kind)
    assert found.keys() == expected.keys()
    assert max(largest_relative_error(found[row_id], row) for row_id, row in expected.items()) < 1e-5


def test_the_influence_check_stands_at_each_checkpoint_with_its_own_config(
    run_at_all: Path, tiny_model_folder: Path
) -> None:
    model = ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32")
    plain, other = (load_checkpoint(run_at_all / kind) for kind in ("plain", "alpha"))
    bench = Bench(RunFolder(run_at_all / "run"), model, plain)
    bench.load(other, StepSettings(1e-3, 1.0))
    found = bench.rows_gradients(bench.pool_rows([0, 3]))

    stored = stored_features(run_at_all / "run" / "features" / "pool" / "alpha")
    expected = torch.stack([stored[row.id] for row in bench.pool_rows([0, 3])])
    assert largest_relative_error(found, expected) < 1e-5


@pytest.fixture
def one_checkpoint(tmp_path: Path, tiny_model_folder: Path) -> tuple[Path, Path]:
    """A finished run's config, and its checkpoint."""
    checkpoint = save_checkpoint(tiny_model_folder, tmp_path / "checkpoint-4")
    config = tiny_run(tmp_path, tiny_model_folder, warmup={"checkpoints": [str(checkpoint)]})
    assert gradsift("run", config, "--until", "select") == 0
    return config, checkpoint


@pytest.mark.parametrize(
    "edit", [{"lora_alpha": 64}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 64}}], ids=list
)
def test_a_config_edited_after_the_features_is_noticed(
    one_checkpoint: tuple[Path, Path], edit: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = one_checkpoint
    edit_json(checkpoint / "adapter_config.json", **edit)
    capsys.readouterr()
    assert gradsift("run", config, "--until", "select") == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("gradsift: ")]
    assert f"adapter.{next(iter(edit))}" in line


def test_what_changes_no_gradient_may_be_edited(one_checkpoint: tuple[Path, Path]) -> None:
    config, checkpoint = one_checkpoint
    edit_json(
        checkpoint / "adapter_config.json",
        base_model_name_or_path="moved",
        peft_version="0.1",
        inference_mode=False,
        target_modules=["v_proj", "q_proj"],
    )
    assert gradsift("run", config, "--until", "select") == 0
