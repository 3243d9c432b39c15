"""What environments and policies do with their arrays, numbers and episodes.

Some use the same array again at every step, return rewards that are no floats, never
end, or are registered in ways that no file can hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from diffuser_policy import collect_episodes, evaluate, load_flat
from diffuser_policy.benchmark.problem import fixed_goal
from diffuser_policy.data.minari import recorded_facts
from diffuser_policy.envs import (
    MOST_STEPS,
    make_env,
    reset_env,
    step_env,
    step_limit,
    usable_action,
)
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    EnvContractError,
    UnknownNameError,
)
from diffuser_policy.evaluation.loop import run_episode
from diffuser_policy.evaluation.report import table, to_json
from diffuser_policy.files import write_json

pytest.importorskip("minari", reason="needs the extra 'data'")

pytestmark = pytest.mark.usefixtures("datasets")
DATASET = "test/walk-v0"
PAIR = gym.spaces.Box(-9, 9, (2,))
GROWTH = 2.0**-14  # exact, and within the bounds of actions for thousands of steps


class Walk(gym.Env[Any, Any]):
    """Counts its env steps in one array, which is the observation as well.

    Args:
        reward: What `step` returns as the reward.
        length: Env steps of an episode.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space: gym.spaces.Space[Any] = gym.spaces.Box(-1e6, 1e6, (1,))
    action_space: gym.spaces.Space[Any] = gym.spaces.Box(-1, 1, (1,))
    num_steps: ClassVar[int] = 0

    def __init__(self, reward: Any = 0.0, length: float = 5) -> None:
        self.reward, self.length = reward, length
        self.x = np.zeros(1, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.x[:] = 0
        return self.x, {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        type(self).num_steps += 1
        self.x += 1
        np.clip(action, -0.5, 0.5, out=action)
        return self.x, self.reward, False, self.x[0] >= self.length, {}


class GoalWalk(Walk):
    """The same with goals; every reset draws another, into the same arrays."""

    observation_space = gym.spaces.Dict(
        dict.fromkeys(
            ("observation", "achieved_goal", "desired_goal"),
            gym.spaces.Box(-1e6, 1e6, (1,)),
        )
    )

    def __init__(self) -> None:
        super().__init__()
        self.goal = np.zeros(1, np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**options)
        self.goal[:] = self.np_random.uniform()
        return self._observation, {}

    @property
    def _observation(self) -> dict[str, np.ndarray]:
        return {
            "observation": self.x,
            "achieved_goal": self.x,
            "desired_goal": self.goal,
        }

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        _, *others, info = super().step(action)
        return self._observation, others[0], others[1], others[2], info


class Reusing:
    """Returns the same array every time; it grows a little at every call."""

    def __init__(self) -> None:
        self.action = np.zeros(1, np.float32)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, Any]:
        del episode_start, deterministic
        observation = (
            observation["observation"] if isinstance(observation, dict) else observation
        )
        self.action += np.float32(GROWTH)
        if np.ndim(observation) == 2:
            return np.tile(self.action, (len(observation), 1)), state
        return self.action, state


def recorded(env: Any, **options: Any) -> Any:
    settings = {"num_episodes": 2, "dataset_id": DATASET, "progress": False, **options}
    collect_episodes(env, Reusing(), **settings)
    return load_flat(settings["dataset_id"], progress=False)


# --- arrays that are used again ----------------------------------------------------


@pytest.mark.parametrize("kind", [Walk, GoalWalk])
def test_recording_copies_what_is_used_again(kind: type[Walk]) -> None:
    flat = recorded(kind())
    assert flat.fields["observation"][:, 0].tolist() == [0, 1, 2, 3, 4] * 2
    assert flat.run_starts.tolist() == [0, 5, 10]
    # The policy's actions, neither changed by later calls nor clipped by the env.
    assert flat.fields["action"][:, 0].tolist() == [n * GROWTH for n in range(1, 11)]


def test_a_rollout_keeps_every_observation_as_it_was() -> None:
    env = Walk()
    observation, _ = env.reset()
    rollout = run_episode(Reusing(), env, observation, seed=0)
    assert [float(o[0]) for o in rollout.observations] == [0, 1, 2, 3, 4, 5]

    class Scaling(Reusing):
        def predict(self, observation: Any, *rest: Any, **named: Any) -> Any:
            answer = super().predict(observation, *rest, **named)
            observation *= 10  # in place
            return answer

    observation, _ = env.reset()
    rollout = run_episode(Scaling(), env, observation, seed=0)
    assert [float(o[0]) for o in rollout.observations] == [0, 1, 2, 3, 4, 5]


def test_environments_that_share_an_array_do_not_disturb_each_other() -> None:
    shared = np.zeros(1, np.float32)
    seen: list[list[float]] = []

    class Sharing(Walk):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**options)
            self.number = float(self.np_random.integers(100))
            shared[:] = self.number
            return shared, {}

        def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            _, *others, info = super().step(action)
            shared[:] = self.number
            return shared, others[0], others[1], others[2], info

    class Watching(Reusing):
        def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(observation[:, 0].tolist())
            return super().predict(observation, *args, **kwargs)

    evaluate(Watching(), Sharing, episodes=3, num_envs=3, progress=False)
    assert len(set(seen[0])) == 3
    assert seen == [seen[0]] * 5


