"""Transitions against loops over the rows, and the codec against its definition."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from diffuser_policy.baselines.transitions import Codec, Hindsight, SingleTask
from diffuser_policy.benchmark.problem import Problem, check_task, task_rewards
from diffuser_policy.choices import GOAL_PARTS, Goals
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, DatasetError
from tests.baseline_helpers import RADIUS, LineEnv, line_data

RNG_SEED = 7


def raw(transitions: SingleTask | Hindsight, inputs: np.ndarray) -> np.ndarray:
    """Undo the scaling of inputs."""
    codec = transitions.codec
    unscaled: np.ndarray = inputs * codec.std + codec.mean
    return unscaled


def test_rewards_of_the_fixed_goal_are_those_of_arriving() -> None:
    flat = line_data()
    rewards = task_rewards(flat, LineEnv(goals="fixed"))
    x, ends = flat.fields["observation"][:, 0], set(flat.run_starts[1:].tolist())
    for row in range(flat.num_rows):
        arrived = x[row] if row + 1 in ends else x[row + 1]
        assert rewards[row] == float(abs(arrived - 0.5) <= RADIUS)
    assert 0 < rewards.mean() < 1


def test_rewards_of_data_without_goals_are_kept() -> None:
    flat = line_data(goals=False)
    rewards = task_rewards(flat, LineEnv(goals="none"))
    np.testing.assert_array_equal(rewards, flat.fields["reward"])


def test_successors_are_of_the_same_run_and_one_action_away() -> None:
    flat = line_data()
    transitions = SingleTask(flat, LineEnv(goals="fixed"))
    batch = transitions.batch(np.random.default_rng(RNG_SEED), 2000)
    here = raw(transitions, batch.observations)
    there = raw(transitions, batch.next_observations)
    np.testing.assert_allclose(here[:, 1], there[:, 1], atol=1e-5)
    moved = there[:, 0] - here[:, 0]
    np.testing.assert_allclose(moved, 0.1 * batch.actions[:, 0], atol=1e-5)
    assert not batch.terminals.any()
    # The last row of a run has no successor, and is never drawn.
    assert len(transitions.rows) == flat.num_rows - flat.num_runs


def test_rows_that_terminate_are_kept_and_marked() -> None:
    flat = line_data(goals=False, terminated=True)
    transitions = SingleTask(flat, LineEnv(goals="none"))
    assert len(transitions.rows) == flat.num_rows
    batch = transitions.batch(np.random.default_rng(RNG_SEED), 4000)
    assert batch.terminals.mean() == pytest.approx(1 / 50, abs=0.01)
    ends = flat.run_starts[1:] - 1
    paid = set(batch.rewards[batch.terminals == 1].tolist())
    assert paid <= set(flat.fields["reward"][ends].astype(np.float32).tolist())
    assert paid


def test_the_best_runs_alone_are_kept() -> None:
    flat = line_data(num_runs=10, run_length=5, goals=False)
    run = np.arange(flat.num_rows) // 5
    earned = np.array([3, 9, 1, 7, 8, 2, 5, 4, 6, 0])
    fields = {**flat.fields, "reward": earned[run] + 1e-3 * np.arange(flat.num_rows)}
    transitions = SingleTask(
        FlatDataset(fields, flat.run_starts), LineEnv(goals="none")
    )
    everything = transitions.rows
    transitions.keep_best(1.0)
    assert transitions.rows is everything
    transitions.keep_best(0.2)
    assert set(transitions.rows // 5) == {1, 4}
    for share in (0.0, 5.0, np.nan):
        with pytest.raises(ConfigError, match=r"best_share must be in \(0, 1\]"):
            transitions.keep_best(share)


def test_rewards_are_scaled_by_the_range_of_returns() -> None:
    flat = line_data(num_runs=4, run_length=5, goals=False)
    fields = {**flat.fields, "reward": np.repeat([-1.0, 0.0, 2.0, 1.0], 5)}
    transitions = SingleTask(
        FlatDataset(fields, flat.run_starts), LineEnv(goals="none")
    )
    transitions.scale_rewards(1000)
    by_run = transitions.reward.reshape(4, 5)
    np.testing.assert_allclose(by_run.sum(axis=1), [-1000 / 3, 0, 2000 / 3, 1000 / 3])
    batch = transitions.batch(np.random.default_rng(RNG_SEED), 200)
    assert batch.rewards.max() == pytest.approx(2000 / 15)


def test_equal_returns_have_no_range() -> None:
    flat = line_data(num_runs=4, run_length=5, goals=False)
    fields = {**flat.fields, "reward": np.tile([0.0, 1.0, 0.0, 0.0, 2.0], 4)}
    same = SingleTask(FlatDataset(fields, flat.run_starts), LineEnv(goals="none"))
    with pytest.raises(DatasetError, match="have the same return"):
        same.scale_rewards(1000)


def test_no_run_is_better_than_another_where_goals_differ() -> None:
    transitions = Hindsight(line_data(), LineEnv(goals="new"))
    with pytest.raises(ConfigError, match="best_share compares returns"):
        transitions.keep_best(0.5)
    with pytest.raises(ConfigError, match="return_range compares returns"):
        transitions.scale_rewards(1000)


@pytest.mark.parametrize("kind", ["fixed", "new"])
def test_goals_without_rewards_of_their_own_cannot_be_relabelled(
    kind: str,
) -> None:
    """Other settings of the problem would not help."""
    env = LineEnv(goals=kind)
    del env.compute_reward
    name = f"test/Line-{kind}-v0"
    problem = Problem(env=name, dataset="test/line-v0", goals="hindsight")
    with pytest.raises(ConfigError, match=r"Give it that method\.$"):
        check_task(problem, line_data(), env)


@pytest.mark.parametrize(("kind", "goals"), [("fixed", "none"), ("new", "hindsight")])
def test_data_that_end_at_the_goal_cannot_be_relabelled(
    kind: str, goals: Goals
) -> None:
    flat, env = line_data(terminated=True), LineEnv(goals=kind)
    problem = Problem(env=f"test/Line-{kind}-v0", dataset="test/line-v0", goals=goals)
    with pytest.raises(DatasetError, match="terminate"):
        check_task(problem, flat, env)
    with pytest.raises(DatasetError, match="terminate"):
        SingleTask(flat, env) if goals == "none" else Hindsight(flat, env)


def test_goals_in_hindsight_are_reached_later_in_the_same_run() -> None:
    flat = line_data(num_runs=3, run_length=200)
    # Where the row is can be read from the achieved goal.
    fields = dict(flat.fields)
    fields["achieved_goal"] = np.arange(flat.num_rows, dtype=np.float32)[:, None]
    flat = FlatDataset(fields, flat.run_starts)
    transitions = Hindsight(flat, LineEnv(goals="new"), discount=0.9)
    rng = np.random.default_rng(RNG_SEED)
    rows = transitions.rows[rng.integers(len(transitions.rows), size=5000)]
    goals, _ = transitions._task(rng, rows, rows + 1)
    assert goals is not None
    later = goals[:, 0] - rows
    assert later.min() == 1
    assert (goals[:, 0] < transitions.ends[rows]).all()
    assert (goals[:, 0] // 200 == rows // 200).all()
    # Geometric: mean 1 / (1 - γ), where no run ends soon.
    free = transitions.ends[rows] - rows > 120
    assert later[free].mean() == pytest.approx(10, rel=0.05)
    assert (later[free] == 1).mean() == pytest.approx(0.1, abs=0.02)


def test_rewards_in_hindsight_are_the_environments() -> None:
    flat, env = line_data(), LineEnv(goals="new")
    transitions = Hindsight(flat, env)
    batch = transitions.batch(np.random.default_rng(RNG_SEED), 1000)
    there = raw(transitions, batch.next_observations)
    expected = np.abs(there[:, 0] - there[:, 2]) <= RADIUS
    assert (batch.rewards[:, 0] == expected).mean() > 0.99  # but for rounding
    np.testing.assert_allclose(
        raw(transitions, batch.observations)[:, 2], there[:, 2], atol=1e-6
    )


def test_a_single_task_needs_one_goal() -> None:
    with pytest.raises(ConfigError, match="another goal in every episode"):
        SingleTask(line_data(), LineEnv(goals="new"))


def test_hindsight_needs_an_environment_with_goals() -> None:
    with pytest.raises(ConfigError, match="no compute_reward"):
        Hindsight(line_data(), LineEnv(goals="none"))


def test_hindsight_needs_data_with_goals() -> None:
    with pytest.raises(DatasetError, match="has no goals"):
        Hindsight(line_data(goals=False), LineEnv(goals="new"))


def test_rewards_that_never_change_are_refused() -> None:
    flat = line_data(goals=False)
    fields = {**flat.fields, "reward": np.zeros(flat.num_rows)}
    with pytest.raises(DatasetError, match="nothing to learn"):
        task_rewards(FlatDataset(fields, flat.run_starts), LineEnv(goals="none"))


@pytest.mark.parametrize(
    ("kind", "goals", "data_has_goals", "refusal"),
    [
        ("new", "none", True, "another goal in every episode.*which needs .*compute_"),
        ("none", "hindsight", True, "no compute_reward.*Use goals=.none"),
        ("new", "hindsight", False, "has no goals"),
        ("none", "none", False, "nothing to learn"),
        ("fixed", "none", True, None),
        ("new", "hindsight", True, None),
    ],
)
def test_what_cannot_be_learned_is_refused_before_anything_is_run(
    kind: str, goals: Goals, data_has_goals: bool, refusal: str | None
) -> None:
    flat = line_data(goals=data_has_goals)
    fields = {**flat.fields, "reward": np.zeros(flat.num_rows)}
    problem = Problem(env=f"test/Line-{kind}-v0", dataset="test/line-v0", goals=goals)
    constant, env = FlatDataset(fields, flat.run_starts), LineEnv(goals=kind)
    if refusal is None:
        check_task(problem, constant, env)
        return
    with pytest.raises((ConfigError, DatasetError), match=refusal):
        check_task(problem, constant, env)


@pytest.mark.parametrize("unit", [1.0, 1e-8, 1e8])
@pytest.mark.parametrize("targets", [[-1], [0]])
def test_actions_survive_the_codec(targets: list[int], unit: float) -> None:
    flat = line_data()
    env = LineEnv(goals="none", targets=targets)
    env.action_space = gymnasium.spaces.Box(-unit, unit, (1,))
    observations, actions = (unit * flat.fields[k] for k in ("observation", "action"))
    codec = Codec.fit(env, observations, actions)
    encoded = codec.encode(actions, observations)
    decoded = codec.decode(encoded, observations)
    np.testing.assert_allclose(decoded, actions, atol=1e-5 * unit)
    assert np.abs(encoded).max() > 0.9
    for beyond in (actions, 3 * actions):
        assert np.abs(codec.encode(beyond, observations)).max() <= 1


def test_targets_are_learned_relative_to_their_column() -> None:
    observations = np.linspace(-3, 3, 50, dtype=np.float32)[:, None].repeat(2, 1)
    steps = np.tile([[0.01], [0.03]], (25, 1)).astype(np.float32)
    actions = np.clip(observations[:, :1] + steps, -1, 1)  # a little further each time
    near = np.abs(observations[:, 0]) < 0.9
    env = LineEnv(goals="none", targets=[0])
    codec = Codec.fit(env, observations[near], actions[near])
    encoded = codec.encode(actions[near], observations[near])[:, 0]
    expected = np.where(steps[near, 0] > 0.02, 1, -1) / 1.02  # the same two everywhere
    np.testing.assert_allclose(encoded, expected, atol=1e-4)
    far = np.array([[2.0, 0.0]], np.float32)
    assert codec.decode(np.zeros((1, 1), np.float32), far) == 1  # inside of the space


@pytest.mark.parametrize("targets", [[-1, -1, -1], [0, 0, -1]])
def test_actions_that_never_change_are_for_the_environment_alone(
    targets: list[int],
) -> None:
    rng = np.random.default_rng(RNG_SEED)
    observations = rng.uniform(-0.3, 0.3, (200, 2)).astype(np.float32)
    env = LineEnv(goals="none", targets=targets)
    env.action_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    actions = np.where(np.array(targets) >= 0, observations[:, :1], 0.4)
    actions[:, 0] += rng.uniform(-0.2, 0.2, 200)
    codec = Codec.fit(env, observations, actions.astype(np.float32))
    assert codec.columns == (0,)
    assert codec.num_actions == 1
    encoded = codec.encode(actions, observations)
    assert encoded.shape == (200, 1)
    np.testing.assert_allclose(codec.decode(encoded, observations), actions, atol=1e-6)
    other = codec.decode(np.zeros((200, 1), np.float32), observations)
    np.testing.assert_allclose(other[:, 1:], actions[:, 1:], atol=1e-6)


def test_data_in_which_nothing_is_done_are_refused() -> None:
    observations, actions = _pairs(line_data())
    with pytest.raises(DatasetError, match="never change"):
        Codec.fit(LineEnv(goals="none"), observations, np.full_like(actions, 0.5))


def test_inputs_have_no_mean_and_unit_spread() -> None:
    flat = line_data(num_runs=20)
    goals = flat.fields["achieved_goal"]
    env = LineEnv(goals="new")
    codec = Codec.fit(env, flat.fields["observation"], flat.fields["action"], goals)
    rows = np.concatenate([flat.fields["observation"], goals], axis=1)
    inputs = codec.inputs(rows)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-3)


def test_inputs_that_hardly_change_only_lose_their_mean() -> None:
    observations, actions = _pairs(line_data())
    rows = observations * [1, 1e-5]
    inputs = Codec.fit(LineEnv(goals="none"), rows, actions).inputs(rows)
    np.testing.assert_allclose(inputs[:, 0].std(), 1, rtol=1e-4)
    centred = rows[:, 1] - rows[:, 1].mean()
    assert 0 < centred.std() < 1e-3
    np.testing.assert_allclose(inputs[:, 1], centred, atol=1e-6)


def test_next_actions_are_relative_to_where_they_are_taken() -> None:
    flat = line_data()
    transitions = SingleTask(flat, LineEnv(goals="fixed", targets=[0]))
    batch = transitions.batch(np.random.default_rng(RNG_SEED), 500)
    there = raw(transitions, batch.next_observations)[:, :2]
    decoded = transitions.codec.decode(batch.next_actions, there)
    observations, actions = _pairs(flat)
    apart = np.abs(there[:, None] - observations[None]).max(axis=2)
    np.testing.assert_allclose(decoded, actions[apart.argmin(axis=1)], atol=1e-3)


def _pairs(flat: FlatDataset) -> tuple[np.ndarray, np.ndarray]:
    return flat.fields["observation"], flat.fields["action"]


def test_actions_without_bounds_are_refused() -> None:
    env = LineEnv(goals="none")
    env.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
    with pytest.raises(ConfigError, match="has none"):
        Codec.fit(env, *_pairs(line_data()))


@pytest.mark.parametrize("targets", [[0, 1], [5]])
def test_targets_have_to_be_columns(targets: list[int]) -> None:
    flat = line_data()
    with pytest.raises(ConfigError, match="action_targets"):
        Codec.fit(
            LineEnv(goals="none", targets=targets),
            flat.fields["observation"],
            flat.fields["action"],
        )


def test_actions_of_any_shape_are_scaled() -> None:
    env = LineEnv(goals="none")
    env.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2, 2))
    rng = np.random.default_rng(RNG_SEED)
    observations = rng.normal(size=(50, 2)).astype(np.float32)
    actions = rng.uniform(-1, 1, (50, 4)).astype(np.float32)
    codec = Codec.fit(env, observations, actions)
    encoded = codec.encode(actions, observations)
    decoded = codec.decode(encoded, observations)
    assert decoded.shape == (50, 2, 2)
    np.testing.assert_allclose(decoded.reshape(50, 4), actions, atol=1e-6)


FLAT = gymnasium.spaces.Box(-1.0, 1.0, (2,))


def goal_space(**parts: gymnasium.Space[Any]) -> gymnasium.spaces.Dict:
    """Return the space of goal dictionaries with other parts."""
    return gymnasium.spaces.Dict({**dict.fromkeys(GOAL_PARTS, FLAT), **parts})


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(-1.0, 1.0, (2, 3)),
        gymnasium.spaces.Tuple([gymnasium.spaces.Box(-1.0, 1.0, (2,))]),
        gymnasium.spaces.Dict({"a": gymnasium.spaces.Box(-1.0, 1.0, (2,))}),
        gymnasium.spaces.Discrete(3),
        goal_space(observation=gymnasium.spaces.Dict(a=FLAT)),
        goal_space(observation=gymnasium.spaces.Tuple([FLAT])),
        goal_space(observation=gymnasium.spaces.Text(3)),
        goal_space(desired_goal=gymnasium.spaces.Box(-1.0, 1.0, (1, 2))),
        goal_space(extra=FLAT),
    ],
)
def test_observations_that_are_not_flat_are_refused_before_training(
    space: gymnasium.Space[object],
) -> None:
    """The policy would read them in another way than the data were read."""
    env = LineEnv(goals="none")
    env.observation_space = space
    flat = line_data(goals=False)
    with pytest.raises(ConfigError, match="FlattenObservation"):
        Codec.fit(env, flat.fields["observation"], flat.fields["action"])


def test_the_best_runs_have_to_have_transitions() -> None:
    flat = line_data(goals=False)
    fields = dict(flat.fields)
    fields["reward"] = np.zeros(flat.num_rows)
    fields["reward"][0] = 9.0
    starts = np.unique([*flat.run_starts, 1])  # the best run has a single step
    transitions = SingleTask(FlatDataset(fields, starts), LineEnv(goals="none"))
    with pytest.raises(DatasetError, match=r"best 10% of the runs .* single step"):
        transitions.keep_best(0.1)
