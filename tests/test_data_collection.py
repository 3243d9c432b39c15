"""Collecting: physics, targets, workers, and interrupted work."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from tqdm import tqdm

from diffuser_policy.checkpoint import read_planner, shipped_planners
from diffuser_policy.cli.collect import CollectCommand
from diffuser_policy.cli.collect import collect as collect_command
from diffuser_policy.config import CollectSettings
from diffuser_policy.data import collection, demonstrators
from diffuser_policy.data.collection import (
    collect,
    collect_episodes,
    default_dataset_id,
    protocol_of,
)
from diffuser_policy.data.demonstrators import (
    DEMONSTRATORS,
    Demonstrator,
    default_demonstrator,
)
from diffuser_policy.data.episodes import record_episode
from diffuser_policy.data.flat import Episode
from diffuser_policy.data.minari import _any_episodes, load_flat
from diffuser_policy.data.returns import returns_to_go
from diffuser_policy.data.workers import WorkerError, map_unordered
from diffuser_policy.envs import Env, make_env
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    EnvContractError,
    MissingExtraError,
    SpaceMismatchError,
    UnknownNameError,
)
from diffuser_policy.observations import ObservationColumns
from diffuser_policy.testing import toy_policy
from tests.data_helpers import COLLECTED, ENV, EXPERT, SMALL, assert_same, record

pytest.importorskip("gymnasium_robotics")
minari = pytest.importorskip("minari")

pytestmark = pytest.mark.usefixtures("datasets")


class Bandit(gym.Env[Any, Any]):
    """One step an episode, and two states."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, **given: Any) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=given.get("seed"))
        self.arm = self.np_random.integers(2, size=1).astype(np.float32)
        return self.arm, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
        return self.arm, float(action[0]), False, True, {}