def test_goals_that_share_an_array_are_told_apart() -> None:
    with pytest.raises(ConfigError, match="another goal in every episode"):
        fixed_goal(GoalWalk())


# --- numbers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward",
    [np.array([1.5]), np.array([[1.5]]), np.float64(1.5), np.float32(1.5), 1.5],
)
def test_rewards_of_one_number_are_that_number(reward: Any) -> None:
    flat = recorded(Walk(reward))
    assert flat.fields["reward"].tolist() == [1.5] * 10
    result = evaluate(Reusing(), lambda: Walk(reward), episodes=2, progress=False)
    assert result.returns.tolist() == [7.5, 7.5]


@pytest.mark.parametrize("reward", [np.ones(3), None, "1", 1j, np.array([])])
def test_rewards_that_are_no_number_are_refused_at_the_first_step(reward: Any) -> None:
    Walk.num_steps = 0
    with pytest.raises(EnvContractError, match="reward must be one number"):
        recorded(Walk(reward))
    with pytest.raises(EnvContractError, match="reward must be one number"):
        evaluate(
            Reusing(), lambda: Walk(reward), episodes=2, num_envs=1, progress=False
        )
    assert Walk.num_steps == 2


@pytest.mark.parametrize("reward", [math.nan, math.inf, 1e308])
def test_rewards_that_are_not_finite_are_refused_while_recording(reward: float) -> None:
    with pytest.raises(EnvContractError, match="reward of env step 0 is"):
        recorded(Walk(reward))


def test_a_first_observation_that_is_not_finite_is_refused_while_recording() -> None:
    class Broken(Walk):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**options)
            return np.array([math.nan]), {}

    with pytest.raises(EnvContractError, match=r"observation of the reset is .*nan"):
        collect_episodes(
            Broken(),
            Always([0.0]),
            num_episodes=1,
            dataset_id=DATASET,
            progress=False,
        )


def test_parts_that_are_not_finite_are_named_while_recording() -> None:
    class Nested(Walk):
        observation_space = gym.spaces.Dict(
            arm=gym.spaces.Tuple([gym.spaces.Box(-9, 9, (2,)), Walk.observation_space])
        )

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            return {"arm": (np.zeros(2), super().reset(**options)[0])}, {}

        def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            observation, *others, info = super().step(action)
            first = np.array([0, math.nan if observation[0] == 3 else 0])
            arm = {"arm": (first, observation)}
            return arm, others[0], others[1], others[2], info

    class Zero(Reusing):
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            return super().predict(np.zeros(1), *args[1:], **kwargs)

    message = "observation/arm/0 of env step 2 is .*not finite"
    with pytest.raises(EnvContractError, match=message):
        collect_episodes(
            Nested(), Zero(), num_episodes=1, dataset_id=DATASET, progress=False
        )


