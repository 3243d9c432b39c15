"""The stacking demonstrator in the physics environment, undisturbed and disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from diffuser_envs.errors import (
    KukaArrangementError,
    KukaObservationError,
    KukaOptionError,
    UnsupportedEnvError,
)
from diffuser_envs.kuka.arm import HOME
from diffuser_envs.kuka.columns import ordered_pairs
from diffuser_envs.kuka.demonstrator import StackDemonstrator
from diffuser_envs.kuka.generators import (
    KinematicRecorder,
    PhysicsRecorder,
    TowerRecorder,
    replay,
)

pybullet = pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

TASKS = ("Unconditional", "Conditional", "Rearrangement")
Change = Callable[[int, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def envs() -> Iterator[dict[str, gym.Env[Any, Any]]]:
    made = {task: gym.make(f"diffuser_envs/KukaStack-{task}-v1") for task in TASKS}
    yield made
    for env in made.values():
        env.close()


def run(
    env: gym.Env[Any, Any], seed: int, change: Change = lambda _, action: action
) -> tuple[list[float], dict[str, Any]]:
    """Run one episode; `change` may falsify actions on their way to the env."""
    policy = StackDemonstrator.from_env(env)
    observation, _ = env.reset(seed=seed)
    rewards: list[float] = []
    info: dict[str, Any] = {}
    state = None
    truncated = False
    while not truncated:
        action, state = policy.predict(observation, state, np.array([not rewards]))
        observation, reward, _, truncated, info = env.step(
            change(len(rewards), action.copy())
        )
        rewards.append(float(reward))
    return rewards, info


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_solved_and_stays_solved(
    envs: dict[str, gym.Env[Any, Any]], task: str
) -> None:
    rewards, info = run(envs[task], 0)
    assert info["score"] == 100.0
    assert rewards[-40:] == [1.0] * 40


def test_a_missed_grasp_is_made_up_for(envs: dict[str, gym.Env[Any, Any]]) -> None:
    def no_grasp(step: int, action: np.ndarray) -> np.ndarray:
        action[7] *= step > 30
        return action

    rewards, _ = run(envs["Unconditional"], 3, no_grasp)
    plain, _ = run(envs["Unconditional"], 3)
    assert rewards[-1] == 1.0
    assert 5 < rewards.index(1.0) - plain.index(1.0) < 60


def test_a_dropped_block_is_picked_up_again(
    envs: dict[str, gym.Env[Any, Any]],
) -> None:
    dropped = []

    def drop(step: int, action: np.ndarray) -> np.ndarray:
        if action[7] > 0.5:
            dropped.append(step)
        if 8 <= len(dropped) <= 9:
            action[7] = 0.0
        return action

    rewards, _ = run(envs["Conditional"], 2, drop)
    assert len(dropped) > 9
    assert rewards[-1] == 1.0


def test_noise_on_the_joints_is_survived(envs: dict[str, gym.Env[Any, Any]]) -> None:
    rng = np.random.default_rng(0)

    def noisy(_: int, action: np.ndarray) -> np.ndarray:
        action[:7] += rng.normal(0.0, 0.01, 7)
        return action

    assert run(envs["Unconditional"], 5, noisy)[0][-1] == 1.0


def test_a_batch_is_its_rows(envs: dict[str, gym.Env[Any, Any]]) -> None:
    env = envs["Rearrangement"]
    policy = StackDemonstrator.from_env(env, off_centre=0.005)
    rows = [env.reset(seed=seed)[0] for seed in (1, 2)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    together, state = policy.predict(batch)
    assert together.shape == (2, 8)
    assert together.dtype == np.float32
    for row, action in zip(rows, together, strict=True):
        np.testing.assert_array_equal(policy.predict(row)[0], action)
    swapped = {name: values[::-1] for name, values in batch.items()}
    np.testing.assert_array_equal(policy.predict(swapped)[0], together[::-1])
    restarted, _ = policy.predict(swapped, state, np.array([True, True]))
    np.testing.assert_array_equal(restarted, together[::-1])


def test_the_state_is_never_changed(envs: dict[str, gym.Env[Any, Any]]) -> None:
    policy = StackDemonstrator.from_env(envs["Unconditional"])
    observation, _ = envs["Unconditional"].reset(seed=0)
    _, state = policy.predict(observation)
    first, _ = policy.predict(observation, state)
    again, _ = policy.predict(observation, state)
    np.testing.assert_array_equal(first, again)


def test_the_seed_decides_the_order_and_determinism_centres_grasps(
    envs: dict[str, gym.Env[Any, Any]],
) -> None:
    observation, _ = envs["Unconditional"].reset(seed=0)
    orders = set()
    for seed in range(12):
        policy = StackDemonstrator(seed=seed)
        memories = policy.predict(observation)[1][0]
        orders.add(memories[0].order)
    assert len(orders) > 5

    def grasp_offset(deterministic: bool) -> float:
        policy = StackDemonstrator(off_centre=0.01)
        memory = policy.predict(observation, deterministic=deterministic)[1][0][0]
        grasp = int(np.flatnonzero(memory.motion.held >= 0)[0])
        block = memory.blocks[grasp, memory.motion.held[grasp]]
        return float(np.hypot(*(memory.motion.tool[grasp] - block)[:2]))

    assert grasp_offset(deterministic=True) < 1e-6
    assert grasp_offset(deterministic=False) > 1e-4


def test_blocks_out_of_reach_leave_the_arm_where_it_is() -> None:
    observation = np.zeros(39, np.float32)
    observation[:7] = HOME
    observation[13::8] = 1.0
    for block in range(4):
        observation[7 + 8 * block : 10 + 8 * block] = (1.5, 0.3 * block, 0.03)
    policy, state = StackDemonstrator(), None
    for _ in range(3):
        action, state = policy.predict(observation, state)
        np.testing.assert_array_equal(action, np.append(observation[:7], 0.0))


def test_bad_input_is_refused(envs: dict[str, gym.Env[Any, Any]]) -> None:
    plain = StackDemonstrator()
    good, _ = envs["Unconditional"].reset(seed=0)
    with pytest.raises(KukaObservationError, match="39 finite numbers"):
        plain.predict(np.zeros(38))
    with pytest.raises(KukaObservationError, match="39 finite numbers"):
        plain.predict(np.full(39, np.nan))
    with pytest.raises(KukaObservationError, match="for 1 environment,"):
        plain.predict(np.stack((good, good)), plain.predict(good)[1])
    goal = StackDemonstrator("conditional")
    with pytest.raises(KukaObservationError, match="needs goal observations"):
        goal.predict(good)
    with pytest.raises(KukaObservationError, match=r"lacks \['desired_goal'\]"):
        goal.predict({"observation": good})
    wrong: Any
    for wrong in (np.full(12, np.nan), np.zeros(11), np.zeros(()), "red on blue"):
        with pytest.raises(KukaObservationError, match="goal must be 12 finite num"):
            goal.predict({"observation": good, "desired_goal": wrong})
    two = {"observation": np.stack((good, good)), "desired_goal": np.zeros((3, 12))}
    with pytest.raises(KukaObservationError, match="of the same environments"):
        goal.predict(two)
    with pytest.raises(KukaObservationError, match="39 finite numbers"):
        plain.predict("red on blue")
    circle = ((0, 1), (1, 2), (2, 0))
    pairs = np.array([float(pair in circle) for pair in ordered_pairs(4)])
    with pytest.raises(KukaArrangementError, match="cycle"):
        goal.predict({"observation": good, "desired_goal": pairs})
    with pytest.raises(KukaOptionError, match="unknown task 'juggling'"):
        StackDemonstrator("juggling")
    with pytest.raises(UnsupportedEnvError, match="KukaStack"):
        StackDemonstrator.from_env(gym.make("Pendulum-v1"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"clearance": np.nan},
        {"clearance": "x"},
        {"clearance": 0.25},  # it would never get over a tower
        {"off_centre": -0.1},
        {"grasp_steps": 0},
        {"num_blocks": 1},
        {"num_blocks": 9},
        {"seed": -1},
        {"seed": 1.5},
        {"seed": None},
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(wrong: dict[str, Any]) -> None:
    with pytest.raises(KukaOptionError, match=f"{next(iter(wrong))} must be"):
        StackDemonstrator(**wrong)


def test_places_that_no_blocks_can_have_are_refused(
    envs: dict[str, gym.Env[Any, Any]],
) -> None:
    policy = StackDemonstrator.from_env(envs["Rearrangement"])
    observation, _ = envs["Rearrangement"].reset(seed=0)
    same = np.tile([0.5, 0.0, 0.03], 4)
    with pytest.raises(KukaArrangementError, match="no sequence of moves"):
        policy.predict({**observation, "desired_goal": same})


# --- generators of datasets ---------------------------------------------------------


def test_kinematic_demonstrations_are_true(
    envs: dict[str, gym.Env[Any, Any]],
) -> None:
    recorder = KinematicRecorder.from_env(envs["Unconditional"])
    assert all(recorder.verify(seed) for seed in (*range(4), 455))


def test_untrue_demonstrations_are_found_out(
    envs: dict[str, gym.Env[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = KinematicRecorder.from_env(envs["Unconditional"])
    true = recorder.demonstrate(0)
    true.actions[60:, 7] = 0.0  # lets go of everything from here on
    monkeypatch.setattr(KinematicRecorder, "demonstrate", lambda *_: true)
    assert not recorder.verify(0)


@pytest.mark.parametrize("kind", [KinematicRecorder, PhysicsRecorder])
def test_what_cannot_be_carried_out_is_not_recorded(
    envs: dict[str, gym.Env[Any, Any]],
    monkeypatch: pytest.MonkeyPatch,
    kind: type[TowerRecorder],
) -> None:
    recorder: Any = kind.from_env(envs["Unconditional"])
    fallen, unfinished = recorder.demonstrate(0), recorder.demonstrate(0)
    fallen.observations[0, 9] = 0.5  # block 0 starts in the air
    unfinished.rewards[-1] = 0.5

    def nowhere(*_: object) -> None:
        raise KukaArrangementError("no free place is left")

    for made in (lambda *_: fallen, lambda *_: unfinished, nowhere):
        monkeypatch.setattr(kind, "demonstrate", made)
        assert recorder.record(0) is None
        if kind is KinematicRecorder:
            assert not recorder.verify(0)


def test_physics_records_what_is_observed(envs: dict[str, gym.Env[Any, Any]]) -> None:
    env = envs["Unconditional"]
    recorder = PhysicsRecorder.from_env(env, rebuild_share=1.0, grasp_steps=3.0)
    recorded = recorder.record(0)
    assert recorded is not None
    planned = recorder.demonstrate(0)
    again = replay(env.unwrapped, planned)
    np.testing.assert_array_equal(recorded.observations, again.observations)
    assert (recorded.observations != planned.observations).any()
    np.testing.assert_allclose(recorded.observations, planned.observations, atol=0.01)


def test_failed_attempts_are_not_recorded(
    envs: dict[str, gym.Env[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = PhysicsRecorder.from_env(envs["Unconditional"])
    failing = recorder.demonstrate(0)
    failing.actions[60:, 7] = 0.0
    monkeypatch.setattr(PhysicsRecorder, "demonstrate", lambda *_: failing)
    assert recorder.record(0) is None


def test_towers_are_recorded_in_one_environment_only(
    envs: dict[str, gym.Env[Any, Any]],
) -> None:
    with pytest.raises(UnsupportedEnvError, match="Unconditional-v1"):
        KinematicRecorder.from_env(envs["Rearrangement"])
    with pytest.raises(KukaOptionError, match="detour_share"):
        KinematicRecorder.from_env(envs["Unconditional"], detour_share=7.0)
