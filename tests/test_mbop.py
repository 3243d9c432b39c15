"""Planning in learned dynamics without goals: outcomes are learned, plans pay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from diffuser_policy.baselines.dynamics import DynamicsConfig
from diffuser_policy.baselines.mbop import (
    OfflineModel,
    OfflinePlanner,
    OfflineRun,
    OutcomeEnsemble,
    Steps,
    mbop,
)
from diffuser_policy.baselines.shooting import ShootingState
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, DatasetError, ObservationError
from diffuser_policy.evaluation import evaluate
from tests.baseline_helpers import line_data
from tests.goal_point import training_of
from tests.training_helpers import (
    has_batches_of_its_own,
    is_fixed_by_its_seed,
    seed_of,
)

EDGE = 1.0
SMALL = {"width": 32, "num_members": 2, "num_samples": 32}


class CliffEnv(gym.Env[Any, Any]):
    """A point on a line: the further right the better, up to a cliff at `EDGE`."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.x = self.np_random.uniform(-0.5, 0.95)
        return np.array([self.x], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += 0.2 * float(np.asarray(action).reshape(-1)[0])
        fell = self.x > EDGE
        return np.array([self.x], np.float32), self.x, fell, False, {}


if "test/Cliff-v0" not in gym.registry:
    gym.register(
        "test/Cliff-v0",
        entry_point="tests.test_mbop:CliffEnv",
        max_episode_steps=20,
    )


def cliff_data(num_runs: int = 300) -> FlatDataset:
    """Return random walks, of which some fall."""
    env, rng = gym.make("test/Cliff-v0"), np.random.default_rng(0)
    rows: dict[str, list[Any]] = {
        name: [] for name in ("observation", "action", "reward", "terminated")
    }
    starts = [0]
    for run in range(num_runs):
        observation, _ = env.reset(seed=run)
        done = False
        while not done:
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            after, reward, ended, cut, _ = env.step(action)
            step = (observation, action, reward, ended)
            for values, value in zip(rows.values(), step, strict=True):
                values.append(value)
            observation, done = after, ended or cut
        starts.append(len(rows["reward"]))
    fields = {name: np.array(values) for name, values in rows.items()}
    return FlatDataset(fields, np.array(starts), {"dataset_id": "test/cliff-v0"})


@pytest.fixture(scope="module")
def data() -> FlatDataset:
    """The walks."""
    return cliff_data()


def run_of(
    config: DynamicsConfig,
    flat: FlatDataset,
    folder: Path,
    space: spaces.Box = CliffEnv.action_space,
) -> OfflineRun:
    """Return a training on data of the cliff."""
    return OfflineRun(config, flat, folder, space=space, discount=0.9)


@pytest.fixture(scope="module")
def policy(data: FlatDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What is learned of the walks, in few and large gradient steps."""
    config = DynamicsConfig(
        num_members=2, width=32, num_steps=350, learning_rate=1e-2, batch_size=512
    )
    run = run_of(config, data, tmp_path_factory.mktemp("mbop"))
    run.run(progress=False)
    return OfflinePlanner(
        run.average,
        CliffEnv.action_space,
        horizon=4,
        num_samples=32,
        noise=0.5,
        mixing=0.2,
        sharpness=3.0,
        discount=0.9,
    )


def context_for(folder: Path, flat: FlatDataset, **rest: Any) -> MethodContext:
    """Return a training on the cliff."""
    rest = {"num_steps": 400, "settings": SMALL, **rest}
    context = training_of("mbop", folder, env="test/Cliff-v0", goals="none", **rest)
    context.dataset = flat
    return context


def test_rewards_and_terminations_are_learned(policy: Any) -> None:
    dynamics: OutcomeEnsemble = policy.model.dynamics
    states = np.array([[-0.5], [0.0], [0.5], [0.95]], np.float32)
    actions = np.array([[1.0], [-1.0], [0.5], [1.0]], np.float32)
    x = torch.from_numpy(np.stack([states] * 2))
    with torch.no_grad():
        found = dynamics.step(x, torch.from_numpy(np.stack([actions] * 2)))
    after = states[:, 0] + 0.2 * actions[:, 0]
    safe = slice(0, 3)  # where the walks end, nothing follows
    np.testing.assert_allclose(found.states[0, safe, 0], after[safe], atol=0.08)
    np.testing.assert_allclose(dynamics.rewards(states, actions), after, atol=0.1)
    assert (found.continues[:, safe] > 0.9).all()
    assert (found.continues[:, 3] < 0.5).all()


def test_plans_climb_and_stop_before_the_cliff(policy: Any, data: FlatDataset) -> None:
    found = evaluate(policy, "test/Cliff-v0", episodes=8, num_envs=8, progress=False)
    returns = [episode.episode_return for episode in found.episodes]
    walked = np.add.reduceat(data.fields["reward"], data.run_starts[:-1])
    assert np.mean(returns) > np.quantile(walked, 0.9)
    assert np.mean([episode.length for episode in found.episodes]) > 18


def test_a_plan_is_the_weighted_mean_of_what_its_members_imagine(
    data: FlatDataset,
) -> None:
    """By the equations, in loops over samples and steps, in two environments."""
    torch.manual_seed(0)
    steps = Steps.of(data, 0.9)
    low, high = -0.5, 2.0
    space = spaces.Box(low, high, (1,))
    model = OfflineModel(steps, DynamicsConfig(num_members=2, width=8), space)
    planner = OfflinePlanner(
        model,
        space,
        horizon=3,
        num_samples=4,
        noise=0.8,
        mixing=0.25,
        sharpness=2.0,
        discount=0.5,
        seed=6,
    )

    def told(member: int, network: Any, *values: Any) -> list[np.ndarray]:
        """Return what one member says of one state, and of an action."""
        given = (torch.tensor(np.array([[v]] * 2), dtype=torch.float32) for v in values)
        with torch.no_grad():
            found = network(*given)
        parts = found if isinstance(found, tuple) else (found,)
        return [part[member, 0].numpy() for part in parts]

    def cloned(states: torch.Tensor) -> torch.Tensor:
        """Return actions; networks tell them in units of the box."""
        return 0.75 + 1.25 * model.behavior.outputs(model.scaled(states))

    def expected(
        state: np.ndarray, before: ShootingState, row: int, mixing: float
    ) -> np.ndarray:
        pair = int(before.streams[row]), int(before.num_plans[row])
        rng = np.random.default_rng((6, *pair))
        noise = rng.standard_normal((4, 3, 1), np.float32)
        rest = [*before.plans[row, 1:], before.plans[row, -1]]
        plans, returns = np.zeros((4, 3, 1)), np.zeros(4)
        for sample in range(4):
            member, x, alive = sample // 2, state, 1.0
            for t in range(3):
                [wish] = told(member, cloned, x)
                wish = wish + 0.8 * (high - low) / 2 * noise[sample, t]
                wish = (1 - mixing) * wish + mixing * rest[t]
                plans[sample, t] = action = wish.clip(low, high)
                x, reward, goes_on = told(member, model.dynamics.step, x, action)
                returns[sample] += 0.5**t * alive * reward
                alive *= float(goes_on)
            returns[sample] += 0.5**3 * alive * told(member, model.values, x)[0]
        weights = np.exp(2.0 * returns / returns.std())
        mean: np.ndarray = np.tensordot(weights / weights.sum(), plans, 1)
        return mean

    rows = np.array([[0.2], [0.9]], np.float32)
    state = planner.initial_state(2, np.array([3, 8]))
    for number in range(1, 4):
        before = ShootingState(*(part.copy() for part in state))
        given, begins = state, np.array([False, number == 3])
        actions, state = planner.predict(rows, given, begins)
        for mine, kept in zip(given, before, strict=True):
            np.testing.assert_array_equal(mine, kept)
        assert state.num_plans.tolist() == [number] * 2
        for row in range(2):
            mixing = 0.0 if number == 1 or begins[row] else 0.25
            plan = expected(rows[row], before, row, mixing)
            np.testing.assert_allclose(state.plans[row], plan, atol=1e-5)
            np.testing.assert_allclose(actions[row], plan[0], atol=1e-5)


def test_the_losses_are_the_errors_of_what_plans_are_made_of(
    tmp_path: Path, data: FlatDataset
) -> None:
    """In units of the data's spread, as means over each member's own batch."""
    config = DynamicsConfig(num_members=2, width=8, batch_size=512)
    run = run_of(config, data, tmp_path)
    size, generator = (2, 512), torch.Generator().manual_seed(0)
    rows = torch.randint(len(run.steps.states), size, generator=generator).numpy()
    states, actions, following, rewards, ended, returns = (
        part[rows] for part in run.steps
    )
    model, x, a = run.networks, torch.from_numpy(states), torch.from_numpy(actions)
    with torch.no_grad():
        imagined = [part.numpy() for part in model.dynamics.step(x, a)]
        cloned = model.behavior.outputs(model.scaled(x)).numpy()
        valued = model.values(x).numpy()
        found = run.losses(0, torch.Generator().manual_seed(0))
    goes_on, steps = run.steps.ended == 0, run.steps
    spread = (steps.following - steps.states)[goes_on].std()
    wrong = np.square((imagined[0] - following) / spread)[..., 0] * (1 - ended)
    wrong += np.square((imagined[1] - rewards) / steps.rewards.std())
    wrong -= np.log(np.where(ended > 0, 1 - imagined[2], imagined[2]))
    expected = {
        "dynamics": wrong,
        "behavior": np.square(cloned - actions),
        "value": np.square((valued - returns) / steps.returns.std()),
    }
    for name, errors in expected.items():
        assert float(found[name]) == pytest.approx(2 * errors.mean(), rel=1e-3), name


def test_what_is_cloned_does_not_depend_on_the_units_of_actions(
    tmp_path: Path, data: FlatDataset
) -> None:
    """Motors of ±1, and the same ones in steps of a hundredth around 3."""
    config = DynamicsConfig(num_members=2, width=8, num_steps=20)
    actions = data.fields["action"].astype(np.float32)
    found = []
    for center, half in ((0.0, 1.0), (3.0, 100.0)):
        fields = {**data.fields, "action": center + half * actions}
        flat = FlatDataset(fields, data.run_starts, data.metadata)
        space = spaces.Box(center - half, center + half, (1,))
        run = run_of(config, flat, tmp_path / str(half), space)
        run.run(progress=False)
        states = torch.linspace(-0.5, 0.9, 16).reshape(2, 8, 1)
        found.append((run.average.cloned(states) - center) / half)
    torch.testing.assert_close(found[0], found[1], rtol=1e-2, atol=1e-3)


def test_of_a_step_that_ends_only_the_outcome_is_learned(
    tmp_path: Path, data: FlatDataset
) -> None:
    """Where it leads is not in the data: the next row is another episode's."""
    config = DynamicsConfig(num_members=2, width=8, batch_size=512)
    steps = Steps.of(data, 0.9)
    wrong = np.where(steps.ended[:, None] > 0, np.float32(1e3), steps.following)
    other = steps._replace(following=wrong)
    torch.manual_seed(0)
    moments = [
        OfflineModel(each, config, CliffEnv.action_space).dynamics.moments
        for each in (steps, other)
    ]
    assert torch.equal(*moments)
    run = run_of(config, data, tmp_path)
    losses = []
    for run.steps in (steps, other):
        found = run.losses(0, torch.Generator().manual_seed(0))
        losses.append(float(found["dynamics"].detach()))
    assert losses[0] == losses[1]


def test_results_do_not_depend_on_the_other_rows_of_a_batch(
    tmp_path: Path, data: FlatDataset
) -> None:
    context = context_for(tmp_path, data, num_steps=20)
    context.seed = 5
    policy = mbop(context, **context.settings)
    assert policy.seed == seed_of(context.folder) == 5
    rows = np.linspace(-0.5, 0.5, 5, dtype=np.float32)[:, None]
    actions, state = policy.predict(rows, policy.initial_state(5))
    again, following = policy.predict(rows, state, np.arange(5) == 2)
    assert following.num_plans.tolist() == [2] * 5
    for row in range(5):
        alone = state.rows([row])
        starts = np.array([row == 2])
        single, _ = policy.predict(rows[[row]], alone, starts)
        np.testing.assert_allclose(single[0], again[row], atol=1e-5)
    assert actions.shape == (5, 1)
    one, _ = policy.predict(rows[0])
    assert one.shape == (1,)
    assert policy.space.contains(one)


def test_a_state_of_another_batch_is_refused(policy: Any) -> None:
    _, state = policy.predict(np.zeros((2, 1), np.float32))
    with pytest.raises(
        ObservationError, match="state has 2 rows and the observation 3"
    ):
        policy.predict(np.zeros((3, 1), np.float32), state)


def test_a_training_resumes_to_the_same_weights(
    tmp_path: Path, data: FlatDataset
) -> None:
    config = DynamicsConfig(num_members=2, width=8, num_steps=6)

    def run(folder: Path) -> OfflineRun:
        return run_of(config, data, folder)

    whole = run(tmp_path / "whole")
    whole.run(progress=False)
    first = run(tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        first.run(save_interval=3, progress=False, on_metrics=_interrupt)
    second = run(tmp_path / "parts")
    assert second.step == 3
    second.run(progress=False)
    pairs = zip(
        whole.average.state_dict().items(),
        second.average.state_dict().items(),
        strict=True,
    )
    for (name, one), (_, other) in pairs:
        assert torch.equal(one, other), name


def test_a_training_with_actions_in_other_units_does_not_resume(
    tmp_path: Path, data: FlatDataset
) -> None:
    config = DynamicsConfig(num_members=2, width=8, num_steps=2)
    run_of(config, data, tmp_path).run(progress=False)
    with pytest.raises(ConfigError, match=r"box: .*→ \[\[0.0\], \[2.0\]\]"):
        run_of(config, data, tmp_path, spaces.Box(-2.0, 2.0, (1,)))


def test_steps_processes_and_accumulations_see_other_data(
    data: FlatDataset, tmp_path: Path
) -> None:
    config = DynamicsConfig(num_members=2, width=8)
    run = run_of(config, data, tmp_path)
    assert has_batches_of_its_own(run.loss)


def test_the_seed_fixes_the_first_weights_and_the_batches(
    data: FlatDataset, tmp_path: Path
) -> None:
    config = DynamicsConfig(num_members=2, width=8)
    assert is_fixed_by_its_seed(
        lambda seed: run_of(replace(config, seed=seed), data, tmp_path)
    )


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_step_after_which_nothing_is_known_is_left_out() -> None:
    flat = line_data(num_runs=2, run_length=3, goals=False)
    steps = Steps.of(flat, 0.5)
    np.testing.assert_array_equal(
        steps.states[:, 0], flat.fields["observation"][[0, 1, 3, 4], 0]
    )
    np.testing.assert_array_equal(
        steps.following[:, 0], flat.fields["observation"][[1, 2, 4, 5], 0]
    )
    ended = Steps.of(line_data(num_runs=2, run_length=3, terminated=True), 0.5)
    assert ended.ended.tolist() == [0, 0, 1, 0, 0, 1]
    single = line_data(num_runs=2, run_length=1, goals=False)
    with pytest.raises(DatasetError, match="Record longer episodes"):
        Steps.of(single, 0.5)
    only = line_data(num_runs=2, run_length=1, goals=False, terminated=True)
    config = DynamicsConfig(num_members=1, width=8)
    with pytest.raises(DatasetError, match="no dynamics to learn"):
        OfflineModel(Steps.of(only, 0.5), config, CliffEnv.action_space)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_samples": 30, "num_members": 4}, "multiple of num_members"),
        ({"horizon": 0}, "positive"),
        ({"mixing": 1.0}, r"mixing must be in \[0, 1\)"),
        ({"noise": -0.1}, "noise must be 0 or more"),
        ({"width": -4}, "width must be positive, got -4"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    settings: dict[str, Any], told: str
) -> None:
    problem = Problem(env="test/Cliff-v0", dataset="test/cliff-v0")
    find_method("mbop").check(problem, {})
    with pytest.raises(ConfigError, match=told):
        find_method("mbop").check(problem, settings)


def test_observations_with_goals_are_refused_before_anything_runs() -> None:
    mazes = Problem(
        env="diffuser_envs/Maze2D-UMaze-v1", dataset="diffuser/maze2d-umaze-v1"
    )
    with pytest.raises(ConfigError, match="a single array without goals"):
        find_method("mbop").check(mazes, {})


def test_observations_of_several_axes_are_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A policy could not tell one of them from a batch."""
    cliff = gym.make("test/Cliff-v0")
    shape = (1, *(cliff.observation_space.shape or ()))
    matrix = gym.wrappers.ReshapeObservation(cliff, shape)
    monkeypatch.setattr(Problem, "make_env", lambda _: matrix)
    problem = Problem(env="test/Cliff-v0", dataset="test/cliff-v0")
    with pytest.raises(ConfigError, match="of one axis"):
        find_method("mbop").check(problem, {})
