"""Decision Transformer: its batches and actions are d3rlpy's, and returns matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from diffuser_policy.baselines import d3rlpy_methods
from diffuser_policy.baselines import decision_transformer as dt
from diffuser_policy.baselines.transitions import (
    SingleTask,
    check_goals,
    make_transitions,
)
from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import find_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.errors import ConfigError, ObservationError
from diffuser_policy.evaluation import evaluate
from tests.baseline_helpers import line_data
from tests.goal_point import FIXED_POINT, GOAL_POINT, NUM_STEPS, training_of

d3rlpy = pytest.importorskip("d3rlpy", reason="needs the extra 'baselines'")

SMALL = {"width": 16, "num_layers": 1, "context": 4, "learning_rate": 3e-3}


def point_data(num_runs: int = 60, run_length: int = 30) -> FlatDataset:
    """Return runs that go to the goal at the origin, and as many that flee from it."""
    rng = np.random.default_rng(0)
    env = gymnasium.make(FIXED_POINT, max_episode_steps=run_length)
    rows: dict[str, list[Any]] = {"observation": [], "action": [], "achieved_goal": []}
    for run in range(num_runs):
        sign = 1.0 if run % 2 else -1.0
        observation, _ = env.reset(seed=run)
        for _ in range(run_length):
            wish = -sign * 10 * observation["achieved_goal"]
            action = (wish + 0.3 * rng.normal(size=2)).clip(-1, 1).astype(np.float32)
            for name in ("observation", "achieved_goal"):
                rows[name].append(observation[name])
            rows["action"].append(action)
            observation = env.step(action)[0]
    fields = {name: np.array(values) for name, values in rows.items()}
    count = num_runs * run_length
    fields |= {
        "desired_goal": np.zeros((count, 2)),
        "reward": np.zeros(count),
        "terminated": np.zeros(count, np.bool_),
    }
    return FlatDataset(fields, np.arange(0, count + 1, run_length))


@pytest.fixture(scope="module")
def data() -> FlatDataset:
    """The runs."""
    return point_data()


def context_for(
    folder: Path, flat: FlatDataset, *, num_steps: int = 4, **settings: Any
) -> MethodContext:
    """Return a training on the point with a fixed goal."""
    training = training_of(
        "dt",
        folder,
        env=FIXED_POINT,
        goals="none",
        num_steps=num_steps,
        settings={**SMALL, **settings},
    )
    training.dataset = flat
    return training


def train(training: MethodContext) -> Any:
    """Run the method as a cell does."""
    return dt.decision_transformer(training, **training.settings)


def stretches_of(flat: FlatDataset) -> Any:
    """Return the stretches of a dataset for the point's one task."""
    problem = Problem(env=FIXED_POINT, dataset="test/point-v0")
    data = make_transitions(problem, flat)
    assert isinstance(data, SingleTask)
    return dt.Stretches(data, NUM_STEPS)


def test_a_batch_is_what_d3rlpy_cuts_out_of_the_same_episodes(
    data: FlatDataset,
) -> None:
    """Windows, returns to go, times and masks agree with d3rlpy's own slicer."""
    stretches, context, size = stretches_of(data), 6, 200
    batch = stretches.batch(np.random.default_rng(5), size, context)
    chosen, last = stretches.draw(np.random.default_rng(5), size)
    codec, observed = stretches.data.codec, data.fields["observation"]
    inputs = codec.inputs(np.concatenate([observed, np.zeros((len(observed), 2))], 1))
    actions = codec.encode(data.fields["action"], observed)
    slicer = d3rlpy.dataset.BasicTrajectorySlicer()
    for index, (stretch, end) in enumerate(zip(chosen, last, strict=True)):
        start = stretches.starts[stretch]
        rows = slice(start, start + stretches.lengths[stretch])
        episode = d3rlpy.dataset.Episode(
            observations=inputs[rows],
            actions=actions[rows],
            rewards=(stretches.data.reward[rows, None] / stretches.scale).astype("f4"),
            terminated=False,
        )
        part = slicer(episode, int(end), context)
        for name in ("observations", "actions", "rewards", "returns_to_go", "masks"):
            own = getattr(batch, name)[index]
            np.testing.assert_allclose(own, getattr(part, name), atol=2e-6)
        np.testing.assert_array_equal(batch.timesteps[index], part.timesteps)


