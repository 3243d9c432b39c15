"""The page: a server that shows a session, and one thread that plans for it.

    drag a handle → `Worker.post` → `Session.move` → plan → `SceneView.draw`

Callbacks run in the server's event loop and only leave changes with the worker, so the
page answers however long a plan takes. All tabs see the same session.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import socket
import time
from collections.abc import Callable
from typing import Any

from diffuser_policy.envs import check_ends
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.play.panel import Panel
from diffuser_policy.play.scene import SceneView
from diffuser_policy.play.session import Frame, Session
from diffuser_policy.play.worker import Worker

FRAMES_PER_SECOND = 25
MOST_BEHIND = 0.1  # seconds of a run that are made up for
EVERYWHERE = ("0.0.0.0", "::", "127.0.0.1")


class Page:
    """A session on a local web page, served until `close`.

    Attributes:
        session: Called from the worker's thread only.
        frame: What is shown; none before the first plan.
        port: On which it is served.
    """

    def __init__(
        self, session: Session, *, host: str = "127.0.0.1", port: int = 8080
    ) -> None:
        """Begin to serve, and plan.

        Args:
            session: What is shown.
            host: Address to bind to.
            port: First port to try; the next free one is used.

        Raises:
            MissingExtraError: viser is not installed.
            ConfigError: This machine has no such address, or no port is free.
        """
        viser: Any = require_extra("viser", "play")
        port = _free_port(host, port)  # viser would wait for its server forever
        # It logs a traceback for every visitor that is no browser.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        with contextlib.redirect_stdout(io.StringIO()):  # its banner
            self.server: Any = viser.ViserServer(
                host, port, label="diffuser-policy play", verbose=False
            )
        self.host, self.port = host, int(self.server.get_port())
        self.session = session
        self.frame: Frame | None = None
        self._complaints: list[str] = []
        self._said = False  # whether all of them have been shown
        self._clock: float | None = None
        self.worker = Worker(self._advance, self._complain)
        try:
            self.view = SceneView(self.server, session, self._post)
            self.panel = Panel(self.server, session, self._post)
            self.server.on_client_connect(self._connected)
        except BaseException:
            self.close()
            raise
        self.worker.start()

    @property
    def url(self) -> str:
        """Where a browser of this machine finds the page."""
        host = "localhost" if self.host in EVERYWHERE else self.host
        if ":" in host:  # IPv6
            host = f"[{host}]"
        return f"http://{host}:{self.port}"

    def record(self) -> str:
        """Run to the end of the episode; return what is seen as one HTML page.

        The page needs nothing else. It shows the run in real time, however long
        planning takes.

        Raises:
            ConfigError: Something could not be planned, or the episode does not end.
        """
        done: queue.SimpleQueue[str | Exception] = queue.SimpleQueue()
        self.worker.post("record", self._record, done)
        result = done.get()
        if isinstance(result, Exception):
            raise result
        return result

    def _record(self, done: queue.SimpleQueue[str | Exception]) -> None:
        session = self.session
        steps = max(round(1 / FRAMES_PER_SECOND / session.pace), 1)
        try:
            check_ends(session.env)
            session.advance()
            self._show()
            recorder = self.server.get_scene_serializer()
            recorder.insert_sleep(1.0)
            session.run()
            while session.going:
                for _ in range(steps):
                    session.advance()
                if self.worker.ended:  # nobody waits for it any more
                    return
                self._show()
                recorder.insert_sleep(steps * session.pace)
            messages = session.frame().messages
            if messages:
                raise ConfigError(" ".join(messages))
            recorder.insert_sleep(1.5)
            done.put(str(recorder.as_html()))
        except Exception as error:
            done.put(error)

    def close(self) -> None:
        """Stop planning, and serving."""
        self.worker.stop()
        with contextlib.redirect_stdout(io.StringIO()):  # that it has stopped
            self.server.stop()

    def _advance(self) -> float | None:
        """Plan, or follow the plan in real time; draw; return when to go on."""
        session = self.session
        if session.world is not self.view.world:  # another environment was chosen
            self.server.scene.reset()
            self.view = SceneView(self.server, session, self._post)
            for client in self.server.get_clients().values():
                self.view.fit(client)
        now = time.perf_counter()
        if not session.going:
            self._clock = None
            session.advance()
            self._show()
            return self.panel.plots_wait
        if self._clock is None or now - self._clock > MOST_BEHIND:
            self._clock = now - session.pace
        next_frame = now + 1 / FRAMES_PER_SECOND
        while session.going and self._clock + session.pace <= now < next_frame:
            session.advance()
            self._clock += session.pace
            now = time.perf_counter()
        self._show()
        # At least a moment: changes that wait are made between two frames.
        return max(next_frame - time.perf_counter(), 0.001)

    async def _connected(self, client: Any) -> None:
        """Fit what is seen into a new window, and again when its size changes."""

        async def resized(_: Any) -> None:
            self.view.fit(client)

        client.camera.on_update(resized)
        self.view.fit(client)

    def _post(self, name: str, change: Callable[..., object], *arguments: Any) -> None:
        """Leave a change with the worker."""
        self.worker.post(name, self._change, change, *arguments)

    def _change(self, change: Callable[..., object], *arguments: Any) -> None:
        """Make a change, and drop the messages of earlier ones."""
        if self._said:
            self._complaints.clear()
        change(*arguments)

    def _complain(self, error: Exception) -> None:
        self._complaints.append(str(error) or type(error).__name__)
        self._said = False

    def _show(self) -> None:
        self.frame = self.session.frame()
        with self.server.atomic():
            self.panel.draw(self.frame, self._complaints)
            self.view.draw(self.frame, at=self.panel.chain_step)
        self._said = True


def _free_port(host: str, port: int) -> int:
    """Return the first free port from one on, as far as viser looks for one."""
    _check_host(host)
    last = min(port + 999, 2**16 - 1)
    for candidate in range(port, last + 1):
        with contextlib.suppress(OSError):
            _bind(host, candidate)
            return candidate
    raise ConfigError(
        f"No port from {port} to {last} is free on host={host!r}. Give another port "
        f"to begin with, such as 8080."
    )


def _check_host(host: str) -> None:
    """Refuse a host of which this machine can serve no address, whatever the port."""
    try:
        _bind(host, 0)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"The page cannot be served on host={host!r}: {error}. Give an address of "
            f"this machine: 127.0.0.1 (for this machine alone) or 0.0.0.0 (for "
            f"everyone on the network)."
        ) from error


def _bind(host: str, port: int) -> None:
    """Take all addresses of a host, as servers do, and free them.

    Raises:
        OSError: One of them cannot be taken.
    """
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:  # a family that this machine lacks: servers skip it
            continue
        with probe:
            if os.name == "posix":  # ports of a page that has just ended are free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # the same port of IPv4 is another
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
