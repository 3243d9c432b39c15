"""The panel of a page: what can be set, and what there is to read.

Everything that a user sets is left with the worker. What the session sets itself, such
as a guide's center while it is dragged, is written into the fields.
"""

from __future__ import annotations

import html
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np

from diffuser_policy.choices import ExecutorName, RankingName
from diffuser_policy.errors import require_extra
from diffuser_policy.evaluation.scores import reference_of
from diffuser_policy.guides.registry import find_guide, read_value
from diffuser_policy.play.scene import rgb
from diffuser_policy.play.session import Frame, Session, Setup
from diffuser_policy.play.sharing import as_command, as_python
from diffuser_policy.plotting import GOAL, MARK, PLAN, START
from diffuser_policy.settings import Parameter, value_text
from diffuser_policy.words import counted

Post = Callable[..., object]

FIRST_GUIDES = ("keep-out", "waypoint", "keep-in", "speed-limit")
MOST_PLOTS, MOST_LINES, PLOTS_PER_SECOND = 8, 4, 4
LATELY = 100  # env steps in plots of planners that plan single actions
LINE_COLORS = (PLAN, GOAL, START, MARK)
# Settings with a slider: label, least and greatest value, step.
SLIDERS: Mapping[str, tuple[str, float, float, float]] = {
    "num_candidates": ("candidates", 1, 64, 1),
    "num_sampling_steps": ("denoising steps", 1, 64, 1),
    "guide_scale": ("guide scale", 0, 5, 0.05),
    "horizon_scale": ("time to goal ×", 0.5, 3, 0.05),
    "replan_interval": ("replan every", 0, 200, 1),
    "warm_start": ("warm start", 0, 1, 0.05),
    "tempo": ("tempo", 0.05, 1, 0.05),
}
HINTS = {
    "num_candidates": "Plans that are sampled; the best one is followed.",
    "num_sampling_steps": "Steps from noise to a plan.",
    "guide_scale": "How hard guides pull; 0 turns them off.",
    "horizon_scale": "More time than predicted, for a way around.",
    "replan_interval": "Env steps between two plans of a run; 0: only when needed.",
    "warm_start": "A new plan of a run starts from the rest of the last one, with this "
    "much noise; 0: from noise alone. It needs “replan every”.",
    "ranking": "Which of the candidates is followed; “guide” waits for a guide.",
    "executor": "How actions follow from a plan.",
    "tempo": "Executor “path”: planned env steps per env step, at most.",
}
WAIT, LOOKS, NO_GUIDE = "…", "trying guides …", "no guide works here"
MOST_SEED = 2**53 - 1  # browsers round larger numbers
OFF_AT_ZERO = ("replan_interval", "warm_start")
COPY = (
    "navigator.clipboard.writeText(this.nextElementSibling.innerText);"
    "this.innerText='Copied'"
)


