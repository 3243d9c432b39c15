"""The page of `diffuser-policy play`, its worlds and its command, without a browser."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import math
import queue
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from torch import Tensor

from diffuser_policy import DiffuserPolicy
from diffuser_policy.cli import main
from diffuser_policy.config import ExecutionConfig, WindowConfig
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.guides.registry import GUIDES, register_guide
from diffuser_policy.guides.trajectory import Trajectory
from diffuser_policy.interrupts import hear_interrupts
from diffuser_policy.play.page import Page, _check_host
from diffuser_policy.play.panel import PLOTS_PER_SECOND, SLIDERS
from diffuser_policy.play.scene import WIDTH
from diffuser_policy.play.session import Frame, Session
from diffuser_policy.play.sharing import as_command
from diffuser_policy.play.worlds import BodyWorld, MazeWorld, World
from diffuser_policy.testing.toys import toy_config, toy_policy

pytest.importorskip("viser", reason="needs the extra 'play'")
pytest.importorskip("gymnasium_robotics", reason="needs the extra 'maze'")

UMAZE = "diffuser_envs/Multi2D-UMaze-v1"


def shown(page: Page) -> Frame:
    assert page.frame is not None
    return page.frame


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def toy_session(env_id: str) -> Session:
    """Return a session of an untrained planner without goals or names."""
    env = make_env(env_id)
    env.action_space.seed(0)
    observations, actions = [env.reset(seed=0)[0]], []
    for _ in range(40):
        actions.append(env.action_space.sample())
        observations.append(env.step(actions[-1])[0])
    fields = {
        "observation": np.array(observations[:-1], float),
        "action": np.array(actions, float),
        "reward": np.zeros(40),
        "terminated": np.zeros(40, np.bool_),
    }
    space: Any = env.action_space
    bounds = {"action_low": space.low.tolist(), "action_high": space.high.tolist()}
    metadata = {"dataset_id": "toy/v0", "env_id": env_id, **bounds}
    config = toy_config(
        time_to_goal=None,
        window=WindowConfig(horizon=16, hindsight_goal="none"),
        execution=ExecutionConfig(executor="actions"),
    )
    policy = toy_policy(config, flat=FlatDataset(fields, np.array([0, 40]), metadata))
    return Session(policy, env, planner="toy", env_id=env_id)


@pytest.fixture
def serve() -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def served(session: Session, **settings: Any) -> Page:
        pages.append(Page(session, **{"port": 19080, **settings}))
        until(lambda: pages[-1].frame)
        return pages[-1]

    yield served
    for page in pages:
        page.close()
        page.session.close()


def maze_session() -> Session:
    policy = DiffuserPolicy.from_pretrained("multi2d-umaze")
    options = {"start": [-1.0, -1.0], "goal": [-1.0, 1.0]}
    return Session(
        policy, make_env(UMAZE), planner="multi2d-umaze", env_id=UMAZE, options=options
    )


@pytest.mark.enable_socket
def test_a_page_plans_moves_guides_and_ends(serve: Callable[..., Page]) -> None:
    page = serve(maze_session())
    assert page.host == "127.0.0.1"
    with socket.create_connection(("127.0.0.1", page.port)) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in caller.recv(4096)
    session, nodes = page.session, page.view._nodes
    page.worker.post("goal", session.move, "goal", (0.5, 1.0, 0.0))
    until(lambda: np.allclose(shown(page).path[-1, :2], [0.5, 1.0], atol=1e-3))
    until(lambda: np.allclose(nodes["/handles/goal"].position[:2], [0.5, 1.0]))
    page.worker.post("add", page.panel._add_guide, "keep-out")
    until(lambda: "/guides/0/center" in nodes)
    disc = nodes["/guides/0/shape 0"]
    page.worker.post("move", session.move_guide, 0, "center", (0.4, 0.9, 0.0))
    until(lambda: np.allclose(disc.position[:2], [0.4, 0.9]))
    assert page.panel._fields[0, "center"].value == "0.4,0.9"
    page.worker.post("remove", page.panel._remove_guide, 0, 1)
    until(lambda: "/guides/0/center" not in nodes)
    page.close()
    until(lambda: [t.name for t in threading.enumerate()].count("planner") == 0)


@pytest.mark.enable_socket
def test_a_guide_with_a_default_that_json_lacks_is_added(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GUIDES, "registered", {})

    @register_guide("capped")
    def capped(trajectory: Trajectory, *, limit: float = math.inf) -> Tensor:
        return trajectory.position.clamp(max=limit).sum(dim=(1, 2))

    page = serve(maze_session())
    page.worker.post("add", page.panel._add_guide, "capped")
    until(lambda: (0, "limit") in page.panel._fields)
    assert page.panel._fields[0, "limit"].value == "inf"
    assert "--guide capped" in as_command(page.session.setup)


@pytest.mark.enable_socket
def test_the_handle_of_the_start_stays_while_the_robot_moves(
    serve: Callable[..., Page],
) -> None:
    env = make_env(UMAZE)
    policy = DiffuserPolicy.from_pretrained("multi2d-umaze")
    page = serve(Session(policy, env, planner="multi2d-umaze", env_id=UMAZE))
    session, nodes = page.session, page.view._nodes
    until(lambda: "/handles/start" in nodes)
    start = np.array(session.observation["achieved_goal"])
    page.worker.post("run", session.run)
    until(lambda: shown(page).env_steps >= 30)
    page.worker.post("run", session.pause)
    until(lambda: not session.going)
    assert not np.allclose(shown(page).state[:2], start, atol=0.05)
    assert np.allclose(nodes["/handles/start"].position[:2], start, atol=1e-4)


@pytest.mark.enable_socket
def test_no_slider_offers_what_plans_of_a_single_action_refuse(
    serve: Callable[..., Page],
) -> None:
    policy = DiffuserPolicy.from_pretrained("walker2d")
    env = make_env("Walker2d-v5")
    gui = Mock()
    for page, are_there in [
        (serve(Session(policy, env, planner="walker2d", env_id="Walker2d-v5")), False),
        (serve(toy_session("Pendulum-v1"), port=19180), True),
    ]:
        gui.reset_mock()
        page.panel._add_settings(gui)
        labels = [call.args[0] for call in gui.add_slider.call_args_list]
        for name in ("replan_interval", "warm_start"):
            assert (SLIDERS[name][0] in labels) == are_there


@pytest.mark.enable_socket
def test_a_taken_port_is_passed_over(serve: Callable[..., Page]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        page = serve(toy_session("Pendulum-v1"), port=port)
        assert page.port > port


@pytest.mark.enable_socket
@pytest.mark.timeout(60)
def test_it_is_said_if_no_port_is_free() -> None:
    session = toy_session("Pendulum-v1")
    with socket.socket() as holder:
        with contextlib.suppress(OSError):  # others hold it
            holder.bind(("127.0.0.1", 65535))
            holder.listen()
        with pytest.raises(ConfigError, match="No port from 65535 to 65535 is free"):
            Page(session, port=65535)
    session.close()


@pytest.mark.enable_socket
@pytest.mark.timeout(60)
@pytest.mark.parametrize("host", ["192.0.2.1", "no..host"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    session = toy_session("Pendulum-v1")
    with pytest.raises(ConfigError, match=rf"host='{host}'.*127\.0\.0\.1"):
        Page(session, host=host, port=19080)
    session.close()


@pytest.mark.enable_socket
def test_families_of_addresses_that_a_machine_lacks_are_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As servers do: `localhost` may stand for ::1 where there is no IPv6."""
    made = socket.socket

    def lacking(family: int, *arguments: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported")
        return made(family, *arguments)

    local = [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
    found = [(family, socket.SOCK_STREAM, 0, "", (name, 0)) for family, name in local]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", lacking)
    _check_host("localhost")


@pytest.mark.enable_socket
@pytest.mark.parametrize(
    ("host", "expected"), [("::1", "[::1]"), ("::", "localhost"), ("a.b", "a.b")]
)
def test_the_address_of_a_page_can_be_opened(
    serve: Callable[..., Page], host: str, expected: str
) -> None:
    page = serve(toy_session("Pendulum-v1"))
    page.host = host
    assert page.url == f"http://{expected}:{page.port}"


@pytest.mark.enable_socket
def test_a_planner_without_positions_is_shown_as_plots(
    serve: Callable[..., Page],
) -> None:
    page = serve(toy_session("Pendulum-v1"))
    assert type(page.session.world) is World
    until(lambda: "no columns are named" in page.panel._status.content)
    page.worker.post("step", page.session.step)
    until(lambda: shown(page).env_steps == 1)
    plot, lines = page.panel._plots["observation"]
    assert len(plot.data) == 1 + 2 * len(lines)
    assert not shown(page).messages


@pytest.mark.enable_socket
def test_plots_are_of_the_last_plan_however_soon_it_came(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffuser_policy.play.panel.PLOTS_PER_SECOND", 0.5)
    page = serve(maze_session())
    plot, lines = page.panel._plots["velocity"]
    until(lambda: "waypoint" in page.panel._guide_menu.options)  # nothing is under way
    page.panel._plotted = time.perf_counter()  # as if it had just been drawn
    page.worker.post("goal", page.session.move, "goal", (0.5, 1.0, 0.0))
    until(lambda: np.allclose(shown(page).path[-1, :2], [0.5, 1.0], atol=1e-3))
    until(lambda: np.array_equal(plot.data[1], shown(page).path[:, lines[0]]))


@pytest.mark.enable_socket
@pytest.mark.parametrize("running", [False, True])
def test_a_change_that_fails_is_shown_and_taken_back_until_the_next_one(
    serve: Callable[..., Page], running: bool
) -> None:
    page = serve(maze_session())
    panel, session = page.panel, page.session
    until(lambda: "waypoint" in panel._guide_menu.options)  # nothing is under way
    if running:
        panel._post("run", session.run)
    panel._seed.value = 10**19  # as a browser sets it
    panel._post("seed", session.set_seed, panel._seed.value)
    until(lambda: "seed" in panel._warning.content)
    time.sleep(3 / PLOTS_PER_SECOND)  # it is drawn again
    assert "seed" in panel._warning.content
    assert panel._seed.value == 0
    panel._post("run", session.pause)
    until(lambda: not panel._warning.content)


@pytest.mark.enable_socket
def test_a_choice_that_fails_is_taken_back(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(World, "choices", lambda _: {"task": (("near", "far"), "near")})
    monkeypatch.setattr(World, "choose", lambda *_: "no-such/Env-v0")
    page = serve(toy_session("Pendulum-v1"))
    panel, session = page.panel, page.session
    menu = panel._choices["task"]
    menu.value = "far"  # as a browser sets it
    panel._post("task", panel._choose_world, "task", "far")
    until(lambda: "no-such" in panel._warning.content)
    assert menu.value == "near"
    assert session.env_id == "Pendulum-v1"


@pytest.mark.enable_socket
def test_another_environment_is_described_and_fills_the_windows_that_are_open(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = serve(maze_session())
    session, callbacks = page.session, len(page.server._client_connect_cb)
    window = Mock(client_id=7)
    window.camera.aspect = 0.5  # narrow
    asyncio.run(page._connected(window))
    [resized] = window.camera.on_update.call_args.args
    monkeypatch.setattr(MazeWorld, "camera", lambda _: ((0, 0, 10), (0, 0, 2)))
    monkeypatch.setattr(MazeWorld, "legend", lambda _: "Another maze.")
    old = page.view
    page.worker.post("enter", session._enter, UMAZE)
    until(
        lambda: page.view is not old and page.panel._legend.content == "*Another maze.*"
    )
    asyncio.run(resized(window.camera))
    assert tuple(window.camera.position) == pytest.approx((0, 0, 2 + 8 * WIDTH / 0.5))
    assert len(page.server._client_connect_cb) == callbacks


@pytest.mark.enable_socket
def test_a_run_is_kept_as_one_html_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.html"
    places = ["--reset", "start=[-1,-1]", "--reset", "goal=[-1,1]"]
    guide = ["--guide", "keep-out:center=1.2,0;radius=0.1", "--ranking", "guide"]
    assert main(["play", "multi2d-umaze", *places, *guide, "--record", str(file)]) == 0
    assert "at the goal after" in capsys.readouterr().out
    page = file.read_text()
    assert page.startswith("<!doctype html>") or "<html" in page[:500]
    assert "__VISER_EMBED_DATA__" in page
    assert 'src="http' not in page


@pytest.mark.enable_socket
def test_nothing_is_recorded_where_a_goal_is_in_a_wall(
    serve: Callable[..., Page],
) -> None:
    page = serve(maze_session())
    page.worker.post("goal", page.session.move, "goal", (0.0, 0.0, 0.0))
    with pytest.raises(ConfigError, match="wall"):
        page.record()


@pytest.mark.enable_socket
def test_nothing_is_recorded_where_plans_fail(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("of my own making")

    page = serve(maze_session())
    monkeypatch.setattr(DiffuserPolicy, "predict", fail)
    with pytest.raises(ConfigError, match="of my own making"):
        page.record()


@pytest.mark.enable_socket
def test_a_recording_ends_with_its_page(
    serve: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, begun = serve(maze_session()), threading.Event()

    def show() -> None:
        if page.session.going:
            begun.set()
            time.sleep(0.05)

    monkeypatch.setattr(page, "_show", show)
    page.worker.post("record", page._record, queue.SimpleQueue())
    assert begun.wait(60)
    page.worker.stop()
    assert page.session.going
    assert 0 < page.session.frame().env_steps < 100


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-planner"], "No planner 'no-such-planner'"),
        (["multi2d-umaze", "--port", "0"], "--port must be 1 to 65535"),
        (["multi2d-umaze", "--record", "run.gif"], "--record writes HTML"),
        (["--record", "run.html", "--host", "0.0.0.0"], "--host has no effect with"),
        (["--record", "run.html", "--port", "9000"], "--port has no effect with"),
        (["--record", "run.html", "--browser"], "--browser has no effect with"),
        (["multi2d-umaze", "--reset", "goal"], "KEY=VALUE"),
        (["multi2d-umaze", "--reset", "goal=[0,0]"], "wall"),
        (["multi2d-umaze", "--reset", "gaol=[1,1]"], "'gaol'"),
    ],
)
def test_mistakes_are_explained(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", *arguments]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.enable_socket
def test_ctrl_c_ends_it() -> None:
    hear_interrupts()  # inherited; a shell lets what is in the background ignore it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "diffuser_policy", "play", "multi2d-umaze"]
    with subprocess.Popen(
        [*command, "--port", port], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "Loading multi2d-umaze …\n"
            assert f"http://localhost:{port}" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
        finally:
            process.kill()


PRESSED = """
    import signal, sys

    class Press:
        def find_spec(self, name, *_):
            # What draws can do without it, and imports it once the page is served.
            if name == "networkx" and "trimesh" in sys.modules:
                print("pressed", flush=True)
                signal.raise_signal(signal.SIGINT)

    from diffuser_policy.cli import main

    sys.meta_path.insert(0, Press())
    sys.exit(main(["play", "multi2d-umaze"]))
"""


@pytest.mark.slow
@pytest.mark.enable_socket
def test_ctrl_c_ends_it_while_libraries_for_drawing_are_imported() -> None:
    """They take it for a library that is not there."""
    hear_interrupts()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRESSED)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "Loading multi2d-umaze …\npressed\n"
    assert done.returncode == 130


def test_the_floor_moves_under_a_robot() -> None:
    session = toy_session("Hopper-v5")
    session.advance()
    world, first = session.world, session.world.poses(session.frame().state)
    base: Any = session.env.unwrapped
    base.data.qpos[0] += 3.0
    mujoco = pytest.importorskip("mujoco")
    mujoco.mj_forward(base.model, base.data)
    assert np.allclose(world.poses(session.frame().state), first)
    assert world.ground() == pytest.approx((-3.0, 0.0))
    session.close()


def test_a_robot_is_drawn_where_it_is_and_will_be() -> None:
    session = toy_session("Hopper-v5")
    session.advance()
    world, frame = session.world, session.frame()
    assert isinstance(world, BodyWorld)
    base: Any = session.env.unwrapped
    torso = base.data.geom("torso_geom").xpos
    poses = world.poses(frame.state)
    assert min(np.linalg.norm(poses[:, :3] - torso, axis=1)) < 1e-9
    # A plan that stays where the robot is shows it there, and one with a speed ahead.
    still = np.repeat(frame.state[None].astype(float), 9, axis=0)
    still[:, 5:] = 0.0
    ghosts = world.planned_poses(still, 4)
    assert np.allclose(ghosts, poses, atol=1e-6)
    still[:, 5] = 2.0  # m/s
    ahead = world.planned_poses(still, 4)[-1, :, 0] - poses[:, 0]
    assert np.allclose(ahead, 8 * 4 * base.dt * 2.0)
    session.close()


def test_a_robot_is_drawn_where_the_last_substep_left_it() -> None:
    """As its ghosts are: a plan that stays where it is coincides with it."""
    session = toy_session("Hopper-v5")
    for _ in range(5):
        session.step()
        session.advance()
    base: Any = session.env.unwrapped
    moved = session.world.poses(session.frame().state)
    mujoco = pytest.importorskip("mujoco")
    mujoco.mj_forward(base.model, base.data)
    assert np.array_equal(moved, session.world.poses(session.frame().state))
    session.close()


@pytest.mark.enable_socket
def test_ghosts_of_a_plan_that_was_followed_for_a_while_start_at_the_robot(
    serve: Callable[..., Page],
) -> None:
    page = serve(toy_session("Hopper-v5"))
    page.worker.stop()  # else it draws, too
    frame = page.session.frame()
    path = np.repeat(frame.state[None].astype(float), 9, axis=0)
    path[:, 5:] = 0.0
    path[:, 5] = 2.0  # m/s
    page.view.draw(dataclasses.replace(frame, path=path, progress=6.0), at=0)
    nodes, mesh = page.view._nodes, next(iter(page.view.meshes))
    planned = [name for name in nodes if name.startswith("/planned/")]
    shown = {name.split("/")[2] for name in planned if nodes[name].visible}
    assert len(shown) == 2  # one for each state that is still ahead
    last = f"/planned/{max(shown)}/{mesh}"
    ahead = nodes[last].position[0] - nodes[f"/things/{mesh}"].position[0]
    base: Any = page.session.env.unwrapped
    assert ahead == pytest.approx(2 * frame.stride * base.dt * 2.0, abs=1e-4)