def test_every_stretch_as_long_as_an_episode_counts(data: FlatDataset) -> None:
    """Runs of 30 steps hold 11 stretches of 20; a shorter run is one stretch."""
    assert len(stretches_of(data).starts) == 60 * 11
    short = FlatDataset(data.fields, np.array([0, 7, 1800]))
    stretches = stretches_of(short)
    assert stretches.lengths[0] == 7
    assert (stretches.starts[1:] == 7 + np.arange(1793 - 20 + 1)).all()
    rewards = stretches.data.reward
    expected = [rewards[s : s + 20].sum() for s in stretches.starts[1:]]
    np.testing.assert_allclose(stretches.returns[1:], expected, atol=1e-4)


def test_the_target_is_the_mean_of_the_best_stretches(data: FlatDataset) -> None:
    """A share of all stretches, at least one."""
    stretches = stretches_of(data)
    ordered = np.sort(stretches.returns)
    assert stretches.target(1e-9) == ordered[-1]
    assert stretches.target(0.1) == pytest.approx(ordered[-66:].mean())


def test_it_acts_as_d3rlpys_own_wrapper_does(tmp_path: Path, data: FlatDataset) -> None:
    """Three environments at a time, which begin at different steps, one by one."""
    policy = train(context_for(tmp_path, data))
    wrappers = [
        policy.algorithm.as_stateful_wrapper(target_return=policy.target / policy.scale)
        for _ in range(3)
    ]
    envs = [gymnasium.make(FIXED_POINT) for _ in range(3)]
    observations = [env.reset(seed=i)[0] for i, env in enumerate(envs)]
    rewards, starts = [0.0] * 3, np.ones(3, np.bool_)
    state: Any = None
    codec = policy.codec
    for step in range(NUM_STEPS):
        if step == 7:  # one begins again in the middle
            observations[1], rewards[1], starts[1] = envs[1].reset(seed=9)[0], 0.0, True
            wrappers[1].reset()
        batch = {k: np.stack([o[k] for o in observations]) for k in observations[0]}
        before = [part.copy() for part in state or ()]
        actions, following = policy.predict(batch, state, starts)
        for part, kept in zip(state or (), before, strict=True):
            np.testing.assert_array_equal(part, kept)
        state, starts = following, np.zeros(3, np.bool_)
        for i, env in enumerate(envs):
            row = np.concatenate([batch["observation"][i], batch["desired_goal"][i]])
            expected = wrappers[i].predict(
                codec.inputs(row.astype(np.float32)), rewards[i] / policy.scale
            )
            decoded = codec.decode(expected[None], row[None])[0]
            np.testing.assert_allclose(actions[i], decoded, atol=1e-5)
            # Straight to the goal, so that there are rewards to count.
            push = (-10 * observations[i]["achieved_goal"]).clip(-1, 1)
            observations[i], reward, *_ = env.step(push.astype(np.float32))
            rewards[i] = float(reward)
    assert (state[4] < policy.target).all()  # something was earned, and taken off


def test_a_single_observation_gives_a_single_action(
    tmp_path: Path, data: FlatDataset
) -> None:
    """As in Stable-Baselines3, with the state of one environment."""
    policy = train(context_for(tmp_path, data))
    observation = gymnasium.make(FIXED_POINT).reset(seed=0)[0]
    action, state = policy.predict(observation)
    assert action.shape == (2,)
    again, _ = policy.predict({k: v[None] for k, v in observation.items()})
    np.testing.assert_array_equal(again, action[None])
    assert [len(part) for part in state] == [1] * 5
    pair = {k: np.stack([v, v]) for k, v in observation.items()}
    with pytest.raises(ObservationError, match="state has 1 row and the observation 2"):
        policy.predict(pair, state)


def test_what_it_is_asked_for_is_what_it_does(
    tmp_path: Path, data: FlatDataset
) -> None:
    """Half of the data flee: asked for much it arrives, asked for nothing it flees."""
    settings = {"width": 32, "learning_rate": 5e-3}
    policy = train(context_for(tmp_path, data, num_steps=600, **settings))
    returns = {}
    for target in (policy.target, 0.0):
        policy.target = target
        episodes = evaluate(policy, FIXED_POINT, episodes=20, progress=False).episodes
        returns[target] = np.mean([e.episode_return for e in episodes])
    best, worst = returns.values()
    assert best > 12  # of 20; straight lines take about 4 steps
    assert worst < 2