@pytest.mark.parametrize("reward", [math.nan, -math.inf, 1e308])
def test_returns_that_are_not_finite_are_null_in_reports(
    reward: float, tmp_path: Path
) -> None:
    result = evaluate(Reusing(), lambda: Walk(reward), episodes=3, progress=False)
    write_json(tmp_path / "result.json", to_json(result))
    data = json.loads((tmp_path / "result.json").read_text())
    assert [episode["return"] for episode in data["episodes"]] == [None] * 3
    assert data["summary"]["return"] == {"mean": None, "low": None, "high": None}
    assert data["episodes"][0]["length"] == 5
    assert table(result).row_count == 3  # return, control rate, not finite


def test_one_return_that_is_not_finite_leaves_the_others() -> None:
    rewards = iter([1.0] * 5 + [math.inf] * 5)

    class Sometimes(Walk):
        def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            self.reward = next(rewards)
            return super().step(action)

    result = evaluate(Reusing(), Sometimes, episodes=2, num_envs=1, progress=False)
    assert [e["return"] for e in to_json(result)["episodes"]] == [5.0, None]


# --- shapes -------------------------------------------------------------------------


def test_shapes_that_change_between_episodes_are_refused_at_the_first_step() -> None:
    class Growing(Walk):
        episodes = 0

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            self.episodes += 1
            super().reset(**options)
            return np.zeros(self.episodes, np.float32), {}

    Growing.num_steps = 0
    with pytest.raises(EnvContractError, match=r"shape \(2,\).*has \(1,\)"):
        recorded(Growing())
    with pytest.raises(EnvContractError, match=r"shape \(2,\).*has \(1,\)"):
        evaluate(Reusing(), Growing, episodes=2, num_envs=1, progress=False)
    assert Growing.num_steps == 10


@pytest.mark.parametrize("ragged", [[[0.0], [1.0, 2.0]], [0.0, [1.0]]])
def test_lists_that_are_no_array_are_refused(ragged: Any) -> None:
    class Ragged(Walk):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(**options)
            return ragged, {}

    with pytest.raises(EnvContractError, match=r"differ in length.*has \(1,\)"):
        reset_env(Ragged())


def test_parts_that_are_missing_are_named() -> None:
    class Partial(GoalWalk):
        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            observation, info = super().reset(**options)
            del observation["achieved_goal"]
            return observation, info

    with pytest.raises(EnvContractError, match=r"lacks \['achieved_goal'\]"):
        reset_env(Partial())


class Nested(Walk):
    """Returns lists in the place of tuples, as Gymnasium allows."""

    observation_space = gym.spaces.Tuple(
        [Walk.observation_space, gym.spaces.Dict(a=gym.spaces.Tuple([PAIR, PAIR]))]
    )

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        return self._listed(super().reset(**options)[0]), {}

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        observation, *others, info = super().step(action)
        return self._listed(observation), others[0], others[1], others[2], info

    def _listed(self, x: np.ndarray) -> Any:
        return [x, {"a": [np.zeros(2, np.float32), np.ones(2, np.float32)]}]


class Still:
    """Returns zeros, as many as there are observations in the first leaf."""

    def __init__(self) -> None:
        self.seen: Any = None

    def predict(self, observation: Any, state: Any = None, **_: Any) -> Any:
        self.seen = leaf = observation
        while isinstance(leaf, dict | tuple):
            leaf = next(iter(leaf.values())) if isinstance(leaf, dict) else leaf[0]
        return np.zeros((*leaf.shape[:-1], 1)), state


def test_lists_in_the_place_of_tuples_are_tuples() -> None:
    policy = Still()
    result = evaluate(policy, Nested, episodes=2, num_envs=2, progress=False)
    assert result.episodes[0].start == (0.0, 0.0, 0.0, 1.0, 1.0)
    first, second = policy.seen
    assert first.tolist() == [[4.0], [4.0]]
    assert [part.shape for part in second["a"]] == [(2, 2), (2, 2)]
    assert isinstance(second["a"], tuple)
    rollout = run_episode(Still(), Nested(), reset_env(Nested())[0], seed=0)
    assert all(isinstance(each, tuple) for each in rollout.observations)


