"""A session: what is set up by hand, the plan for it, and the run that follows.

    session = Session(policy, env, planner="multi2d-large")
    session.move("goal", (4.5, 3.0, 0.0))
    session.add_guide("keep-out")
    session.advance()                plans for the newest setup, or makes an env step
    frame = session.frame()

Everything that a page shows is in the `Frame`, as plain arrays; there is no thread and
no page in here. A change that cannot be planned for (a goal in a wall, settings that
contradict each other, a guide that fails) leaves a message in the next frame, and the
last plan that worked stays.

Plans are those of `policy.plan(observation)` and `predict(…, deterministic=True)`: the
same setup gives the same plan, and moving the goal a little moves the plan a little.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from diffuser_policy.envs import Env, env_name, make_env, reset_env, step_env
from diffuser_policy.errors import ConfigError, DiffuserPolicyError
from diffuser_policy.evaluation.loop import Tally
from diffuser_policy.guides.guide import Mark, as_guide
from diffuser_policy.guides.registry import (
    GUIDES,
    SavedPart,
    example_texts,
    find_guide,
    guide_from_json,
    guide_to_json,
    parse_guide,
)
from diffuser_policy.needs import PLANNING_NEEDS
from diffuser_policy.observations import part_at
from diffuser_policy.planning.plan import Plan
from diffuser_policy.planning.state import PolicyState
from diffuser_policy.play.worlds import seconds_per_step, world_of
from diffuser_policy.policy import DiffuserPolicy
from diffuser_policy.settings import to_json
from diffuser_policy.walls import with_between
from diffuser_policy.words import counted

LONGEST_TRACE = 4000  # env steps of a run that are drawn
WELL_INSIDE = 0.95  # of a shape's size: a path that touches it is no cause for remarks


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is set up by hand: enough to make it again.

    Attributes:
        planner: Name, folder or hub id.
        env_id: Id of the environment.
        seed: Of the environment's `reset`, and of the policy's noise.
        options: What `reset` is given.
        guides: What plans are steered by.
        settings: Planning and execution settings that differ from the planner's own.
        unguided: Whether the planner's own guide was removed.
        left_out: Numbers of the guides that do not steer, since they fail.
    """

    planner: str
    env_id: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    guides: tuple[SavedPart, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    unguided: bool = False
    left_out: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What a page shows at one moment.

    Attributes:
        state: `[observation]` planning columns now.
        path: `[steps, observation]` the plan; no rows where there is none.
        progress: How far it has been followed, in planning steps.
        others: `[candidates - 1, steps, observation]` what it was chosen from.
        chain: `[denoising steps + 1, steps, observation]` how it came out of noise.
        route: `[places, observation]` on the way to the goal, if plans lead from one
            to the next.
        trace: `[n, observation]` what has happened in this run; the end of it, if that
            is very long.
        past: `[n, observation]` what happened since the plan was made, env step by env
            step; the beginning of it, if that is very long.
        stride: Env steps between planning steps.
        plan_seconds: Wall-clock time of the last plan.
        num_plans: Plans made in this run; 0 while nothing runs.
        env_steps: Env steps of this run.
        running: Whether a run is under way.
        outcome: Outcome of the run, in words.
        score: Normalized score so far, if the environment has one.
        messages: What could not be planned, and why.
        remarks: What is wrong with the plan, or with what happened.
        stuck: Names of the handles whose places cannot be planned for.
        marks: Shapes of the guides, by the number of the guide.
    """

    state: np.ndarray
    path: np.ndarray
    progress: float
    others: np.ndarray
    chain: np.ndarray
    route: np.ndarray
    trace: np.ndarray
    past: np.ndarray
    stride: int
    plan_seconds: float
    num_plans: int
    env_steps: int
    running: bool
    outcome: str
    score: float | None
    messages: tuple[str, ...]
    remarks: tuple[str, ...]
    stuck: tuple[str, ...]
    marks: tuple[tuple[int, Mark], ...]


@dataclass
class _Run:
    """An episode under way."""

    observation: Any
    tally: Tally
    trace: deque[np.ndarray]  # as much as is drawn
    past: list[np.ndarray]  # since the last new plan
    state: PolicyState | None = None
    over: bool = False
    truncated: bool = False  # time is up: it cannot go on to another goal


class Session:
    """One planner in one environment, as it is set up by hand."""

    def __init__(
        self,
        policy: DiffuserPolicy,
        env: Env,
        *,
        planner: str,
        env_id: str | None = None,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        own_guide: bool | None = None,
    ) -> None:
        """Reset the environment, and look at it.

        Args:
            policy: As `DiffuserPolicy.from_pretrained` made it; guides and settings
                that it was given are part of the setup.
            env: The session's own.
            planner: What the policy was made of, for `setup`.
            env_id: What the environment was made of, for `setup`.
            seed: Of `reset`, and of the policy's noise.
            options: For `reset`, such as start and goal.
            settings: Those that the policy was given, and the planner does not have.
            own_guide: Whether the planner has a guide of its own, also if the policy
                was given another; by default, whether the policy has one.

        Raises:
            SpaceMismatchError: The planner is for other spaces.
            ConfigError: The environment does not take the options.
        """
        self.env = env
        policy = policy.for_env(env)
        self.planner, self.env_id, self.seed = planner, env_id or env_name(env), seed
        observation, _ = reset_env(env, seed=seed)
        self.world = world_of(
            env, policy.planner.layout, observation, policy.spaces.parts.goal_keys
        )
        self.guides: list[SavedPart] = []
        if policy.guide is not None:
            data = guide_to_json(policy.guide)
            self.guides = [SavedPart(**part) for part in data]
        self.usual = {
            **to_json(policy.config.planner),
            **to_json(policy.config.execution),
        }
        self._given = dict(settings or {})
        self.settings = dict(self._given)
        self._bare = policy.with_guide(None)
        # To try a guide: a planner that only ranks by guides may be saved with scale 0.
        scale = self.usual["guide_scale"] or 1.0
        self._steered = partial(self._bare.with_guide, guide_scale=scale)
        self._bare.set_random_seed(seed)
        self._policy = policy
        self._own_guide = bool(self.guides) if own_guide is None else own_guide
        self._messages: dict[str, str] = {}
        self._failing: dict[int, str] = {}  # guides that are left out, and why
        self._stuck: tuple[str, ...] = ()
        self._run: _Run | None = None
        self._changed, self._going, self._single = True, False, False
        self._plan: Plan | None = None
        self._plan_seconds = 0.0
        try:
            self.world.set_options(options or {})
        except (TypeError, ValueError) as error:  # of environments' own worlds
            raise ConfigError(_said(error)) from error
        self._rebuild()  # guides without a weight do not steer
        if "settings" in self._messages:
            self._leave_out_idle()
        self._observation = self._reset()
        if self._messages:
            raise ConfigError(next(iter(self._messages.values())))

    # --- what is set up ---------------------------------------------------------------

    @property
    def setup(self) -> Setup:
        """What is set up now."""
        settings, unguided = self._settings(), self._own_guide and not self.guides
        if unguided and self.usual["ranking"] == "guide":  # it went with the guide
            settings.setdefault("ranking", self._bare.config.planner.ranking)
        if self.guides and not self.usual["guide_scale"]:  # as it is saved, on purpose
            settings.setdefault("guide_scale", 0.0)
        return Setup(
            planner=self.planner,
            env_id=self.env_id,
            seed=self.seed,
            options=self.world.options(),
            guides=tuple(self.guides),
            settings=settings,
            unguided=unguided,
            left_out=frozenset(self._failing),
        )

    @property
    def policy(self) -> DiffuserPolicy:
        """The policy that plans: the newest settings that fit together."""
        return self._policy

    @property
    def observation(self) -> Any:
        """What the environment last returned."""
        return self._observation if self._run is None else self._run.observation

    @property
    def pace(self) -> float:
        """Seconds that an env step takes in the world that is simulated."""
        return seconds_per_step(self.env)

    @property
    def first_observation(self) -> Any:
        """What `reset` last returned: where the handles of the world are."""
        return self._observation

    def move(self, name: str, place: Sequence[float]) -> None:
        """Put a handle of the world somewhere.

        A goal may move in a run whose time is not up, if the environment can move it;
        moving anything else ends the run.

        Args:
            name: Name of the handle.
            place: x, y and z.
        """
        failed = "reset" in self._messages
        self.world.move(name, place)
        if name == "goal" and self._move_goal():
            return
        self.restart()
        if "reset" in self._messages:
            self._blame(name, failed)

    def choose_world(self, name: str, value: str) -> None:
        """Set one of the world's choices, such as the task.

        Raises:
            DiffuserPolicyError: The environment of a choice cannot be made, or does not
                suit the planner.
        """
        env_id = self.world.choose(name, value)
        if env_id is not None and env_id != self.env_id:
            self._enter(env_id)
        self.restart()

    def set_seed(self, seed: int) -> None:
        """Begin another episode: everything is drawn anew, the policy's noise too.

        Where the reset fails, the last start stays, with its seed.

        Args:
            seed: A whole number from 0 to 2**63 - 1.

        Raises:
            ConfigError: A seed of another kind, which changes nothing.
        """
        before, options = self.seed, self.world.options()
        self._bare.set_random_seed(int(seed))  # refuses some
        self.seed = int(seed)
        self.world.forget()
        self.restart()
        if "reset" in self._messages:
            self.seed = before
            self.world.set_options(options)
            self._bare.set_random_seed(before)
        self._rebuild()

    def choose(self, **settings: Any) -> None:
        """Change planning and execution settings; those of the planner are dropped."""
        usual = {k: v for k, v in self.usual.items() if k not in self._given}
        merged = {**self.settings, **settings}
        self.settings = {
            k: v for k, v in merged.items() if k not in usual or v != usual[k]
        }
        self._rebuild()

    def add_guide(self, name: str) -> int:
        """Add a guide by name, at first with the values of its documented example.

        Points that it needs are put onto the middle of the plan.

        Returns:
            Its number.

        Raises:
            UnknownNameError: No guide of that name.
            GuideError: It is broken.
        """
        found = find_guide(name)
        data = guide_to_json(parse_guide(example_texts(found)[0]))[0]
        given = dict(data["parameters"])
        points = [p.name for p in found.parameters if self.is_point(given.get(p.name))]
        if len(points) == 1 and self._plan is not None:
            path = self.world.points(self._plan.path())
            given[points[0]] = [round(float(x), 2) for x in path[len(path) // 2]][
                : len(given[points[0]])
            ]
        if not self.guides:
            # Settings that usually go with guides (docs/guides/use.md), unless changed.
            for key, value in self._suited().items():
                if key not in self.settings and self._works(**{key: value}):
                    self.settings[key] = value
        self.guides.append(SavedPart(guide=name, parameters=given))
        self._rebuild()
        return len(self.guides) - 1

    def change_guide(
        self, number: int, values: Mapping[str, Any], *, weight: float | None = None
    ) -> None:
        """Change a guide's weight or parameters.

        Args:
            number: Which guide; one that was removed meanwhile is ignored.
            values: Parameters.
            weight: Factor of the guide.
        """
        if number >= len(self.guides):
            return
        part = self.guides[number]
        self.guides[number] = replace(
            part,
            weight=part.weight if weight is None else weight,
            parameters={**part.parameters, **values},
        )
        self._failing.pop(number, None)
        self._rebuild()

    def move_guide(
        self, number: int, point: str | None, place: Sequence[float]
    ) -> None:
        """Move one point of a guide, or all of them together.

        Args:
            number: Which guide.
            point: The parameter; none: all that are points keep their distances.
            place: Where to put it, or their middle.
        """
        if number >= len(self.guides):
            return
        points = {
            name: np.asarray(value, float)
            for name, value in self.guides[number].parameters.items()
            if self.is_point(value)
        }
        if not points or point not in {None, *points}:
            return
        at = np.asarray(place, float)[: len(self.world.position)]
        if point is not None:
            moved = {point: at}
        else:
            middle = np.mean(list(points.values()), axis=0)
            moved = {name: value + at - middle for name, value in points.items()}
        self.change_guide(
            number, {n: [round(float(x), 3) for x in v] for n, v in moved.items()}
        )

    def remove_guide(self, number: int, *, of: int | None = None) -> None:
        """Remove a guide; those after it move up.

        Args:
            number: Its place.
            of: How many there were then; nothing is done if there are not as many.
        """
        if of is not None and of != len(self.guides):
            return
        del self.guides[number]
        self._failing.clear()
        if not self.guides:
            for key, value in self._suited().items():
                if self.settings.get(key) == value:
                    del self.settings[key]
                    if key in self._given:
                        self.settings[key] = self._given[key]
                    self._drop_idle(key)
        self._rebuild()

    def is_point(self, value: Any) -> bool:
        """Return whether a parameter's value is a point of the world that is drawn."""
        size = len(self.world.position)
        return (
            isinstance(value, list | tuple)
            and len(value) == size > 1
            and all(isinstance(x, float) for x in value)
        )

    # --- what happens -----------------------------------------------------------------

    def run(self) -> None:
        """Let the robot follow the plan, from where it is."""
        self._going = self._ready()

    def pause(self) -> None:
        """Stop; `run` and `step` go on from here."""
        self._going = False

    def step(self) -> None:
        """Make one env step, and pause."""
        self._going, self._single = False, self._ready()

    def restart(self) -> None:
        """Forget the run, and put everything back to the start."""
        self._run, self._going, self._single = None, False, False
        self._observation, self._changed = self._reset(), True

    @property
    def going(self) -> bool:
        """Whether `advance` will make env steps."""
        return self._going or self._single

    def advance(self) -> None:
        """Plan for the newest setup; or, in a run, make an env step."""
        if self._run is None:
            if self._changed:
                self._changed = False
                if "reset" not in self._messages:
                    self._guarded(self._make_plan)
        elif self.going and not self._run.over:
            self._single = False
            self._guarded(self._make_step)

    def frame(self) -> Frame:
        """Return the current frame."""
        state = self._bare.read(self.observation)[0][0]
        width = len(state)
        none = np.zeros((0, width), np.float32)
        path, others, chain, progress = none, none[None][:0], none[None][:0], 0.0
        stride = self._policy.planner.stride
        trace = past = none
        outcome, score, plans, steps = "", None, 0, 0
        if self._run is not None:
            run = self._run
            trace, past = np.array([*run.trace]), np.array(run.past)
            steps = run.tally.length
            if run.state is not None:
                length = int(run.state.lengths[0])
                path = run.state.observations[0, :length]
                progress = float(run.state.progress[0]) / stride
                plans = int(run.state.num_plans[0])
            record = run.tally.record(plans)
            score = record.score
            if record.success is None:
                outcome = f"return {record.episode_return:.1f}"
            if record.time_to_goal is not None:
                outcome = (
                    f"at the goal after {counted(record.time_to_goal, 'env step')}"
                )
            if run.over:
                outcome = (outcome or "not at the goal") + "; the episode is over"
        elif self._plan is not None:
            plan, chosen = self._plan, int(self._plan.chosen[0])
            length = int(plan.lengths[0])
            path = plan.path()
            others = np.delete(plan.candidates[0, :, :length], chosen, axis=0)
            if plan.chain is not None:
                chain = plan.chain[:, 0, chosen, :length]
        marks = self._marks()
        return Frame(
            state=state,
            path=path,
            progress=progress,
            others=others,
            chain=chain,
            route=self._route(state),
            trace=trace,
            past=past,
            stride=stride,
            plan_seconds=self._plan_seconds,
            num_plans=plans,
            env_steps=steps,
            running=self._run is not None and not self._run.over,
            outcome=outcome,
            score=score,
            messages=(*self._messages.values(), *self._failing.values()),
            stuck=self._stuck,
            remarks=self._remarks(path, trace, marks),
            marks=marks,
        )

    def _route(self, state: np.ndarray) -> np.ndarray:
        """Return states at the places of the route, `[places, observation]`."""
        planner = self._policy.planner
        if planner.routes is None or self._stuck:
            return np.zeros((0, len(state)), np.float32)
        places = self._policy.routes(self.observation)[0]
        states = np.repeat(state[None], len(places) + 1, axis=0)
        states[1:, planner.routes.observed] = places
        return states

    def possible(self, name: str, values: Sequence[str]) -> list[str]:
        """Return those values of a setting that this planner could have.

        Those that only work with a guide, or only without one, are among them, and so
        is the present one.

        Args:
            name: Of a planning or execution setting.
            values: To try.
        """
        ways = self._guided, self._bare.with_settings
        # Settings that need one of the values now may change before another is chosen.
        others = {
            key: value
            for key, value in self.settings.items()
            if name not in dict(_needs(key))
        }
        found = [{**self.usual, **self.settings}[name]]
        for value, way in itertools.product(values, ways):
            if value not in found:
                with contextlib.suppress(DiffuserPolicyError):
                    way(**{**others, name: value})
                    found.append(value)
        return [value for value in values if value in found]

    def usable_guides(self) -> list[str]:
        """Return the names of the installed guides that this planner can be steered by.

        Each is tried, with the values of its documented example.
        """
        found = []
        for plugin, error in GUIDES.entries():
            if error is None:
                with contextlib.suppress(Exception):  # of whoever wrote the guide
                    guide = parse_guide(example_texts(find_guide(plugin.name))[0])
                    self._steered(guide).plan(self.observation)
                    found.append(plugin.name)
        return found

    def _remarks(
        self,
        path: np.ndarray,
        trace: np.ndarray,
        marks: Sequence[tuple[int, Mark]],
    ) -> tuple[str, ...]:
        """Return what is wrong with a plan and with what happened, in sentences."""
        if not self.world.position:
            return ()
        found, active = [], self._active()
        for whose, states in (("The plan", path), ("The robot's path", trace)):
            points = self.world.points(states)
            if len(points) < 2:
                continue
            if whose == "The plan" and self.world.obstructed(points):
                found.append(f"{whose} leads through a wall.")
            names = [
                self.guides[number].guide
                for number, mark in marks
                if mark.kind == "avoid" and number in active and _enters(points, mark)
            ]
            found += [
                f"{whose} enters what “{name}” marks." for name in sorted({*names})
            ]
        return tuple(found)

    def _enter(self, env_id: str) -> None:
        """Go on in another environment."""
        env = make_env(env_id)
        try:
            bare = self._bare.for_env(env)
            observation, _ = reset_env(env, seed=self.seed)
        except BaseException:
            env.close()
            raise
        self.close()
        self.env, self.env_id, self._bare = env, env_id, bare
        self.world = world_of(
            env, bare.planner.layout, observation, bare.spaces.parts.goal_keys
        )
        self._run, self._plan, self._observation = None, None, observation
        self._failing.clear()  # what failed there may work here
        self._rebuild()

    def close(self) -> None:
        """Close the environment and what the world holds."""
        self.world.close()
        self.env.close()

    def _make_plan(self) -> None:
        begin = time.perf_counter()
        self._plan = self._policy.plan(self._observation, keep_chain=True)
        self._plan_seconds = time.perf_counter() - begin

    def _make_step(self) -> None:
        run = self._run
        if run is None:
            return
        begin = time.perf_counter()
        action, state = self._policy.predict(
            run.observation, run.state, deterministic=True
        )
        seconds = time.perf_counter() - begin
        if run.state is None or state.num_plans[0] > run.state.num_plans[0]:
            self._plan_seconds = seconds
        if state.ages[0] == 0:
            run.past = [run.trace[-1]]
        after = step_env(self.env, action)
        run.observation, run.state = after.observation, state
        run.trace.append(self._bare.read(after.observation)[0][0])
        if len(run.past) < LONGEST_TRACE:
            run.past.append(run.trace[-1])
        run.tally.add(after.reward, after.info)
        if after.terminated or after.truncated:
            run.over, run.truncated, self._going = True, after.truncated, False

    def _ready(self) -> bool:
        """Begin a run unless one can go on; return whether there is one.

        There is none where the reset failed.
        """
        if self._run is None or self._run.over:
            self.restart()
            if "reset" in self._messages:
                return False
            observation = self._observation
            first = self._bare.read(observation)[0][0]
            self._run = _Run(
                observation,
                Tally(self.env, self.seed, observation, goal_keys=self._goal_keys),
                deque([first], maxlen=LONGEST_TRACE),
                [first],
            )
        return True

    def _reset(self) -> Any:
        """Reset to what was set up; keep the last start if that is impossible."""
        options = self.world.options() or None
        try:
            observation, _ = reset_env(self.env, seed=self.seed, options=options)
        except Exception as error:  # of whoever wrote the environment
            self._messages["reset"] = _said(error)
            return getattr(self, "_observation", None)
        self._messages.pop("reset", None)
        self._stuck = ()
        return observation

    def _blame(self, name: str, failed: bool) -> None:
        """Note which handles a failed reset is about.

        Args:
            name: The one that was moved.
            failed: Whether `reset` failed before, too. Then others may be to blame.
        """
        handles = {handle[0] for handle in self.world.handles(self._observation)}
        said = self._messages["reset"]
        named = {each for each in handles if re.search(rf"\b{re.escape(each)}\b", said)}
        if named:
            self._stuck = tuple(sorted({*self._stuck} - {name} | named))
        elif not failed:
            self._stuck = (name,)

    @property
    def _goal_keys(self) -> tuple[str, str]:
        return self._bare.spaces.parts.goal_keys

    def _move_goal(self) -> bool:
        """Move the goal of the run that is under way, if the environment can."""
        run = self._run
        if run is None or run.truncated:
            return False
        set_goal: Any = None
        if self.env.has_wrapper_attr("set_goal"):
            set_goal = self.env.get_wrapper_attr("set_goal")
        goal = self.world.options().get("goal")
        seen = part_at(run.observation, self._goal_keys[1])
        if set_goal is None or goal is None or not isinstance(seen, np.ndarray):
            return False
        self._messages.pop("reset", None)
        self._stuck = ()
        try:
            set_goal(np.asarray(goal, np.float64))
        except Exception as error:  # of whoever wrote the environment
            self._messages["reset"] = _said(error)
            self._stuck = ("goal",)
            return True
        seen.flat[: len(goal)] = goal  # of a state, the position is first
        run.over, run.tally.time_to_goal = False, None
        return True

    def _guided(self, **settings: Any) -> DiffuserPolicy:
        """Return a policy that some guide steers, whichever it is."""
        guide = as_guide(lambda trajectory: trajectory.normalized[:, 0, 0])
        return self._steered(guide, **settings)

    def _works(self, **settings: Any) -> bool:
        """Return whether settings fit those of now, if a guide steers."""
        with contextlib.suppress(DiffuserPolicyError):
            self._guided(**{**self.settings, **settings})
            return True
        return False

    def _drop_idle(self, name: str) -> None:
        """Drop the settings that need another value of a setting than it has now."""
        value = {**self.usual, **self.settings}[name]
        for key in list(self.settings):
            if value not in dict(_needs(key)).get(name, (value,)):
                del self.settings[key]

    def _suited(self) -> dict[str, Any]:
        """Return the settings that usually go with a guide."""
        suited: dict[str, Any] = {"ranking": "guide"}
        if (
            self.usual["seconds_per_step"]
            and "velocity" in self._bare.planner.layout.aliases
        ):
            suited["executor"] = "path"
        return {} if self._own_guide else suited

    def _rebuild(self) -> None:
        """Make the policy of the newest settings; keep the last one if that fails."""
        self._messages.pop("settings", None)
        self._changed = True
        try:
            parts = [vars(self.guides[number]) for number in self._active()]
            guide = guide_from_json(parts) if parts else None
            settings = self._settings()
            if guide is not None:  # a scale of 0 is no mistake: the page shows it
                settings.setdefault("guide_scale", self.usual["guide_scale"])
                if self.usual["ranking"] == "guide":  # the bare policy has none
                    settings.setdefault("ranking", "guide")
            self._policy = self._bare.with_guide(guide, **settings)
        except DiffuserPolicyError as error:
            self._messages["settings"] = _said(error)

    def _active(self) -> list[int]:
        """Return which guides steer: those that do not fail and have a weight."""
        return [
            number
            for number, part in enumerate(self.guides)
            if number not in self._failing and part.weight != 0
        ]

    def _settings(self) -> dict[str, Any]:
        """Return the settings; those that need a guide wait until one steers."""
        if self._active():
            return dict(self.settings)
        return {
            name: value
            for name, value in self.settings.items()
            if (name, value) != ("ranking", "guide") and not _needs_guide(name)
        }

    def _guarded(self, action: Any) -> None:
        """Do something that plans; leave out the guide that makes it fail."""
        for _ in range(len(self.guides) + 1):
            try:
                action()
            except Exception as error:  # of whoever wrote the guide
                number = self._culprit(error)
                if number is None:
                    self._messages["plan"] = _said(error)
                    self._going = False
                    return
                self._leave_out(number, error)
                self._rebuild()
                self._changed = False
                continue
            self._messages.pop("plan", None)
            return

    def _leave_out(self, number: int, error: Exception) -> None:
        name = self.guides[number].guide
        self._failing[number] = f"{name} is left out. {_said(error)}"

    def _leave_out_idle(self) -> None:
        """Leave out guides without an effect: planners may be saved with them."""
        for number in self._active():
            part = self.guides[number]
            try:
                self._steered(find_guide(part.guide).make(part.parameters))
            except DiffuserPolicyError as error:
                self._leave_out(number, error)
        self._rebuild()

    def _culprit(self, error: Exception) -> int | None:
        """Return the number of the guide that caused an error, if one did."""
        for number in self._active():
            part = self.guides[number]
            try:
                alone = find_guide(part.guide).make(part.parameters)
                self._steered(alone).plan(self.observation)
            except Exception as other:
                if type(other) is type(error):
                    return number
        return None

    def _marks(self) -> tuple[tuple[int, Mark], ...]:
        """Return what the guides draw."""
        found = []
        aliases = self._bare.planner.layout.aliases
        position = tuple(self.world.position)
        for number, part in enumerate(self.guides):
            try:
                guide = find_guide(part.guide).make(part.parameters)
            except DiffuserPolicyError:
                continue
            found += [
                (number, mark)
                for mark in guide.marks()
                if tuple(aliases.get(mark.columns, ()))[: len(position)] == position
            ]
        return tuple(found)


def _needs(name: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what a setting needs to have an effect, and which of its values suffice."""
    while name in PLANNING_NEEDS:
        name, values = PLANNING_NEEDS[name]
        yield name, values


def _needs_guide(name: str) -> bool:
    """Return whether a setting has an effect only with a guide."""
    return any(
        other == "guide" or values == ("guide",) for other, values in _needs(name)
    )


def _enters(points: np.ndarray, mark: Mark) -> bool:
    """Return whether a path `[n, 3]` is well inside a guide's shape somewhere."""
    low, high = np.asarray(mark.low, float), np.asarray(mark.high, float)
    half = np.maximum((high - low) / 2, 1e-9)
    path = with_between(points[:, : len(low)])
    off = (path - (low + high) / 2) / half
    far = np.linalg.norm(off, axis=1) if mark.round else np.abs(off).max(axis=1)
    return bool((far < WELL_INSIDE).any())


def _said(error: BaseException) -> str:
    """Return an error's message, with its type if Python raised it."""
    text = " ".join([str(error), *getattr(error, "__notes__", ())]).strip()
    kind = type(error)
    return (
        text if text and kind.__module__ != "builtins" else f"{kind.__name__}: {text}"
    )