def test_a_killed_training_goes_on_to_the_same_weights(
    tmp_path: Path, data: FlatDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints every third step, a kill in between."""
    monkeypatch.setattr(d3rlpy_methods, "CHECKPOINT_STEPS", 3)
    whole = train(context_for(tmp_path / "whole", data, num_steps=8))

    training = context_for(tmp_path / "killed", data, num_steps=8)

    def killed_after_five(step: int) -> bool:
        if step > 5:
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(training, "curve_due", killed_after_five)
    with pytest.raises(KeyboardInterrupt):
        train(training)
    resumed = train(context_for(tmp_path / "killed", data, num_steps=8))
    pairs = zip(
        *(
            vars(p.algorithm.impl.modules)["transformer"].state_dict().items()
            for p in (whole, resumed)
        ),
        strict=True,
    )
    for (name, first), (_, second) in pairs:
        assert (first == second).all(), name


def test_the_seed_fixes_the_first_weights(tmp_path: Path, data: FlatDataset) -> None:
    """A single gradient step that moves nothing."""
    found = []
    for number, seed in enumerate((3, 3, 4)):
        training = context_for(
            tmp_path / str(number), data, num_steps=1, learning_rate=1e-12
        )
        training.seed = seed
        network = train(training).algorithm.impl.modules.transformer
        weights = torch.nn.utils.parameters_to_vector(network.parameters())
        found.append(weights.detach())
    first, same, other = found
    assert torch.equal(first, same)
    assert float((first - other).abs().mean()) > 1e-3


def test_problems_it_cannot_do_are_refused(tmp_path: Path, data: FlatDataset) -> None:
    """Goals in every episode, no goals at all, and data that earn nothing."""
    hindsight = Problem(env=GOAL_POINT, dataset="test/point-v0", goals="hindsight")
    with pytest.raises(ConfigError, match="goals='none', but goalpoint has"):
        find_method("dt").check(hindsight, {})
    single = Problem(env=GOAL_POINT, dataset="test/point-v0")
    with pytest.raises(ConfigError, match=r"best_share must be in \(0, 1\], got 2"):
        find_method("dt").check(single, {"best_share": 2.0})
    with pytest.raises(ConfigError, match="num_layers must be positive, got 0"):
        find_method("dt").check(single, {"num_layers": 0})
    with pytest.raises(ConfigError, match=r"told no rewards: .* Pendulum-v1 observes"):
        check_goals(gymnasium.make("Pendulum-v1"), dt.TOLD_NO_REWARDS)
    far = dict(data.fields)
    far["achieved_goal"] = far["achieved_goal"] + 100
    with pytest.raises(ConfigError, match="a Decision Transformer has no return"):
        train(context_for(tmp_path, FlatDataset(far, data.run_starts)))


def test_without_goals_what_was_earned_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line pays where it is: the return to go falls by that, step by step."""
    monkeypatch.setattr(dt, "REWARD_STEPS", 150)
    settings = {**SMALL, "target_scale": 1.5}
    env_id = "tests.baseline_helpers:test/Line-none-v0"
    training = training_of(
        "dt", tmp_path, env=env_id, goals="none", num_steps=3, settings=settings
    )
    training.dataset = line_data(goals=False, run_length=10)
    policy = train(training)
    stretches = dt.Stretches(SingleTask(training.dataset, gymnasium.make(env_id)), 10)
    assert policy.target == pytest.approx(1.5 * stretches.returns.max())
    rows = np.array([[0.3, 1.0], [-0.2, 2.0]], np.float32)
    actions, state = policy.predict(rows)
    earned = rows[:, 0] + 0.1 * actions[:, 0]
    np.testing.assert_allclose(policy.target - state[4], earned, atol=0.1)
    np.testing.assert_allclose(state[2][:, -1], policy.target / policy.scale, rtol=1e-5)
    _, later = policy.predict(rows, state, np.array([False, True]))
    np.testing.assert_allclose(later[2][0, -1], state[4][0] / policy.scale, rtol=1e-5)
    np.testing.assert_allclose(later[4][1], state[4][1], atol=1e-4)  # it began anew


def test_every_step_of_the_data_is_as_likely(data: FlatDataset) -> None:
    """A short run is not drawn as often as a long one."""
    stretches = stretches_of(FlatDataset(data.fields, np.array([0, 2, 1800])))
    chosen, last = stretches.draw(np.random.default_rng(0), 200_000)
    first = chosen == 0
    assert first.mean() == pytest.approx(2 / stretches.lengths.sum(), rel=0.5)
    assert (last < stretches.lengths[chosen]).all()
    assert last.min() == 0