class Odd(gym.Env[Any, Any]):
    """An environment whose spaces are given."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action


BOX = gym.spaces.Box(-1.0, 1.0, (2,))


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (gym.spaces.Dict({"a": gym.spaces.Dict({"b": BOX})}), BOX, "collect_episodes"),
        (gym.spaces.Tuple([BOX, BOX]), BOX, "collect_episodes"),
        (BOX, gym.spaces.Discrete(2), "Discrete"),
        (BOX, gym.spaces.Box(-np.inf, np.inf, (2,)), "bound"),
    ],
)
def test_spaces_that_cannot_be_recorded_are_refused_before_the_work(
    observation: gym.Space[Any],
    action: gym.Space[Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Odd(observation, action)
    monkeypatch.setattr("diffuser_policy.data.collection.make_env", lambda _: made)
    with pytest.raises(DatasetError, match=message):
        collect(CollectSettings(env_id="Odd-v0", demonstrator=EXPERT), progress=False)


# --- what is recorded -------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_planners())
def test_the_usual_data_is_what_the_shipped_planners_have_learned_from(
    name: str,
) -> None:
    recorded = read_planner(name)[0].provenance["dataset"]["collection"]
    try:
        env = make_env(recorded["env_id"])
    except MissingExtraError as error:
        pytest.skip(str(error))
    settings = CollectSettings(
        env_id=recorded["env_id"],
        demonstrator=recorded.get("demonstrator"),
        generator=recorded.get("generator"),
    )
    demonstrator = settings.demonstrator or default_demonstrator(env)
    usual = dataclasses.asdict(protocol_of(settings, demonstrator, env))
    env.close()
    for amount in ("num_steps", "num_episodes", "run_length", "seed"):
        assert usual.get(amount) == recorded.get(amount)
    assert usual.get("options") == recorded.get("options")


def test_steps_are_split_into_runs() -> None:
    episodes = record()
    assert [len(episode) for episode in episodes] == [400, 400, 300]
    for episode in episodes:
        assert not episode.terminations.any()
        assert episode.truncations.nonzero()[0].tolist() == [len(episode) - 1]
    flat = load_flat(COLLECTED)
    assert flat.run_starts.tolist() == [0, 400, 800, 1100]


@pytest.mark.parametrize("action_noise", [0.0, 0.5])
def test_replaying_the_actions_gives_every_row_again(action_noise: float) -> None:
    """No row is stale: each is the physical successor of the one before."""
    episodes = record(replace(SMALL, action_noise=action_noise))
    base: Any = make_env(ENV).unwrapped
    for episode in episodes:
        rows = episode.observations
        start = {"start": rows["observation"][0], "goal": rows["desired_goal"][0]}
        base.reset(seed=0, options=start)
        for step, action in enumerate(episode.actions):
            base.set_goal(rows["desired_goal"][step])
            observation, reward, *_ = base.step(action)
            np.testing.assert_allclose(
                observation["observation"],
                rows["observation"][step + 1],
                rtol=0,
                atol=1e-12,
            )
            assert reward == episode.rewards[step]
        np.testing.assert_array_equal(rows["achieved_goal"], rows["observation"][:, :2])


def test_the_target_changes_exactly_when_it_is_reached() -> None:
    limit = 60
    num_reached = num_given_up = 0
    for episode in record(replace(SMALL, max_steps_per_goal=limit)):
        goals = episode.observations["desired_goal"]
        achieved = episode.observations["achieved_goal"]
        since = 0
        for step in range(len(episode)):
            since += 1
            reached = np.linalg.norm(achieved[step + 1] - goals[step]) < 0.1
            changed = not np.array_equal(goals[step], goals[step + 1])
            assert changed == (reached or since == limit)
            num_reached += bool(reached)
            num_given_up += bool(changed and not reached)
            since = 0 if changed else since
    assert num_reached > 5
    assert num_given_up > 2


def test_targets_cover_the_maze_also_where_the_task_has_one_goal() -> None:
    episodes = record(replace(SMALL, env_id="diffuser_envs/Maze2D-UMaze-v1"))
    targets = [episode.observations["desired_goal"] for episode in episodes]
    assert len(np.unique(np.concatenate(targets), axis=0)) > 6
    assert len(np.unique([target[0] for target in targets], axis=0)) == 3


def test_every_run_has_a_demonstrator_with_a_seed_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expert: type[Demonstrator] = DEMONSTRATORS.find(EXPERT).target
    build = expert.from_env
    seeds: list[object] = []

    def from_env(env: Env, **settings: object) -> Demonstrator:
        seeds.append(settings["seed"])
        return build(env, **settings)

    monkeypatch.setattr(expert, "from_env", from_env)
    record()
    record(replace(SMALL, seed=4, overwrite=True))
    assert len(set(seeds) - {0}) == 6  # 0: made once more, before any work


def test_action_noise_changes_actions_within_their_bounds() -> None:
    quiet = record(replace(SMALL, num_steps=400))
    noisy = record(replace(SMALL, num_steps=400, action_noise=0.5, overwrite=True))
    assert not np.array_equal(quiet[0].actions, noisy[0].actions)
    assert np.abs(noisy[0].actions).max() <= 1.0


def test_options_reach_the_demonstrator() -> None:
    plain = record(replace(SMALL, num_steps=400))
    options = {"d_gain": -3.0}
    other = record(
        replace(SMALL, num_steps=400, demonstrator_options=options, overwrite=True)
    )
    assert not np.array_equal(plain[0].actions, other[0].actions)


def test_the_settings_and_versions_are_in_the_metadata() -> None:
    record(replace(SMALL, action_noise=0.25, demonstrator_options={"d_gain": -2.0}))
    metadata = load_flat(COLLECTED).metadata
    collection = metadata["collection"]
    assert (collection["seed"], collection["run_length"]) == (3, 400)
    assert collection["recipe"]["action_noise"] == 0.25
    assert collection["recipe"]["options"]["d_gain"] == -2.0
    assert collection["recipe"]["options"]["waypoint_jitter"] == 0.2  # a default
    assert collection["recipe"]["max_steps_per_goal"] == 300  # the env's limit
    assert {"mujoco", "gymnasium"} <= set(collection["versions"])
    assert metadata["observation_columns"] == {"position": [0, 1], "velocity": [2, 3]}
    assert metadata["env_id"] == ENV


def test_minari_makes_the_environment_again() -> None:
    record()
    env = minari.load_dataset(COLLECTED).recover_environment()
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == (ENV, 300)
    env.close()


# --- workers ----------------------------------------------------------------------


def test_the_number_of_workers_changes_nothing() -> None:
    alone = record(replace(SMALL, num_workers=1))
    together = record(replace(SMALL, num_workers=2, overwrite=True))
    assert_same(alone, together)


def test_a_run_depends_on_seed_and_index_only() -> None:
    short = record(replace(SMALL, num_steps=800))
    long = record(replace(SMALL, num_steps=1200, overwrite=True))
    other = record(replace(SMALL, num_steps=800, seed=4, overwrite=True))
    assert_same(short, long[:2])
    assert not np.array_equal(short[0].actions, short[1].actions)
    assert not np.array_equal(short[0].actions, other[0].actions)


def test_a_worker_that_dies_is_reported() -> None:
    with pytest.raises(WorkerError, match="fewer workers"):
        list(map_unordered(os._exit, [3, 3], num_workers=2))


@pytest.mark.parametrize(("platform", "started"), [("win32", 61), ("linux", 100)])
def test_no_more_workers_start_than_windows_can_wait_for(
    monkeypatch: pytest.MonkeyPatch, platform: str, started: int
) -> None:
    pool = Mock(side_effect=InterruptedError)
    monkeypatch.setattr("diffuser_policy.data.workers.ProcessPoolExecutor", pool)
    monkeypatch.setattr(sys, "platform", platform)
    with pytest.raises(InterruptedError):
        list(map_unordered(abs, range(200), num_workers=100))
    assert pool.call_args.args == (started,)


def test_workers_have_one_thread_each_and_the_parent_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    names = ["OMP_NUM_THREADS"] * 3
    assert list(map_unordered(os.getenv, names, num_workers=2)) == ["1", "1", "1"]
    assert os.environ["OMP_NUM_THREADS"] == "7"


# --- settings that cannot work ------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2])  # for a single shard: no processes
def test_an_environment_that_is_registered_anew_is_recorded_and_closed(
    experts: CollectSettings, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    made: list[Still] = []

    class Still(gym.Env[Any, Any]):
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

        def __init__(self, *, place: float = 0.0, **_: Any) -> None:
            self.observation_space = gym.spaces.Box(0, place, (1,), np.float32)
            self.place, self.is_open = place, True
            made.append(self)

        def reset(
            self, *, seed: int | None = None, options: Any = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed, options=options)
            return np.full(1, self.place, np.float32), {}

        def step(self, _: np.ndarray) -> tuple[np.ndarray, float, bool, bool, Any]:
            return np.full(1, self.place, np.float32), 0.0, False, False, {}

        def close(self) -> None:
            self.is_open = False

    for place in (1.0, 2.0):
        spec = EnvSpec("Still-v0", Still, kwargs={"place": place}, max_episode_steps=1)
        monkeypatch.setitem(gym.registry, spec.id, spec)
        settings = replace(experts, env_id=spec.id, num_workers=num_workers)
        recorded_options(settings, "Plain")
        seen = load_flat("test/experts-v0").fields["observation"]
        assert (seen == place).all()
    assert not any(env.is_open for env in made)


def test_an_existing_dataset_is_replaced_only_if_asked() -> None:
    record(replace(SMALL, num_steps=400))
    with pytest.raises(DatasetError, match="--overwrite"):
        record(SMALL)
    assert load_flat(COLLECTED).num_rows == 400
    record(replace(SMALL, overwrite=True))
    assert load_flat(COLLECTED).num_rows == 1100


@pytest.mark.parametrize(
    "changes",
    [
        {"num_steps": 0},
        {"run_length": 0},
        {"max_steps_per_goal": 0},
        {"num_workers": 0},
        {"action_noise": -0.1},
        {"seed": -1},
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ConfigError, match=name):
        replace(SMALL, **changes)


def test_unknown_names_are_refused_with_the_nearest(datasets: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"Did you mean 'diffuser_envs/Multi2D-U"
    ):
        collect(replace(SMALL, env_id="diffuser_envs/Multi2D-UMze-v1"))
    with pytest.raises(UnknownNameError, match="demonstrator 'nobody'"):
        collect(replace(SMALL, demonstrator="nobody"))
    with pytest.raises(UnknownNameError, match="demonstrator"):
        collect(replace(SMALL, demonstrator="diffuser_envs.maze.demonstrator:Nobody"))
    with pytest.raises(ConfigError, match=r"no option 'gain'.*d_gain"):
        collect(replace(SMALL, demonstrator_options={"gain": 1.0}))
    with pytest.raises(ConfigError, match="not a Minari id"):
        collect(replace(SMALL, dataset_id="nonsense"))
    assert not list(datasets.rglob("*.npz"))


EXPERTS = """
import numpy as np

