"""FlatDataset: what it accepts, and that saving is all or nothing."""

from __future__ import annotations

import errno
import json
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuser_policy.data.flat import (
    Episode,
    FlatDataset,
    flatten,
    run_returns,
    spread_rows,
)
from diffuser_policy.errors import DatasetError, DatasetNotFoundError, StorageError
from tests.data_helpers import cut_stream, make_episode


def make_fields(num_rows: int = 10) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "observation": rng.normal(size=(num_rows, 4)).astype(np.float32),
        "action": rng.normal(size=(num_rows, 2)).astype(np.float32),
        "reward": rng.normal(size=num_rows).astype(np.float32),
        "terminated": rng.random(num_rows) < 0.2,
        "achieved_goal": rng.normal(size=(num_rows, 2)).astype(np.float32),
        "desired_goal": rng.normal(size=(num_rows, 2)).astype(np.float32),
    }


def make_dataset(num_rows: int = 10, **metadata: Any) -> FlatDataset:
    starts = np.array([0, num_rows // 3, num_rows])
    return FlatDataset(make_fields(num_rows), starts, metadata)


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_sizes_are_read_off_the_arrays() -> None:
    dataset = make_dataset(9, dataset_id="test/tiny-v0")
    assert (dataset.num_rows, dataset.num_runs) == (9, 2)
    assert dataset.run_lengths.tolist() == [3, 6]
    assert (dataset.observation_size, dataset.action_size) == (4, 2)
    assert (dataset.goal_size, dataset.has_goals) == (2, True)
    assert "test/tiny-v0" in repr(dataset)
    assert "observation [9, 4]" in repr(dataset)


def test_goals_are_optional() -> None:
    fields = make_fields()
    del fields["achieved_goal"], fields["desired_goal"]
    dataset = FlatDataset(fields, np.array([0, 10]))
    assert (dataset.goal_size, dataset.has_goals) == (0, False)


def test_right_arrays_are_not_copied() -> None:
    fields = make_fields()
    dataset = FlatDataset(fields, np.array([0, 10]))
    for name, array in fields.items():
        assert np.shares_memory(dataset.fields[name], array)


def test_other_number_types_are_converted() -> None:
    fields = {name: array.astype(np.float64) for name, array in make_fields().items()}
    dataset = FlatDataset(fields, np.array([0, 10]))
    assert dataset.fields["observation"].dtype == np.float32
    assert dataset.fields["terminated"].dtype == np.bool_


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["observation", "action", "reward", "desired_goal"])
def test_values_that_are_not_finite_are_named(name: str, value: float) -> None:
    fields = make_fields(100)
    fields[name].reshape(100, -1)[[71, 90], -1] = value
    with pytest.raises(DatasetError, match=rf"{name} is not finite in 2 .* row 71"):
        FlatDataset(fields, np.array([0, 100]))


def test_wide_values_that_are_not_finite_are_named_by_their_column() -> None:
    fields = make_fields() | {"observation": np.zeros((10, 376))}
    fields["observation"][5, 7] = np.nan
    told = (
        r"observation is not finite in 1 of 10 rows; the first is row 5: column 7 is "
    )
    with pytest.raises(DatasetError, match=f"{told}nan. Remove") as raised:
        FlatDataset(fields, np.array([0, 10]))
    assert len(str(raised.value)) < 200


def test_wide_actions_out_of_bounds_are_cut_in_the_error() -> None:
    fields = make_fields() | {"action": np.full((10, 376), 2.0)}
    bounds = {"action_low": [-1.0] * 376, "action_high": [1.0] * 376}
    flat = FlatDataset(fields, np.array([0, 10]), bounds)
    with pytest.raises(DatasetError, match=r"row 0 is \[2\.0, .*…") as raised:
        flat.check_actions()
    assert len(str(raised.value)) < 1000


def test_numbers_that_single_precision_cannot_hold_are_said_to_be_too_large() -> None:
    fields = make_fields() | {"reward": np.linspace(-1e39, 1e39, 10)}
    told = r"reward is not finite in 6 .*above 3\.4e\+38 are too large for single prec"
    with pytest.raises(DatasetError, match=told):
        FlatDataset(fields, np.array([0, 10]))
    fields["reward"][:] = np.nan
    with pytest.raises(DatasetError, match=r"Remove or repair these steps\.$"):
        FlatDataset(fields, np.array([0, 10]))


def test_opposite_infinities_do_not_hide_each_other() -> None:
    fields = make_fields()
    fields["reward"][[2, 3]] = np.inf, -np.inf
    with pytest.raises(DatasetError, match="reward is not finite"):
        FlatDataset(fields, np.array([0, 10]))


def test_finite_values_may_overflow_their_sum() -> None:
    fields = make_fields()
    fields["reward"][:] = np.finfo(np.float32).max
    assert FlatDataset(fields, np.array([0, 10])).num_rows == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, "action missing.*terminations, pass zeros"),
        ({"reward": np.zeros(9)}, "reward has 9 rows and action has 10"),
        ({"reward": np.zeros((10, 1))}, r"reward must have shape \[rows\]"),
        ({"observation": np.zeros(10)}, r"observation must have shape \[rows, size\]"),
        ({"achieved_goal": None}, "needs both"),
        ({"desired_goal": np.zeros((10, 3))}, r"goal \[10, 2\] and .*goal \[10, 3\]"),
        ({"action": [[1.0], [2.0, 3.0]]}, "action must be an array of numbers"),
        ({"observation": np.full((10, 4), "up")}, "observation must be an array of nu"),
        ({"terminated": np.full(10, 2)}, r"terminated must be 0 or 1, got \[2, 2"),
        ({"terminated": np.full(10, np.nan)}, r"terminated must be 0 or 1, got \[nan"),
        ({"terminated": np.full(10, "no")}, "terminated must be an array of numbers"),
        ({"../escape": np.zeros((10, 1))}, "not an identifier"),
    ],
)
def test_fields_of_wrong_shape_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    fields: dict[str, Any] = {**make_fields(), **changes}
    given = {name: array for name, array in fields.items() if array is not None}
    with pytest.raises(DatasetError, match=message):
        FlatDataset(given, np.array([0, 10]))


