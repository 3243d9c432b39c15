"""WindowDataset: which windows there are, and that drawing them is fair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import IdentityNormalizer, Normalizer
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.windows import (
    JoinedRows,
    PlanningRows,
    WindowDataset,
    in_planning_columns,
)
from diffuser_policy.errors import ConfigError, DatasetError, UnknownNameError
from diffuser_policy.testing import toy_dataset
from tests.features_helpers import Scene

LAYOUT = TrajectoryLayout(action_dim=1, observation_dim=3, aliases={"goal": (0, 1)})
RUN, TIME, ROW = 1, 2, 3  # trajectory columns; 0 is the action


def numbered(
    lengths: list[int], *, goals: bool = False, rewards: list[float] | None = None
) -> FlatDataset:
    """Return runs whose observations say where they are: run, time in it, row.

    All steps of a run have the same reward, by default 0.
    """
    num_rows = sum(lengths)
    rows = np.arange(num_rows)
    run = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    observation = np.stack([run, rows - starts[run], rows], axis=1)
    fields = {
        "observation": observation,
        "action": 100.0 + rows[:, None],
        "reward": np.repeat(rewards or [0.0] * len(lengths), lengths),
        "terminated": np.zeros(num_rows, np.bool_),
    }
    if goals:
        fields["achieved_goal"] = 1000.0 + observation[:, :2]
        fields["desired_goal"] = np.zeros((num_rows, 2))
    return FlatDataset(fields, starts)


def windows_of(lengths: list[int], **settings: Any) -> WindowDataset:
    normalizer = settings.pop("normalizer", IdentityNormalizer.blank(4))
    return WindowDataset(
        numbered(lengths), layout=LAYOUT, normalizer=normalizer, **settings
    )


def starts_of(windows: WindowDataset, num_planning_steps: int) -> torch.Tensor:
    """Return the first rows of all windows of that length, in order."""
    counts = windows._windows_per_run(num_planning_steps)
    return windows._rows_of(torch.arange(int(counts.sum())), counts)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    steps=st.integers(1, 6),
    stride=st.integers(1, 4),
)
def test_the_windows_are_all_that_fit_in_a_run(
    lengths: list[int], steps: int, stride: int
) -> None:
    expected = [
        (run, time)
        for run, length in enumerate(lengths)
        for time in range(length)
        if time + (steps - 1) * stride < length
    ]
    windows = windows_of(lengths, stride=stride)
    starts = starts_of(windows, steps)
    found = windows.read(starts)[:, [RUN, TIME]].int().tolist()
    assert list(map(tuple, found)) == expected
    assert windows.num_windows(steps) == len(expected)


@pytest.mark.parametrize("stride", [1, 3])
def test_sampled_windows_are_consecutive_and_in_one_run(stride: int) -> None:
    windows = windows_of([30, 12, 50], stride=stride)
    drawn = windows.sample(500, 4, generator())
    assert drawn.shape == (500, 4, 4)
    assert (drawn[..., RUN] == drawn[:, :1, RUN]).all()
    assert (drawn[..., ROW].diff(dim=1) == stride).all()
    assert torch.equal(drawn[..., 0], 100 + drawn[..., ROW])  # actions of their rows


def test_every_window_is_equally_likely() -> None:
    """Chi-square of 20,000 draws over 20 windows; the last of each run included."""
    windows = windows_of([12, 3, 20], stride=2)
    starts = starts_of(windows, 4)  # 6 + 0 + 14 windows
    assert len(starts) == 20
    drawn = windows.sample(20_000, 4, generator())[:, 0, ROW].long()
    counts = torch.bincount(drawn, minlength=35)
    assert set(counts.nonzero().flatten().tolist()) == set(starts.tolist())
    expected = 20_000 / len(starts)
    chi_square = ((counts[starts] - expected) ** 2 / expected).sum().item()
    assert chi_square < 43.8  # 99.9 % quantile with 19 degrees of freedom


def test_sampled_windows_are_those_of_their_starts() -> None:
    windows = windows_of([30, 20], stride=3)
    starts = starts_of(windows, 4)
    ranks = torch.randint(len(starts), (50,), generator=generator())
    rows = starts[ranks][:, None] + 3 * torch.arange(4)
    assert torch.equal(windows.read(rows), windows.sample(50, 4, generator()))


def test_large_data_are_read_in_parts_to_the_same_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = torch.arange(49, -1, -1)
    with monkeypatch.context() as large:
        large.setattr("diffuser_policy.data.windows.KEPT", 0)
        large.setattr("diffuser_policy.data.windows.AT_ONCE", 3)
        windows = windows_of([30, 20])
        drawn, read = windows.sample(50, 4, generator()), windows.read(rows)
    assert torch.equal(read[:, ROW], rows.float())
    whole = windows_of([30, 20])
    assert torch.equal(read, whole.read(rows))
    assert torch.equal(drawn, whole.sample(50, 4, generator()))


def test_sampling_depends_on_its_generator_alone() -> None:
    windows = windows_of([30, 20])
    before = torch.random.get_rng_state()
    assert torch.equal(
        windows.sample(9, 4, generator(5)), windows.sample(9, 4, generator(5))
    )
    assert not torch.equal(
        windows.sample(9, 4, generator(5)), windows.sample(9, 4, generator(6))
    )
    assert torch.equal(before, torch.random.get_rng_state())


def test_rows_are_normalized() -> None:
    normalizer = Normalizer(torch.full((4,), 2.0), torch.full((4,), 4.0))
    windows = windows_of([6], normalizer=normalizer)
    flat = torch.from_numpy(JoinedRows.of(numbered([6]), LAYOUT)[:])
    assert torch.equal(windows.read(torch.arange(6)), (flat - 2) / 4)


def test_the_dataset_is_not_written_to() -> None:
    flat = numbered([9, 4])
    kept = {name: array.copy() for name, array in flat.fields.items()}
    WindowDataset(
        flat,
        layout=LAYOUT,
        normalizer=Normalizer(torch.ones(4), torch.full((4,), 2.0)),
        padding="repeat",
        max_planning_steps=5,
    )
    for name, array in flat.fields.items():
        assert np.array_equal(array, kept[name]), name


# --- padding ----------------------------------------------------------------------


def test_padding_repeats_the_last_observation_with_zero_actions() -> None:
    windows = windows_of([5, 7], padding="repeat", max_planning_steps=4, stride=2)
    assert windows.num_windows(4) == 12  # one per row
    start = starts_of(windows, 4)[3]  # at time 3 of run 0
    window = windows.read(start + 2 * torch.arange(4))
    assert window[:, ROW].tolist() == [3.0, 4.0, 4.0, 4.0]
    assert window[:, 0].tolist() == [103.0, 0.0, 0.0, 0.0]


def test_padded_actions_are_zero_in_environment_units() -> None:
    normalizer = Normalizer(torch.full((4,), 2.0), torch.full((4,), 4.0))
    windows = windows_of(
        [3], padding="repeat", max_planning_steps=3, normalizer=normalizer
    )
    physical = normalizer.unnormalize(windows.read(torch.arange(5)))
    assert physical[:, 0].tolist() == [100.0, 101.0, 102.0, 0.0, 0.0]


def test_padding_never_reaches_the_next_run() -> None:
    windows = windows_of([3, 8, 1], padding="repeat", max_planning_steps=6)
    drawn = windows.sample(1000, 6, generator())
    assert (drawn[..., RUN] == drawn[:, :1, RUN]).all()
    started = {(int(w[0, RUN]), int(w[0, TIME])) for w in drawn}
    assert len(started) == 12


def test_shorter_windows_start_before_the_padding_too() -> None:
    windows = windows_of([3, 8], padding="repeat", max_planning_steps=6, stride=2)
    assert windows.num_windows(2) == 11
    starts = windows.read(starts_of(windows, 2))
    assert starts[:, TIME].tolist() == [*range(3), *range(8)]
    assert (starts[:, 0] >= 100).all()  # real actions: no start is padding


@pytest.mark.parametrize("name", ["padding", "hindsight_goal"])
def test_unknown_choices_are_refused(name: str) -> None:
    kind = name.replace("_", " ")
    with pytest.raises(UnknownNameError, match=f"Unknown {kind} 'reflect'.*none"):
        windows_of([3, 8], **{name: "reflect"})


def test_without_padding_short_runs_have_no_windows() -> None:
    windows = windows_of([3, 8], max_planning_steps=6)
    assert windows.read(starts_of(windows, 6))[:, RUN].tolist() == [1.0, 1.0, 1.0]


# --- hindsight --------------------------------------------------------------------


def test_pairs_lie_in_one_run_with_the_right_time_between() -> None:
    windows = windows_of([30, 2, 50, 1])
    observations, goals, times = windows.sample_pairs(2000, 10, generator())
    assert torch.equal(observations[:, 0], goals[:, 0])  # the run
    assert torch.equal(goals[:, 1] - observations[:, 1], times)
    assert times.min() == 1
    assert times.max() == 10
    assert times.dtype == torch.float32


def test_pairs_reach_the_last_row_and_no_further() -> None:
    windows = windows_of([4])
    observations, goals, _ = windows.sample_pairs(500, 100, generator())
    assert sorted(set(observations[:, 1].tolist())) == [0.0, 1.0, 2.0]
    assert goals[:, 1].max() == 3


def test_pairs_never_use_padding() -> None:
    windows = windows_of([4, 6], padding="repeat", max_planning_steps=20)
    observations, goals, times = windows.sample_pairs(500, 100, generator())
    assert torch.equal(goals[:, 1] - observations[:, 1], times)


def test_changes_of_a_steady_drift_have_a_size() -> None:
    """Their standard deviation is zero."""
    normalizer = Normalizer(torch.full((4,), 2.0), torch.full((4,), 4.0))
    changes = windows_of([30, 20], normalizer=normalizer).transition_scales()[2]
    assert changes.tolist() == [0.0, 0.25, 0.25]


@pytest.mark.parametrize(
    ("hindsight_goal", "last"),
    [("none", []), ("goal", [1, 2]), ("observation", [1, 2, 3])],
)
def test_conditions_pin_the_start_and_the_hindsight_goal(
    hindsight_goal: Any,
    last: list[int],
) -> None:
    windows = windows_of([30], hindsight_goal=hindsight_goal)
    drawn = windows.sample(3, 5, generator())
    given = windows.conditions(drawn)
    assert given.mask[0, 0].tolist() == [False, True, True, True]
    assert given.mask[0, -1].nonzero().flatten().tolist() == last
    assert not given.mask[0, 1:-1].any()
    assert torch.equal(given.apply(torch.zeros_like(drawn))[:, 0, 1:], drawn[:, 0, 1:])


# --- layouts and refusals ---------------------------------------------------------


def test_states_only_layouts_leave_the_actions_out() -> None:
    layout = TrajectoryLayout(action_dim=0, observation_dim=3)
    rows = JoinedRows.of(numbered([4]), layout)[:]
    assert np.array_equal(rows, numbered([4]).fields["observation"])


def test_a_goal_that_is_no_column_is_appended() -> None:
    layout = TrajectoryLayout(action_dim=1, observation_dim=5, aliases={"goal": (3, 4)})
    rows = JoinedRows.of(numbered([4], goals=True), layout)[:]
    assert rows[2].tolist() == [102.0, 0.0, 2.0, 2.0, 1000.0, 1002.0]


def test_another_layout_is_refused() -> None:
    layout = TrajectoryLayout(action_dim=1, observation_dim=7)
    with pytest.raises(DatasetError, match="4 trajectory columns, the layout names 8"):
        JoinedRows.of(numbered([4]), layout)[:]


def test_a_dataset_shorter_than_the_window_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"run has 9 steps.* spans 10"):
        windows_of([4, 9], max_planning_steps=4, stride=3)
    assert windows_of([4, 10], max_planning_steps=4, stride=3).num_windows(4) == 1


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="stride must be at least 1"):
        windows_of([9], stride=0)
    goalless = TrajectoryLayout(action_dim=1, observation_dim=3)
    with pytest.raises(ConfigError, match="alias 'goal'"):
        WindowDataset(
            numbered([9]),
            layout=goalless,
            normalizer=IdentityNormalizer.blank(4),
            hindsight_goal="goal",
        )


@pytest.mark.parametrize("num_actions", [0, 2])
def test_planning_columns_are_worked_out_for_the_rows_that_are_read(
    num_actions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat, featurizer = toy_dataset(goals=False), Scene()
    layout = TrajectoryLayout(
        action_dim=num_actions, observation_dim=featurizer.num_columns, aliases={}
    )
    expected = JoinedRows.of(in_planning_columns(flat, featurizer), layout)[:]
    rows = PlanningRows(flat, featurizer, layout)
    assert rows.shape == expected.shape
    counts = []
    features = Scene.features

    def counted(self: Scene, observations: np.ndarray) -> np.ndarray:
        counts.append(len(observations))
        return features(self, observations)

    monkeypatch.setattr(Scene, "features", counted)
    np.testing.assert_array_equal(rows[5:9], expected[5:9])
    drawn = torch.tensor([7, 0, 7])
    np.testing.assert_array_equal(rows.take(drawn), expected[drawn.numpy()])
    assert counts == [4, 3]


def test_windows_of_the_best_share_are_of_the_runs_with_the_highest_returns() -> None:
    flat = numbered([5, 3, 6, 4], rewards=[0.0, 4.0, 1.0, 1.0])
    both = WindowDataset(
        flat, layout=LAYOUT, normalizer=IdentityNormalizer.blank(4), best_share=0.5
    )
    # Returns 0, 12, 6, 4: by the sum, and neither by the mean nor by the last reward.
    assert set(both.sample(200, 2, generator())[..., RUN].flatten().tolist()) == {1, 2}
    assert both.num_windows(2) == 2 + 5
    assert both.num_left_out(4) == 1, "runs that are not wanted are not short"
    here, _, _ = both.sample_pairs(200, 2, generator())
    assert set(here[:, 0].flatten().tolist()) == {1, 2}


def test_errors_speak_of_the_runs_that_windows_are_cut_from() -> None:
    """The run that earned nothing is longer, and is left out."""
    short, single = (numbered([9, last], rewards=[0.0, 1.0]) for last in (3, 1))
    best: Any = {"layout": LAYOUT, "normalizer": IdentityNormalizer.blank(4)}
    best["best_share"] = 0.5
    with pytest.raises(
        DatasetError, match=r"run of best_share=0\.5 has 3 steps.*spans"
    ):
        WindowDataset(short, max_planning_steps=5, **best)
    with pytest.raises(DatasetError, match=r"All episodes of best_share=0\.5 have a"):
        WindowDataset(single, **best).sample_pairs(2, 2, generator())
