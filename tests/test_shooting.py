"""Sampling-based planning against problems whose best plan is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.wrappers import FlattenObservation

from diffuser_policy.baselines.shooting import (
    MPPI,
    CrossEntropy,
    Optimizer,
    ShootingPolicy,
    env_spaces,
    goal_nearness,
    make_objective,
)
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError, ObservationError, UnknownNameError
from diffuser_policy.spaces import SpaceSpec
from tests.point_env import PointEnv

SPACES = SpaceSpec(
    observation_size=4,
    goal_size=2,
    goal_columns=(0, 1),
    action_low=(-2.0, -2.0),
    action_high=(4.0, 4.0),
)
DT = 0.1


class DoubleIntegrator:
    """Positions and velocities `[n, 4]` under accelerations; counts its calls."""

    def __init__(self, opinions: tuple[float, ...] = ()) -> None:
        self.opinions = opinions
        self.calls: list[tuple[np.ndarray, np.ndarray]] = []

    def simulate(self, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        self.calls.append((states.copy(), actions.copy()))
        x, v = states[:, :2].astype(float), states[:, 2:].astype(float)
        found = []
        for step in range(actions.shape[1]):
            x, v = x + DT * v, v + DT * actions[:, step]
            found.append(np.concatenate([x, v], axis=1))
        simulated = np.stack(found, axis=1)
        if self.opinions:
            return np.stack([simulated + shift for shift in self.opinions])
        return simulated


class Recorder:
    """An optimizer that numbers its plans, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def improve(self, plan: np.ndarray, value: Any, rng: Any) -> np.ndarray:
        self.given.append(plan.copy())
        self.value, self.drawn = value, rng.random()
        first = 100 * len(self.given)
        return 0.001 * (first + np.arange(len(plan)))[:, None].repeat(2, axis=1)


