"""What the block-stacking environments refuse, and that nothing changes then."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

from diffuser_envs.errors import (
    ClosedEnvError,
    KukaActionError,
    KukaArrangementError,
    KukaOptionError,
)
from diffuser_envs.kuka.columns import PAIRS
from diffuser_envs.kuka.env import KukaStackEnv
from tests.kuka_env_helpers import (
    ROW,
    STILL,
    make,
    start,
    state_of,
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_blocks": 6}, "2 to 5"),
        ({"num_blocks": 1}, "2 to 5"),
        ({"grasp": "sucton"}, "did you mean 'suction'"),
        ({"task": "conditionel"}, "did you mean 'conditional'"),
        ({"joint_noise": -0.1}, "joint_noise"),
        ({"joint_noise": float("nan")}, "joint_noise"),
        ({"num_blocks": 2.5}, "2 to 5"),
        ({"substeps": 0}, "substeps"),
        ({"substeps": float("nan")}, "substeps"),
        ({"render_mode": "humen"}, "rgb_array"),
        ({"width": 0}, "pixel"),
    ],
)
def test_arguments_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(KukaOptionError, match=message):
        KukaStackEnv(**settings)


TWICE = [float(pair in {(0, 1), (2, 1), (3, 2)}) for pair in PAIRS]
CYCLE = [float(pair in {(0, 1), (1, 0), (3, 2)}) for pair in PAIRS]
TOO_FAR = [[0.9, 0.0, 0.03], *ROW[1:].tolist()]
OVERLAPPING = [[0.5, -0.15, 0.03], *ROW[1:].tolist()]
FLOATING = [[0.5, -0.3, 0.2], *ROW[1:].tolist()]


@pytest.mark.parametrize(
    ("task", "options", "error", "message"),
    [
        ("conditional", {"goal": TWICE}, KukaArrangementError, "twice"),
        ("conditional", {"goal": CYCLE}, KukaArrangementError, "circle"),
        ("conditional", {"goal": [1.0]}, KukaOptionError, "12 finite"),
        ("conditional", {"goal": "tower"}, KukaOptionError, "12 finite"),
        ("unconditional", {"goal": TWICE}, KukaOptionError, "has no goal"),
        ("rearrangement", {"goal": TOO_FAR}, KukaArrangementError, "out of reach"),
        ("rearrangement", {"goal": OVERLAPPING}, KukaArrangementError, "overlap"),
        ("rearrangement", {"goal": FLOATING}, KukaArrangementError, "stands on"),
        ("rearrangement", {"goal": np.full(12, np.nan)}, KukaOptionError, "finite"),
        ("unconditional", {"blocks": TOO_FAR}, KukaArrangementError, "out of reach"),
        ("unconditional", {"blocks": ROW[:3]}, KukaArrangementError, "4 times"),
        ("unconditional", {"joints": [0.0] * 6}, KukaOptionError, "7 finite"),
        ("unconditional", {"joints": [9.0] * 7}, KukaOptionError, "limits"),
        ("unconditional", {"block": ROW}, KukaOptionError, "did you mean 'blocks'"),
    ],
)
def test_reset_options_are_checked_before_anything_changes(
    task: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    env = make(task)
    start(env, seed=4)
    state = state_of(env.step(STILL)[0])
    with pytest.raises(error, match=message):
        env.reset(seed=5, options=options)
    assert state_of(env.step(STILL)[0])[7:] == pytest.approx(state[7:], abs=1e-4)
    env.close()


@pytest.mark.parametrize(
    "action", [np.zeros(7), np.zeros((1, 8)), np.full(8, np.nan), np.full(8, np.inf)]
)
def test_actions_are_checked(action: np.ndarray) -> None:
    env = KukaStackEnv()
    env.reset(seed=0)
    with pytest.raises(KukaActionError, match="an action"):
        env.step(action)
    env.step(STILL)
    env.close()


def test_nothing_works_after_close_or_before_reset() -> None:
    env = KukaStackEnv(render_mode="rgb_array")
    with pytest.raises(ClosedEnvError, match="reset"):
        env.step(STILL)
    with pytest.raises(ClosedEnvError, match="reset"):
        env.finish()
    env.reset(seed=0)
    env.close()
    env.close()
    for use in (lambda: env.step(STILL), env.reset, env.render, env.finish):
        with pytest.raises(ClosedEnvError, match="closed"):
            use()
