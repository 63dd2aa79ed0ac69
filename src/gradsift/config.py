"""The config of a run: its keys, how it is read, and what a run folder may not change between two calls."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gradsift.baselines import EmbeddingConfig
from gradsift.data import MAX_NAME, SourceConfig
from gradsift.encoding import Corpus, EncodingConfig
from gradsift.errors import ConfigError, RunFolderError, nearest
from gradsift.evaluation import EvaluateConfig
from gradsift.executors import ExecutorConfig
from gradsift.features import FeaturesConfig, gives_dim_or_kind
from gradsift.influence_check import CheckConfig
from gradsift.machine import RunFolder, atomic_open, first_difference, is_read_only, read_record
from gradsift.model import ModelConfig
from gradsift.overrides import MAX_SHOWN, override_values
from gradsift.presets import DEFAULT_PRESET, PAPER, PRESET_OF_BEFORE, PRESETS, PresetName, filled
from gradsift.selection import ArmConfig, CompareConfig, ScoreConfig, SelectConfig
from gradsift.stages import TovConfig, TrainConfig, WarmupConfig
from gradsift.tasks import TargetConfig
from gradsift.training import TrainingConfig
from gradsift.yaml_text import MAX_CHARACTERS, parsed_yaml

logger = logging.getLogger(__name__)

Named = TypeVar("Named", SourceConfig, TargetConfig)

FREE_KEYS = (
    "features.candidates",
    "features.tokens_per_batch",
    "warmup.micro_batch_size",
    "warmup.gradient_checkpointing",
)
"""Keys that change speed and memory alone, or only which rows have features; scores and selections are made again when
their sections change."""
ARM_SECTIONS: dict[str, type[BaseModel]] = {"features": FeaturesConfig, "score": ScoreConfig, "select": SelectConfig}
"""Sections whose keys an arm of a comparison may have of its own."""
BUDGET_KEYS = {"fraction", "count", "tokens"}
DTYPE_KEYS = {"store_dtype", "representation_dtype"}
KEPT_CONFIG_REMEDY = "put it back as it was, or use another run_dir"
PATH_KEYS = ("run_dir", "path", "test_path", "dataset_dir", "name_or_path", "template", "include_path")
"""Keys whose value may begin with `~`."""
LARGEST = 2**63
MAX_RUN_DIR = 3000


class BaselinesConfig(BaseModel):
    """Settings of the methods that have some, besides `less`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedding: EmbeddingConfig = EmbeddingConfig()
    tov: TovConfig = TovConfig()


