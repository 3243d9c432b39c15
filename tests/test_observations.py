"""Columns of observation spaces: any tree of boxes, goals anywhere, flat arrays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import (
    FilterObservation,
    FlattenObservation,
    NormalizeObservation,
    TimeLimit,
)

from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.config import (
    TrainConfig,
    WindowConfig,
)
from diffuser_policy.data.collection import collect_episodes
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.minari import load_flat
from diffuser_policy.envs import make_env
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    ObservationError,
    SpaceMismatchError,
)
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.observations import (
    ObservationColumns,
    Part,
    assembled,
    batched,
    flat_order,
    numbers,
    parts_of,
)
from diffuser_policy.settings import from_json, to_json
from diffuser_policy.spaces import SpaceSpec, into_box
from diffuser_policy.testing import check_policy, toy_config, toy_dataset, toy_policy
from diffuser_policy.training.derive import space_spec
from diffuser_policy.training.trainer import Trainer
from tests.point_env import PointEnv

pytestmark = pytest.mark.usefixtures("datasets")

DATASET = "test/any-v0"
ACTIONS = spaces.Box(-1, 1, (2,))
NUM_STEPS = 9


def box(*shape: int) -> spaces.Box:
    return spaces.Box(-1, 1, shape, np.float64)


def in_order(**parts: spaces.Space[Any]) -> spaces.Dict:
    """Return a dictionary that keeps the order of its keys."""
    return spaces.Dict(list(parts.items()))


class Noise(gym.Env[Any, Any]):
    """Observes noise of any space; it only takes actions of its own space."""

    def __init__(
        self, seen: spaces.Space[Any], actions: spaces.Space[Any] = ACTIONS
    ) -> None:
        self.observation_space, self.action_space = seen, actions
        self.spec, self.step_number = None, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.observation_space.seed(seed)
        self.step_number = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action} ({action.dtype})"
        self.step_number += 1
        seen, done = self.observation_space.sample(), self.step_number == NUM_STEPS
        return seen, float(np.sum(action)), False, done, {}


class Drawn:
    """Draws actions uniformly, the same ones in every test."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.space = space
        space.seed(0)

    def predict(self, _: Any, state: Any = None, *__: Any) -> tuple[Any, Any]:
        return self.space.sample(), state


def recorded(env: gym.Env[Any, Any], **settings: Any) -> FlatDataset:
    """Record episodes of an environment, and read them."""
    pytest.importorskip("minari")
    policy: Any = Drawn(env.action_space)
    collect_episodes(env, policy, num_episodes=3, dataset_id=DATASET, progress=False)
    return load_flat(DATASET, progress=False, **settings)


def trained(flat: FlatDataset, output: Path) -> DiffuserPolicy:
    """Train a planner for a moment, and load it."""
    config = TrainConfig.for_dataset(
        flat,
        # Unclipped plans of an untrained network amplify rounding.
        window={"normalizer": "limits"},
        network={"dim": 8, "multipliers": (1, 2), "num_denoising_steps": 8},
        optimization={"num_steps": 2, "batch_size": 4},
        planner={"num_sampling_steps": 2, "num_candidates": 2},
    )
    Trainer(config, flat, output).run(progress=False)
    return DiffuserPolicy.from_pretrained(output)


# --- columns ------------------------------------------------------------------------

NESTED = in_order(
    b=box(2), a=in_order(y=box(), x=box(2, 3)), c=spaces.Tuple([box(1), box(2)])
)


def test_parts_follow_the_spaces_own_order() -> None:
    assert parts_of(NESTED) == (
        Part(path=("b",), shape=(2,)),
        Part(path=("a", "y"), shape=()),
        Part(path=("a", "x"), shape=(2, 3)),
        Part(path=("c", 0), shape=(1,)),
        Part(path=("c", 1), shape=(2,)),
    )
    columns = ObservationColumns.of(parts_of(NESTED))
    assert columns.size == 12
    assert columns.names == {
        "b": (0, 1),
        "a": (2, 3, 4, 5, 6, 7, 8),
        "a/y": (2,),
        "a/x": (3, 4, 5, 6, 7, 8),
        "c": (9, 10, 11),
        "c/0": (9,),
        "c/1": (10, 11),
    }