class Base:
    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.zeros(1, np.float32), state

class Plain(Base):
    def __init__(self, noise=0.1): ...

    @classmethod
    def from_env(cls, env, seed):
        return cls()

class OfFromEnv(Plain):
    @classmethod
    def from_env(cls, env=None, *, seed=0, gain: float = 2.0):
        return cls()

class OfBoth(Plain):
    @classmethod
    def from_env(cls, env, *, seed, gain: float = 2.0, **options):
        return cls(**options)

class OfArray(Base):
    def __init__(self, *, gains=np.array([1.0, 2.0])):
        self.gains = gains.sum()

    @classmethod
    def from_env(cls, env, *, seed, **options):
        return cls(**options)

class Unmade:
    generators = {"plain": Base}

made = Plain()
"""


@pytest.fixture
def experts(tmp_path: Path) -> CollectSettings:
    """Settings for the demonstrators of a file; the name of one is to be appended."""
    (tmp_path / "experts.py").write_text(EXPERTS)
    return CollectSettings(
        env_id="Pendulum-v1",
        demonstrator=f"{tmp_path / 'experts.py'}:",
        num_episodes=1,
        dataset_id="test/experts-v0",
        num_workers=1,
    )


def recorded_options(
    settings: CollectSettings, expert: str, **options: Any
) -> dict[str, Any]:
    """Record with a demonstrator; return its options, as the dataset has them."""
    name = f"{settings.demonstrator}{expert}"
    settings = replace(settings, demonstrator=name, demonstrator_options=options)
    collect(replace(settings, overwrite=True), progress=False)
    return dict(load_flat("test/experts-v0").metadata["collection"]["options"])


@pytest.mark.parametrize(
    ("expert", "given", "options"),
    [
        ("Plain", {}, {}),
        ("OfFromEnv", {}, {"gain": 2.0}),
        ("OfFromEnv", {"gain": 3}, {"gain": 3.0}),
        ("OfBoth", {"noise": 1}, {"noise": 1, "gain": 2.0}),
        ("OfArray", {}, {"gains": [1.0, 2.0]}),
    ],
)
def test_options_are_those_that_from_env_takes_or_passes_on(
    experts: CollectSettings,
    expert: str,
    given: dict[str, Any],
    options: dict[str, Any],
) -> None:
    assert recorded_options(experts, expert, **given) == options


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ("Plain", "has no option 'gain'. It has no options"),
        ("OfFromEnv", "has no option 'noise'. Its options: gain=2"),
        ("made", "A demonstrator is a class with `from_env"),
        ("Unmade", "The generator 'plain' of .* lacks the class method `from_env"),
    ],
)
def test_a_demonstrator_that_cannot_be_made_so_is_explained(
    experts: CollectSettings, expert: str, message: str
) -> None:
    option = "noise" if expert == "OfFromEnv" else "gain"
    with pytest.raises(ConfigError, match=message):
        recorded_options(experts, expert, **{option: 1.0})


def test_options_that_the_demonstrator_refuses_begin_no_work() -> None:
    with pytest.raises(ConfigError, match=r"cannot be made: p_gain must be .* -1\.0"):
        collect(replace(SMALL, demonstrator_options={"p_gain": -1.0}))
    collect(replace(SMALL, num_steps=20), progress=False)


def test_an_env_whose_goal_cannot_change_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PendulumEnv.*set_goal.*collect_episodes"):
        collect(CollectSettings(env_id="Pendulum-v1", demonstrator=EXPERT))


def test_a_demonstrator_is_found_by_its_entry_point() -> None:
    record(replace(SMALL, demonstrator=None, num_steps=400))
    recipe = load_flat(COLLECTED).metadata["collection"]["recipe"]
    assert recipe["demonstrator"] == "maze-waypoint"
    with pytest.raises(UnknownNameError, match="Did you mean 'maze-waypoint'"):
        DEMONSTRATORS.find("maze-waypoin")


def test_an_env_without_a_demonstrator_of_its_own_needs_one_named() -> None:
    env = make_env("Pendulum-v1")
    with pytest.raises(ConfigError, match=r"--demonstrator file\.py:Class"):
        demonstrators.default_demonstrator(env)
    env.close()


def test_a_class_is_found_by_module_and_name() -> None:
    assert DEMONSTRATORS.find(EXPERT).target.__name__ == "WaypointDemonstrator"


def test_default_dataset_ids_follow_the_environment() -> None:
    assert default_dataset_id("diffuser_envs/Multi2D-Large-v1") == (
        "diffuser/multi2d-large-v1"
    )
    assert default_dataset_id("package:ns/Some-v3") == "diffuser/some-v3"
    assert default_dataset_id("package:make_env") == "diffuser/make_env-v0"


# --- episodes of any environment ----------------------------------------------------


class RandomPolicy:
    """Uniform actions, counting its steps in its state."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.space = env.action_space
        self.starts: list[bool] = []

    def predict(
        self,
        observation: Any,  # noqa: ARG002
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, Any]:
        self.starts.append(bool(episode_start[0]))
        assert (state is None) == bool(episode_start[0])
        return self.space.sample(), (np.zeros(1),)