class RunConfig(BaseModel):
    """Everything that a run is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: str = Field(min_length=1)
    preset: PresetName = DEFAULT_PRESET
    """Of what the other keys are where they are left out. The folder's own, where it has been begun: `load_config`."""
    seed: int = Field(0, ge=0, lt=2**32)
    model: ModelConfig
    pool: list[SourceConfig] = Field(min_length=1)
    targets: list[TargetConfig] = Field(min_length=1)
    encoding: EncodingConfig = EncodingConfig()
    warmup: WarmupConfig = WarmupConfig()
    features: FeaturesConfig = FeaturesConfig()
    score: ScoreConfig = ScoreConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    select: SelectConfig = SelectConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    compare: CompareConfig = CompareConfig()
    executor: ExecutorConfig = ExecutorConfig()
    check: CheckConfig = CheckConfig()

    @property
    def run(self) -> RunFolder:
        """The run folder."""
        return RunFolder(Path(self.run_dir).expanduser())

    @property
    def target_model(self) -> ModelConfig:
        """The model that the final training starts from."""
        return self.train.model or self.model

    @property
    def target_encoding(self) -> EncodingConfig:
        """How that model's rows and prompts are encoded."""
        return self.train.encoding or self.encoding

    @model_validator(mode="before")
    @classmethod
    def _keys_left_out(cls, value: Any) -> Any:
        """They are the preset's; of `train` and `baselines.tov`, training keys are the warmup's: the paper trains both
        alike."""
        if not isinstance(value, Mapping):
            return value
        value = filled(value, PRESETS.get(str(value.get("preset", DEFAULT_PRESET)), {}))
        warmup, train, baselines = (value.get(section) or {} for section in ("warmup", "train", "baselines"))
        if not all(isinstance(section, Mapping) for section in (warmup, train, baselines)):
            return value  # refused with the rest
        tov = baselines.get("tov") or {}
        if isinstance(tov, Mapping):
            baselines = {**baselines, "tov": inherited(tov, warmup)}
        return {**value, "train": inherited(train, warmup), "baselines": baselines}

    @field_validator("pool", "targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @field_validator("pool", "targets")
    @classmethod
    def _names_are_their_own(cls, value: list[Named]) -> list[Named]:
        names = [str(item.name) for item in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two entries are named {name!r}; give each a name of its own")
            if not re.fullmatch(r"[\w][\w.+-]*", name):
                raise ValueError(f"the name {name!r} can't name a folder: use letters, digits, . _ + -")
            _require_short(name)
        return value

    @model_validator(mode="after")
    def _arms_settings_hold(self) -> RunConfig:
        for arm in self.compare.methods:
            arm_config(self, arm)
        return self

    @model_validator(mode="after")
    def _names_of_files_are_short(self) -> RunConfig:
        for label in (self.select.label, *(arm.label for arm in self.compare.methods)):
            _require_short(label)
        if len(os.fsencode(self.run_dir)) > MAX_RUN_DIR:
            raise ValueError(f"run_dir is longer than {MAX_RUN_DIR} bytes, and there are folders to come in it")
        return self


def _require_short(name: str) -> None:
    size = len(name.encode())
    if size > MAX_NAME:
        raise ValueError(
            f"the name {name[:40]!r}… has {size} bytes: files are called by it, so that {MAX_NAME} are the most"
        )


def inherited(train: Mapping[str, Any], warmup: Mapping[str, Any]) -> dict[str, Any]:
    """The section of a training with the training keys that it lacks from `warmup`; `lora` key by key.

    Another model's LoRA modules go by other names: they are not taken over.
    """
    shared = {key: warmup[key] for key in TrainingConfig.model_fields if key in warmup}
    if not isinstance(shared.get("lora", {}), Mapping) or not isinstance(train.get("lora", {}), Mapping):
        return {**shared, **train}
    lora = {**shared.get("lora", {}), **train.get("lora", {})}
    if train.get("model") and "target_modules" not in train.get("lora", {}):
        lora.pop("target_modules", None)
    return {**shared, **train, "lora": lora}


def arm_config(config: RunConfig, arm: ArmConfig) -> RunConfig:
    """The config with the own settings of a comparison's arm in the place of the run's, and no comparison.

    Its preset's features and scores come first, then its own keys; a budget of its own takes the place of the run's.
    Raises ValueError naming the first that is wrong.
    """
    if not (arm.preset or arm.settings):
        return config
    sections = {name: getattr(config, name).model_dump() | _of_preset(name, arm.preset) for name in ARM_SECTIONS}
    for key in _dtypes_left_out(arm, sections["features"]):
        del sections["features"][key]
    if BUDGET_KEYS & arm.settings.keys():
        sections["select"] |= dict.fromkeys(BUDGET_KEYS)
    for key, value in arm.settings.items():
        section = _section_of(key, arm)
        sections[section] = filled({key: value}, sections[section])
    try:
        return RunConfig.model_validate({**config.model_dump(), "compare": {}, **sections})
    except ValidationError as error:
        raise ValueError(f"compare.methods: {arm.label[:MAX_SHOWN]}: {_first_problem(error)}") from error


def _dtypes_left_out(arm: ArmConfig, features: Mapping[str, Any]) -> set[str]:
    """Keys that the arm's own settings decide, not the run's: both beside a projection's dim or kind, and the
    representations' beside a `store_dtype`, where they have that of the stores."""
    follow = features["representation_dtype"] == features["store_dtype"]
    if gives_dim_or_kind(arm.settings.get("projection")) or ("store_dtype" in arm.settings and follow):
        return DTYPE_KEYS - arm.settings.keys()
    return set()


def _of_preset(section: str, preset: PresetName | None) -> dict[str, Any]:
    """The keys of a section in which presets may differ, as this one has them."""
    if preset is None or section not in PAPER:
        return {}
    kind = ARM_SECTIONS[section]
    return kind.model_validate(PRESETS[preset].get(section, {})).model_dump(include=set(PAPER[section]))


def _section_of(key: str, arm: ArmConfig) -> str:
    found = next((name for name, kind in ARM_SECTIONS.items() if key in kind.model_fields), None)
    if found is None:
        known = [*ArmConfig.model_fields, *(name for kind in ARM_SECTIONS.values() for name in kind.model_fields)]
        raise ValueError(
            f"compare.methods: {arm.label[:MAX_SHOWN]}: unknown key {key[:MAX_SHOWN]}{nearest(key, known)}"
        )
    return found


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The config in a YAML file, with `key=value` overrides; raises ConfigError in one line.

    Where it names no preset and its run folder has been begun, the preset is the folder's: new defaults are for new
    runs.
    """
    path = Path(path)
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds no keys; see the README for a config")
    for override in overrides:
        override_values(values, override)
    config = _validated(path, values)
    if "preset" in values:
        return config
    preset = _preset_of(config.run)
    if preset == config.preset:
        return config
    logger.info("%s keeps the preset it was begun with: %s (a new run's: %s)", config.run_dir, preset, config.preset)
    return _validated(path, {**values, "preset": preset})


def _validated(path: Path, values: Mapping[str, Any]) -> RunConfig:
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_problem(error)}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is not read: it is nested too deeply") from error
    problem = next(_problems(config.model_dump()), None)
    if problem:
        raise ConfigError(f"{path}: {problem}")
    return config


def _preset_of(run: RunFolder) -> str:
    """The preset that a run folder was begun with; the default's where there is none, or `keep_config` will say what
    is wrong with it."""
    try:
        values = _read_yaml(run.config) if run.config.is_file() else None
    except (ConfigError, OSError):
        values = None
    if not isinstance(values, Mapping):
        return DEFAULT_PRESET
    preset = values.get("preset", PRESET_OF_BEFORE)
    return preset if isinstance(preset, str) and preset in PRESETS else DEFAULT_PRESET


def _read_yaml(path: Path) -> Any:
    try:
        if not path.is_file():
            raise ConfigError(f"{path}: {'is no file' if path.exists() else 'there is no such config file'}")
        with path.open(encoding="utf-8-sig") as file:
            return parsed_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise ConfigError(f"{str(path)[:MAX_SHOWN]}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from error


def _problems(value: Any, key: str = "") -> Iterator[str]:
    """What no type of a key says: numbers that are none, or none that anything counts, texts that name nothing."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _problems(name, f"{key} has a key that")
            yield from _problems(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, f"{key}.{index}")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: must be a finite number, not {value}"
    elif isinstance(value, int) and abs(value) >= LARGEST:
        yield f"{key}: must be below 2**63"
    elif isinstance(value, str):
        problem = _problem_of_text(value, is_path=key.rpartition(".")[2] in PATH_KEYS)
        yield from [f"{key}: {problem}"] if problem else []


def _problem_of_text(text: str, is_path: bool) -> str | None:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        return "holds a character that no file can be named by (a NUL, or half of a surrogate pair)"
    try:
        Path(text).expanduser() if is_path else None
    except RuntimeError:
        return f"there is no user of the name that {text[:MAX_SHOWN]!r} begins with"
    return None


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    # A mistyped key also makes a required one missing: the mistyped one is the cause.
    problem = next((item for item in problems if item["type"] == "extra_forbidden"), problems[0])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    place = [part for part in problem["loc"] if part not in ("int", "literal['auto']")]
    key = ".".join(map(str, place))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{nearest(str(place[-1]), _known_keys(place[:-1]))}{more}"
    if problem["type"] == "missing":
        return f"{key} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f", not {_shown(given)}" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{key and f'{key}: '}{message[0].lower()}{message[1:]}{shown}{more}"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # more digits than Python writes out
        return "a number of that many digits"
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _known_keys(place: Sequence[str | int]) -> list[str]:
    """The keys that a config may have at that place."""
    model: type[BaseModel] = RunConfig
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)


def keep_config(config: RunConfig) -> None:
    """Write the resolved config into the run folder, or refuse a folder that was made with another one.

    Raises RunFolderError as `require_kept` does.
    """
    require_kept(config)
    path, text = config.run.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    if path.is_file() and (path.read_bytes() == text.encode() or is_read_only(path.parent)):
        return
    with atomic_open(path) as file:
        file.write(text.encode())


def require_kept(config: RunConfig, remedy: str = "use another run_dir") -> None:
    """Refuse a run folder that was made with another config; one that isn't there holds nothing yet.

    Raises RunFolderError naming the first key that differs, with both values. A section binds only once something
    was made with it, so that a mistake found on the way can be mended.
    """
    if not config.run.config.is_file():
        return
    before, now = _kept_config(config.run.config), config.model_dump(mode="json")
    for section in _binding_sections(config.run):
        difference = first_difference(before.get(section), now[section], section, FREE_KEYS)
        if difference:
            raise RunFolderError(
                f"{config.run_dir} was made with other settings: {difference}; {remedy}, or set it back"
            )


def _kept_config(path: Path) -> Mapping[str, Any]:
    """What the run folder was made with, keys that are newer than it as its preset has them. Raises RunFolderError
    where the file doesn't say."""
    try:
        values = _read_yaml(path)
    except ConfigError as error:
        raise RunFolderError(f"{error} (it says what the folder was made with: {KEPT_CONFIG_REMEDY})") from error
    if not isinstance(values, Mapping):
        raise RunFolderError(f"{path} doesn't say what the folder was made with: {KEPT_CONFIG_REMEDY}")
    try:
        return RunConfig.model_validate({"preset": PRESET_OF_BEFORE, **values}).model_dump(mode="json")
    except ValidationError:  # made by a version with other keys, of which the first that differs is named
        return values


def _binding_sections(run: RunFolder) -> tuple[str, ...]:
    """The sections that something in the run folder was made with."""
    sections: tuple[str, ...] = ()
    if Corpus.is_finished(run.pool):
        sections += ("seed", "model", "pool", "encoding")
    has_gradients = any(map(_is_of_gradients, run.path.glob("features/**/*.json")))
    if has_gradients or any(run.warmup.glob("checkpoint-*")):
        sections += ("warmup",)
    return (*sections, "features") if has_gradients else sections


def _is_of_gradients(described: Path) -> bool:
    """Whether a store, finished or not, comes from the warmup; representations don't."""
    facts = read_record(described).facts
    return "representation" not in facts.get("meaning", facts)
