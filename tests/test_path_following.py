"""The path executor keeps to the path, in its own time."""

from __future__ import annotations

import numpy as np
import pytest

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.errors import ConfigError
from diffuser_policy.planning.executors import FLOOR, PathExecutor
from diffuser_policy.planning.plan import Following

LAYOUT = TrajectoryLayout(
    action_dim=0, observation_dim=4, aliases={"position": (0, 1), "velocity": (2, 3)}
)
SECONDS, STRIDE, SPEED = 0.01, 5, 2.0


def straight(
    progress: float = 10.0, *, speed: float = SPEED, num_steps: int = 9
) -> Following:
    """Return a plan along x at SPEED by its positions, and at `speed` by its columns.

    Args:
        progress: Env steps.
        speed: Meters per second.
        num_steps: Planning steps.
    """
    plan = np.zeros((1, num_steps, 4))
    plan[0, :, 0] = SPEED * SECONDS * STRIDE * np.arange(num_steps)
    plan[0, :, 2] = speed
    return Following(
        observations=plan,
        actions=np.zeros((1, num_steps, 0)),
        lengths=np.array([num_steps]),
        progress=np.array([progress]),
        stride=STRIDE,
    )


def state(x: float, y: float = 0.0, speed: float = SPEED) -> np.ndarray:
    return np.array([[x, y, speed, 0.0]])


def on_path(progress: float) -> float:
    return SPEED * SECONDS * progress


def executor(**settings: float) -> PathExecutor:
    return PathExecutor(LAYOUT, seconds_per_step=SECONDS, **settings)


@pytest.mark.parametrize(
    ("speed", "tempo", "pace"),
    [
        (2.0, 1.0, 1.0),
        (1.0, 1.0, 0.5),
        (2.0, 0.7, 0.7),
        (9.0, 1.0, 1.0),
        (0.0, 1.0, FLOOR),
        (0.0, 0.5, 0.5 * FLOOR),
    ],
)
def test_planned_velocities_set_the_pace(
    speed: float, tempo: float, pace: float
) -> None:
    following = straight(speed=speed)
    made = executor(tempo=tempo)
    assert made.pace(following)[0] == pytest.approx(pace)
    after = made.progress(following, state(on_path(10.0)))
    assert after[0] == pytest.approx(10.0 + pace)


@pytest.mark.parametrize(
    ("off", "share"), [(0.0, 1.0), (0.1, 1.0), (0.15, 0.5), (0.2, FLOOR), (9.0, FLOOR)]
)
def test_the_clock_waits_for_a_ball_off_the_path(off: float, share: float) -> None:
    after = executor(tolerance=0.2).progress(straight(), state(on_path(10.0), off))
    assert after[0] == pytest.approx(10.0 + share)


def test_on_the_path_at_its_pace_nothing_is_corrected() -> None:
    for speed in (0.5, SPEED):
        action = executor().act(straight(speed=speed), state(on_path(10.0), 0.0, speed))
        np.testing.assert_allclose(action, 0.0, atol=1e-12)


def test_corrections_are_proportional_and_derivative() -> None:
    made = executor(position_gain=3.0, velocity_gain=0.5)
    action = made.act(straight(), state(on_path(10.0) - 0.1, 0.2, SPEED - 1.0))
    np.testing.assert_allclose(action, [[3.0 * 0.1 + 0.5 * 1.0, -3.0 * 0.2]])


@pytest.mark.parametrize(("num_steps", "now"), [(1, 100.0), (9, 100.0), (9, 40.0)])
def test_after_the_plan_its_end_is_held_and_the_clock_runs(
    num_steps: int, now: float
) -> None:
    following = straight(now, num_steps=num_steps)
    end = on_path((num_steps - 1) * STRIDE)
    action = executor().act(following, state(end, 0.0, 0.0))
    np.testing.assert_allclose(action, 0.0, atol=1e-12)
    assert executor().progress(following, state(end, 5.0))[0] == now + 1


def test_the_first_and_last_steps_know_their_direction() -> None:
    for progress in (0.0, 1.0, 39.0):
        assert executor().pace(straight(progress))[0] == pytest.approx(1.0)


@pytest.mark.parametrize("progress", [0.0, 1.0, 20.0, 37.0, 38.0, 39.0, 39.9])
def test_the_pace_is_as_planned_up_to_both_ends(progress: float) -> None:
    following = straight(progress, speed=SPEED / 2)
    assert executor().pace(following)[0] == pytest.approx(0.5)


def test_a_layout_without_velocity_is_refused() -> None:
    bare = TrajectoryLayout(
        action_dim=0, observation_dim=2, aliases={"position": (0, 1)}
    )
    with pytest.raises(ConfigError, match="velocity"):
        PathExecutor(bare, seconds_per_step=SECONDS)
