"""The final training: what it makes, what it refuses, and going on after a kill."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import MODEL_KINDS, save_model
from runs import conversation, gradsift, gradsift_process, small_pool, tiny_run, write_jsonl
from safetensors.torch import load_file

from gradsift.encoding.encoder import Encoder, EncodingConfig
from gradsift.machine.artifact import read_json
from gradsift.model.finetuned import load_finetuned
from gradsift.model.loading import ModelConfig, load_base_model, load_tokenizer

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A run folder with a selection of 6 rows and no model."""
    folder = tmp_path_factory.mktemp("selected")
    assert gradsift("run", tiny_run(folder, tiny_model_folder), "--until", "select") == 0
    return folder


@pytest.fixture
def run(selected: Path, tmp_path: Path) -> Callable[..., int]:
    """`gradsift train` with overrides on a copy of the run."""
    shutil.copytree(selected / "run", tmp_path / "run")

    def train(*overrides: str) -> int:
        return gradsift("train", selected / "config.yaml", f"run_dir={tmp_path / 'run'}", *overrides)

    return train


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "model" / "sums" / "less"


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.tensor([[1, 5, 9, 60]])).logits


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own loader
def test_adapter_loads_with_peft_as_it_is(run: Callable[..., int], model_folder: Path, tiny_model_folder: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    assert run() == 0
    loaded = AutoPeftModelForCausalLM.from_pretrained(model_folder).eval()
    config = ModelConfig(name_or_path=str(tiny_model_folder), dtype="float32")
    ours = load_finetuned(config, model_folder, torch.device("cpu"))
    base = load_base_model(config, torch.device("cpu"))
    assert torch.equal(logits(loaded), logits(ours))
    assert not torch.allclose(logits(loaded), logits(base))


def test_full_model_loads_with_transformers_as_it_is(run: Callable[..., int], model_folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert run("train.method=full", "train.learning_rate=1e-3") == 0
    loaded = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    ours = load_finetuned(ModelConfig(name_or_path="unused", dtype="float32"), model_folder, torch.device("cpu"))
    assert torch.equal(logits(loaded), logits(ours))
    assert AutoTokenizer.from_pretrained(model_folder).is_fast
    assert not (model_folder / ADAPTER).exists()


def test_tokenizer_is_saved_with_the_template_trained_on(
    run: Callable[..., int], model_folder: Path, tiny_model_folder: Path
) -> None:
    from transformers import AutoTokenizer

    from gradsift.data.example import Example

    assert run() == 0
    messages = conversation("x", "Say one.", "One.")["messages"]
    encoder = Encoder(
        load_tokenizer(ModelConfig(name_or_path=str(tiny_model_folder))), EncodingConfig(template="tulu", max_length=99)
    )
    (row,) = encoder.encode([Example("x", messages, "pool")])
    ids = AutoTokenizer.from_pretrained(model_folder).apply_chat_template(messages, return_dict=False)
    assert ids == row.input_ids.tolist()


def test_the_training_learns_its_rows(run: Callable[..., int], model_folder: Path) -> None:
    assert run("train.epochs=8", "train.learning_rate=1e-2", "train.lora.dropout=0") == 0
    facts = read_json(model_folder / "manifest.json")
    assert facts["num_rows"] == 6
    assert facts["loss"] < 0.8 * facts["log"][0]["loss"]


def test_a_finished_model_is_not_trained_again(run: Callable[..., int], model_folder: Path) -> None:
    assert run() == 0
    before = {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")}
    assert run() == 0
    assert {path: path.stat().st_mtime_ns for path in model_folder.rglob("*")} == before


def test_checkpoints_that_nothing_vouches_for_are_not_gone_on_from(run: Callable[..., int], model_folder: Path) -> None:
    assert run() == 0
    whole = (model_folder / ADAPTER).read_bytes()
    shutil.rmtree(model_folder)
    (model_folder / "checkpoint-1").mkdir(parents=True)
    (model_folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    assert run() == 0
    assert (model_folder / ADAPTER).read_bytes() == whole
    assert not (model_folder / "checkpoint-1").exists()


def test_other_settings_are_refused_and_lose_nothing(
    run: Callable[..., int], model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    before = (model_folder / ADAPTER).read_bytes()
    assert run("train.epochs=3") == 2
    assert "train.epochs was 2, now 3; delete it to train again" in capsys.readouterr().err
    assert (model_folder / ADAPTER).read_bytes() == before


def test_another_selection_is_refused(
    run: Callable[..., int], tmp_path: Path, selected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    folder = f"run_dir={tmp_path / 'run'}"
    assert gradsift("run", selected / "config.yaml", folder, "select.fraction=0.5") == 2
    assert "was trained with another selection; delete it" in capsys.readouterr().err


def test_a_selection_changed_by_hand_is_refused(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    selection = tmp_path / "run" / "selection" / "sums" / "less.jsonl"
    selection.write_text(selection.read_text().splitlines()[0] + "\n")
    assert run() == 2
    assert "was changed by hand: name it in train.data" in capsys.readouterr().err


def test_any_file_can_be_trained_on(run: Callable[..., int], tmp_path: Path, model_folder: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "input": "", "output": f"It is {i}."} for i in range(3)]
    data = write_jsonl(tmp_path / "mine.jsonl", rows)
    assert run(f"train.data={{path: {data}}}") == 0
    assert read_json(model_folder / "manifest.json")["num_rows"] == 3


def test_an_unknown_tracker_is_refused_in_one_line(run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train.report_to=nothing_like_it") == 2
    assert "nothing_like_it is not supported" in capsys.readouterr().err.strip().splitlines()[-1]


def test_training_before_selection_is_refused(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradsift("train", tiny_run(tmp_path, tiny_model_folder)) == 2
    assert "run `gradsift select` first" in capsys.readouterr().err


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_another_model_trains_with_its_own_tokenizer_and_modules(
    run: Callable[..., int], tmp_path: Path, model_folder: Path, kind: str
) -> None:
    """LESS-T: the selection of a Llama trains a model of another family and vocabulary."""
    other = save_model(kind, tmp_path / kind)
    assert run(f"train.model={other}") == 0
    config = read_json(model_folder / "adapter_config.json")
    assert set(config["target_modules"]) == MODEL_KINDS[kind].attention
    assert config["base_model_name_or_path"] == str(other)
    model = load_finetuned(ModelConfig(name_or_path=str(other), dtype="float32"), model_folder, torch.device("cpu"))
    assert model.config.model_type == kind
    assert all(tensor.abs().sum() > 0 for tensor in load_file(model_folder / ADAPTER).values())
    saved = json.loads((model_folder / "tokenizer.json").read_text())
    assert len(saved["model"]["vocab"]) == MODEL_KINDS[kind].vocabulary


def test_warmup_and_features_work_on_other_families(tmp_path: Path) -> None:
    """The selection model can be a GPT-NeoX too."""
    model = save_model("gpt_neox", tmp_path / "model")
    assert gradsift("run", tiny_run(tmp_path, model), "--until", "select") == 0
    assert (tmp_path / "run" / "selection" / "sums" / "less.jsonl").read_text().count("\n") == 6


@pytest.mark.slow
@pytest.mark.parametrize(("method", "weights"), [("lora", ADAPTER), ("full", "model.safetensors")])
def test_a_killed_training_ends_as_an_uninterrupted_one(
    selected: Path, tmp_path: Path, method: str, weights: str
) -> None:
    """Killed after a checkpoint, it loses no more than one interval, and ends with the same weights."""
    overrides = [
        f"train.method={method}",
        "train.epochs=8",
        "train.save_steps=2",
        "train.batch_size=1",
        "train.lora.dropout=0.1",
    ]
    folders = {}
    for name in ("whole", "killed"):
        shutil.copytree(selected / "run", tmp_path / name / "run")
        folders[name] = tmp_path / name / "run" / "model" / "sums" / "less"
    arguments = ["train", selected / "config.yaml", *overrides]
    assert gradsift(*arguments, f"run_dir={tmp_path / 'whole' / 'run'}") == 0
    process = gradsift_process(*arguments, f"run_dir={tmp_path / 'killed' / 'run'}")
    deadline = time.monotonic() + 60
    while not any(folders["killed"].glob("checkpoint-*/complete")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    reached = max(int(path.parent.name.split("-")[1]) for path in folders["killed"].glob("checkpoint-*/complete"))
    assert 2 <= reached < 48
    assert not (folders["killed"] / "manifest.json").exists()
    assert gradsift(*arguments, f"run_dir={tmp_path / 'killed' / 'run'}") == 0
    whole, killed = (read_json(folder / "manifest.json") for folder in folders.values())
    assert killed["loss"] == pytest.approx(whole["loss"], rel=1e-4)
    assert [entry["step"] for entry in killed["log"]] == list(range(1, 49))
    whole_weights, killed_weights = (load_file(folder / weights) for folder in folders.values())
    assert all(torch.allclose(tensor, killed_weights[name], atol=1e-6) for name, tensor in whole_weights.items())
    assert not any(folders["killed"].glob("checkpoint-*"))


def test_rows_that_do_not_fit_the_other_tokenizer_are_counted(tmp_path: Path, tiny_model_folder: Path) -> None:
    pool = [*small_pool(), conversation("long", "Count. " * 14, "Well.")]
    config = tiny_run(tmp_path, tiny_model_folder, pool=[{"path": str(write_jsonl(tmp_path / "p.jsonl", pool))}])
    assert gradsift("run", config, "select.method=full", "train.encoding={template: tulu, max_length: 40}") == 0
    facts = read_json(tmp_path / "run" / "model" / "sums" / "full" / "manifest.json")
    assert facts["num_rows"] + sum(facts["set_aside"].values()) == 25
    assert sum(facts["set_aside"].values()) >= 1