@pytest.mark.parametrize(
    "space",
    [
        box(3),
        box(2, 3),
        box(),
        NESTED,
        spaces.Tuple([box(2), NESTED]),
        in_order(z=box(1)),
    ],
)
@pytest.mark.parametrize("batch", [None, 1, 3])
def test_an_observation_is_flattened_as_gymnasium_does(
    space: spaces.Space[Any], batch: int | None
) -> None:
    """Their function is the truth: it follows the space's order, too."""
    columns = ObservationColumns.of(parts_of(space))
    bounds: Any = {"action_low": (-1.0,), "action_high": (1.0,)}
    spec = SpaceSpec(observation_size=columns.size, columns=columns, **bounds)
    space.seed(0)
    seen = [space.sample() for _ in range(batch or 1)]
    rows, goals, found = spec.read(seen[0] if batch is None else batched(seen))
    expected = np.array([spaces.flatten(space, each) for each in seen], np.float32)
    np.testing.assert_array_equal(rows, expected)
    assert goals is None
    assert found == (() if batch is None else (batch,))
    assert spec.observation_space().contains(seen[0])
    assert from_json(SpaceSpec, to_json(spec)) == spec


def test_goals_stand_apart_wherever_they_are() -> None:
    space = in_order(v=box(1), robot=in_order(q=box(2), t=box(2)), achieved_goal=box(3))
    columns = ObservationColumns.of(parts_of(space), ("robot/q", "robot/t"))
    assert [part.name for part in columns.observation] == ["v", "achieved_goal"]
    assert [part.name for part in columns.achieved_goal] == ["robot/q"]
    assert [part.name for part in columns.desired_goal] == ["robot/t"]
    without = ObservationColumns.of(parts_of(space))
    assert (without.size, without.goal_size) == (8, 0)


def test_rows_of_another_shape_are_refused_even_with_as_many_numbers() -> None:
    columns = ObservationColumns(observation=(Part(path=("grid",), shape=(2, 3)),))
    grids = np.arange(24.0).reshape(4, 2, 3)
    rows = columns.rows({"grid": grids}, 4)["observation"]
    np.testing.assert_array_equal(rows, grids.reshape(4, 6))
    for other in (grids.swapaxes(1, 2), grids.reshape(4, 6), grids.reshape(2, 4, 3)):
        with pytest.raises(ValueError, match=r"grid has the shape .* \(4, 2, 3\) was"):
            columns.rows({"grid": other}, 4)


def test_rows_of_one_number_need_no_axis_of_their_own() -> None:
    columns = ObservationColumns(observation=(Part(path=("angle",), shape=(1,)),))
    for angles in (np.arange(4.0), np.arange(4.0)[:, None]):
        found = columns.rows({"angle": angles}, 4)["observation"]
        np.testing.assert_array_equal(found, np.arange(4.0)[:, None])


def test_desired_goals_follow_the_order_of_the_achieved() -> None:
    space = in_order(
        observation=box(1),
        desired_goal=in_order(b=box(1), a=box(2)),
        achieved_goal=in_order(a=box(2), b=box(1)),
    )
    columns = ObservationColumns.of(parts_of(space))
    assert [part.name for part in columns.desired_goal] == [
        "desired_goal/a",
        "desired_goal/b",
    ]


def test_an_observation_that_is_all_goal_is_the_observation_too() -> None:
    space = in_order(at=box(2), to=box(2))
    columns = ObservationColumns.of(parts_of(space), ("at", "to"))
    assert columns.observation == columns.achieved_goal
    assert columns.size == columns.goal_size == 2