def test_observations_with_text_are_evaluated() -> None:
    class Told(Walk):
        observation_space = gym.spaces.Dict(
            x=Walk.observation_space, m=gym.spaces.Text(5)
        )

        def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
            return {"x": super().reset(**options)[0], "m": "go"}, {}

        def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            x, *others, info = super().step(action)
            return {"x": x, "m": "on"}, others[0], others[1], others[2], info

    policy = Still()
    result = evaluate(policy, Told, episodes=2, num_envs=2, progress=False)
    assert [episode.start for episode in result.episodes] == [(), ()]
    assert policy.seen["m"].tolist() == ["on", "on"]
    assert to_json(result)["episodes"][0]["start"] == []


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("reset", np.zeros(1), "reset.. must return .observation, info."),
        (
            "step",
            (np.zeros(1), 0.0, True, {}),
            "step.. must return .*it returned 4 val",
        ),
        ("step", (np.zeros(1), 0.0, True, False, None), "info must be a dictionary"),
        ("step", (np.zeros(1), 0.0, None, False, {}), "terminated must be one number"),
    ],
)
def test_the_old_gym_is_told_apart(method: str, returned: Any, message: str) -> None:
    env: Any = Walk()
    setattr(env, method, lambda *_, **__: returned)
    step: Callable[[Any], Any] = partial(step_env, action=np.zeros(1))
    call = step if method == "step" else reset_env
    with pytest.raises(EnvContractError, match=message):
        call(env)


def test_actions_of_another_shape_are_the_policys_fault() -> None:
    class Batched(Reusing):
        def predict(self, *args: Any, **kwargs: Any) -> Any:
            action, state = super().predict(*args, **kwargs)
            return np.stack([action, action]), state

    with pytest.raises(EnvContractError, match=r"finite numbers of shape \(1,\)"):
        collect_episodes(
            Walk(), Batched(), num_episodes=1, dataset_id=DATASET, progress=False
        )


# --- ends ---------------------------------------------------------------------------


def test_episodes_without_end_are_refused() -> None:
    def endless() -> Walk:
        return Walk(length=math.inf)

    message = f"run for {MOST_STEPS:,} env steps.*max_episode_steps"
    with pytest.raises(EnvContractError, match=message):
        evaluate(Reusing(), endless, episodes=1, progress=False)
    with pytest.raises(EnvContractError, match=message):
        recorded(endless())


@pytest.fixture
def registered() -> Iterator[Callable[..., None]]:
    """Register a class itself, which Gymnasium's checker of returned arrays spares."""

    def register(entry_point: Any, **settings: Any) -> None:
        gym.registry.pop("test/Walk-v0", None)
        gym.register(
            "test/Walk-v0",
            entry_point=entry_point,
            max_episode_steps=3,
            disable_env_checker=True,
            **settings,
        )

    yield register
    gym.registry.pop("test/Walk-v0", None)


def test_a_limit_that_was_switched_off_is_refused_at_once(
    registered: Callable[..., None],
) -> None:
    registered(Walk)
    Walk.num_steps = 0
    options = {"max_episode_steps": -1}
    endless = partial(evaluate, Reusing(), "test/Walk-v0", progress=False)
    with pytest.raises(EnvContractError, match="max_episode_steps=-1"):
        endless(env_options=options)
    with pytest.raises(EnvContractError, match="max_episode_steps=-1"):
        recorded(gym.make("test/Walk-v0", max_episode_steps=-1))
    assert Walk.num_steps == 0
    unlimited = gym.make("test/Walk-v0", max_episode_steps=-1)
    assert recorded(gym.wrappers.TimeLimit(unlimited, 4)).num_rows == 8


