"""Block stacking on the page of `diffuser-policy play`: what is seen and dragged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
pytest.importorskip("trimesh", reason="needs the extra 'play'")

import diffuser_envs  # noqa: F401
from diffuser_envs.errors import KukaArrangementError, KukaOptionError
from diffuser_envs.kuka import arm
from diffuser_envs.kuka.playing import TASKS, BlockPlayWorld, settled

APART = np.array([[0.5, -0.3, 0.03], [0.5, 0.0, 0.03], [0.5, 0.3, 0.03]])


def made(task: str) -> Any:
    env: Any = gymnasium.make(f"diffuser_envs/KukaStack-{task}-v1").unwrapped
    env.reset(seed=0)
    return env


@pytest.fixture(params=["Unconditional", "Conditional", "Rearrangement"])
def env(request: pytest.FixtureRequest) -> Iterator[Any]:
    env = made(request.param)
    yield env
    env.close()


def world_of(env: Any) -> BlockPlayWorld:
    world = env.play_world({"position": (0, 1, 2)})
    assert isinstance(world, BlockPlayWorld)
    return world


def test_a_block_that_is_dropped_on_another_stands_on_it() -> None:
    stacked = settled(APART, 0, np.array([0.52, 0.01]))
    assert np.allclose(stacked[0], [0.5, 0.0, 0.09])
    assert np.array_equal(stacked[1:], APART[1:])


def test_what_stood_on_a_carried_block_falls() -> None:
    stacked = settled(APART, 0, APART[1, :2])
    carried = settled(stacked, 1, np.array([0.5, -0.3]))
    assert np.allclose(carried[0], [0.5, 0.0, 0.03])
    assert np.allclose(carried[1], [0.5, -0.3, 0.03])


def test_the_arm_is_drawn_where_it_is(env: Any) -> None:
    world = world_of(env)
    names = [mesh[0] for mesh in world.meshes()]
    poses = world.poses(np.zeros(19))
    assert len(names) == len(poses) == 9 + env.num_blocks
    tip = poses[names.index("link 8"), :3]
    joints = env._world.joints()
    assert np.allclose(tip, arm.tool_position(joints), atol=1e-3)
    centers = env.block_poses()[:, :3]
    assert np.array_equal(poses[-env.num_blocks :, :3], centers)
    assert np.allclose(np.linalg.norm(poses[:, 3:], axis=1), 1)


def test_every_world_offers_the_three_tasks(env: Any) -> None:
    values, here = world_of(env).choices()["task"]
    assert tuple(values) == tuple(TASKS)
    assert env.task.name.capitalize() in TASKS[here]


def test_a_ghost_that_is_pulled_up_reorders_the_tower() -> None:
    env = made("Conditional")
    world = world_of(env)
    order = sorted(world.ghosts(), key=lambda name: world.ghosts()[name][1][2])
    world.move(order[0], (0.0, 0.0, 1.0))
    again = sorted(world.ghosts(), key=lambda name: world.ghosts()[name][1][2])
    assert again == [*order[1:], order[0]]
    env.reset(seed=0, options=world.options())
    assert np.array_equal(env.goal, world.options()["goal"])
    assert world.caption().startswith("stage: ")
    env.close()


@pytest.mark.parametrize("following", ["block 0", "block 1", "goal 0"])
def test_a_block_that_was_dragged_out_of_reach_does_not_block_other_drags(
    following: str,
) -> None:
    env = made("Rearrangement")
    world = world_of(env)
    apart = np.array([*APART, [0.3, 0.45, 0.03]])
    world.set_options({"blocks": apart.tolist(), "goal": apart.reshape(-1).tolist()})
    env.reset(seed=0, options=world.options())
    before = {name: place for name, place, _ in world.handles(None)}
    world.move("block 0", (2.0, 0.0, 0.0))
    with pytest.raises(KukaArrangementError, match=r"block 0 .* out of reach"):
        env.reset(seed=0, options=world.options())
    assert {name: place for name, place, _ in world.handles(None)} == before
    env.reset(seed=0, options=world.options())
    assert {name: place for name, place, _ in world.handles(None)} == before
    x, y, z = before[following]
    world.move(following, (x + 0.01, y, z))
    env.reset(seed=0, options=world.options())
    after = {name: place for name, place, _ in world.handles(None)}
    for name, place in before.items():
        off = (0.01, 0.0, 0.0) if name == following else (0.0, 0.0, 0.0)
        assert np.allclose(np.subtract(after[name], place), off, atol=2e-4)
    env.close()


def test_blocks_start_where_they_are_dragged() -> None:
    env = made("Rearrangement")
    world = world_of(env)
    world.set_options({"blocks": [*APART.tolist(), [0.3, 0.45, 0.03]]})
    world.move("block 0", (*APART[1, :2], 0.0))
    env.reset(seed=0, options=world.options())
    assert np.allclose(env.block_poses()[0, :3], [0.5, 0.0, 0.09], atol=1e-6)
    world.move("block 0", (2.0, 0.0, 0.0))
    with pytest.raises(KukaArrangementError, match="out of reach"):
        env.reset(seed=0, options=world.options())
    with pytest.raises(KukaOptionError, match="'joints'"):
        world.set_options({"joints": [0.0] * 7})
    env.close()
