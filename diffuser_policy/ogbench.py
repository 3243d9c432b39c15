"""OGBench's environments as goal environments, with seeds that fix them.

OGBench (Park, Frans, Eysenbach & Levine, "OGBench: Benchmarking Offline
Goal-Conditioned RL", ICLR 2025) hands the goal over in the `info` of `reset`, as the
observation of the state to reach. An environment has five tasks, and
`reset(options={"task_id": 1})` picks one; success is in `info["success"]`. It draws
tasks, starts and goals from NumPy's global generator.

`OGBenchEnv` makes of this what planners and `evaluate` take:

    {"observation": s, "achieved_goal": s, "desired_goal": info["goal"]}

In mazes, `compute_reward` says what a state earns for any goal: 1 there, and else 0.
The single-task variants (`...-singletask-...`) have rewards instead of goals; their
observations stay as they are.
"""

from __future__ import annotations

import contextlib
import operator
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from diffuser_policy.errors import ConfigError, shown, suggestion
from diffuser_policy.interrupts import forkable_lock
from diffuser_policy.walls import Walls

PACKAGE = "ogbench"
# Environments that draw from NumPy's global generator in `step` too, by their ids.
DRAWING = ("teleport", "powderworld")
_REPLACING = forkable_lock()  # held while an environment has the global generator
TASKS, PLACES = ("task_id", "task_info"), ("start", "goal")  # options of `reset`
EXCLUSIVE = (
    ("task_id", "task_info", "each of them is a whole task"),
    ("goal", "render_goal", "the picture would show the goal of the task"),
)


def is_ogbench(spec: EnvSpec) -> bool:
    """Return whether a registration is one of OGBench's."""
    return isinstance(spec.entry_point, str) and spec.entry_point.startswith(
        f"{PACKAGE}."
    )


