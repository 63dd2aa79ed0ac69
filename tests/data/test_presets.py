"""Presets: the paper's pools on the hub and in local copies of their published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest

from gradsift.data.formats import FORMATS
from gradsift.data.presets import PRESETS
from gradsift.data.source_settings import SourceConfig
from gradsift.data.sources import read_examples, selected_lines

SAMPLES = Path(__file__).resolve().parents[3] / "shared" / "data" / "raw"


def sample(name: str) -> str:
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"{name}: the sample data is not beside this checkout")
    return str(path)


def examples(**keys: Any) -> list[Any]:
    return list(read_examples(SourceConfig.model_validate(keys), 0))


def test_config_knows_every_preset() -> None:
    literal = next(part for part in get_args(SourceConfig.model_fields["preset"].annotation) if part is not type(None))
    assert set(get_args(literal)) == set(PRESETS)


def test_the_pools_have_the_size_of_the_papers() -> None:
    assert sum(preset.num_examples for preset in PRESETS.values()) == 270_679


@pytest.mark.parametrize("name", PRESETS)
def test_preset_names_formats_that_there_are(name: str) -> None:
    assert set(PRESETS[name].formats) <= set(FORMATS)


# On the hub

HUB_ROWS: dict[str, dict[str, Any]] = {
    "flan_v2": {"inputs": "Hi", "targets": "Ho"},
    "cot": {"inputs": "Hi", "targets": "Ho"},
    "dolly": {"instruction": "Hi", "context": "", "response": "Ho", "category": "chat"},
    "oasst1": {"message_id": "q", "parent_id": None, "text": "Hi", "role": "prompter", "lang": "en"},
}
ANSWER = {"message_id": "a", "parent_id": "q", "text": "Ho", "role": "assistant", "lang": "en"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[Any]:
    """What the hub is asked for; it gives the rows of the test's preset."""
    calls: list[Any] = []
    name = request.node.callspec.params["name"]
    rows = [HUB_ROWS[name], ANSWER] if name == "oasst1" else [HUB_ROWS[name]]

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        calls.append((*arguments, options))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("name", PRESETS)
def test_preset_reads_what_the_hub_gives(asked: list[Any], name: str) -> None:
    assert [turn["content"] for turn in examples(preset=name)[0].messages] == ["Hi", "Ho"]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (
            "flan_v2",
            (
                "hamishivi/tulu_mix_store",
                None,
                {"split": "train", "data_files": ["flan_v2_resampled_100k.jsonl"]},
            ),
        ),
        (
            "cot",
            (
                "hamishivi/tulu_mix_store",
                None,
                {"split": "train", "data_files": ["cot_zsopt.jsonl", "cot_fsopt.jsonl"]},
            ),
        ),
        ("dolly", ("databricks/databricks-dolly-15k", None, {"split": "train"})),
        ("oasst1", ("OpenAssistant/oasst1", None, {"split": "train+validation"})),
    ],
)
def test_preset_asks_the_hub_for_its_files(asked: list[Any], name: str, call: tuple[Any, ...]) -> None:
    examples(preset=name)
    assert asked == [call]


# Local copies


@pytest.mark.parametrize(
    ("name", "copy", "count"),
    [
        ("flan_v2", "flan_v2.jsonl", 200),
        ("cot", "cot", 420),
        ("dolly", "dolly.jsonl", 200),
        ("oasst1", "oasst1_trees.jsonl", 202),
        ("oasst1", "oasst1_messages.jsonl", 286),
    ],
)
def test_published_layout_reads_whole(name: str, copy: str, count: int) -> None:
    assert len(examples(preset=name, path=sample(copy))) == count


@pytest.mark.parametrize("copy", ["flan_v2.jsonl", "cot", "dolly.jsonl", "oasst1_trees.jsonl", "oasst1_messages.jsonl"])
def test_published_layout_gives_conversations_that_end_in_an_answer(copy: str) -> None:
    preset = copy.removesuffix(".jsonl").removesuffix("_trees").removesuffix("_messages")
    found = examples(preset=preset, path=sample(copy))
    assert all([turn["role"] for turn in example.messages[-2:]] == ["user", "assistant"] for example in found)


def test_questions_of_a_table_without_header_keep_their_quotes() -> None:
    creak = examples(preset="cot", path=sample("cot/creak_train.tsv"))
    assert creak[1].messages[0]["content"].startswith('"Marlboro used iconic imagery to promote its brand."\nIs')


def test_table_with_a_header_is_read_by_it(tmp_path: Path) -> None:
    path = tmp_path / "cot.tsv"
    path.write_text("rationale\tquestion\tanswer\nTwo twos.\t2 + 2?\t4\n")
    assert examples(preset="cot", path=str(path))[0].messages[0]["content"] == "2 + 2?"


def test_named_format_reads_a_table_without_header(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text("2 + 2?\t4\tTwo twos.\n")
    assert examples(format="cot", path=str(path))[0].messages[0]["content"] == "2 + 2?"


def test_row_of_a_table_without_header_is_written_back_with_columns(tmp_path: Path) -> None:
    path = tmp_path / "mine.tsv"
    path.write_text('"2" + 2?\t4\tTwo twos.\n')
    source = SourceConfig(preset="cot", path=str(path))
    assert json.loads(selected_lines(source, [0])[0]) == {
        "question": '"2" + 2?',
        "answer": "4",
        "rationale": "Two twos.",
    }


def test_processed_copy_with_messages_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dolly_data.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    path.write_text(json.dumps({"dataset": "dolly", "id": "dolly_0", "messages": turns}))
    assert [example.id for example in examples(preset="dolly", path=str(path))] == ["dolly_0"]


# The paper's numbers


@pytest.fixture
def dolly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Twelve rows, of which the paper is said to have taken five."""
    from dataclasses import replace

    monkeypatch.setitem(PRESETS, "dolly", replace(PRESETS["dolly"], num_examples=5))
    path = tmp_path / "dolly.jsonl"
    rows = [{"instruction": f"Ask {index}", "response": "Ho"} for index in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("keys", "count"),
    [({}, 5), ({"sample": 7}, 7), ({"limit": 3}, 3), ({"limit": 9}, 9), ({"sample": 99}, 12)],
)
def test_papers_number_is_drawn_unless_the_config_says_otherwise(dolly: str, keys: dict[str, int], count: int) -> None:
    assert len(examples(preset="dolly", path=dolly, **keys)) == count
