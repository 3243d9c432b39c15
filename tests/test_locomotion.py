"""Demonstrations by Gymnasium's robots, and their scores."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffuser_envs.errors import LocomotionObservationError, UnsupportedEnvError
from diffuser_envs.locomotion import demonstrators
from diffuser_envs.locomotion.demonstrators import ACTORS, Actor, SacDemonstrator
from diffuser_policy.config import CollectSettings
from diffuser_policy.data.collection import collect
from diffuser_policy.data.demonstrators import DEMONSTRATORS
from diffuser_policy.data.minari import load_flat
from diffuser_policy.evaluation.scores import score_of_returns

pytest.importorskip("mujoco")
pytest.importorskip("minari")

NAMES = [
    point.name
    for point in entry_points(group="diffuser_policy.demonstrators")
    if point.value.startswith("diffuser_envs.locomotion")
]


def make(robot: str) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(f"{robot}-v5", max_episode_steps=12)


def test_an_actor_is_the_network_it_was_trained_as() -> None:
    stored = load_file(ACTORS / "hopper-0200k.safetensors")
    weights = {name: value.double() for name, value in stored.items()}
    rows = np.random.default_rng(0).normal(size=(5, 11)).astype(np.float32)
    noise = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)

    def layer(x: torch.Tensor, number: int) -> torch.Tensor:
        kernel = weights[f"Dense_{number}.kernel"]
        return x @ kernel + weights[f"Dense_{number}.bias"]

    x = torch.from_numpy(rows).double()
    for number in (0, 1):
        x = layer(x, number).relu()
    std = layer(x, 3).clamp(-20, 2).exp()
    expected = (layer(x, 2) + std * torch.from_numpy(noise)).tanh()
    found = Actor.load("hopper-0200k").act(rows, noise)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_demonstrator_acts_in_its_environment(name: str) -> None:
    cls: type[SacDemonstrator] = DEMONSTRATORS.find(name).target
    assert name == cls.dataset_id.removeprefix("diffuser/").removesuffix("-v1")
    env = make(cls.robot)
    one = cls.from_env(env, seed=0)
    observation, _ = env.reset(seed=0)
    action, state = one.predict(observation)
    assert env.action_space.contains(action)
    actions, _ = one.predict(np.stack([observation] * 3))
    assert actions.shape == (3, *action.shape)
    first, _ = one.predict(observation, state, None, True)
    np.testing.assert_array_equal(one.predict(observation, state, None, True)[0], first)
    other = gymnasium.make("Pendulum-v1")
    with pytest.raises(UnsupportedEnvError, match=f"{cls.robot}-v5.*Pendulum-v1"):
        cls.from_env(other)


def test_robots_that_observe_something_else_are_refused() -> None:
    env = gymnasium.make("Hopper-v5", exclude_current_positions_from_observation=False)
    with pytest.raises(UnsupportedEnvError, match=r"shape \(11,\).* give \(12,\)"):
        demonstrators.HopperMedium.from_env(env)
    env.close()


def test_bad_input_is_refused_and_draws_nothing() -> None:
    policy, same = (demonstrators.HopperMediumReplay(seed=0) for _ in range(2))
    two = np.zeros((2, 11))
    _, state = policy.predict(two)
    same.predict(two)
    wrong: Any
    for wrong in (np.zeros(12), np.full(11, np.nan), np.zeros((1, 2, 11)), {}, "far"):
        with pytest.raises(LocomotionObservationError, match="11 finite numbers"):
            policy.predict(wrong)
    with pytest.raises(LocomotionObservationError, match=r"state is for 2 .* for 3"):
        policy.predict(np.zeros((3, 11)), state)
    with pytest.raises(LocomotionObservationError, match="episode_start has the shape"):
        policy.predict(two, state, [True, False, True])
    with pytest.raises(LocomotionObservationError, match="episode_start has the shape"):
        policy.predict(two, None, [True])
    np.testing.assert_array_equal(policy.predict(two)[0], same.predict(two)[0])


def test_shipped_actors_are_those_of_the_demonstrators() -> None:
    named = {
        actor for name in NAMES for actor in DEMONSTRATORS.find(name).target.actors
    }
    shipped = {path.stem for path in ACTORS.glob("*.safetensors")}
    assert named == shipped
    assert all(path.stat().st_size < 1e6 for path in ACTORS.iterdir())


def test_an_actor_is_kept_for_an_episode_and_drawn_by_its_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fixed(Actor):
        def act(self, observations: Any, noise: Any) -> Any:  # noqa: ARG002
            return np.full_like(noise, self.layers[0][0][0, 0])

    def load(name: str) -> Actor:
        first = np.full((11, 3), {"a": 0.25, "b": 0.75}[name], np.float32)
        return Fixed(((first, np.zeros(3, np.float32)),))

    class Mixed(SacDemonstrator):
        robot, actors = "Hopper", {"a": 1.0, "b": 3.0}

    monkeypatch.setattr(demonstrators, "_load", load)
    policy, rows = Mixed(seed=0), np.zeros((4000, 11))
    actions, state = policy.predict(rows)
    assert np.mean(actions == 0.75) == pytest.approx(0.75, abs=0.03)
    same, state = policy.predict(rows, state, np.zeros(4000, np.bool_))
    np.testing.assert_array_equal(same, actions)
    start = np.arange(4000) < 2000
    later, _ = policy.predict(rows, state, start)
    np.testing.assert_array_equal(later[2000:], actions[2000:])
    assert np.any(later[:2000] != actions[:2000])


def test_episodes_are_recorded_from_reset_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))
    settings = CollectSettings(
        env_id="Hopper-v5",
        demonstrator="hopper-medium-replay",
        num_episodes=3,
        num_workers=1,
    )
    collect(settings, progress=False)
    flat = load_flat("diffuser/hopper-medium-replay-v1", progress=False)
    env = gymnasium.make("Hopper-v5")
    for run, start in enumerate(flat.run_starts[:-1]):
        end = flat.run_starts[run + 1]
        assert flat.fields["terminated"][start:end].tolist() == (
            [False] * int(end - start - 1) + [True]  # every one falls, early
        )
    base: Any = env.unwrapped
    env.reset(seed=0)
    seen = flat.fields["observation"][0].astype(np.float64)
    base.set_state(np.r_[0.0, seen[:5]], seen[5:])
    _, reward, *_ = env.step(flat.fields["action"][0])
    assert reward == pytest.approx(flat.fields["reward"][0], abs=1e-3)


def test_scores_are_d4rls() -> None:
    robots = {"HalfCheetah": 12135.0, "Hopper": 3234.3, "Walker2d": 4592.3}
    for robot, best in robots.items():
        score = score_of_returns(gymnasium.make(f"{robot}-v5"))
        assert score is not None
        assert score(best) == pytest.approx(100)
    assert score_of_returns(gymnasium.make("Pendulum-v1")) is None