class OGBenchEnv(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Makes goal dictionaries of an OGBench environment, and seeds all it draws.

    The seed of `reset` also fixes what OGBench takes from NumPy's global generator and
    from its action space. The user's own draws from both stay what they were.

    Raises:
        ConfigError: The environment was made with `use_oracle_rep`: its goals would be
            no observations.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        base: Any = env.unwrapped
        _keep_action_space(base)
        spec_id = env.spec.id if env.spec else ""
        options = dict(env.spec.kwargs) if env.spec else {}
        if options.get("use_oracle_rep"):
            raise ConfigError(
                "use_oracle_rep=True gives goals that are no observations, and plans "
                "end in an observation. Leave it out (--env-option)."
            )
        # OGBench leaves the model of a maze behind, in a temporary file.
        model = Path(getattr(base, "fullpath", ""))
        if model.parent == Path(tempfile.gettempdir()):
            model.unlink(missing_ok=True)
        self._generator = np.random.RandomState()
        self._actions = np.random.default_rng()
        self._draws = any(word in spec_id for word in DRAWING)
        self._goal: np.ndarray | None = None
        self.has_goals = options.get("reward_task_id") is None
        facts: dict[str, Any] = {}
        if self.has_goals:
            self.get_normalized_score = _in_percent
            space = env.observation_space
            keys = ("achieved_goal", "desired_goal", "observation")
            self.observation_space = gym.spaces.Dict(dict.fromkeys(keys, space))
            # "pre": success is that of the state before the step.
            post = getattr(base, "_success_timing", None) == "post"
            if self._takes_places:
                self.success_radius = float(base._goal_tol)
            if self._takes_places and post:
                self.compute_reward = partial(_at_goal, float(base._goal_tol))
            facts["evaluation_tasks"] = {
                str(task.get("task_name", f"task{number}")): {"task_id": number}
                for number, task in enumerate(base.task_infos, start=1)
            }
        if spec_id.startswith("pointmaze-"):
            facts["observation_columns"] = {"position": [0, 1]}
            if self.has_goals:
                facts["demonstrator"] = "ogbench-pointmaze"
        self.metadata = {**env.metadata, **facts}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode of one of the tasks.

        Args:
            seed: Fixes all that this and later episodes draw.
            options: `task_id`, from 1, or `task_info`; a random task if not given. In
                mazes, `start` and `goal` are positions `[2]` in meters that take the
                place of the task's. `render_goal` asks for a picture of the goal of the
                task, which is that of the episode only without `goal`.

        Raises:
            ConfigError: No such option, seed or task, a malformed `task_info`, a
                position inside a wall, or options that exclude each other.
        """
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"options must be a dictionary, got {shown(options)}.")
        options = dict(options or {})
        self._check_names(options)
        if "task_id" in options:
            tasks = range(1, 1 + len(getattr(self.env.unwrapped, "task_infos", ())))
            options["task_id"] = _whole("task_id", options["task_id"], tasks)
        for one, other, why in EXCLUSIVE:
            if one in options and options.get(other) not in (None, False):
                raise ConfigError(
                    f"options of reset() take {one} or {other}, not both: {why}. Leave "
                    f"one of them out."
                )
        places = {key: options.pop(key) for key in ("start", "goal") if key in options}
        places = {key: self._place(key, place) for key, place in places.items()}
        if seed is not None:  # after the options, which may be refused
            seed = _whole("seed", seed, range(2**63))
            sequence = np.random.SeedSequence(seed)
            own, actions = map(int, sequence.generate_state(2))
            self._generator.seed(own)
            self._actions = np.random.default_rng(actions)
        try:
            with self._own_generator(), self._own_actions():
                observation, info = self.env.reset(seed=seed, options=options or None)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if "task_info" not in options:
                raise
            raise ConfigError(
                f"options['task_info'] must describe a task as those in "
                f"env.unwrapped.task_infos do; {shown(options['task_info'])} fails "
                f"with {type(error).__name__}: {error}. task_id names one of them."
            ) from error
        if self.has_goals:
            self._goal = np.array(info["goal"])
        if "goal" in places:
            self.set_goal(places["goal"])
            info["goal"] = np.array(self._goal)
        if "start" in places:
            base: Any = self.env.unwrapped
            base.set_xy(places["start"])
            observation = base.get_ob()
        return self._with_goal(observation), info

    def set_goal(self, xy: Any) -> None:
        """Move the goal of the episode, in a maze.

        Args:
            xy: `[2]` position in meters.

        Raises:
            ConfigError: A position inside a wall, or an environment that takes none.
        """
        place = self._place("goal", xy)
        base: Any = self.env.unwrapped
        base.set_goal(goal_xy=place)
        if self._goal is not None:
            self._goal[:2] = place

    @property
    def _takes_places(self) -> bool:
        """Whether the first two columns of observations and goals are a position."""
        base: Any = self.env.unwrapped
        # In a game of soccer the goal is the ball's; of pictures there is no part.
        alone = hasattr(base, "set_xy") and not hasattr(base, "set_agent_ball_xy")
        return alone and len(self.env.observation_space.shape or ()) == 1

    @property
    def _maze(self) -> Walls | None:
        """The maze's walls, if start and goal can be anywhere between them."""
        takes_places = self.has_goals and self._takes_places
        return Walls.of(self.env.unwrapped) if takes_places else None

    def _check_names(self, options: Mapping[str, Any]) -> None:
        """Refuse options that OGBench would ignore."""
        known = (*TASKS, "render_goal") if self.has_goals else ("render_goal",)
        for name in map(str, options):
            if name not in (*known, *PLACES):  # places have an error of their own
                known = (*PLACES, *known) if self._maze else known
                raise ConfigError(
                    f"{self._name} takes no {name} in the options of reset(). "
                    f"{suggestion(name, known)}Known: {', '.join(known)}."
                )

    @property
    def _name(self) -> str:
        return self.spec.id if self.spec else "This environment"

    def _place(self, name: str, place: Any) -> np.ndarray:
        """Return a position in a maze, checked."""
        walls = self._maze
        if walls is None:
            instead = " Choose a task instead: options={'task_id': 1}."
            raise ConfigError(
                f"{self._name} takes no {name}.{instead * self.has_goals}"
            )
        xy = np.full(0, np.nan)
        with contextlib.suppress(TypeError, ValueError):  # no numbers
            xy = np.array(place, float)
        if xy.shape != (2,) or not np.isfinite(xy).all():
            raise ConfigError(
                f"{name} must be x and y in meters, two finite numbers; got "
                f"{shown(place)}."
            )
        if walls.contain(xy):
            raise ConfigError(
                f"{name} ({xy[0]:g}, {xy[1]:g}) is inside a wall, or outside the maze."
            )
        return xy

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act, and return the goal with the observation."""
        with self._own_generator() if self._draws else contextlib.nullcontext():
            observation, reward, terminated, truncated, info = self.env.step(action)
        return self._with_goal(observation), reward, terminated, truncated, info

    def _with_goal(self, observation: Any) -> Any:
        if self._goal is None:
            return observation
        return {
            "achieved_goal": np.array(observation),
            "desired_goal": self._goal.copy(),
            "observation": np.array(observation),
        }

    @contextlib.contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Replace NumPy's global generator by this environment's.

        Other threads wait: they would take its state for the user's, and put it back.
        """
        with _REPLACING:
            users = np.random.get_state(legacy=False)  # noqa: NPY002
            np.random.set_state(self._generator.get_state(legacy=False))  # noqa: NPY002
            try:
                yield
            finally:
                drawn = np.random.get_state(legacy=False)  # noqa: NPY002
                self._generator.set_state(drawn)
                np.random.set_state(users)  # noqa: NPY002

    @contextlib.contextmanager
    def _own_actions(self) -> Iterator[None]:
        """Draw actions by this environment's own generator: OGBench's reset acts."""
        public = self.env.unwrapped.action_space.np_random.bit_generator
        own, users = self._actions.bit_generator, public.state
        public.state = own.state
        try:
            yield
        finally:
            own.state = public.state
            public.state = users


def _at_goal(
    tolerance: float,
    achieved_goal: Any,
    desired_goal: Any,
    info: Any,  # noqa: ARG001 (of Gymnasium's signature)
) -> Any:
    """Return the reward of a maze, 1 at the goal and else 0, for any batch.

    Args:
        tolerance: Distance in meters that counts as arrived.
        achieved_goal: `[…, observation]` states.
        desired_goal: `[…, observation]` goals.
        info: Ignored.
    """
    off = np.asarray(achieved_goal)[..., :2] - np.asarray(desired_goal)[..., :2]
    return (np.linalg.norm(off, axis=-1) <= tolerance).astype(np.float64)


def _keep_action_space(base: Any) -> None:
    """Give an environment a single action space, which can be seeded.

    OGBench's arms make another one at every access, and `reset` draws from it.
    """
    space, kind = base.action_space, type(base)
    if base.action_space is space:
        return
    # An object's own attribute counts only where its class has no property.
    members = {"action_space": None, "__module__": kind.__module__}
    base.__class__ = type(kind.__name__, (kind,), members)
    base.action_space = space


def _in_percent(episode_return: float) -> float:
    """Return the score of an episode, whose return is 1 at the goal: 100 or 0."""
    return 100.0 * min(max(float(episode_return), 0.0), 1.0)


def _whole(name: str, given: Any, known: range) -> int:
    """Return a number of any whole kind as an `int`.

    Raises:
        ConfigError: It is none of the known ones.
    """
    with contextlib.suppress(TypeError):
        if operator.index(given) in known:
            return operator.index(given)
    raise ConfigError(
        f"{name} must be a whole number from {known[0]} to {known[-1]}, got "
        f"{shown(given)}."
    )