@pytest.mark.parametrize(
    "starts",
    [
        *([0], [1, 10], [0, 9], [0, 5, 5, 10], [0, 7, 3, 10], [[0, 10]]),
        *([0, 4.5, 10], [0, np.nan, 10], [0, np.inf, 10]),
    ],
)
def test_runs_must_tile_the_rows(starts: list[Any]) -> None:
    with pytest.raises(DatasetError, match="run_starts must rise from 0"):
        FlatDataset(make_fields(), np.array(starts))


def test_starts_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(DatasetError, match="run_starts must be an array of numbers"):
        FlatDataset(make_fields(), np.array(["first", "last"]))


@pytest.mark.parametrize("kind", ["complex64", "datetime64[s]", "timedelta64[s]", "U"])
@pytest.mark.parametrize("name", ["observation", "action", "reward", "terminated"])
def test_columns_of_other_kinds_than_real_numbers_are_named(
    name: str, kind: str
) -> None:
    fields = make_fields()
    odd = fields[name].astype(np.int64).astype(kind)
    message = rf"{name} must be an array of numbers \(.*got .*{kind[:4]}.*Convert"
    for given in (odd, odd.astype(object)):
        with pytest.raises(DatasetError, match=rf"^{name} must be an array of numbers"):
            FlatDataset({**fields, name: given}, np.array([0, 10]))
    with pytest.raises(DatasetError, match=message):
        FlatDataset({**fields, name: odd}, np.array([0, 10]))
    starts = np.array([0, 10]).astype(kind)
    with pytest.raises(DatasetError, match=r"^run_starts must be an array of numbers"):
        FlatDataset(fields, starts)


