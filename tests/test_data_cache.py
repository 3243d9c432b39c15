"""The cache of datasets that were read."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest

from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import (
    load_flat,
    read_minari,
    write_minari,
)
from diffuser_policy.errors import (
    StorageError,
)
from tests.data_helpers import DATASET, SpacesOnly, cut_stream, write


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))


def data_folder(tmp_path: Path) -> Path:
    return tmp_path / "datasets" / DATASET / "data"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Count how often a dataset is really read."""
    calls: list[Path] = []

    def counted(folder: Path, *, progress: bool) -> FlatDataset:
        calls.append(folder)
        return read_minari(folder, progress=progress)

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


def test_the_cache_is_faster_than_many_episodes() -> None:
    write(cut_stream([20] * 300)[0])
    start = time.perf_counter()
    load_flat(DATASET)
    middle = time.perf_counter()
    load_flat(DATASET)
    assert time.perf_counter() - middle < 0.5 * (middle - start)


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

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
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