@pytest.fixture
def pendulum() -> Iterator[gym.Env[Any, Any]]:
    env = gym.make("Pendulum-v1", max_episode_steps=25)
    env.action_space.seed(0)
    yield env
    env.close()


def test_episodes_of_any_env_and_policy_are_recorded(
    pendulum: gym.Env[Any, Any],
) -> None:
    policy = RandomPolicy(pendulum)
    folder = collect_episodes(
        pendulum, policy, num_episodes=3, dataset_id="test/pendulum-v0", seed=5
    )
    flat = load_flat("test/pendulum-v0")
    assert flat.run_starts.tolist() == [0, 25, 50, 75]
    assert sum(policy.starts) == 3
    assert flat.metadata["collection"]["seed"] == 5
    facts = json.loads((folder / "data" / "metadata.json").read_text())
    assert facts["algorithm_name"] == "RandomPolicy"
    stored = minari.load_dataset("test/pendulum-v0").storage
    seeds = [facts["seed"] for facts in stored.get_episode_metadata(range(3))]
    columns = ObservationColumns.usual(3)
    recorded = _any_episodes(folder / "data", columns)
    for seed, episode in zip(seeds, recorded, strict=True):
        replayed, _ = pendulum.reset(seed=seed)
        for step, action in enumerate(episode.actions):
            np.testing.assert_array_equal(
                replayed, episode.observations["observation"][step]
            )
            replayed, *_ = pendulum.step(action)