def test_objects_that_are_numbers_are_converted() -> None:
    fields = {name: array.astype(object) for name, array in make_fields().items()}
    dataset = FlatDataset(fields, np.array([0, 10], object))
    for name, array in make_fields().items():
        np.testing.assert_array_equal(dataset.fields[name], array)


@pytest.mark.parametrize("kind", ["complex64", "datetime64[s]", "U"])
@pytest.mark.parametrize("part", ["observations", "actions", "rewards"])
def test_episodes_of_other_kinds_than_real_numbers_are_named(
    part: str, kind: str
) -> None:
    episodes, _ = cut_stream([4, 3])
    values: Any = getattr(episodes[1], part)
    odd: Any = np.asarray(
        values["observation"] if part == "observations" else values
    ).astype(np.int64)
    odd = odd.astype(kind)
    if part == "observations":
        odd = {**values, "observation": odd}
    episodes[1] = replace(episodes[1], **{part: odd})
    message = f"Episode 1: {part.removesuffix('s')} must be an array of numbers"
    with pytest.raises(DatasetError, match=message):
        flatten(episodes, num_rows=7, all_reset=True)


def test_episodes_whose_terminations_are_no_flags_are_named() -> None:
    episodes, _ = cut_stream([4, 3])
    odd = replace(episodes[1], terminations=np.array([0.0, np.nan, 1.0]))
    with pytest.raises(DatasetError, match="Episode 1: terminations must be 0 or 1"):
        flatten([episodes[0], odd], num_rows=7)


def test_saving_and_loading_changes_nothing(tmp_path: Path) -> None:
    saved = make_dataset(20, dataset_id="test/tiny-v0", nested={"a": [1, 2.5, None]})
    loaded = FlatDataset.load(saved.save(tmp_path / "deep" / "data"))
    assert loaded.metadata == saved.metadata
    assert list(loaded.fields) == list(saved.fields)
    np.testing.assert_array_equal(loaded.run_starts, saved.run_starts)
    for name, array in saved.fields.items():
        np.testing.assert_array_equal(loaded.fields[name], array)
        assert type(loaded.fields[name]) is np.ndarray


def test_arrays_are_read_only(tmp_path: Path) -> None:
    """Checksums are computed once, and other processes read the mapped files."""
    fields, starts = make_fields(), np.array([0, 10])
    made = FlatDataset(fields, starts)
    loaded = FlatDataset.load(made.save(tmp_path / "data"))
    for dataset in (made, loaded):
        for array in (*dataset.fields.values(), made.run_starts):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
    for array in (*fields.values(), starts):
        assert array.flags.writeable


def test_saving_again_replaces_the_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    make_dataset(10).save(folder)
    make_dataset(30).save(folder)
    assert FlatDataset.load(folder).num_rows == 30
    assert files_of(tmp_path)[0] == "data"
    assert not [name for name in files_of(tmp_path) if name.startswith(".")]


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StorageError, match="not a saved dataset"):
        make_dataset().save(tmp_path)
    with pytest.raises(StorageError, match="not a saved dataset"):
        make_dataset().save(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_dataset_with_other_files_beside_it_is_never_replaced(tmp_path: Path) -> None:
    folder = make_dataset(10).save(tmp_path / "data")
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(StorageError, match="holds other files as well"):
        make_dataset(30).save(folder)
    assert FlatDataset.load(folder).num_rows == 10
    assert (folder / "thesis.tex").read_text() == "precious"


def test_what_a_file_manager_leaves_beside_a_dataset_is_no_reason(
    tmp_path: Path,
) -> None:
    folder = make_dataset(10).save(tmp_path / "data")
    (folder / ".DS_Store").write_bytes(b"\0")
    make_dataset(30).save(folder)
    assert FlatDataset.load(folder).num_rows == 30


@pytest.mark.parametrize("text", ['{"mine": 1}', "[1]", "no JSON", "{}", ""])
def test_metadata_of_another_program_are_never_replaced(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(StorageError, match="not a saved dataset"):
        make_dataset().save(tmp_path)
    assert (tmp_path / "meta.json").read_text() == text


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()],
)
def test_a_failing_save_leaves_the_old_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    folder = make_dataset(10).save(tmp_path / "data")
    before = files_of(tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(Path, "write_text", fail)  # meta.json, the last to be written
    expected = StorageError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        make_dataset(30).save(folder)
    if isinstance(failure, OSError):
        assert "No space left" in str(caught.value)
        assert "Free some space" in str(caught.value)
    monkeypatch.undo()
    assert files_of(tmp_path) == before
    assert FlatDataset.load(folder).num_rows == 10


def test_many_writers_of_one_folder_leave_a_whole_dataset(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda n: make_dataset(n).save(folder), [50 + n % 3 for n in range(40)]
            )
        )
    assert FlatDataset.load(folder).num_rows in {50, 51, 52}
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["env_id", "dataset_id"])
def test_ids_that_are_no_text_are_refused(name: str) -> None:
    numeric: dict[str, Any] = {name: 5}
    with pytest.raises(DatasetError, match=f"{name} .* must be a text or None, got 5"):
        make_dataset(**numeric)