@pytest.mark.parametrize(
    ("space", "keys", "error", "message"),
    [
        (in_order(a=box(1)), ("a", "b"), ConfigError, "no 'b'.*--goal-keys of `train`"),
        (
            in_order(a=box(1), b=box(2)),
            ("a", "b"),
            DatasetError,
            "1 number and 'b' has 2",
        ),
        (box(0), ("achieved_goal", "desired_goal"), DatasetError, "no numbers"),
    ],
)
def test_what_cannot_be_a_goal_is_refused(
    space: spaces.Space[Any],
    keys: tuple[str, str],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        ObservationColumns.of(parts_of(space), keys)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Discrete(3), "observation is a Discrete space.*FlattenObservation"),
        (spaces.MultiBinary(3), "MultiBinary.*FlattenObservation"),
        (spaces.MultiDiscrete([2, 3]), "MultiDiscrete.*FlattenObservation"),
        (spaces.Text(5), "Text space.*FilterObservation"),
        (spaces.Sequence(box(1)), "Sequence space.*FilterObservation"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), r"image.*\[8, 8, 3\].*encode"),
        (spaces.Box(0, 255, (4, 8, 8, 1), np.uint8), "image"),
        (in_order(a=box(1), eye=in_order(left=spaces.Discrete(2))), "eye/left is a"),
    ],
)
def test_spaces_without_numbers_are_refused_with_what_to_do(
    space: spaces.Space[Any], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        parts_of(space)
    planner = toy_policy()
    with pytest.raises(SpaceMismatchError, match=message):
        planner.spaces.fitted(Noise(space))


def test_bytes_that_are_no_picture_are_numbers() -> None:
    assert parts_of(spaces.Box(0, 255, (128,), np.uint8))[0].size == 128


def test_numbers_of_an_observation_are_found_at_any_depth() -> None:
    seen = {"b": np.array([1, 2]), "a": (np.array(3.0), {"c": np.array([[4.0]])})}
    assert numbers(seen) == (1, 2, 3, 4)


def test_parts_are_assembled_to_what_they_are_parts_of() -> None:
    seen: Any = {"b": 1, "a": ({"c": 2}, 3)}
    parts = {("b",): 1, ("a", 0, "c"): 2, ("a", 1): 3}
    assert assembled(parts) == seen
    assert assembled({(): 4}) == 4
    assert assembled({(1,): 5}) == ((), 5)  # the first one has no parts


# --- from recording to acting -------------------------------------------------------

GOALS = {"own": ("position", "target"), "deep": ("robot/q", "robot/t")}
SEEN = {
    "matrix": box(2, 3),
    "number": box(),
    "whole": spaces.Box(0, 9, (3,), np.int32),
    "dict": NESTED,
    "tuple": spaces.Tuple([box(2), in_order(z=box(1))]),
    "kitchen": in_order(
        observation=box(4),
        achieved_goal=in_order(m=box(1), k=box(2)),
        desired_goal=in_order(k=box(2), m=box(1)),
    ),
    "own": in_order(position=box(2), velocity=box(2), target=box(2)),
    "deep": in_order(robot=in_order(q=box(2), t=box(2)), v=box(1)),
}


@pytest.mark.parametrize("name", SEEN)
def test_a_planner_serves_any_tree_of_boxes(name: str, tmp_path: Path) -> None:
    """Recorded, read, trained, saved, loaded; alone, flattened and in vectors."""
    space: Any = SEEN[name]
    keys = {"goal_keys": GOALS[name]} if name in GOALS else {}
    flat = recorded(Noise(space), **keys)
    planner = trained(flat, tmp_path / "planner")
    assert planner.spaces == space_spec(flat)
    # An untrained network amplifies rounding, whatever the normalizer.
    check_policy(planner, space, ACTIONS, num_envs=2, tolerance=5e-3)

    def make() -> gym.Env[Any, Any]:
        return Noise(space)

    def flattened() -> gym.Env[Any, Any]:
        return TimeLimit(FlattenObservation(make()), NUM_STEPS)

    returns = [
        [each.episode_return for each in result.episodes]
        for result in (
            evaluate(planner, made, episodes=3, num_envs=2, progress=False)
            for made in (make, flattened)
        )
    ]
    assert returns[0] == returns[1]
    several = gym.vector.SyncVectorEnv([make] * 3)
    expected, _ = planner.predict(several.reset(seed=0)[0], deterministic=True)
    assert several.action_space.contains(expected)
    rows = gym.wrappers.vector.FlattenObservation(several)
    envs: list[Any] = [rows, gym.vector.SyncVectorEnv([flattened] * 3)]
    for each in envs:
        observation, _ = each.reset(seed=0)
        bound = planner.for_env(each)
        actions, _ = bound.predict(observation, deterministic=True)
        np.testing.assert_array_equal(actions, expected)


def test_rows_of_a_dataset_are_those_of_the_environment() -> None:
    """Columns, in the space's own order, whatever the order in the file."""
    env = Noise(SEEN["kitchen"])
    flat = recorded(env)
    seed = np.random.SeedSequence(0, spawn_key=(0,)).generate_state(1)[0]
    seen, _ = env.reset(seed=int(seed))
    for step in range(NUM_STEPS):
        goal = np.concatenate([np.ravel(seen["achieved_goal"][key]) for key in "mk"])
        due = np.concatenate([np.ravel(seen["desired_goal"][key]) for key in "mk"])
        row = {"observation": seen["observation"], "achieved_goal": goal}
        for name, values in {**row, "desired_goal": due}.items():
            np.testing.assert_array_equal(flat.fields[name][step], np.float32(values))
        seen, *_ = env.step(np.zeros(2, np.float32))


def test_keys_name_columns_for_tracking(tmp_path: Path) -> None:
    flat = recorded(Noise(SEEN["own"]), goal_keys=GOALS["own"])
    layout = trained(flat, tmp_path / "planner").planner.layout
    # The achieved goal is no column of what remains, so it stands behind.
    assert layout.observation_columns("velocity") == (0, 1)
    assert layout.observation_columns("position") == (2, 3)
    assert layout.observation_columns("goal") == (2, 3)


def test_nested_goal_keys_keep_the_names_of_columns(tmp_path: Path) -> None:
    robot = in_order(hand=box(2), speed=box(1), target=box(2))
    space = in_order(robot=robot, hand=box(1))
    flat = recorded(Noise(space), goal_keys=("robot/hand", "robot/target"))
    layout = trained(flat, tmp_path / "planner").planner.layout
    assert layout.observation_columns("robot/speed") == (0,)
    assert layout.observation_columns("robot/hand") == (2, 3)
    assert layout.observation_columns("goal") == (2, 3)
    assert layout.observation_columns("hand") == (1,)  # another one's name


def test_readings_with_other_goals_do_not_share_a_cache() -> None:
    plain = recorded(Noise(SEEN["own"]))
    goals = load_flat(DATASET, goal_keys=GOALS["own"], progress=False)
    again = load_flat(DATASET, progress=False)
    assert (plain.goal_size, goals.goal_size, again.goal_size) == (0, 2, 0)
    assert plain.observation_size == again.observation_size == 6


def test_slashes_in_goal_keys_do_not_mix_up_the_cache() -> None:
    space = in_order(a=in_order(b=box(1)), b=in_order(c=box(1)), c=box(1))
    first = recorded(Noise(space), goal_keys=("a/b", "c"))
    second = load_flat(DATASET, goal_keys=("a", "b/c"), progress=False)
    goals, rest = second.fields["desired_goal"], second.fields["observation"]
    np.testing.assert_array_equal(first.fields["observation"], goals)
    np.testing.assert_array_equal(first.fields["desired_goal"], rest)


# --- flat observations --------------------------------------------------------------


class Unsorted(gym.ObservationWrapper[Any, Any, Any]):
    """Observes a dictionary whose keys are not sorted."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        inner: Any = env.observation_space
        self.observation_space = spaces.Dict(list(inner.spaces.items())[::-1])

    def observation(self, observation: Any) -> Any:
        return observation


class Shuffled(gym.ObservationWrapper[Any, Any, Any]):
    """Observes the same columns in another order: the space is the same."""

    def observation(self, observation: Any) -> Any:
        return observation[::-1]


def limited() -> gym.Env[Any, Any]:
    return TimeLimit(PointEnv(), 30)


FLAT: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "all": lambda: FlattenObservation(limited()),
    "filtered": lambda: FlattenObservation(
        FilterObservation(limited(), ["observation", "desired_goal"])
    ),
    "unsorted": lambda: FlattenObservation(Unsorted(limited())),
    "limited": lambda: TimeLimit(FlattenObservation(PointEnv()), 30),
}


@pytest.mark.parametrize("name", FLAT)
def test_a_flattened_goal_is_read_where_the_wrapper_shows_it(name: str) -> None:
    policy = toy_policy()
    expected = evaluate(policy, limited, episodes=3, progress=False)
    found = evaluate(policy, FLAT[name], episodes=3, progress=False)
    assert [e.episode_return for e in found.episodes] == [
        e.episode_return for e in expected.episodes
    ]


@pytest.mark.parametrize("space", [spaces.Tuple([box(2), box(1)]), NESTED])
def test_a_list_in_place_of_a_tuple_is_told_apart(space: spaces.Space[Any]) -> None:
    columns = ObservationColumns.of(parts_of(space))
    bounds: Any = {"action_low": (-1.0,), "action_high": (1.0,)}
    spec = SpaceSpec(observation_size=columns.size, columns=columns, **bounds)
    seen = space.sample()
    given = [*seen] if isinstance(seen, tuple) else {**seen, "c": [*seen["c"]]}
    with pytest.raises(ObservationError, match=r"a Tuple, pass the tuple that env\.re"):
        spec.read(given)


@pytest.mark.parametrize("size", [6, 8])
def test_a_box_of_the_right_size_is_no_goal_dictionary(size: int) -> None:
    policy = toy_policy()
    with pytest.raises(SpaceMismatchError, match=r"which columns are the goal\.$"):
        evaluate(policy, lambda: Noise(box(size), policy.action_space), episodes=1)
    with pytest.raises(ObservationError, match="for_env"):
        policy.predict(np.zeros(size))


def test_environments_of_stable_baselines3_show_their_order_too() -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    policy = toy_policy()
    seen = vec_env.DummyVecEnv([limited] * 2)
    seen.seed(0)
    expected, _ = policy.predict(seen.reset(), deterministic=True)
    flat = vec_env.VecMonitor(vec_env.DummyVecEnv([FLAT["filtered"]] * 2))
    flat.seed(0)
    found, _ = policy.for_env(flat).predict(flat.reset(), deterministic=True)
    np.testing.assert_array_equal(found, expected)


def recorded_as(**facts: Any) -> DiffuserPolicy:
    """Return a planner whose data say this about their recording."""
    flat = toy_dataset(goals=False)
    window = WindowConfig(horizon=16, hindsight_goal="none")
    return toy_policy(
        toy_config(time_to_goal=None, window=window),
        flat=dataclasses.replace(flat, metadata={**flat.metadata, **facts}),
    )


def test_wrappers_that_normalize_observations_are_warned_of() -> None:
    """The planner normalizes them too: it would see other numbers than its data has."""

    def normalized() -> Any:
        return TimeLimit(NormalizeObservation(Noise(box(4), ACTIONS)), 3)

    policy, told = recorded_as(), "NormalizeObservation changes the numbers"
    rows = gym.vector.SyncVectorEnv([normalized])
    for env in (normalized(), rows):
        with pytest.warns(UserWarning, match=told):
            policy.for_env(env)
    with pytest.warns(UserWarning, match=told):
        evaluate(policy, normalized, episodes=1, progress=False)
    spec = {"additional_wrappers": [{"name": "NormalizeObservation"}]}
    recorded_as(env_spec=json.dumps(spec)).for_env(normalized())


def test_vecnormalize_is_warned_of_where_it_normalizes_observations() -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    policy = recorded_as()
    rows = vec_env.DummyVecEnv([lambda: TimeLimit(Noise(box(4), ACTIONS), 3)])
    policy.for_env(vec_env.VecNormalize(rows, norm_obs=False))
    with pytest.warns(UserWarning, match="VecNormalize changes .* norm_obs=False"):
        policy.for_env(vec_env.VecNormalize(rows))


def test_what_may_have_changed_a_flat_observation_is_not_trusted() -> None:
    policy = toy_policy()
    for env in (Shuffled(FLAT["all"]()), Shuffled(FLAT["filtered"]())):
        assert flat_order(env) is None
        advice = "FlattenObservation.* Leave out the wrapper that flattens it"
        with pytest.raises(SpaceMismatchError, match=advice):
            policy.for_env(env)
    with pytest.raises(SpaceMismatchError):  # the goal was filtered out
        policy.for_env(
            FlattenObservation(FilterObservation(limited(), ["observation"]))
        )


def test_a_fitted_policy_stays_fitted_and_saves_no_trace(tmp_path: Path) -> None:
    env, plain = FLAT["filtered"](), toy_policy()
    policy = plain.for_env(env)
    observation, _ = env.reset(seed=0)
    seen, _ = limited().reset(seed=0)
    expected, _ = toy_policy().predict(seen, deterministic=True)
    for same in (policy, policy.with_settings(replan_deviation=1e9)):
        for either in (observation, seen):
            action, _ = same.predict(either, deterministic=True)
            np.testing.assert_array_equal(action, expected)
    assert policy.observation_space.shape == (6,)
    with pytest.raises(ObservationError, match="shape"):
        policy.predict(np.zeros(8))
    policy.predict(observation)  # takes no random stream of the other policy
    untouched = toy_policy().initial_state(2).streams
    np.testing.assert_array_equal(plain.initial_state(2).streams, untouched)
    policy.save_pretrained(tmp_path)
    with pytest.raises(ObservationError):
        DiffuserPolicy.from_pretrained(tmp_path).predict(observation)
    assert policy.for_env(limited()).spaces == toy_policy().spaces


def test_planners_without_goals_hand_flattened_goals_on_to_guides() -> None:
    def near_goal(trajectory: Trajectory) -> torch.Tensor:
        assert trajectory.desired_goal is not None
        off = trajectory.position - trajectory.desired_goal
        return -off.square().sum(dim=(1, 2))

    window = WindowConfig(horizon=16, hindsight_goal="none")
    config = toy_config(time_to_goal=None, window=window)
    policy = toy_policy(config, flat=toy_dataset(goals=False)).with_guide(near_goal)
    expected = evaluate(policy, limited, episodes=3, progress=False).episodes
    for make in FLAT.values():
        found = evaluate(policy, make, episodes=3, progress=False).episodes
        assert [e.episode_return for e in found] == [e.episode_return for e in expected]
    env = FLAT["all"]()
    flat, _ = env.reset(seed=0)
    seen, _ = limited().reset(seed=0)
    actions = [
        policy.for_env(env).predict(each, deterministic=True)[0]
        for each in (flat, seen, batched([flat, flat]))
    ]
    np.testing.assert_array_equal(actions[0], actions[1])
    np.testing.assert_allclose(actions[2], [actions[0]] * 2, atol=1e-5)


@pytest.mark.parametrize("goals", [True, False])
def test_records_of_flattened_episodes_tell_start_and_goal(goals: bool) -> None:
    """As those of episodes that nobody flattened."""
    config, flat = None, toy_dataset(goals=goals)
    if not goals:
        window = WindowConfig(horizon=16, hindsight_goal="none")
        config = toy_config(time_to_goal=None, window=window)
    policy = toy_policy(config, flat=flat)
    found, expected = (
        evaluate(policy, make, episodes=2, progress=False).episodes
        for make in (FLAT["all"], limited)
    )
    assert None not in [each.goal for each in expected]
    assert [(e.start, e.goal) for e in found] == [(e.start, e.goal) for e in expected]


# --- actions ------------------------------------------------------------------------

TYPES: dict[str, spaces.Box] = {
    "double": spaces.Box(-0.1, 0.1, (2,), np.float64),
    "half": spaces.Box(-0.1, 0.1, (3,), np.float16),
    "whole": spaces.Box(-3, 4, (2, 2), np.int8),
    "bytes": spaces.Box(0, 255, (1,), np.uint8),
    "long": spaces.Box(-5, 2**62, (1,), np.int64),
    "number": spaces.Box(-1, 1, (), np.float32),
}


@pytest.mark.parametrize("name", TYPES)
def test_actions_keep_the_type_and_the_shape_of_their_space(
    name: str, tmp_path: Path
) -> None:
    actions = TYPES[name]
    if name == "bytes":
        import minari

        if minari.__version__ == "0.5.3":
            with pytest.raises(DatasetError, match="bytes as pictures"):
                recorded(Noise(box(2), actions))
            return
    flat = recorded(Noise(box(2), actions))
    planner = trained(flat, tmp_path / "planner")
    assert planner.action_space == actions
    check_policy(planner, box(2), actions, num_envs=2)
    evaluate(planner, lambda: Noise(box(2), actions), episodes=2, progress=False)


@pytest.mark.parametrize("name", TYPES)
def test_actions_never_leave_their_space(name: str) -> None:
    space = TYPES[name]
    size = int(np.prod(space.shape))
    values = np.array([[v] * size for v in (-1e30, -0.1, 0.0, 0.1, 1.49, 1e30)])
    for given in (values, values.astype(np.float32)):
        for action in into_box(space, given):
            assert space.contains(np.asarray(action))


def test_whole_actions_are_the_nearest() -> None:
    space = spaces.Box(-3, 4, (1,), np.int8)
    given = np.array([[-9.0], [-2.6], [-0.4], [0.6], [3.51], [9.0]])
    assert into_box(space, given).ravel().tolist() == [-3, -3, 0, 1, 4, 4]


@pytest.mark.parametrize("bound", [0.1, 1 / 3, 2.967, 1e-9])
def test_no_single_bound_lies_outside_of_a_double(bound: float) -> None:
    """Planners of earlier versions do not know the type that their data had."""
    spec = SpaceSpec(observation_size=2, action_low=(-bound,), action_high=(bound,))
    space = spec.action_space()
    assert space.dtype == np.float32
    assert -bound <= float(space.low[0])
    assert float(space.high[0]) <= bound
    spec.fitted(Noise(box(2), spaces.Box(-bound, bound, (1,), np.float64)))


def test_whole_actions_are_not_taken_for_any_others() -> None:
    spec = SpaceSpec(observation_size=2, action_low=(0.0,), action_high=(5.0,))
    with pytest.raises(SpaceMismatchError, match="action space"):
        spec.fitted(Noise(box(2), spaces.Box(0, 5, (1,), np.int64)))


@pytest.mark.parametrize(
    "settings",
    [
        {"action_dtype": "words"},
        {"action_shape": (3,)},
        {"goal_size": 1, "columns": ObservationColumns.usual(2)},
        {"columns": ObservationColumns.usual(3)},
        {"action_low": (2.0,)},
        {"goal_size": 1, "goal_columns": (3,)},
        {"goal_size": 1, "goal_columns": (0, 1)},
    ],
)
def test_spaces_that_contradict_each_other_are_refused(settings: Any) -> None:
    with pytest.raises(ConfigError):
        SpaceSpec(
            **{
                "observation_size": 2,
                "action_low": (-1.0,),
                "action_high": (1.0,),
                **settings,
            }
        )


def test_parts_that_cannot_be_are_refused() -> None:
    part = Part(shape=(1,))
    for parts in ((), (part, part)):
        with pytest.raises(ConfigError, match="each once"):
            ObservationColumns(observation=parts)
    with pytest.raises(ConfigError, match="shape"):
        Part(shape=(-1, -1))
    with pytest.raises(ConfigError, match="pass an environment"):
        toy_policy().for_env(None)


def test_a_shipped_maze_planner_scores_the_same_flattened() -> None:
    policy = DiffuserPolicy.from_pretrained("multi2d-umaze")
    maze = "diffuser_envs/Multi2D-UMaze-v1"

    def flat() -> gym.Env[Any, Any]:
        keys = ["observation", "desired_goal"]
        return FlattenObservation(FilterObservation(make_env(maze), keys))

    found, expected = (
        evaluate(policy, make, episodes=1, progress=False) for make in (flat, maze)
    )
    [score], [same] = (
        [e.score for e in result.episodes] for result in (found, expected)
    )
    assert score == same
    assert score is not None
    assert score > 100