def test_one_recorded_episode_at_a_time_is_in_memory(
    pendulum: gym.Env[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, kept = list[weakref.ref[Episode]](), list[int]()

    def noted(*args: Any, **settings: Any) -> Episode:
        kept.append(sum(each() is not None for each in made))
        episode = record_episode(*args, **settings)
        made.append(weakref.ref(episode))
        return episode

    monkeypatch.setattr(collection, "record_episode", noted)
    policy, place = RandomPolicy(pendulum), "test/pendulum-v0"
    collect_episodes(pendulum, policy, num_episodes=5, dataset_id=place)
    assert len(kept) == 5
    assert max(kept) <= 1


def test_a_lost_connection_to_an_environment_is_no_error_of_the_disk(
    datasets: Path, pendulum: gym.Env[Any, Any]
) -> None:
    """In the second episode: the first one is written by then."""

    class Remote(RandomPolicy):
        def predict(self, *args: Any) -> Any:
            if len(self.starts) > 30:
                raise ConnectionResetError("the simulator is gone")
            return super().predict(*args)

    with pytest.raises(ConnectionResetError, match="the simulator is gone"):
        collect_episodes(
            pendulum, Remote(pendulum), num_episodes=2, dataset_id="test/pendulum-v0"
        )
    assert not list(datasets.rglob("*.hdf5"))


def test_the_bar_of_a_recording_counts_env_steps(
    pendulum: gym.Env[Any, Any],
) -> None:
    shown = io.StringIO()
    with tqdm(file=shown, mininterval=0, miniters=0) as bar:
        record_episode(pendulum, RandomPolicy(pendulum), 0, bar=bar)
    assert "env_step=25" in shown.getvalue()


def test_episodes_of_a_goal_env_are_recorded() -> None:
    env = make_env(ENV, max_episode_steps=30)
    demonstrator = DEMONSTRATORS.find(EXPERT).target.from_env(env, seed=0)
    collect_episodes(env, demonstrator, num_episodes=2, dataset_id="test/goal-v0")
    flat = load_flat("test/goal-v0")
    assert flat.has_goals
    assert flat.run_lengths.tolist() == [30, 30]
    env.close()


def test_episodes_of_discrete_actions_are_refused_before_acting() -> None:
    env = gym.make("CartPole-v1")
    policy = RandomPolicy(env)
    with pytest.raises(DatasetError, match="Discrete"):
        collect_episodes(env, policy, num_episodes=1, dataset_id="test/cart-v0")
    assert not policy.starts
    with pytest.raises(ConfigError, match="num_episodes"):
        collect_episodes(env, policy, num_episodes=0, dataset_id="test/cart-v0")
    env.close()


def test_a_planner_for_other_spaces_is_refused(pendulum: gym.Env[Any, Any]) -> None:
    usual: dict[str, Any] = {"num_episodes": 1, "dataset_id": "test/others-v0"}
    with pytest.raises(SpaceMismatchError, match="observation"):
        collect_episodes(pendulum, toy_policy(), **usual)


def test_numbers_are_checked_before_anything_is_recorded(
    pendulum: gym.Env[Any, Any],
) -> None:
    policy = RandomPolicy(pendulum)
    usual: dict[str, Any] = {"num_episodes": 1, "dataset_id": "test/numbers-v0"}
    wrong: list[tuple[str, str, Any]] = [
        *[("seed", "seed", seed) for seed in (-1, 1.5, True, 2**70, "3")],
        *[("num_episodes", "num_episodes", n) for n in (2.5, "2", True, None, 0)],
        ("dataset_id", "not a Minari id", 5),
    ]
    for name, match, value in wrong:
        with pytest.raises(ConfigError, match=match):
            collect_episodes(pendulum, policy, **{**usual, name: value}, progress=False)
    assert not policy.starts
    with pytest.raises(TypeError, match="dataset_id"):
        collect_episodes(pendulum, policy, num_episodes=1)  # type: ignore[call-arg]


def test_seeds_of_numpy_and_drawn_ones_are_recorded(
    pendulum: gym.Env[Any, Any],
) -> None:
    found, seeds = [], [np.int64(3), None, None]
    seed: Any
    for seed in seeds:
        collect_episodes(
            pendulum,
            RandomPolicy(pendulum),
            num_episodes=1,
            dataset_id="test/seeds-v0",
            seed=seed,
            overwrite=True,
            progress=False,
        )
        found.append(load_flat("test/seeds-v0").metadata["collection"]["seed"])
    assert found[0] == 3
    assert isinstance(found[1], int)
    assert len(set(found)) == 3


@pytest.mark.parametrize("part", ["achieved_goal", "reward"])
def test_a_run_with_values_that_are_not_finite_is_refused(
    part: str, datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = type(make_env(ENV).unwrapped)
    step, compute_reward = kind.step, kind.compute_reward
    steps = []

    def broken(self: Any, action: Any) -> Any:
        observation, *rest = step(self, action)
        steps.append(action)
        if len(steps) >= 8 and part != "reward":
            value = np.full_like(observation[part], np.nan)
            observation = {**observation, part: value}
        return observation, *rest

    def rewards(self: Any, achieved: Any, *rest: Any) -> Any:
        found = np.array(compute_reward(self, achieved, *rest))
        if part == "reward" and np.ndim(found):
            found[7:] = np.inf
        return found

    monkeypatch.setattr(kind, "step", broken)
    monkeypatch.setattr(kind, "compute_reward", rewards)
    with pytest.raises(EnvContractError, match=f"{part} of env step 7 is .*finite"):
        record(replace(SMALL, max_steps_per_goal=10_000))
    assert not list(datasets.rglob("shard-*"))


def test_a_demonstrator_returns_an_action_and_a_state(
    datasets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers alone would be taken for an action of one and a state."""
    kind = DEMONSTRATORS.find(EXPERT).target
    monkeypatch.setattr(kind, "predict", lambda *_: np.zeros(2, np.float32))
    with pytest.raises(EnvContractError, match=r"must return \(action, state\)"):
        record(SMALL)
    assert not list(datasets.rglob("shard-*"))


# --- the command --------------------------------------------------------------------


def test_the_command_records_and_says_where(
    datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = CollectCommand(
        env_id=ENV,
        dataset_id="test/command-v0",
        demonstrator=EXPERT,
        num_steps=500,
        run_length=250,
        option=("d_gain=-2",),
        num_workers=1,
    )
    assert collect_command(command) == 0
    printed = capsys.readouterr().out
    assert "500 steps" in printed
    assert str(datasets / "test" / "command-v0") in printed
    assert load_flat("test/command-v0").num_runs == 2


def test_the_command_imports_no_torch() -> None:
    code = "import sys, diffuser_policy.cli.collect, diffuser_policy.data.collection\n"
    code += "sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_recorded_episodes_are_runs_of_their_own() -> None:
    """Though many begin in the state where the one before ended."""
    env = Bandit()
    policy = RandomPolicy(env)
    collect_episodes(
        env, policy, num_episodes=20, dataset_id="test/bandit-v0", progress=False
    )
    flat = load_flat("test/bandit-v0", progress=False)
    assert flat.num_runs == 20
    np.testing.assert_allclose(returns_to_go(flat, 0.9), flat.fields["reward"])
