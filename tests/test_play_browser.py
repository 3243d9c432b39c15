"""The page of `diffuser-policy play`, driven by a mouse in a real browser.

`make browser-test` runs these: they need Chromium and Playwright. Most of their time is
spent on drawing without a graphics card, so CI leaves the slow ones out. SHOTS names a
folder for screenshots.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser")
playwright = pytest.importorskip("playwright.sync_api")

from diffuser_policy import DiffuserPolicy  # noqa: E402
from diffuser_policy.envs import make_env  # noqa: E402
from diffuser_policy.play.page import Page  # noqa: E402
from diffuser_policy.play.session import Frame, Session  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"]
FLAGS += ["--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
PATIENCE = 120.0  # seconds: a software renderer on a busy machine
pytestmark = [pytest.mark.browser, pytest.mark.enable_socket]


class Tab:
    """A tab of a browser that shows a page."""

    def __init__(self, page: Page, tab: Any) -> None:
        self.page, self.tab = page, tab
        tab.goto(page.url)
        tab.get_by_text("a plan").first.wait_for(timeout=1000 * PATIENCE)
        self.until(lambda: bool(page.server.get_clients()))
        tab.wait_for_timeout(1500)

    @property
    def session(self) -> Session:
        return self.page.session

    @property
    def frame(self) -> Frame:
        assert self.page.frame is not None
        return self.page.frame

    def until(self, holds: Callable[[], bool], patience: float = PATIENCE) -> float:
        """Wait until something holds; return for how many seconds."""
        begin = time.perf_counter()
        while not holds():
            assert time.perf_counter() - begin < patience
            self.tab.wait_for_timeout(10)
        return time.perf_counter() - begin

    def pixel(self, point: Any) -> tuple[float, float]:
        """Return where a point of the scene is on the screen."""
        camera = next(iter(self.page.server.get_clients().values())).camera
        w, x, y, z = camera.wxyz
        turn = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        seen = turn.T @ (np.asarray(point, float) - camera.position)
        box = self.tab.locator("canvas").first.bounding_box()
        focal = box["height"] / 2 / np.tan(camera.fov / 2)
        across, down = seen[:2] / seen[2] * focal
        return (
            box["x"] + box["width"] / 2 + float(across),
            box["y"] + box["height"] / 2 + float(down),
        )

    def drag(
        self, way: Callable[[], Any], arrived: Callable[[], bool], tries: int = 4
    ) -> None:
        """Press at a way's first point, move along the others, let go.

        Like a person, look whether it worked; if the page was too slow to see the
        mouse, do it again, from where the thing is now and more slowly.
        """
        mouse = self.tab.mouse
        for attempt in range(tries):
            pause = 120 * 3**attempt  # milliseconds
            pixels = [self.pixel(point) for point in way()]
            mouse.move(*pixels[0])
            self.tab.wait_for_timeout(pause)
            mouse.down()
            for pixel in pixels[1:]:
                mouse.move(*pixel, steps=4)
                self.tab.wait_for_timeout(pause)
            mouse.up()
            end = time.perf_counter() + PATIENCE / tries
            while time.perf_counter() < end:
                if arrived():
                    return
                self.tab.wait_for_timeout(10)
        raise AssertionError(f"{tries} drags did not arrive")

    def shoot(self, name: str) -> None:
        folder = os.environ.get("SHOTS")
        if folder:
            self.tab.wait_for_timeout(500)
            path = str(Path(folder) / f"{name}.png")
            self.tab.screenshot(path=path, timeout=1000 * PATIENCE)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed.")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def opened(planner: str, env_id: str, width: int = 640, **options: Any) -> Tab:
        env = make_env(env_id)
        policy = DiffuserPolicy.from_pretrained(planner)
        session = Session(policy, env, planner=planner, env_id=env_id, options=options)
        page = Page(session, port=18080)
        height = {1280: 800, 800: 900}.get(width, 420)
        shown = browser.new_page(viewport={"width": width, "height": height})
        tabs.append(Tab(page, shown))
        return tabs[-1]

    yield opened
    for tab in tabs:
        tab.tab.close()  # it would go on drawing
        tab.page.close()
        tab.session.close()


UMAZE = ("multi2d-umaze", "diffuser_envs/Multi2D-UMaze-v1")


def test_the_goal_and_a_disc_are_dragged_and_the_run_arrives(
    open_tab: Callable[..., Tab],
) -> None:
    tab = open_tab(*UMAZE, start=[-1.0, -1.0], goal=[-0.4, 1.0])

    def goal_now() -> np.ndarray:
        return np.array(tab.session.world.options()["goal"])

    tab.drag(
        lambda: [(*xy, 0.0) for xy in np.linspace(goal_now(), (-1.0, 1.0), 3)],
        lambda: abs(goal_now()[0] + 1) < 0.15,
    )
    goal = goal_now()
    tab.until(lambda: np.allclose(tab.frame.path[-1, :2], goal, atol=1e-3))
    assert np.allclose(goal, [-1.0, 1.0], atol=0.15)
    free = tab.frame.path[:, :2]
    tab.tab.get_by_role("button", name="Add guide").click()
    tab.until(lambda: len(tab.frame.marks) == 1)

    def center_now() -> np.ndarray:
        return np.array(tab.session.guides[0].parameters["center"])

    before = center_now()
    way = before + np.outer([0.0, 0.5, 1.0], [0.3, 0.1])
    tab.drag(
        lambda: [(x, y, 0.3) for x, y in way],
        lambda: not np.allclose(center_now(), before),
    )

    def nearest(path: np.ndarray) -> float:
        return float(np.linalg.norm(path - center_now(), axis=1).min())

    tab.until(lambda: nearest(free) + 0.05 < nearest(tab.frame.path[:, :2]))
    tab.tab.get_by_text("Run", exact=True).click()
    tab.until(lambda: "at the goal" in tab.frame.outcome)
    tab.shoot("umaze-run")


@pytest.mark.slow
def test_two_tabs_show_one_session(open_tab: Callable[..., Tab], browser: Any) -> None:
    first = open_tab(*UMAZE, start=[-1.0, -1.0], goal=[-1.0, 1.0])
    second = browser.new_page(viewport={"width": 640, "height": 480})
    second.goto(first.page.url)
    second.get_by_text("a plan").first.wait_for(timeout=1000 * PATIENCE)
    first.tab.get_by_role("button", name="Add guide").click()
    second.get_by_text("radius").first.wait_for(timeout=1000 * PATIENCE)
    second.close()


@pytest.mark.slow
def test_the_setup_is_shown_as_python(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(*UMAZE, start=[-1.0, -1.0], goal=[-1.0, 1.0])
    tab.tab.get_by_text("Keep", exact=True).click()
    tab.tab.get_by_role("button", name="Copy as Python").click()
    shown = tab.tab.locator("pre").inner_text(timeout=1000 * PATIENCE)
    assert "DiffuserPolicy.from_pretrained('multi2d-umaze')" in shown
    tab.shoot("umaze-python")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 800])
def test_the_large_maze_fits_the_window(
    open_tab: Callable[..., Tab], width: int
) -> None:
    tab = open_tab("multi2d-large", "diffuser_envs/Multi2D-Large-v1", width=width)
    tab.tab.get_by_role("button", name="Add guide").click()
    tab.until(lambda: len(tab.frame.marks) == 1)
    tab.shoot(f"large-{width}")


def test_a_tower_is_reordered_by_hand(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab("kuka-stack", "diffuser_envs/KukaStack-Conditional-v1", width=700)
    tab.shoot("kuka")
    places = {name: at for name, at, _ in tab.session.world.handles(None)}
    ghosts = sorted((at[2], name) for name, at in places.items() if "goal" in name)
    (_, bottom), (_, top) = ghosts[0], ghosts[-1]
    x, y, z = places[bottom]
    up = places[top][2] + 0.05
    front = x + 0.05  # the face that the camera sees

    def height(name: str) -> float:
        heights = {n: at[2] for n, at, _ in tab.session.world.handles(None)}
        return float(heights[name])

    tab.drag(
        lambda: [(front, y, at) for at in np.linspace(height(bottom), up, 3)],
        lambda: height(bottom) > z + 0.1,
    )
    base: Any = tab.session.env.unwrapped
    tab.until(lambda: np.allclose(base.goal, tab.session.world.options()["goal"]))
    tab.tab.get_by_text("Run", exact=True).click()
    tab.until(lambda: tab.frame.env_steps > 5)
    tab.shoot("kuka-run")
