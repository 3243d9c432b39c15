"""The cache of datasets that were read."""

from __future__ import annotations

import errno
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy import files
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import (
    load_flat,
    read_minari,
    write_minari,
)
from diffuser_policy.errors import (
    StorageError,
)
from diffuser_policy.files import hidden_sibling
from tests.data_helpers import DATASET, SpacesOnly, cut_stream, data_folder, write
from tests.file_helpers import full_disk, mapped

pytestmark = pytest.mark.usefixtures("datasets")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count how often a dataset is really read."""
    calls: list[Path] = []

    def counted(folder: Path, **settings: Any) -> FlatDataset:
        calls.append(folder)
        return read_minari(folder, **settings)

    monkeypatch.setattr("diffuser_policy.data.minari.read_minari", counted)
    return calls


def cache_entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*"))


def test_a_dataset_is_read_once(reads: list[Path]) -> None:
    write(cut_stream([4, 3])[0])
    first, second = load_flat(DATASET), load_flat(DATASET)
    assert len(reads) == 1
    assert first.metadata == second.metadata
    for name, array in first.fields.items():
        np.testing.assert_array_equal(second.fields[name], array)


def test_changed_files_are_read_again_and_the_old_entry_goes(
    tmp_path: Path, reads: list[Path]
) -> None:
    write(cut_stream([4, 3])[0])
    load_flat(DATASET)
    write_minari(
        DATASET, cut_stream([4, 9])[0], env=SpacesOnly(), collection={}, overwrite=True
    )
    assert load_flat(DATASET).num_rows == 13
    assert len(reads) == 2
    assert len(cache_entries(tmp_path)) == 1


def test_a_touched_file_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    write(cut_stream([4, 3])[0])
    load_flat(DATASET)
    os.utime(data_folder(tmp_path) / "main_data.hdf5", ns=(1, 1))
    load_flat(DATASET)
    assert len(reads) == 2


def test_a_damaged_entry_is_rebuilt(tmp_path: Path, reads: list[Path]) -> None:
    write(cut_stream([40, 30])[0])
    expected = load_flat(DATASET).fields["action"].copy()
    for damage in ("action.npy", "meta.json"):
        (entry,) = cache_entries(tmp_path)
        path = entry / damage
        path.write_bytes(path.read_bytes()[:40])
        np.testing.assert_array_equal(load_flat(DATASET).fields["action"], expected)
    (cache_entries(tmp_path)[0] / "meta.json").unlink()
    np.testing.assert_array_equal(load_flat(DATASET).fields["action"], expected)
    assert len(reads) == 4


def test_a_full_disk_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cut_stream([4, 3])[0])

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full_disk)
        with pytest.raises(StorageError, match="DIFFUSER_POLICY_CACHE") as caught:
            load_flat(DATASET)
    assert "No space left on device" in str(caught.value)
    assert caught.value.errno == errno.ENOSPC
    assert not cache_entries(tmp_path)
    assert load_flat(DATASET).num_rows == 7


def test_an_interrupt_while_caching_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cut_stream([4, 3])[0])

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_flat(DATASET)
    assert not cache_entries(tmp_path)


def test_the_cache_folder_can_be_given(tmp_path: Path) -> None:
    write(cut_stream([4, 3])[0])
    load_flat(DATASET, cache_dir=tmp_path / "elsewhere")
    assert not (tmp_path / "cache").exists()
    assert list((tmp_path / "elsewhere").glob("test--mazes--tiny-v2-*/*/meta.json"))


def test_datasets_of_one_name_in_two_places_keep_an_entry_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    for place, length in (("here", 4), ("there", 9)):
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / place))
        write(cut_stream([length])[0])
        load_flat(DATASET)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "here"))
    assert load_flat(DATASET).num_rows == 4
    assert len(reads) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_datasets_may_lie_in_folders_with_names_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    write(cut_stream([4])[0])
    for _ in range(2):
        assert load_flat(DATASET, cache_dir=folder / "cache").num_rows == 4
    assert len(reads) == 1


def test_files_that_change_while_they_are_read_are_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(cut_stream([4])[0])

    def read(folder: Path, **settings: Any) -> FlatDataset:
        (folder / "late.hdf5").touch()
        return read_minari(folder, **settings)

    monkeypatch.setattr("diffuser_policy.data.minari.read_minari", read)
    assert load_flat(DATASET).num_rows == 4
    assert not cache_entries(tmp_path)


def test_no_file_of_an_entry_is_mapped_when_its_folder_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows would refuse to rename the folder."""
    write(cut_stream([40, 30])[0])
    swap, seen = files._swap, []

    def watched(partial: Path, folder: Path) -> None:
        seen.append(mapped(partial))
        swap(partial, folder)

    monkeypatch.setattr(files, "_swap", watched)
    assert load_flat(DATASET).num_rows == 70
    FlatDataset.load(cache_entries(tmp_path)[0]).save(tmp_path / "copy")
    assert seen == [[], []]


def test_an_entry_that_cannot_be_replaced_is_read(
    monkeypatch: pytest.MonkeyPatch, reads: list[Path]
) -> None:
    """Windows replaces no folder from which another process has files mapped."""
    write(cut_stream([4, 3])[0])
    swap = files._swap

    def slower(partial: Path, folder: Path) -> None:
        swap(partial, folder)
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(files, "_swap", slower)
    assert load_flat(DATASET).num_rows == 7
    assert len(reads) == 1


def test_what_writers_elsewhere_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    write(cut_stream([4])[0])
    load_flat(DATASET)
    entry = cache_entries(tmp_path)[0]
    mine = hidden_sibling(entry, "partial")
    fresh, stale = (
        mine.with_name(re.sub(r"-[0-9a-f]{8}", f"-{host}", mine.name, count=1))
        for host in ("00000000", "00000001")
    )
    for folder in (mine, fresh, stale):
        folder.mkdir()
    os.utime(stale, (1, 1))
    os.utime(mine, (1, 1))  # however old: its writer lives
    os.utime(data_folder(tmp_path) / "main_data.hdf5", ns=(1, 1))
    load_flat(DATASET)
    assert mine.exists()
    assert fresh.exists()
    assert not stale.exists()


def test_readers_at_the_same_time_get_the_same(tmp_path: Path) -> None:
    write(cut_stream([40, 30])[0])
    with ThreadPoolExecutor(6) as pool:
        datasets = list(pool.map(load_flat, [DATASET] * 12))
    for dataset in datasets:
        np.testing.assert_array_equal(
            dataset.fields["action"], datasets[0].fields["action"]
        )
    assert len(cache_entries(tmp_path)) == 1