def test_metadata_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="must be JSON-able"):
        make_dataset(values=np.zeros(2)).save(tmp_path / "data")
    assert not files_of(tmp_path)


def test_loading_nothing_says_so(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="holds no saved dataset"):
        FlatDataset.load(tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = make_dataset(100).save(tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())

    for name in ("observation.npy", "meta.json", "run_starts.npy"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DatasetError, match="cannot be read"):
            FlatDataset.load(folder)
        (folder / name).write_bytes(whole)

    (folder / "meta.json").write_text(json.dumps({**meta, "schema": 99}))
    with pytest.raises(DatasetError, match="schema 99"):
        FlatDataset.load(folder)
    del meta["seal"], meta["checksums"]  # as earlier versions wrote them
    (folder / "meta.json").write_text(json.dumps({**meta, "num_rows": 99}))
    with pytest.raises(DatasetError, match="should have 99 rows"):
        FlatDataset.load(folder)


@pytest.mark.parametrize("rows", [{}, {"num_rows": "many"}, {"num_rows": None}])
def test_metadata_without_a_number_of_rows_are_refused(
    tmp_path: Path, rows: dict[str, object]
) -> None:
    folder = make_dataset(100).save(tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    for name in ("seal", "checksums", "num_rows"):  # earlier versions had no seal
        del meta[name]
    (folder / "meta.json").write_text(json.dumps({**meta, **rows}))
    with pytest.raises(DatasetError, match="cannot be read"):
        FlatDataset.load(folder)


def test_a_flipped_bit_is_refused_or_changes_nothing(
    tmp_path: Path,
) -> None:
    folder = make_dataset(100).save(tmp_path / "data")
    rng = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for place in rng.integers(8 * len(whole), size=20).tolist():
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                loaded = FlatDataset.load(folder)
            except DatasetError:
                continue
            for name, array in make_dataset(100).fields.items():  # blanks in a header
                np.testing.assert_array_equal(loaded.fields[name], array)
        path.write_bytes(whole)
    assert FlatDataset.load(folder).num_rows == 100


def test_datasets_without_checksums_still_load(tmp_path: Path) -> None:
    folder = make_dataset(100).save(tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["seal"], meta["checksums"]
    (folder / "meta.json").write_text(json.dumps(meta))
    loaded = FlatDataset.load(folder)
    assert loaded.checksum == make_dataset(100).checksum


def test_checksums_without_their_seal_are_refused(tmp_path: Path) -> None:
    folder = make_dataset(100).save(tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["seal"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DatasetError, match=r"meta\.json is damaged"):
        FlatDataset.load(folder)


def test_a_million_rows_are_ready_in_two_seconds(tmp_path: Path) -> None:
    folder = make_dataset(1_000_000).save(tmp_path / "data")
    start = time.perf_counter()
    FlatDataset.load(folder)
    assert time.perf_counter() - start < 2.0


@pytest.mark.parametrize(("share", "number"), [(0.29, 29), (0.296, 30), (1e-6, 1)])
def test_the_best_share_has_the_nearest_number_of_runs(
    share: float, number: int
) -> None:
    flat = make_dataset(100)  # 0.29 * 100 is a little less than 29
    rewards = np.random.default_rng(1).permutation(100).astype(np.float32)
    single = FlatDataset(flat.fields, np.arange(101))
    best = single.best_runs(share, rewards)
    np.testing.assert_array_equal(best, rewards >= 100 - number)


@pytest.mark.parametrize("rows", [1, 7, 300, 10_000])
def test_returns_are_summed_a_few_runs_at_a_time_to_the_same_numbers(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third run is longer than what is read at a time."""
    rewards = np.random.default_rng(0).normal(size=2000).astype(np.float32)
    starts = np.array([0, 3, 4, 1500, *range(1501, 1990, 9), 2000])
    whole = np.add.reduceat(rewards.astype(np.float64), starts[:-1])
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 8 * rows)
    np.testing.assert_array_equal(run_returns(rewards, starts), whole)


def test_returns_of_many_runs_need_little_memory() -> None:
    rewards, starts = np.ones(10_000_000, np.float32), np.arange(0, 10_000_001, 1000)
    tracemalloc.start()
    try:
        found = run_returns(rewards, starts)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (found == 1000).all()
    assert most < 3e7


def test_rows_that_stand_for_an_array_are_spread_over_all_of_it() -> None:
    found = spread_rows(np.arange(25_001)[:, None])[:, 0]
    assert (len(found), found[0], found[-1]) == (10_000, 0, 25_000)
    assert {*np.diff(found)} == {2, 3}
    few = np.arange(9_999)[:, None]
    np.testing.assert_array_equal(spread_rows(few), few)


# --- episodes laid end to end ------------------------------------------------------


def test_episodes_cut_from_one_stream_are_one_run() -> None:
    episodes, _ = cut_stream([5, 1, 7, 2])
    flat = flatten(episodes, num_rows=15)
    assert flat.run_starts.tolist() == [0, 15]
    stream = np.concatenate([e.observations["observation"][:-1] for e in episodes])
    np.testing.assert_array_equal(flat.fields["observation"], stream.astype(np.float32))


def test_an_episode_may_be_overwritten_as_soon_as_the_next_is_asked_for() -> None:
    def in_one_place() -> Iterator[Episode]:
        for episode in cut_stream([5, 1, 7, 2])[0]:
            held = {name: v.copy() for name, v in episode.observations.items()}
            yield replace(episode, observations=held)
            for values in held.values():
                values[:] = np.nan

    assert flatten(in_one_place(), num_rows=15).run_starts.tolist() == [0, 15]


def test_a_reset_begins_a_run() -> None:
    first, _ = cut_stream([5, 4], seed=1)
    second, _ = cut_stream([3, 6], seed=2)
    flat = flatten([*first, *second], num_rows=18)
    assert flat.run_starts.tolist() == [0, 9, 18]


def test_an_observation_at_rest_continues_nothing_if_the_achieved_goal_jumps() -> None:
    """Velocities alone may be equal: zero at the end, and zero after the reset."""

    def trip(begin: float, end: float) -> Episode:
        position = np.linspace([begin], [end], 5)
        velocity = np.zeros((5, 1))
        velocity[1:-1] = (end - begin) / 4
        fields = {"observation": velocity, "achieved_goal": position}
        goal = np.full((5, 1), end)
        return Episode.cut(
            {**fields, "desired_goal": goal}, np.zeros((4, 1)), np.zeros(4), 0
        )

    flat = flatten([trip(0, 1), trip(-5, 3), trip(3, 2)], num_rows=12)
    assert flat.run_starts.tolist() == [0, 4, 12]


def test_metadata_that_json_lacks_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    flat = flatten(cut_stream([4])[0], num_rows=4, metadata={"gain": float("nan")})
    with pytest.raises(StorageError, match=r"saved.*NaN"):
        flat.save(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_episodes_with_other_columns_are_named() -> None:
    episodes, _ = cut_stream([4, 3])
    wide = replace(episodes[1], actions=np.zeros((3, 5)))
    with pytest.raises(DatasetError, match=r"Episode 1: 'action' has .*\(5,\).*\(2,\)"):
        flatten([episodes[0], wide], num_rows=7)
    without = make_episode(np.ones((4, 4)))
    with pytest.raises(DatasetError, match="Episode 1 has no 'achieved_goal'"):
        flatten([episodes[0], without], num_rows=7)
    with pytest.raises(DatasetError, match="Episode 1 has 'achieved_goal', which"):
        flatten([without, episodes[0]], num_rows=7)


def test_the_first_goal_of_a_continued_episode_is_its_own() -> None:
    episodes, goals = cut_stream([5, 1, 7, 2])
    flat = flatten(episodes, num_rows=15)
    chased = np.repeat(goals, [5, 1, 7, 2], axis=0).astype(np.float32)
    np.testing.assert_array_equal(flat.fields["desired_goal"], chased)


def test_the_first_goal_after_a_reset_is_believed() -> None:
    first, _ = cut_stream([5], seed=1)
    second, _ = cut_stream([3], seed=2)
    second[0].observations["desired_goal"][0] = 123.0
    flat = flatten([*first, *second], num_rows=8)
    assert flat.fields["desired_goal"][5].tolist() == [123.0, 123.0]


def test_changing_goals_inside_a_continued_episode_are_kept() -> None:
    episodes, _ = cut_stream([5, 6])
    goals = episodes[1].observations["desired_goal"]
    goals[:3], goals[3:] = 1.0, 2.0
    goals[0] = 3.0
    flat = flatten(episodes, num_rows=11)
    assert flat.fields["desired_goal"][5:, 0].tolist() == [3, 1, 1, 2, 2, 2]


def test_nothing_continues_a_terminated_episode() -> None:
    states = np.random.default_rng(0).normal(size=(8, 4))
    parts = [make_episode(states[:4], terminated=True), make_episode(states[3:])]
    assert flatten(parts, num_rows=7).run_starts.tolist() == [0, 3, 7]


def test_nothing_continues_an_episode_where_all_begin_with_a_reset() -> None:
    """They may begin where others ended: in games, and with few different states."""
    parts = [make_episode(np.ones((4, 4))) for _ in range(3)]
    assert flatten(parts, num_rows=9).run_starts.tolist() == [0, 9]
    flat = flatten(parts, num_rows=9, all_reset=True)
    assert flat.run_starts.tolist() == [0, 3, 6, 9]


def test_episodes_without_steps_are_skipped() -> None:
    episodes, _ = cut_stream([4, 3])
    empty = make_episode(np.ones((1, 4)), np.ones((1, 2)))
    flat = flatten([empty, episodes[0], empty, episodes[1]], num_rows=7)
    assert flat.run_starts.tolist() == [0, 7]


def test_lengths_that_disagree_name_the_episode() -> None:
    good, _ = cut_stream([4])
    bad = make_episode(np.ones((5, 4)), np.ones((3, 2)))
    with pytest.raises(DatasetError, match=r"Episode 1 .* wrong: desired_goal"):
        flatten([*good, bad], num_rows=8)
    with pytest.raises(DatasetError, match="4 steps, but the dataset announces 9"):
        flatten(good, num_rows=9)
    with pytest.raises(DatasetError, match="more than the 3 steps"):
        flatten(good, num_rows=3)
    with pytest.raises(DatasetError, match="no steps"):
        flatten([], num_rows=0)
