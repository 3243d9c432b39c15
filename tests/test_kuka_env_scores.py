"""The score of an episode of block stacking, and why it is not 100."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

from diffuser_envs.kuka.columns import PAIRS
from diffuser_envs.kuka.tasks import tower_goal
from tests.kuka_env_helpers import (
    ROW,
    make,
    start,
)


def test_last_step_carries_the_settled_score() -> None:
    env = make("conditional", max_episode_steps=200)
    mover, _ = start(env, blocks=ROW, goal=tower_goal((0, 1, 2, 3)))
    mover.stack(1, 0)
    mover.pick(2)
    above = mover.block(1) * (1, 1, 0) + (0.0, 0.0, 0.1801)  # above its place, held
    mover.go(above + np.array([0.0, 0.0, 0.2]), grip=True, steps=25)
    while "score" not in mover.info:
        mover.go(above, grip=True, steps=max(1, 175 - len(mover.states)))
    info = mover.info
    assert mover.reward == pytest.approx(1 / 3)  # held: not on anything yet
    assert info["score"] == pytest.approx(200 / 3)  # let go of and settled: it is
    assert info["latched_score"] == pytest.approx(200 / 3)
    assert {PAIRS[i] for i in np.flatnonzero(info["met"])} == {(1, 0), (2, 1)}
    assert (info["pairs"] == info["met"]).all()
    assert info["failure"] == "out of time"
    assert info["attempts"]["placed"] == 2
    assert info["positions"].shape == (4, 3)
    env.close()


def test_latched_score_keeps_what_has_fallen() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    mover.stack(1, 0)
    mover.pick(1)
    mover.place(ROW[1] + (0.0, 0.0, 0.001))
    base: Any = env.unwrapped
    report = base.finish()
    assert report["score"] == 0.0
    assert report["latched_score"] == pytest.approx(100 / 3)
    assert report["failure"] == "knocked over"
    env.close()


def test_finished_tower_has_no_failure() -> None:
    env = make("rearrangement")
    goal = ROW.copy()
    goal[0] = ROW[1] + (0.0, 0.0, 0.06)
    goal[2] = ROW[3] + (0.0, 0.0, 0.06)
    mover, _ = start(env, blocks=ROW, goal=goal)
    base: Any = env.unwrapped
    assert base.goal.tolist() == goal.reshape(-1).tolist()
    mover.stack(0, 1)
    assert mover.reward == 0.75  # 1 and 3 never had to move
    mover.stack(2, 3)
    report = base.finish()
    assert report["score"] == report["latched_score"] == 100.0
    assert report["failure"] is None
    assert report["met"].tolist() == [1, 1, 1, 1]
    env.close()


@pytest.mark.parametrize(
    ("aside", "height", "reason"),
    [(0.07, 0.0925, "off-centre"), (0.0, 0.25, None), (0.2, 0.2, "dropped")],
)
def test_bad_releases_are_named(aside: float, height: float, reason: str) -> None:
    env = make(num_blocks=2)
    mover, _ = start(env, blocks=ROW[:2])
    mover.pick(0)
    mover.place((0.5, -0.1 + aside, height))
    base: Any = env.unwrapped
    report = base.finish()
    assert report["failure"] == reason
    assert (report["score"] == 100.0) == (reason is None)
    env.close()


def test_miss_is_named() -> None:
    env = make()
    mover, _ = start(env, blocks=ROW)
    mover.pick(0, offset=np.array([0.08, 0.0, 0.0]))
    assert mover.flag(0) == 0.0
    base: Any = env.unwrapped
    report = base.finish()
    assert report["failure"] == "missed grasp"
    assert report["attempts"]["missed"] == 1
    env.close()


def test_score_waits_for_what_is_still_falling() -> None:
    env = make(num_blocks=2)
    mover, _ = start(env, blocks=ROW[:2])
    mover.pick(0)
    mover.go((0.5, -0.1, 0.35), grip=True)
    mover.go((0.5, -0.1, 0.2), grip=True)
    assert mover.reward == 0.0
    base: Any = env.unwrapped
    report = base.finish()
    assert report["score"] == 100.0
    assert report["failure"] is None
    assert report["positions"][0] == pytest.approx((0.5, -0.1, 0.09), abs=5e-3)
    env.close()