def squares(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a well-conditioned least-squares problem in 3 knots of 2 actions."""
    matrix = np.eye(6) + 0.2 * rng.standard_normal((6, 6))
    return matrix, matrix @ rng.uniform(-0.6, 0.6, 6)


def make_optimizer(name: str, **settings: Any) -> Optimizer:
    if name == "cem":
        return CrossEntropy(**settings)
    pytest.importorskip("pytorch_mppi", reason="needs the extra 'baselines'")
    return MPPI(**settings)


def make_policy(
    optimizer: Optimizer, model: Any = None, **settings: Any
) -> ShootingPolicy:
    defaults: dict[str, Any] = {"horizon": 12, "hold": 3}
    return ShootingPolicy(
        model or DoubleIntegrator(),
        settings.pop("objective", goal_nearness((0, 1))),
        optimizer,
        spaces=settings.pop("spaces", SPACES),
        **{**defaults, **settings},
    )


def observe(states: np.ndarray, goals: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "observation": states,
        "achieved_goal": states[..., :2],
        "desired_goal": goals,
    }


def test_flattened_observations_are_planned_from_in_the_order_of_the_wrapper() -> None:
    env = PointEnv()
    policy = make_policy(CrossEntropy(num_iterations=1), spaces=env_spaces(env))
    flat = FlattenObservation(env)
    (rows, _), seen = flat.reset(seed=0), env.reset(seed=0)[0]
    actions, _ = policy.for_env(flat).predict(rows)
    np.testing.assert_array_equal(actions, policy.predict(seen)[0])


# --- optimizers -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_the_optimum_of_a_quadratic_is_found(name: str) -> None:
    matrix, target = squares(np.random.default_rng(0))
    best = np.linalg.solve(matrix, target)  # inside the bounds, where the value is 0
    sharp = {"noise": 0.1, "temperature": 0.001} if name == "mppi" else {"noise": 0.7}
    optimizer = make_optimizer(name, num_samples=400, num_iterations=30, **sharp)

    def value(plans: np.ndarray) -> np.ndarray:
        error = plans.reshape(len(plans), -1) @ matrix.T - target
        returns: np.ndarray = -np.square(error).sum(axis=1)
        return returns

    found = optimizer.improve(np.zeros((3, 2)), value, np.random.default_rng(1))
    np.testing.assert_allclose(found.ravel(), best, atol=0.1)
    assert value(found[None])[0] > 0.02 * value(np.zeros((1, 3, 2)))[0]


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_the_double_integrator_is_driven_as_well_as_by_the_known_plan(
    name: str,
) -> None:
    """Least squares gives the best plan that ends at rest at a place."""
    model, knots, hold = DoubleIntegrator(), 4, 5
    start, goal = np.zeros((1, 4)), np.array([0.4, -0.2, 0.0, 0.0])

    def final(plans: np.ndarray) -> np.ndarray:
        states = model.simulate(start.repeat(len(plans), 0), plans.repeat(hold, 1))
        last: np.ndarray = states[:, -1]
        return last

    effects = final(np.eye(2 * knots).reshape(-1, knots, 2)).T  # linear in the plan
    best = np.linalg.lstsq(effects, goal, rcond=None)[0]
    assert np.abs(best).max() < 1.0

    def value(plans: np.ndarray) -> np.ndarray:
        effort = 0.01 * np.square(plans).sum(axis=(1, 2))
        returns: np.ndarray = -np.square(final(plans) - goal).sum(axis=1) - effort
        return returns

    sharp = {"noise": 0.1, "temperature": 0.0005} if name == "mppi" else {}
    optimizer = make_optimizer(name, num_samples=300, num_iterations=25, **sharp)
    found = optimizer.improve(np.zeros((knots, 2)), value, np.random.default_rng(0))
    known = value(best.reshape(1, knots, 2))[0]
    assert value(found[None])[0] > known - 0.01
    assert value(np.zeros((1, knots, 2)))[0] < known - 0.1


def test_mppi_is_the_papers_weighted_mean() -> None:
    """Williams et al. (2017), algorithm 2, in NumPy, with the same noise."""
    optimizer = make_optimizer(
        "mppi", num_samples=50, num_iterations=1, temperature=0.3, noise=0.4
    )
    plan = np.array([[0.2, -0.1], [0.9, 0.0], [-0.3, 0.5]])
    seen: list[np.ndarray] = []

    def value(plans: np.ndarray) -> np.ndarray:
        seen.append(plans.copy())
        returns: np.ndarray = -np.square(plans - 0.3).sum(axis=(1, 2))
        return returns

    found = optimizer.improve(plan, value, np.random.default_rng(0))
    [drawn] = seen
    assert np.abs(drawn).max() <= 1.0
    noise = drawn - plan
    costs = -value(drawn) + 0.3 / 0.4**2 * (plan * noise).sum(axis=(1, 2))
    weights = np.exp(-(costs - costs.min()) / 0.3)
    expected = plan + np.einsum("n,nkd->kd", weights / weights.sum(), noise)
    np.testing.assert_allclose(found, expected.clip(-1, 1), atol=1e-12)


def test_the_cross_entropy_method_fits_the_elite() -> None:
    """With one iteration: the mean of the best tenth of what was drawn."""
    optimizer = CrossEntropy(num_samples=40, num_iterations=1, elite_share=0.1)
    seen: list[np.ndarray] = []

    def value(plans: np.ndarray) -> np.ndarray:
        seen.append(plans.copy())
        total: np.ndarray = plans.sum(axis=(1, 2))
        return total

    found = optimizer.improve(np.zeros((3, 2)), value, np.random.default_rng(0))
    order = seen[0].sum(axis=(1, 2)).argsort()
    np.testing.assert_allclose(found, seen[0][order[-4:]].mean(axis=0), atol=1e-12)


def test_the_cross_entropy_method_keeps_drawing_though_its_elite_agrees() -> None:
    """An elite of one plan has no spread of its own."""
    optimizer = CrossEntropy(num_samples=400, num_iterations=3, elite_share=0.001)
    spreads: list[float] = []

    def value(plans: np.ndarray) -> np.ndarray:
        spreads.append(float(plans.std(axis=0).mean()))
        total: np.ndarray = -np.square(plans).sum(axis=(1, 2))
        return total

    optimizer.improve(np.zeros((3, 2)), value, np.random.default_rng(0))
    np.testing.assert_allclose(spreads[1:], 0.05, rtol=0.1)


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_all_randomness_is_the_generators(name: str) -> None:
    optimizer = make_optimizer(name, num_samples=8, num_iterations=1)
    first, same, other = (
        optimizer.improve(
            np.zeros((3, 2)), lambda plans: plans[:, 0, 0], np.random.default_rng(seed)
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_torchs_global_randomness_is_left_alone() -> None:
    optimizer = make_optimizer("mppi", num_samples=4, num_iterations=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    optimizer.improve(np.zeros((3, 2)), lambda p: p[:, 0, 0], np.random.default_rng(0))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MPPI(num_samples=0), "num_samples must be positive"),
        (lambda: MPPI(temperature=float("nan")), "temperature"),
        (lambda: CrossEntropy(noise=-1.0), "noise"),
        (lambda: CrossEntropy(elite_share=1.5), "elite_share must be at most 1"),
    ],
)
def test_optimizers_refuse_impossible_settings(make: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# --- the policy -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_a_goal_is_reached_and_kept(name: str) -> None:
    optimizer = make_optimizer(name, num_samples=60, num_iterations=3)
    model, goal = DoubleIntegrator(), np.array([0.8, -0.6])
    policy = make_policy(optimizer, model, horizon=20, hold=2)
    position, state = np.zeros((1, 4)), None
    for _ in range(50):
        action, state = policy.predict(observe(position[0], goal), state)
        position = model.simulate(position, action[None, None].astype(float))[:, 0]
    assert np.linalg.norm(position[0, :2] - goal) < 0.2  # from 1.0


@pytest.mark.parametrize("name", ["cem", "mppi"])
def test_rows_of_a_batch_are_independent(name: str) -> None:
    optimizer = make_optimizer(name, num_samples=20, num_iterations=2)
    rng = np.random.default_rng(3)
    states, goals = rng.normal(size=(3, 4)), rng.normal(size=(3, 2))
    policy, streams = make_policy(optimizer), np.array([7, 11, 7])
    together = policy.initial_state(3, streams)
    alone = [policy.initial_state(1, streams[[row]]) for row in range(3)]
    for _ in range(5):  # a plan, its rest, and the next plan
        given, kept = together, together.with_rows([], together.rows([]))
        actions, together = policy.predict(observe(states, goals), given)
        for passed, copied in zip(given, kept, strict=True):
            np.testing.assert_array_equal(passed, copied)
        for row in range(3):
            part = slice(row, row + 1)
            expected, alone[row] = policy.predict(
                observe(states[part], goals[part]), alone[row]
            )
            np.testing.assert_array_equal(actions[part], expected)
    np.testing.assert_array_equal(together.num_plans, [2, 2, 2])


def test_plans_are_kept_shifted_and_made_anew() -> None:
    """Knots of 3 env steps, 4 of them, a new plan after 6 steps."""
    recorder = Recorder()
    policy = make_policy(recorder, replan_interval=6)
    seen = observe(np.zeros(4), np.zeros(2))
    state, actions = None, []
    for _ in range(8):
        action, state = policy.predict(seen, state)
        assert action.shape == (2,)
        assert action.dtype == np.float32
        actions.append(float(action[0]))
    scaled = (np.array(actions) - 1.0) / 3.0  # the middle and half of [-2, 4]
    expected = [0.1, 0.1, 0.1, 0.101, 0.101, 0.101, 0.2, 0.2]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    first, second = recorder.given
    np.testing.assert_array_equal(first, np.zeros((4, 2)))
    np.testing.assert_allclose(second[:, 0], [0.102, 0.103, 0.0, 0.0])


def test_an_episode_start_forgets_the_plan_of_its_row() -> None:
    recorder = Recorder()
    policy = make_policy(recorder)
    seen = observe(np.zeros((2, 4)), np.zeros((2, 2)))
    _, state = policy.predict(seen, None, np.array([True, True]))
    _, state = policy.predict(seen, state, np.array([False, True]))
    assert len(recorder.given) == 3
    np.testing.assert_array_equal(recorder.given[2], np.zeros((4, 2)))
    np.testing.assert_array_equal(state.ages, [2, 1])
    np.testing.assert_array_equal(state.num_plans, [1, 2])


def test_the_same_seed_and_stream_draw_the_same_for_each_plan() -> None:
    def drawn(seed: int, stream: int) -> list[float]:
        recorder, found = Recorder(), []
        policy = make_policy(recorder, seed=seed, hold=1)
        state = policy.initial_state(1, np.array([stream]))
        for _ in range(3):
            seen = observe(np.zeros((1, 4)), np.zeros((1, 2)))
            _, state = policy.predict(seen, state)
            found.append(float(recorder.drawn))
        return found

    assert drawn(0, 3) == drawn(0, 3)
    assert len({*drawn(0, 3), *drawn(1, 3), *drawn(0, 4)}) == 9


def test_rows_of_a_state_are_replaced_in_a_copy() -> None:
    state = make_policy(Recorder()).initial_state(3)
    other = make_policy(Recorder()).initial_state(1, np.array([7]))
    assert state.with_rows([1], other).streams.tolist() == [0, 7, 2]
    assert state.streams.tolist() == [0, 1, 2]


def test_the_model_is_asked_in_environment_units_and_opinions_are_averaged() -> None:
    recorder, model = Recorder(), DoubleIntegrator(opinions=(0.0, 1.0))
    policy = make_policy(recorder, model)
    state, goal = np.array([0.1, 0.2, 0.0, 0.0]), np.zeros(2)
    policy.predict(observe(state, goal))
    returns = recorder.value(np.ones((1, 4, 2)))
    [(first, actions)] = model.calls
    np.testing.assert_allclose(first, state[None], atol=1e-7)
    np.testing.assert_allclose(actions, np.full((1, 12, 2), 4.0))
    by_opinion = model.simulate(first, actions)
    distance = np.linalg.norm(by_opinion[..., :2], axis=-1)
    np.testing.assert_allclose(returns, [np.exp(-distance).mean()])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"horizon": 10}, "horizon must be a multiple of hold"),
        ({"hold": 0}, "positive"),
        ({"replan_interval": 4}, "multiple of hold=3"),
        ({"replan_interval": 15}, "up to the horizon of 12"),
        (
            {
                "spaces": SpaceSpec(
                    observation_size=4, action_low=(0,), action_high=(1,)
                )
            },
            "goal dictionaries",
        ),
    ],
)
def test_policies_refuse_impossible_settings(
    settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make_policy(CrossEntropy(), **settings)


def test_states_of_other_batches_and_bad_observations_are_refused() -> None:
    policy = make_policy(Recorder())
    _, state = policy.predict(observe(np.zeros((2, 4)), np.zeros((2, 2))))
    with pytest.raises(ObservationError, match="state has 2 rows"):
        policy.predict(observe(np.zeros((3, 4)), np.zeros((3, 2))), state)
    with pytest.raises(ObservationError, match="NaN"):
        policy.predict(observe(np.full(4, np.nan), np.zeros(2)))


# --- objectives and environments ------------------------------------------------------


def test_the_mazes_are_read_and_their_reward_is_the_objective() -> None:
    env = make_env("diffuser_envs/Multi2D-UMaze-v1")
    spaces = env_spaces(env)
    assert (spaces.goal_columns, spaces.action_low) == ((0, 1), (-1.0, -1.0))
    objective = make_objective("reward", env, spaces)
    observation, _ = env.reset(options={"start": [-0.8, 0.8], "goal": [-0.8, 0.8]})
    start, goal = observation["observation"], observation["desired_goal"]
    actions = np.tile([0.3, 0.4], (60, 1))
    simulated: Any = env.unwrapped
    states = simulated.simulate(start[None], actions[None])
    rewards = [float(env.step(action)[1]) for action in actions]
    assert 0 < np.mean(rewards) < 1
    np.testing.assert_allclose(objective(states, goal), [np.mean(rewards)])
    env.close()


def test_nearness_is_the_mean_of_exponentials() -> None:
    states = np.zeros((2, 3, 4))
    states[1, :, 1] = [0.0, 3.0, 4.0]
    values = goal_nearness((1, 0))(states, np.array([0.0, 0.0]))
    np.testing.assert_allclose(values, [1.0, (1 + np.exp(-3) + np.exp(-4)) / 3])


def test_objectives_and_environments_that_cannot_serve_are_refused() -> None:
    env = make_env("diffuser_envs/Maze2D-UMaze-v1")
    with pytest.raises(UnknownNameError, match="reward"):
        make_objective("rewards", env, SPACES)
    env.close()
    flat = make_env("Pendulum-v1")
    with pytest.raises(ConfigError, match="no compute_reward"):
        make_objective("reward", flat, SPACES)
    with pytest.raises(ConfigError, match="desired_goal"):
        env_spaces(flat)
    flat.close()