def test_long_episodes_with_a_limit_are_fine() -> None:
    limited = gym.wrappers.TimeLimit(Walk(length=math.inf), MOST_STEPS + 1)
    result = evaluate(Reusing(), lambda: limited, episodes=1, progress=False)
    assert result.episodes[0].length == MOST_STEPS + 1


# --- where environments come from -----------------------------------------------------


def test_a_function_that_returns_one_environment_twice_is_refused() -> None:
    env = Walk()
    for same in (lambda: env, lambda: gym.wrappers.TimeLimit(env, 3)):
        with pytest.raises(ConfigError, match="the same environment twice"):
            evaluate(Reusing(), same, episodes=4, num_envs=3, progress=False)
    two = [Walk(), Walk()] * 2
    with pytest.raises(ConfigError, match="the same environment twice"):
        evaluate(Reusing(), two.pop, episodes=4, num_envs=3, progress=False)
    assert (
        evaluate(
            Reusing(), lambda: env, episodes=4, num_envs=1, progress=False
        ).returns.tolist()
        == [0.0] * 4
    )


def test_a_class_as_entry_point_is_recorded_under_its_own_name(
    registered: Callable[..., None],
) -> None:
    registered(Walk)
    flat = recorded(gym.make("test/Walk-v0"))
    assert flat.metadata["env_id"] == "test/Walk-v0"
    spec = json.loads(flat.metadata["env_spec"])
    assert spec["entry_point"] == f"{Walk.__module__}:Walk"
    result = evaluate(Reusing(), "test/Walk-v0", episodes=2, progress=False)
    assert {episode.length for episode in result.episodes} == {3}
    assert gym.spec("test/Walk-v0").entry_point is Walk


def test_specs_that_no_file_can_hold_are_left_out(
    registered: Callable[..., None],
) -> None:
    class Local(Walk):
        pass

    for entry_point, kwargs in ((Local, {}), (Walk, {"reward": np.ones(1)})):
        registered(entry_point, kwargs=kwargs)
        flat = recorded(gym.make("test/Walk-v0"), overwrite=True)
        assert flat.metadata["env_id"] == "test/Walk-v0"
        assert flat.metadata["env_spec"] is None


def test_columns_in_arrays_become_lists(tmp_path: Path) -> None:
    class Columns(Walk):
        metadata: dict[str, Any] = {  # noqa: RUF012
            "render_modes": [],
            "observation_columns": {"position": np.array([0])},
        }

    recorded(Columns())
    facts = recorded_facts(tmp_path / "datasets" / DATASET)
    assert facts["collection"]["observation_columns"] == {"position": [0]}


def test_columns_that_are_no_numbers_are_refused_before_the_first_step() -> None:
    for column in ("x", 99, -1, 0.5):
        env = Walk()
        env.metadata = {"render_modes": [], "observation_columns": {"place": [column]}}
        Walk.num_steps = 0
        with pytest.raises(EnvContractError, match="observation_columns"):
            recorded(env)
        assert Walk.num_steps == 0


MODULE = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv

def make(g=10.0, max_episode_steps=4):
    return gymnasium.wrappers.TimeLimit(PendulumEnv(g=g), max_episode_steps)

def broken():
    return 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "makes_envs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "makes_envs"


