"""`diffuser-policy play`: a page on which goals are dragged, and the plan follows."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from diffuser_policy.cli.options import (
    Assignments,
    Flag,
    PlannerSettings,
    parse_assignments,
    shown_as,
)
from diffuser_policy.errors import ConfigError, require_extra

if TYPE_CHECKING:
    from diffuser_policy.play.session import Session

MOST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class PlaySettings(PlannerSettings):
    """Open a page to play with a planner: drag the goal, and the plan follows.

    Add guides and drag them, change how it plans, and let the robot go.
    """

    planner: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[PLANNER]")
    ] = "multi2d-large"
    """Name of a shipped planner, folder, or hub id (NAME/REPOSITORY@REVISION)."""
    seed: int = 0
    """Fixes start, goal and noise."""
    reset: Assignments = ()
    """How the episode begins: an option of the environment's `reset`, as JSON. In mazes
    --reset goal=[4.5,3] and --reset start=[-4.5,2]."""
    host: Annotated[str, shown_as("ADDRESS")] = "127.0.0.1"
    """Address to serve on. This machine alone can open the page, unless you say
    0.0.0.0: then everyone on the network can."""
    port: Annotated[int, shown_as("N")] = 8080
    """Port of the page; the next free one is used if it is taken."""
    record: Annotated[Path | None, shown_as("FILE.html")] = None
    """Serve no page: run an episode, and write its view as one self-contained HTML
    file."""
    browser: Flag = False
    """Open the page in a browser."""

    def open(self) -> Session:
        """Return the session to begin with.

        Raises:
            ConfigError: The environment does not take the reset options, or none was
                given.
            DiffuserPolicyError: As `load_policy`.
        """
        from diffuser_policy.checkpoint import read_planner
        from diffuser_policy.envs import make_env
        from diffuser_policy.play.session import Session

        options = parse_assignments(self.reset, option="--reset")
        policy, env_id = self.load()
        own_guide = policy.guide
        if self.planning.guide:  # they replaced the planner's own
            own_guide = read_planner(self.planner)[0].guide
        env = make_env(env_id)
        try:
            return Session(
                policy,
                env,
                planner=self.planner,
                env_id=env_id,
                seed=self.seed,
                options=options,
                settings=self.planning.full_settings(),
                own_guide=own_guide is not None,
            )
        except BaseException:
            env.close()
            raise


def _refuse_served(settings: PlaySettings) -> None:
    """Refuse options of a page that others open, where none is served to them."""
    usual = {field.name: field.default for field in dataclasses.fields(PlaySettings)}
    for name in ("host", "port", "browser"):
        if getattr(settings, name) != usual[name]:
            raise ConfigError(
                f"--{name} has no effect with --record, which serves no page. Leave "
                f"one of them out."
            )


def play(settings: PlaySettings) -> int:
    """Serve the page until Ctrl-C; return the exit status."""
    require_extra("viser", "play")
    if not 0 < settings.port <= MOST_PORT:
        raise ConfigError(f"--port must be 1 to {MOST_PORT}, got {settings.port}.")
    if settings.record is not None and settings.record.suffix != ".html":
        raise ConfigError(f"--record writes HTML: FILE.html, got {settings.record}.")
    if settings.record is not None:
        _refuse_served(settings)
    print(f"Loading {settings.planner} …", flush=True)
    from diffuser_policy.files import check_writable, write_text
    from diffuser_policy.interrupts import held_interrupt
    from diffuser_policy.play.page import Page

    if settings.record is not None:
        check_writable(settings.record)
    with closing(settings.open()) as session:
        # Libraries that are imported here take Ctrl-C for a failed import.
        with held_interrupt() as interrupted:
            page = Page(session, host=settings.host, port=settings.port)
        with closing(page):
            if interrupted():
                raise KeyboardInterrupt
            if settings.record is not None:
                write_text(settings.record, page.record())
                print(f"Wrote {settings.record}: {session.frame().outcome}.")
                return 0
            try:  # Ctrl-C ends it from the moment at which that is said
                if page.port != settings.port:
                    print(f"Port {settings.port} is taken; the page is on {page.port}.")
                print(f"Open {page.url} in a browser. Ctrl-C ends it.", flush=True)
                if settings.browser:
                    import webbrowser

                    webbrowser.open(page.url)
                while True:
                    time.sleep(3600.0)
            except KeyboardInterrupt:
                print("\nClosed.")
    return 0