class Panel:
    """The controls of a session."""

    def __init__(self, server: Any, session: Session, post: Post) -> None:
        """Add all controls.

        Args:
            server: viser's.
            session: What they set.
            post: Takes the name of a change, a function and its arguments.
        """
        self.server, self.session, self._post = server, session, post
        self._numbers = itertools.count()
        self._fields: dict[tuple[int, str], Any] = {}
        self._folders: list[Any] = []
        self._menus: dict[str, Any] = {}
        self._choices: dict[str, Any] = {}
        self._plots: dict[str, tuple[Any, list[int]]] = {}
        self._plotted = 0.0
        self.plots_wait: float | None = None  # seconds until they may be drawn
        self._recorder: Any = None
        self._recorded = 0.0
        self._notes: dict[int, Any] = {}  # notification of each tab
        gui = server.gui
        gui.configure_theme(
            control_width="medium",
            show_logo=False,
            show_share_button=False,
            brand_color=rgb(PLAN),
        )
        gui.main_panel.dock_right()
        self._warning = gui.add_markdown("", visible=False)
        self._status = gui.add_markdown("Planning …")
        self._legend = gui.add_markdown("")
        run = gui.add_button_group(
            "run",
            ("Run", "Pause", "Step", "Reset"),
            hint="Let the robot follow the plan in the simulator; make one env step; "
            "go back to the start.",
        )
        acts = {
            "Run": session.run,
            "Pause": session.pause,
            "Step": session.step,
            "Reset": session.restart,
        }
        self._on_click(run, lambda event: post("run", acts[event.target.value]))
        self._chain = gui.add_slider(
            "noise → plan", 0, 1, 1, 1, hint="The steps from noise to the plan."
        )
        self._on_update(self._chain, lambda _: post("chain", _nothing))
        self._add_choices(gui)
        with gui.add_folder("How it plans"):
            self._add_settings(gui)
        self._guide_area = gui.add_folder("Guides")
        with self._guide_area:
            self._add_guide_menu(gui)
        self.list_guides()
        with gui.add_folder("Keep", expand_by_default=False):
            self._add_sharing(gui)
        drawn = bool(session.world.position)
        with gui.add_folder("Columns over time", expand_by_default=not drawn):
            self._add_plots(gui)

    @property
    def chain_step(self) -> int:
        """Which step of the denoising chain is to be shown."""
        return int(self._chain.value)

    def draw(self, frame: Frame, complaints: Sequence[str]) -> None:
        """Show the numbers of a frame, and messages.

        Args:
            frame: What to show.
            complaints: What else went wrong.
        """
        last = max(len(frame.chain) - 1, 1)
        if len(frame.chain) and self._chain.max != last:
            self._chain.max = last
            self._chain.value = last
        self._chain.disabled = len(frame.chain) < 2
        _write(self._status, "content", self._summary(frame))
        errors = [*frame.messages, *complaints]
        self._notify(errors)
        said = [*errors, *frame.remarks]
        _write(self._warning, "content", "\n\n".join(f"> ⚠ {each}" for each in said))
        _write(self._warning, "visible", bool(said))
        legend = self.session.world.legend().strip()
        _write(self._legend, "content", f"*{legend}*" if legend else "")
        settings = {**self.session.usual, **self.session.settings}
        for name, menu in self._menus.items():
            _write(menu, "value", str(settings[name]))
        choices = self.session.world.choices()
        for name, menu in self._choices.items():
            if name in choices:
                _write(menu, "value", choices[name][1])
        if complaints:  # else a seed may be half typed
            _write(self._seed, "value", self.session.seed)
        for (number, name), field in self._fields.items():
            if number < len(self.session.guides):
                value = self.session.guides[number].parameters.get(name)
                if self.session.is_point(value):
                    _write(field, "value", value_text(value))
        self._draw_plots(frame)
        if self._guide_menu.options == (WAIT,):  # the first plan is on the page
            self._guide_menu.options = (LOOKS,)
            self._once(self._offer_guides)
        recorder = self._recorder  # a click may end the recording meanwhile
        if recorder is not None:
            now = time.perf_counter()
            recorder.insert_sleep(min(now - self._recorded, 1.0))
            self._recorded = now

    def _notify(self, errors: Sequence[str]) -> None:
        """Also show errors in a place that stays visible when the panel is scrolled."""
        text = "\n\n".join(errors)
        for number, client in self.server.get_clients().items():
            note = self._notes.get(number)
            if text and note is None:
                self._notes[number] = client.add_notification(
                    "Not planned", text, color="red", with_close_button=False
                )
            elif note is not None and not text:
                self._notes.pop(number).remove()
            elif note is not None:
                _write(note, "body", text)

    def _summary(self, frame: Frame) -> str:
        steps = max(len(frame.path) - 1, 0) * frame.stride
        what = f"a plan of {counted(steps, 'env step')}" if steps else "an action"
        if len(frame.route) > 2:
            what += " to a subgoal; the thin line leads on over landmarks"
        lines = [f"**{1000 * frame.plan_seconds:.0f} ms** for {what}"]
        if frame.env_steps:
            plans = counted(frame.num_plans, "plan")
            lines.append(f"run: {counted(frame.env_steps, 'env step')}, {plans}")
            if frame.score is not None:
                best = reference_of(self.session.env)
                lines.append(f"score so far: **{frame.score:.1f}** (100: {best})")
        lines += [
            text for text in (frame.outcome, self.session.world.caption()) if text
        ]
        if not self.session.world.position:
            why = "no columns are named “position”" if steps else "it is one action"
            lines.append(f"The plan is no path ({why}): see “Columns over time”.")
        return "  \n".join(lines)

    # --- settings ---------------------------------------------------------------------

    def _on_update(self, handle: Any, changed: Callable[[Any], object]) -> None:
        """Report what users set, not what this page sets itself."""

        async def updated(event: Any) -> None:
            if event.client is not None:
                changed(event.target.value)

        handle.on_update(updated)

    def _on_click(self, handle: Any, clicked: Callable[[Any], object]) -> None:
        async def pressed(event: Any) -> None:
            clicked(event)

        handle.on_click(pressed)

    def _once(self, change: Callable[..., object], *arguments: Any) -> None:
        """Post a change that no later one replaces."""
        self._post(f"once {next(self._numbers)}", change, *arguments)

    def _add_choices(self, gui: Any) -> None:
        session = self.session
        self._seed = gui.add_number(
            "seed",
            session.seed,
            min=0,
            max=max(session.seed, MOST_SEED),
            step=1,
            hint="Draw another start, goal and noise, and forget what you dragged.",
        )
        self._on_update(self._seed, partial(self._post, "seed", session.set_seed))
        for name, (values, present) in session.world.choices().items():
            self._choices[name] = menu = gui.add_dropdown(
                name, list(values), initial_value=present
            )
            self._on_update(menu, partial(self._post, name, self._choose_world, name))

    def _add_settings(self, gui: Any) -> None:
        session = self.session
        now = {**session.usual, **session.settings}
        timed = session.policy.networks.time_to_goal is not None
        timed = timed and now["horizon"] == "predicted"
        idle = set() if timed else {"horizon_scale"}
        if session.policy.planner.horizons.max_planning_steps == 1:
            idle |= {"replan_interval", "warm_start"}
        for name, (label, low, high, step) in SLIDERS.items():
            if name in idle:
                continue
            value, most = now[name], high
            if name == "num_sampling_steps":
                most = session.policy.config.network.num_denoising_steps
                value = most if value is None else value
            kind: Any = int if step == 1 else float
            value = kind(value or 0)
            slider = gui.add_slider(
                label,
                kind(min(low, value)),
                kind(max(most, value)),
                kind(step),
                value,
                hint=HINTS[name],
            )
            self._on_update(slider, partial(self._set, name))
        for name, options in (("ranking", RankingName), ("executor", ExecutorName)):
            can = session.possible(name, get_args(options))
            self._menus[name] = gui.add_dropdown(
                name, can, initial_value=str(now[name]), hint=HINTS[name]
            )
            self._on_update(self._menus[name], partial(self._set, name))

    def _set(self, name: str, value: Any) -> None:
        off = name in OFF_AT_ZERO and value == 0
        self._post(name, partial(self.session.choose, **{name: None if off else value}))

    # --- guides -----------------------------------------------------------------------

    def _add_guide_menu(self, gui: Any) -> None:
        self._guide_menu = menu = gui.add_dropdown(
            "guide", [WAIT], hint="Guides that can steer these plans."
        )
        button = gui.add_button(
            "Add guide",
            hint="Its settings appear below. The first guide also chooses the ranking "
            "“guide” and the executor “path”, where they work.",
        )
        self._on_click(button, lambda _: self._once(self._add_guide, menu.value))

    def _offer_guides(self) -> None:
        """List the guides that work; to find out, each is tried."""
        usable = self.session.usable_guides()
        first = [name for name in FIRST_GUIDES if name in usable]
        self._guide_menu.options = [*first, *(n for n in usable if n not in first)] or [
            NO_GUIDE
        ]

    def _add_guide(self, name: str) -> None:
        if name in (WAIT, LOOKS, NO_GUIDE):
            return
        self.session.add_guide(name)
        self.list_guides()

    def _remove_guide(self, number: int, of: int) -> None:
        self.session.remove_guide(number, of=of)
        self.list_guides()

    def list_guides(self) -> None:
        """Rebuild the folders of the guides."""
        for folder in self._folders:
            folder.remove()
        self._folders, self._fields = [], {}
        gui = self.server.gui
        for number, part in enumerate(self.session.guides):
            found = find_guide(part.guide)
            helps = found.documentation()[1]
            with self._guide_area:
                folder = gui.add_folder(part.guide)
            self._folders.append(folder)
            with folder:
                most = max(5.0, 2 * abs(part.weight))
                low = 0.0 if part.weight >= 0 else -most
                weight = gui.add_slider(
                    "weight",
                    low,
                    most,
                    0.05,
                    float(part.weight),
                    hint="Its weight among the guides; 0 turns it off.",
                )
                self._on_update(
                    weight, partial(self._post, f"weight {number}", self._weigh, number)
                )
                for parameter in found.parameters:
                    self._add_parameter(gui, number, parameter, helps)
                button = gui.add_button("Remove", color="gray")
                of = len(self.session.guides)  # a second click is of the old list
                remove = partial(self._once, self._remove_guide, number, of)
                self._on_click(button, lambda _, remove=remove: remove())  # type: ignore[misc]

    def _choose_world(self, name: str, value: str) -> None:
        self.session.choose_world(name, value)
        self._guide_menu.options = (WAIT,)  # others may work there

    def _weigh(self, number: int, weight: float) -> None:
        self.session.change_guide(number, {}, weight=weight)

    def _add_parameter(
        self, gui: Any, number: int, parameter: Parameter, helps: Mapping[str, str]
    ) -> None:
        name = parameter.name
        given, hint = self.session.guides[number].parameters, helps.get(name)
        value = given.get(name, parameter.default)
        label = name.replace("_", " ")
        if isinstance(value, bool):
            field = gui.add_checkbox(label, value, hint=hint)
        elif isinstance(value, float) and math.isfinite(value):
            most = float(f"{max(4 * abs(value), 1.0):.2g}")
            low = 0.0 if value >= 0 else -most
            field = gui.add_slider(label, low, most, most / 200, value, hint=hint)
        else:
            field = gui.add_text(label, value_text(value), hint=hint)
            self._fields[number, name] = field
        change = partial(self._set_parameter, number, parameter)
        self._on_update(field, partial(self._post, f"guide {number} {name}", change))

    def _set_parameter(self, number: int, parameter: Parameter, given: Any) -> None:
        value = read_value(given, parameter) if isinstance(given, str) else given
        self.session.change_guide(number, {parameter.name: value})

    # --- what is kept -----------------------------------------------------------------

    def _add_sharing(self, gui: Any) -> None:
        kinds: tuple[tuple[str, Callable[[Setup], str]], ...] = (
            ("Copy as Python", as_python),
            ("Copy as command", as_command),
        )
        for label, text in kinds:
            opened = partial(self._open, label, text)
            self._on_click(gui.add_button(label), opened)
        self._record_button = gui.add_button(
            "Record the scene",
            hint="Keep what you see from now on, without this panel, as one HTML file.",
        )
        self._on_click(self._record_button, self._record)

    def _open(self, title: str, text: Callable[[Setup], str], event: Any) -> None:
        gui = event.client.gui
        with gui.add_modal(title) as modal:
            gui.add_html(
                f'<button onclick="{COPY}" style="padding:.3em 1em">Copy</button>'
                f'<pre style="white-space:pre-wrap;font-size:12px;user-select:text">'
                f"{html.escape(text(self.session.setup))}</pre>"
            )
            self._on_click(gui.add_button("Close"), lambda _: modal.close())

    def _record(self, event: Any) -> None:
        if self._recorder is None:
            self._record_button.label = "Stop, and save play.html"
            self.start_recording()
            return
        self._record_button.label = "Record the scene"
        event.client.send_file_download("play.html", self.stop_recording().encode())

    def start_recording(self) -> None:
        """Record the scene from now on."""
        self._recorded = time.perf_counter()
        self._recorder = self.server.get_scene_serializer()

    def stop_recording(self) -> str:
        """Return what was recorded as one HTML page that needs nothing else."""
        recorder, self._recorder = self._recorder, None
        return str(recorder.as_html())

    # --- columns over time ------------------------------------------------------------

    def _add_plots(self, gui: Any) -> None:
        """Add a plot for each name of columns that the scene does not show."""
        uplot: Any = require_extra("viser.uplot", "play")
        layout = self.session.policy.planner.layout
        shown = set(self.session.world.position)
        every = {"observation": tuple(range(layout.observation_dim))}
        for name, columns in (dict(layout.aliases) or every).items():
            if set(columns) <= shown or len(self._plots) >= MOST_PLOTS:
                continue
            lines = list(columns)[:MOST_LINES]
            series = [uplot.Series(label="env step")]
            for index, color in zip(range(len(lines)), LINE_COLORS, strict=False):
                series += [
                    uplot.Series(label=f"plan {index}", stroke=color, width=1),
                    uplot.Series(label=f"real {index}", stroke=color, width=3),
                ]
            plot = gui.add_uplot(
                tuple(np.zeros(1) for _ in series),
                tuple(series),
                title=_plot_title(name, lines, len(columns)),
                aspect=2.2,
                scales={"x": uplot.Scale(time=False)},
                legend=uplot.Legend(show=False),
            )
            self._plots[name] = plot, lines

    def _draw_plots(self, frame: Frame) -> None:
        self.plots_wait = None
        if not len(frame.path):
            return
        now = time.perf_counter()
        wait = self._plotted + 1 / PLOTS_PER_SECOND - now
        if wait > 0:
            self.plots_wait = wait
            return
        self._plotted = now
        path, stride = frame.path, frame.stride
        past = frame.past[::stride][: len(path)]
        begin = 0
        if len(path) < 2:  # nothing is planned ahead: show what happened lately
            path, stride, past = path[:0], 1, frame.trace[-LATELY:]
            begin = max(frame.env_steps + 1 - LATELY, 0)
        steps = begin + np.arange(max(len(path), len(past), 1)) * float(stride)
        for plot, lines in self._plots.values():
            data = [steps]
            for column in lines:
                both = np.full((2, len(steps)), np.nan)
                both[0, : len(path)] = path[:, column]
                both[1, : len(past)] = past[:, column]
                data += [*both]
            plot.data = tuple(data)


def _plot_title(name: str, lines: Sequence[int], count: int) -> str:
    """Return what a plot shows."""
    some = f" ({len(lines)} of {count})" if len(lines) < count else ""
    return f"{name}{some}: thin planned, thick real"


def _write(field: Any, name: str, value: Any) -> None:
    """Set a property if it is another one: each change is sent to all tabs."""
    if getattr(field, name) != value:
        setattr(field, name, value)


def _nothing() -> None:
    """Change nothing: what is shown is drawn anew."""