def test_a_function_of_a_module_makes_environments(module: str) -> None:
    env: Any = make_env(f"{module}:make", g=3.0)
    assert env.unwrapped.g == 3.0
    env = make_env(f"{module}:PendulumEnv")
    assert env.spec is None
    result = evaluate(
        Reusing(),
        f"{module}:make",
        episodes=2,
        env_options={"max_episode_steps": 3},
        progress=False,
    )
    assert [episode.length for episode in result.episodes] == [3, 3]
    flat = recorded(f"{module}:make")
    assert flat.num_rows == 8
    flat = recorded(lambda: make_env(f"{module}:make"), overwrite=True)
    assert flat.num_rows == 8
    with pytest.raises(ConfigError, match="makes_envs:make cannot be called with h"):
        make_env(f"{module}:make", h=3.0)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("makes_envs:broken", ConfigError, "instead of a gymnasium.Env"),
        ("makes_envs:nothing", UnknownNameError, "neither registers nor defines"),
        ("no.such.module:Foo", UnknownNameError, "no module 'no.such.module'"),
        ("no_such_module:Foo", UnknownNameError, "no module 'no_such_module'"),
        (".relative:Foo", UnknownNameError, "environment"),
        (":Foo", UnknownNameError, "environment"),
    ],
)
def test_names_that_lead_nowhere_say_so(
    module: str, name: str, error: type[Exception], message: str
) -> None:
    del module
    with pytest.raises(error, match=message) as caught:
        make_env(name)
    assert "Acrobot" not in str(caught.value)  # which is not at all alike


# --- policies and environments that return what they should not --------------------


class Always:
    """A policy that returns the same, whatever it sees."""

    def __init__(self, action: Any, *, alone: bool = False) -> None:
        self.action, self.alone = action, alone

    def predict(self, observation: Any, state: Any = None, *_: Any, **__: Any) -> Any:
        batched = np.ndim(observation) > 1
        action = [self.action] * len(observation) if batched else self.action
        return action if self.alone else (action, state)


@pytest.mark.parametrize("action", [[math.nan], [math.inf], ["a"], None, [0.1, 0.2]])
def test_actions_that_no_environment_can_take_are_the_policys_fault(
    action: Any,
) -> None:
    for call in (
        lambda: evaluate(Always(action), Walk, episodes=1, progress=False),
        lambda: collect_episodes(
            Walk(), Always(action), num_episodes=1, dataset_id=DATASET, progress=False
        ),
    ):
        with pytest.raises(EnvContractError, match="The policy returned the action"):
            call()


def test_a_policy_returns_an_action_and_a_state_for_every_environment() -> None:
    alone, env = Always(np.zeros((2, 1)), alone=True), Walk()
    observation, _ = env.reset()
    for call in (
        lambda: evaluate(alone, Walk, episodes=1, progress=False),
        lambda: run_episode(alone, env, observation, seed=0),
    ):
        with pytest.raises(EnvContractError, match=r"must return \(action, state\)"):
            call()

    class One(Always):
        def predict(self, *_: Any, **__: Any) -> Any:
            return np.zeros((1, 1)), None

    with pytest.raises(EnvContractError, match="for 2 observations"):
        evaluate(One(None), Walk, episodes=2, num_envs=2, progress=False)


class Counted(Walk):
    """Takes whole numbers."""

    action_space = gym.spaces.Box(0, 5, (1,), np.uint8)
    taken: ClassVar[list[Any]] = []

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.taken.append(action)
        self.x += 1
        return self.x, 0.0, False, True, {}


@pytest.mark.parametrize(("given", "taken"), [(2.9, 3), (-1.0, 0)])
def test_whole_numbered_actions_are_rounded_to_the_nearest(
    given: float, taken: int
) -> None:
    Counted.taken.clear()
    evaluate(Always([given]), Counted, episodes=1, progress=False)
    collect_episodes(
        Counted(),
        Always([given]),
        num_episodes=1,
        dataset_id=DATASET,
        overwrite=True,
        progress=False,
    )
    assert [action.dtype for action in Counted.taken] == [np.uint8] * 2
    assert [action.tolist() for action in Counted.taken] == [[taken]] * 2


@pytest.mark.parametrize(("given", "taken"), [(0.9, True), (0.2, False), (-3.0, False)])
def test_switches_take_the_nearest_of_on_and_off(given: float, taken: bool) -> None:
    class Switch(Walk):
        action_space = gym.spaces.Box(0, 1, (1,), np.bool_)

    action = usable_action(Switch(), np.array([given], np.float32))
    assert (action.dtype, action.tolist()) == (np.bool_, [taken])


