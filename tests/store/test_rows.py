"""Stores of some rows of a corpus: lists that grow, and are finished again after a kill at any moment."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from stores import KEYS, features, meaning, written

from gradsift.errors import RunFolderError, StoreDamaged, UserError
from gradsift.store.conversion import quantize
from gradsift.store.rows import grown
from gradsift.store.store import FeatureStore
from gradsift.store.writer import StoreWriter

ODD = [1, 3, 5, 7, 9]


class Killed(BaseException):
    """In place of a signal that nothing catches."""


def made(folder: Path, wanted: Collection[int] | None, **changes: str) -> tuple[FeatureStore, list[int]]:
    """The store with the rows that are wanted, and the rows that were written for it now."""
    writer, now = StoreWriter(folder, meaning(**changes), KEYS, 2), []
    if not writer.is_finished(wanted):
        writer.open(wanted)
        for shard in writer.missing():
            writer.write(shard, features()[list(writer.rows(shard))])
            now += writer.rows(shard)
        writer.finish()
    return FeatureStore(folder, KEYS), now


def rows_of(store: FeatureStore) -> dict[int, list[float]]:
    """By position in the corpus, checked row by row against the ids."""
    positions = range(store.num_rows) if store.positions is None else store.positions
    stored = [row for shard in store.shards() for row in store.features(shard).tolist()]
    return dict(zip(positions, stored, strict=True))


def expected(positions: Collection[int]) -> dict[int, list[float]]:
    return {position: features()[position].tolist() for position in positions}


def test_new_shards_take_what_is_lacking_under_free_numbers() -> None:
    assert grown({0: [4, 6], 2: [9]}, [1, 6, 2, 9, 3], 2) == {0: [4, 6], 1: [1, 2], 2: [9], 3: [3]}
    assert grown({}, [], 2) == {}


def test_a_store_holds_the_rows_that_are_wanted(tmp_path: Path) -> None:
    store, now = made(tmp_path, ODD)
    assert now == ODD
    assert rows_of(store) == expected(ODD)
    assert made(tmp_path, [3, 9])[1] == []


def test_it_grows_by_what_it_lacks(tmp_path: Path) -> None:
    made(tmp_path, ODD)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    store, now = made(tmp_path, [0, 1, 2])
    assert now == [0, 2]
    assert rows_of(store) == expected([*ODD, 0, 2])
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_it_becomes_a_store_of_all_rows(tmp_path: Path) -> None:
    made(tmp_path, ODD)
    store, now = made(tmp_path, None)
    assert now == [0, 2, 4, 6, 8]
    assert rows_of(store) == expected(range(10))
    assert not store.lacks(None)


def test_a_store_of_all_rows_serves_any_and_lists_none(tmp_path: Path) -> None:
    written(tmp_path, features())
    files = {path.name for path in tmp_path.iterdir()}
    assert made(tmp_path, ODD)[1] == []
    assert {path.name for path in tmp_path.iterdir()} == files
    assert "rows.json" not in files


def test_shards_of_an_unfinished_store_of_all_rows_are_kept(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, meaning(), KEYS, 2)
    writer.open()
    for shard in (0, 3):
        writer.write(shard, features()[list(writer.rows(shard))])
    store, now = made(tmp_path, ODD)
    assert now == [3, 5, 9]
    assert rows_of(store) == expected([0, 1, 3, 5, 6, 7, 9])


def test_rows_begun_for_what_is_no_longer_wanted_are_not_made(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, meaning(), KEYS, 2)
    writer.open(range(10))
    writer.write(1, features()[2:4])
    store, now = made(tmp_path, [2, 5])
    assert now == [5]
    assert rows_of(store) == expected([2, 3, 5])


@pytest.mark.parametrize("begun", [None, ODD], ids=["from nothing", "while it grows"])
@pytest.mark.parametrize("wanted", [[0, 1, 2, 3, 8], None], ids=["a list", "all rows"])
def test_killed_at_any_rename_it_ends_with_the_same_rows(
    tmp_path: Path, begun: list[int] | None, wanted: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, kills = Path.replace, 0
    while True:
        folder, left = tmp_path / str(kills), [kills]
        if begun is not None:
            made(folder, begun)

        def replace(path: Path, target: Path, left: list[int] = left) -> Path:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return rename(path, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", replace)
            try:
                made(folder, wanted)
                break
            except Killed:
                kills += 1
        if begun is not None:
            assert rows_of(FeatureStore(folder, KEYS)).keys() >= set(begun), "the store from before isn't there"
        whole = len(list(folder.glob("shard-*")))
        store, _ = made(folder, wanted)
        needed = set(range(10) if wanted is None else wanted) | set(begun or [])
        assert rows_of(store) == expected(needed)
        assert len(list(folder.glob("shard-*"))) >= whole
    assert kills > 4


def test_a_lost_shard_is_made_again_alone(tmp_path: Path) -> None:
    made(tmp_path, ODD)
    (tmp_path / "shard-00001.safetensors").unlink()
    with pytest.raises(StoreDamaged, match="is missing"):
        made(tmp_path, ODD)
    (tmp_path / "manifest.json").unlink()
    store, now = made(tmp_path, ODD)
    assert now == [5, 7]
    assert rows_of(store) == expected(ODD)


def test_a_list_that_was_lost_swapped_or_damaged_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "odd", ODD)
    made(tmp_path / "even", [0, 2, 4, 6, 8])
    for name in ("lost", "swapped", "damaged"):
        shutil.copytree(tmp_path / "odd", tmp_path / name)
    (tmp_path / "lost" / "rows.json").unlink()
    shutil.copyfile(tmp_path / "even" / "rows.json", tmp_path / "swapped" / "rows.json")
    text = (tmp_path / "odd" / "rows.json").read_text()
    (tmp_path / "damaged" / "rows.json").write_text(text.replace("3", "4"))
    with pytest.raises(StoreDamaged, match="holds 5 rows, not 10"):
        FeatureStore(tmp_path / "lost", KEYS)
    with pytest.raises(StoreDamaged, match="holds other rows"):
        rows_of(FeatureStore(tmp_path / "swapped", KEYS))
    with pytest.raises(RunFolderError, match="damaged"):
        FeatureStore(tmp_path / "damaged", KEYS)
    for opened in (FeatureStore, lambda folder, keys: StoreWriter(folder, meaning(), keys, 2)):
        with pytest.raises(StoreDamaged, match="lists rows that there aren't"):
            opened(tmp_path / "odd", KEYS[:9])


def test_a_quantised_store_has_the_same_rows_and_does_not_grow(tmp_path: Path) -> None:
    source, _ = made(tmp_path / "store", ODD)
    source, _ = made(tmp_path / "store", [0, 1])
    (tmp_path / "int8").mkdir()
    store = FeatureStore(quantize(source, 8, tmp_path / "int8").folder, KEYS)
    assert store.positions == source.positions
    for position, row in rows_of(store).items():
        assert torch.allclose(torch.tensor(row), features()[position], atol=0.02)
    assert made(tmp_path / "int8", ODD)[1] == []
    with pytest.raises(UserError, match="lacks rows that are wanted"):
        made(tmp_path / "int8", [2])
