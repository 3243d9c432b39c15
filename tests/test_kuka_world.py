"""Arm, tool and blocks in Bullet: the same every time, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import diffuser_envs

HOOK = "import sys; sys.modules['pybullet'] = None"


def run_python(code: str, *, fails: bool = False) -> tuple[str, str]:
    """Run a fresh interpreter beside the package; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(diffuser_envs.__file__).parents[1],
        capture_output=True,
        text=True,
        check=not fails,
    )
    return result.stdout.strip(), result.stderr.strip()


# --- without PyBullet -----------------------------------------------------------------


def test_registering_needs_no_simulator() -> None:
    printed, _ = run_python(
        f"{HOOK}; import gymnasium, diffuser_envs;"
        " import diffuser_envs.kuka.arm, diffuser_envs.kuka.columns;"
        " import diffuser_envs.kuka.tasks, diffuser_envs.kuka.tasks;"
        " print(gymnasium.spec('diffuser_envs/KukaStack-Conditional-v1').id,"
        " 'torch' in sys.modules)"
    )
    assert printed == "diffuser_envs/KukaStack-Conditional-v1 False"


def test_missing_pybullet_names_the_extra() -> None:
    _, problem = run_python(
        f"{HOOK}; import gymnasium, diffuser_envs;"
        " gymnasium.make('diffuser_envs/KukaStack-Unconditional-v1')",
        fails=True,
    )
    assert "MissingExtraError" in problem
    assert 'pip install ".[kuka]"' in problem
    assert "3.11" in problem


# --- with it --------------------------------------------------------------------------

pybullet = pytest.importorskip("pybullet", reason="needs the extra 'kuka'")

from diffuser_envs.kuka import world as world_module  # noqa: E402
from diffuser_envs.kuka.arm import (  # noqa: E402
    HOME,
    JOINT_HIGH,
    JOINT_LOW,
    inverse,
    tool_pose,
)
from diffuser_envs.kuka.columns import layer_height  # noqa: E402
from diffuser_envs.kuka.world import BlockWorld  # noqa: E402
from tests.kuka_env_helpers import ROW  # noqa: E402


@contextmanager
def open_world(num_blocks: int = 4, *, visuals: bool = False) -> Iterator[BlockWorld]:
    """Open a world and close it."""
    world = BlockWorld(num_blocks, visuals=visuals)
    try:
        yield world
    finally:
        world.close()


def clients() -> int:
    """Count Bullet's connections."""
    return sum(pybullet.isConnected(client) for client in range(100))


def carry(world: BlockWorld, block: int = 1) -> np.ndarray:
    """Take a block, carry it onto the next one, let go; return all that was seen."""
    world.reset(HOME, ROW)
    seen = []
    tip = tool_pose(HOME)[0]
    x, y, _ = ROW[block]
    stops = [(y, 0.2), (y, 0.06), (y, 0.3), (y + 0.2, 0.3), (y + 0.2, 0.121)]
    for number, (side, height) in enumerate([*stops, (y + 0.2, 0.3)]):
        goal = np.array([x, side, height])
        for part in np.linspace(0.0, 1.0, 13)[1:]:
            world.step(inverse(tip + part * (goal - tip)))
            seen.append(np.append(world.joints(), world.poses()))
        tip = goal
        if number == 1:
            world.hold(block)
        if number == 4:
            world.release()
    return np.stack(seen)


def test_kinematics_agree_with_bullets() -> None:
    rng = np.random.default_rng(0)
    with open_world() as world:
        for _ in range(20):
            joints = rng.uniform(JOINT_LOW, JOINT_HIGH)
            world.reset(joints, ROW)
            position, down = world.tool_pose()
            expected, rotation = tool_pose(joints)
            assert position == pytest.approx(expected, abs=2e-6)
            assert down == pytest.approx(rotation[:, 2], abs=2e-6)


def test_next_joints_are_the_action_that_gets_there() -> None:
    with open_world() as world:
        world.reset(HOME, ROW)
        for part in np.linspace(0.0, 1.0, 21)[1:]:
            target = HOME + part * np.array([0.8, -0.3, 0.2, 0.4, -0.2, 0.3, 0.5])
            world.step(target)
            assert world.joints() == pytest.approx(target, abs=1e-4)
            assert (world.targets == target).all()


def test_blocks_at_rest_stay_there() -> None:
    tower = np.array([[0.5, 0.0, layer_height(layer)] for layer in range(4)])
    for positions in (ROW, tower):
        with open_world() as world:
            world.reset(HOME, positions)
            for _ in range(384):
                world.step(HOME)
            assert np.abs(world.poses()[:, :3] - positions).max() < 3e-4
            assert np.abs(world.poses()[:, 3:] - (0, 0, 0, 1)).max() < 1e-3


def test_held_block_moves_with_the_tool_and_stays_where_it_is_left() -> None:
    with open_world() as world:
        seen = carry(world)
        heights = seen[:, 7 + 7 + 2]
        lifted = seen[24:48]
        for row in lifted[:-1]:
            tip = tool_pose(row[:7])[0]
            assert row[14:17] == pytest.approx(tip - (0.0, 0.0, 0.03), abs=1.5e-3)
        assert heights[47] == pytest.approx(0.27, abs=1e-3)
        assert seen[-1, 14:17] == pytest.approx((0.5, 0.1, 0.09), abs=1e-3)
        assert world.held is None


# --- determinism ----------------------------------------------------------------------


def test_reset_forgets_what_was_abandoned() -> None:
    with open_world() as fresh:
        expected = carry(fresh)
    with open_world(visuals=True) as world:
        for abandoned in (0, 2, 1):
            carry(world, abandoned)
            world.hold(abandoned)
            for height in (0.3, 0.2):
                world.step(inverse((0.5, 0.0, height)))
            assert world.held == abandoned
            np.testing.assert_array_equal(carry(world), expected)


def test_worlds_do_not_disturb_each_other() -> None:
    with open_world() as first, open_world() as second:
        expected = carry(first)
        second.reset(HOME, ROW[::-1])
        first.reset(HOME, ROW)
        second.step(HOME + 0.05)
        np.testing.assert_array_equal(carry(first), expected)
        np.testing.assert_array_equal(carry(second), expected)


# --- leaks ----------------------------------------------------------------------------


def test_closing_frees_the_client_once() -> None:
    before = clients()
    world = BlockWorld(2)
    assert clients() == before + 1
    number = world.client
    world.close()
    assert clients() == before
    with open_world() as other:
        assert other.client == number  # Bullet hands numbers out again,
        world.close()  # so closing twice must not close somebody else's
        assert clients() == before + 1


def test_forgotten_world_frees_its_client() -> None:
    before = clients()
    world = BlockWorld(2)
    del world
    assert clients() == before


@pytest.mark.skipif(sys.platform == "win32", reason="reads the memory in use by POSIX")
def test_worlds_leave_no_memory_behind() -> None:
    import resource

    for world in range(12):
        with open_world(visuals=True):
            pass
        if world == 2:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000  # kB; nine worlds that stayed would take 300 MB


def test_failing_to_build_frees_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    before = clients()

    def fail() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(world_module, "arm_file", fail)
    with pytest.raises(OSError, match="no space"):
        BlockWorld(2)
    assert clients() == before


def test_import_prints_nothing() -> None:
    assert run_python("import diffuser_envs.kuka.world") == ("", "")
    # Not even where there is no standard error to keep quiet.
    run_python("import os; os.close(2); import diffuser_envs.kuka.world")