@pytest.mark.parametrize(
    ("env", "action"), [(Walk, 1.01), (Walk, -2.0), (Counted, 6.0), (Counted, 300.0)]
)
def test_actions_beyond_the_bounds_are_not_recorded(
    env: type[Walk], action: float
) -> None:
    with pytest.raises(EnvContractError, match=r"action of env step 0 .* clip its"):
        collect_episodes(
            env(), Always([action]), num_episodes=1, dataset_id=DATASET, progress=False
        )


@pytest.mark.parametrize("tasks", [[1, 2], "ab", {"a": 5}, {1: {}}, 5])
def test_tasks_that_name_no_options_are_refused(tasks: Any) -> None:
    class Tasks(Walk):
        metadata: dict[str, Any] = {"render_modes": [], "evaluation_tasks": tasks}  # noqa: RUF012

    with pytest.raises(EnvContractError, match="evaluation_tasks"):
        evaluate(Always([0.0]), Tasks, episodes=1, progress=False)


@pytest.mark.parametrize("name", ["terminated", "success"])
def test_flags_are_not_nan(name: str) -> None:
    class Doubtful(Walk):
        def step(self, _: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
            flags = {"terminated": False, "success": False, name: math.nan}
            return self.x, 0.0, flags["terminated"], True, {"success": flags["success"]}

    with pytest.raises(EnvContractError, match=f"{name} is NaN"):
        evaluate(Always([0.1]), Doubtful, episodes=1, progress=False)


def test_a_score_that_is_no_number_is_none() -> None:
    class Scored(Walk):
        def get_normalized_score(self, _: float) -> Any:
            return math.nan

    results = evaluate(Always([0.1]), Scored, episodes=1, progress=False)
    assert results.episodes[0].score is None


def test_an_environment_that_cannot_be_closed_costs_no_results() -> None:
    class Stuck(Walk):
        def close(self) -> None:
            raise OSError("the simulator is gone")

    with pytest.warns(UserWarning, match="was not closed.*simulator is gone"):
        results = evaluate(Always([0.1]), Stuck, episodes=2, progress=False)
    assert len(results.episodes) == 2


def test_unbounded_actions_are_refused_before_the_first_step() -> None:
    class Free(Walk):
        action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    Free.num_steps = 0
    with pytest.raises(DatasetError, match="bounded Box"):
        collect_episodes(
            Free(), Always([0.1]), num_episodes=1, dataset_id=DATASET, progress=False
        )
    assert Free.num_steps == 0


def test_a_class_gets_the_step_limit_that_is_asked_for() -> None:
    env = make_env(f"{__name__}:Walk", length=math.inf, max_episode_steps=3)
    reset_env(env, seed=0)
    ends = [step_env(env, np.zeros(1)).truncated for _ in range(3)]
    assert ends == [False, False, True]


@pytest.mark.parametrize("name", ["Pendulum-v1", f"{__name__}:Walk"])
@pytest.mark.parametrize("limit", [0, -2, 5.5, "a"])
def test_step_limits_that_are_no_count_are_refused(name: str, limit: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} cannot be made with"):
        make_env(name, max_episode_steps=limit)


def test_minus_one_is_no_step_limit() -> None:
    for name in ("Pendulum-v1", f"{__name__}:Walk"):
        assert step_limit(make_env(name, max_episode_steps=-1)) is None


def walk_of(length: int) -> gym.Env[Any, Any]:
    return Walk(length=length)


def test_functions_that_need_arguments_say_which() -> None:
    name = f"{__name__}:walk_of"
    for given in ({}, {"lenght": 3}):
        with pytest.raises(
            ConfigError, match=r"walk_of cannot be called with .*length"
        ):
            make_env(name, **given)
    make_env(name, length=3).close()
    with pytest.raises(ConfigError, match=r"walk_of cannot be called with no argum"):
        evaluate(Always([0.1]), walk_of, episodes=1, progress=False)  # type: ignore[arg-type]


def test_an_environment_of_ones_own_needs_its_module() -> None:
    with pytest.raises(UnknownNameError, match="MODULE:mine/Own-v0"):
        make_env("mine/Own-v0")
