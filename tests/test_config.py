"""Reading configs: overrides, floats, and what goes wrong with them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gradsift.config import RunConfig, keep_config, load_config
from gradsift.errors import ConfigError, RunFolderError

TEXT = """
run_dir: runs/x
model: {name_or_path: m}
pool: {name: a, path: a.jsonl}
targets: [{name: t, path: t.jsonl}, {name: u, path: u.jsonl}]
warmup: {learning_rate: 2e-5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT)
    return path


def test_one_source_stands_for_a_list(path: Path) -> None:
    assert [source.name for source in load_config(path).pool] == ["a"]


def test_number_in_scientific_notation_is_a_number(path: Path) -> None:
    assert load_config(path).warmup.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("features.projection.dim=4096", lambda config: config.features.projection.dim == 4096),
        ("warmup.learning_rate=1e-4", lambda config: config.warmup.learning_rate == 1e-4),
        ("targets.1.path=v.jsonl", lambda config: config.targets[1].path == "v.jsonl"),
        ("targets.u.path=v.jsonl", lambda config: config.targets[1].path == "v.jsonl"),
        ("pool.0.path=v.jsonl", lambda config: config.pool[0].path == "v.jsonl"),
        ("pool.a.path=v.jsonl", lambda config: config.pool[0].path == "v.jsonl"),
        ("pool.path=v.jsonl", lambda config: config.pool[0].path == "v.jsonl"),
        ("warmup.checkpoints=[a, b]", lambda config: [item.path for item in config.warmup.checkpoints] == ["a", "b"]),
    ],
)
def test_override(path: Path, override: str, read: object) -> None:
    assert callable(read)
    assert read(load_config(path, [override]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("nonsense", "not key=value"),
        ("targets.7.path=x", "no entry '7'"),
        ("targets.t.name=u", "two entries are named 'u'"),
        ("targets.t.name=a/b", "can't name a folder"),
        ("sed=1", "did you mean 'seed'"),
        ("features.projection.dims=1", "did you mean 'dim'"),
        ("model.dtype=int3", "model.dtype"),
        ("pool=[]", "pool"),
        ("targets.0.task=mmmlu", "targets.0.task"),
        ("run_dir.x=1", "no such place"),
        ("targets.².name=x", "the list has no entry '²'"),
        ("pool.99999999999999999999.name=x", "the list has no entry"),
        (".".join("a" * 1000) + "=1", "no such place"),
        ("targets.0.limit=-5", "targets.0.limit"),
        ("targets.0.limit=0", "targets.0.limit"),
        ("compare.methods=7", "compare.methods"),
        ("compare.methods=null", "compare.methods"),
        ("select.overlap_ngrams=1000000000", "select.overlap_ngrams"),
        ("seed=" + "9" * 300, "seed"),
        ("seed=" + "9" * 4000, "a number of 4,000 characters"),
        ("pool.0.limit=9223372036854775808", "pool.0.limit: must be below 2**63"),
        ("warmup.learning_rate=.nan", "warmup.learning_rate"),
        ("warmup.learning_rate=.inf", "warmup.learning_rate"),
        ("warmup.learning_rate='inf'", "warmup.learning_rate"),
        ("warmup.learning_rate=1e999", "warmup.learning_rate"),
        ("select.near_threshold=.nan", "select.near_threshold"),
        ("pool.0.on_error=ignore", "pool.0.on_error"),
        ("pool.0={a: 1, a: 2}", "the key 'a' stands twice"),
        ("pool.0=&a [*a]", "an alias stands inside"),
        ("run_dir=", "run_dir"),
        ("run_dir=~no-such-user/x", "run_dir: there is no user"),
        ("targets.0.path=~no-such-user/x", "targets.0.path: there is no user"),
        ('run_dir="a\\0b"', "run_dir: holds a character"),
        ('pool.0.name="\\ud800"', "can't name a folder"),
        ('pool.0.columns={id: "\\ud800"}', "pool.0.columns.id: holds a character"),
        ("run_dir=" + "x/" * 2000, "run_dir is longer than"),
        ("targets.0.name=" + "x" * 201, "has 201 bytes"),
        ("pool.0.name=" + "é" * 101, "has 202 bytes"),
        ("select.name=" + "x" * 201, "has 201 bytes"),
    ],
)
def test_wrong_override_is_said_in_one_line(path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_config(path, [override])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_missing_key_is_named(path: Path) -> None:
    path.write_text("run_dir: x")
    with pytest.raises(ConfigError, match="model is missing"):
        load_config(path)


def test_broken_yaml_names_the_file(path: Path) -> None:
    path.write_text("a: [")
    with pytest.raises(ConfigError, match=r"config\.yaml: is not valid YAML"):
        load_config(path)


def test_key_that_stands_twice_is_named(path: Path) -> None:
    path.write_text(TEXT + "seed: 1\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"config\.yaml: line 8: the key 'seed' stands twice"):
        load_config(path)


def test_override_of_a_value_with_an_alias_changes_that_place_alone(path: Path) -> None:
    text = TEXT.replace("2e-5}", "2e-5, lora: &lora {r: 8}}")
    path.write_text(text + "train: {lora: *lora}\n")
    config = load_config(path, ["warmup.lora.r=4"])
    assert (config.warmup.lora.r, config.train.lora.r) == (4, 8)


def not_there(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (not_there, "there is no such config file"),
        (folder, "is no file"),
        (pipe, "is no file"),
        (lambda path: path.write_bytes(b"a: \xff"), "is not valid YAML"),
        (lambda path: path.write_bytes(b"a: \x00"), "is not valid YAML"),
        (lambda path: path.write_bytes(TEXT.encode("utf-16")), "is not valid YAML"),
        (lambda path: path.write_bytes(b""), "holds no keys"),
        (lambda path: path.write_bytes(b"[1, 2]"), "holds no keys"),
        (lambda path: path.write_bytes(b"#" * (1 << 20)), "characters"),
    ],
    ids=["absent", "folder", "pipe", "no UTF-8", "NUL", "UTF-16", "empty", "list", "large"],
)
def test_config_that_is_no_text_is_refused_in_a_line(path: Path, make: Callable[[Path], None], said: str) -> None:
    make(path)
    with pytest.raises(ConfigError) as refusal:
        load_config(path)
    assert str(refusal.value).startswith(str(path))
    assert said in str(refusal.value)


def test_config_that_may_not_be_read_is_refused_in_a_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(ConfigError, match=r"config\.yaml: can't be read: Permission denied"):
        load_config(path)


def test_config_with_a_name_too_long_is_refused_in_a_line() -> None:
    with pytest.raises(ConfigError, match="can't be read: File name too long"):
        load_config("x" * 5000)


def test_byte_order_mark_is_no_part_of_a_config(path: Path) -> None:
    path.write_text(TEXT, encoding="utf-8-sig")
    assert load_config(path).run_dir == "runs/x"


def test_the_projects_own_configs_are_valid() -> None:
    configs = sorted((Path(__file__).resolve().parents[1] / "configs").glob("*.yaml"))
    assert configs
    assert all(isinstance(load_config(path), RunConfig) for path in configs)


def test_training_keys_left_out_of_train_are_the_warmups(path: Path) -> None:
    config = load_config(path, ["warmup.lora.r=8", "warmup.batch_size=4", "train.epochs=2", "train.lora.alpha=9"])
    assert (config.train.learning_rate, config.train.batch_size, config.train.epochs) == (2e-5, 4, 2)
    assert (config.train.lora.r, config.train.lora.alpha, config.warmup.epochs) == (8, 9, 4)


def test_another_models_modules_are_its_own(path: Path) -> None:
    config = load_config(path, ["warmup.lora.target_modules=[q_proj]", "warmup.lora.r=8", "train.model=other"])
    assert (config.train.lora.target_modules, config.train.lora.r) == ("auto", 8)
    assert config.target_model.name_or_path == "other"


def test_warmup_keys_that_are_no_training_keys_stay_there(path: Path) -> None:
    assert load_config(path, ["warmup.fraction=0.5"]).warmup.fraction == 0.5
    with pytest.raises(ConfigError, match=r"unknown key train\.fraction"):
        load_config(path, ["train.fraction=0.5"])


# Run folders


def _kept(path: Path, **encoding: str) -> tuple[RunConfig, Path]:
    """A config whose pool is encoded, and the config that its run folder keeps."""
    overrides = [f"run_dir={path.parent / 'run'}", *(f"encoding.{key}={value}" for key, value in encoding.items())]
    config = load_config(path, overrides)
    config.run.pool.mkdir(parents=True, exist_ok=True)
    (config.run.pool / "manifest.json").write_text("{}")
    return config, config.run.config


def test_a_folder_older_than_a_key_is_taken_for_its_default(path: Path) -> None:
    config, kept = _kept(path)
    keep_config(config)
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if "supervise" not in line))
    keep_config(config)
    with pytest.raises(RunFolderError, match=r"encoding\.supervise was 'all', now 'last'"):
        keep_config(_kept(path, supervise="last")[0])


def test_which_turns_are_learned_may_not_change(path: Path) -> None:
    keep_config(_kept(path, supervise="last")[0])
    with pytest.raises(RunFolderError, match=r"encoding\.supervise was 'last', now 'all'"):
        keep_config(_kept(path)[0])


def test_which_turns_are_learned_is_all_or_last(path: Path) -> None:
    with pytest.raises(ConfigError, match=r"encoding\.supervise"):
        load_config(path, ["encoding.supervise=first"])
