"""OGBench's recipe of point-maze data, and the expert behind it.

A point moves by 0.2 times its action at every step, through a maze of square cells
(4 units wide). The expert heads for the middle of the next cell on a shortest way:

    d_t = (c - x_t) / |c - x_t|        a_t = clip(d_t + 0.5 ε, -1, 1),  ε ~ N(0, 1)

with the position `x_t` and the middle `c` of that cell, or of the goal's own cell once
the point is there. Two kinds of episodes (Park et al., "OGBench: Benchmarking Offline
Goal-Conditioned RL", 2025, and its script `generate_locomaze.py`):

* *navigate*: 1000 steps (2000 in the giant mazes) from a random cell, toward one random
  goal after another; a new goal is drawn when one is reached. Goals are in cells where
  a way turns, forks or ends.
* *stitch*: 200 steps from a random cell to a goal four cells away, where the point
  stays. Longer ways have to be put together from these.

Starts and goals are drawn up to one unit from the middle of their cells. A goal counts
as reached within one unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import MazeOptionError, UnsupportedEnvError, check_number
from diffuser_envs.maze.demonstrator import read_observation
from diffuser_envs.maze.layouts import Cell, FloatArray, neighbors, steps_to

MOVES = ((-1, 0), (0, -1), (1, 0), (0, 1))  # OGBench's order: the first of equals wins
STITCH_CELLS = 4
DATASET_STEPS = 1_000_000


class CellMaze:
    """A maze of square cells: the middles of its cells, and the ways between them.

    Args:
        walls: True where a cell is a wall, `[rows, columns]`.
        origin: Middle (x, y) of cell (0, 0).
        unit: Side of a cell.
    """

    def __init__(self, walls: np.ndarray, origin: FloatArray, unit: float) -> None:
        self.origin, self.unit = origin, unit
        self.cells: list[Cell] = [(int(i), int(j)) for i, j in np.argwhere(~walls)]
        self._free = frozenset(self.cells)
        self.corners = [cell for cell in self.cells if not self._is_hallway(cell)]
        self._steps: dict[Cell, Mapping[Cell, int]] = {}  # by goal

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any]) -> CellMaze:
        """Read the maze of one of OGBench's point mazes.

        Raises:
            UnsupportedEnvError: It is another environment, or one whose observations
                have no goals.
        """
        base: Any = env.unwrapped
        name = env.spec.id if env.spec else type(base).__name__
        if not hasattr(base, "ij_to_xy") or not name.startswith("pointmaze-"):
            raise UnsupportedEnvError(
                "this demonstrator needs a point maze of OGBench, such as "
                f"pointmaze-medium-v0, not {name}"
            )
        if not isinstance(env.observation_space, gymnasium.spaces.Dict):
            raise UnsupportedEnvError(
                "this demonstrator needs the goals of a point maze of OGBench, but "
                f"observations of {name} have none; make one of several tasks, such "
                "as pointmaze-medium-v0, with diffuser_policy.envs.make_env"
            )
        origin, diagonal = (np.array(base.ij_to_xy(ij)) for ij in ((0, 0), (1, 1)))
        return cls(
            np.asarray(base.maze_map) == 1, origin, float(diagonal[0] - origin[0])
        )

    def middle(self, cell: Cell) -> FloatArray:
        """Return the middle (x, y) of a cell."""
        return self.origin + self.unit * np.array(cell[::-1], np.float64)

    def cell(self, point: FloatArray) -> Cell:
        """Return the cell of a point (x, y)."""
        column, row = np.floor((point - self.origin) / self.unit + 0.5)
        return int(row), int(column)

    def toward(self, point: FloatArray, goal: FloatArray) -> FloatArray:
        """Return the middle of the next cell from a point to a goal.

        That of the point's own cell if the goal is in it, or out of reach.
        """
        here, steps = self.cell(point), self.steps_to(self.cell(goal))
        best = here
        for neighbor in neighbors(here, MOVES):
            if neighbor in steps and steps[neighbor] < steps.get(best, 0):
                best = neighbor
        return self.middle(best)

    def steps_to(self, goal: Cell) -> Mapping[Cell, int]:
        """Return how many cells it is to a goal, from all cells that can reach it."""
        if goal not in self._steps:
            self._steps[goal] = steps_to(goal, self._free, MOVES)
        return self._steps[goal]

    def _is_hallway(self, cell: Cell) -> bool:
        """Return whether one can only go straight on in a cell."""
        up, left, down, right = (each in self._free for each in neighbors(cell, MOVES))
        return up == down != left == right


class PointMazeDemonstrator:
    """Reach any goal of OGBench's point mazes; Stable-Baselines3's `predict`.

    Unlike the data, its way ends at the goal and not in the middle of the goal's cell,
    and it has no noise.

    Args:
        maze: The maze; see also `from_env`.
        seed: Not used: nothing is drawn.
    """

    generators: ClassVar[Mapping[str, type[NavigateGenerator]]]

    def __init__(self, maze: CellMaze, *, seed: int = 0) -> None:  # noqa: ARG002
        self.maze = maze

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any], **settings: Any) -> Self:
        """Make a demonstrator for the maze of an environment.

        Args:
            env: One of OGBench's point mazes, as `diffuser_policy.envs.make_env` makes
                it.
            **settings: The constructor's keyword arguments.

        Raises:
            UnsupportedEnvError: It is another environment, or its observations have no
                goals.
        """
        return cls(CellMaze.from_env(env), **settings)

    def predict(
        self,
        observation: Mapping[str, npt.ArrayLike],
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (Stable-Baselines3's interface)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[npt.NDArray[np.float32], Any]:
        """Return actions `[2]`, or `[n, 2]` for a batch, and the state as it was.

        Args:
            observation: Goal dictionary, as `diffuser_policy.envs.make_env` makes it.
            state: Not used.
            episode_start: Not used.
            deterministic: Not used.

        Raises:
            MazeObservationError: The observation is not a finite goal dictionary.
        """
        points, goals, batched = read_observation(observation, size=2)
        actions = np.empty(points.shape, np.float32)
        for row, (point, goal) in enumerate(zip(points, goals, strict=True)):
            there = self.maze.cell(point) == self.maze.cell(goal)
            offset = (goal if there else self.maze.toward(point, goal)) - point
            actions[row] = offset / max(float(np.linalg.norm(offset)), 0.2)
        return (actions if batched else actions[0]), state


@dataclass(frozen=True, eq=False, kw_only=True)
class MazeEpisode:
    """One episode of `T` steps.

    Attributes:
        observations: Goal dictionary of `[T + 1, 2]`; the goal of row `t` is that which
            step `t` heads for.
        actions: float32 `[T, 2]`.
        rewards: `[T]`: 1 for every step that ends within one unit of its goal.
    """

    observations: Mapping[str, FloatArray]
    actions: npt.NDArray[np.float32]
    rewards: FloatArray


class NavigateGenerator:
    """Episodes toward one random goal after another.

    Args:
        env: A point maze as `diffuser_policy.envs.make_env` makes it, so that a seed
            fixes what it draws.
        noise: Standard deviation of the noise on every action.
        num_steps: Env steps of an episode; 0 for OGBench's.
    """

    kind: ClassVar[str] = "navigate"
    usual_steps: ClassVar[int] = 1000

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        noise: float = 0.5,
        num_steps: int = 0,
    ) -> None:
        check_number("noise", noise, MazeOptionError, least=0.0)
        check_number("num_steps", num_steps, MazeOptionError, least=0, whole=True)
        self.env, self.maze, self.noise = env, CellMaze.from_env(env), noise
        self.num_steps = int(num_steps) or self._steps_of_episode(env)
        stem, _, version = _id_of(env).rpartition("-")
        self.dataset_id = f"diffuser/{stem}-{self.kind}-{version}"

    @classmethod
    def from_env(cls, env: gymnasium.Env[Any, Any], **options: Any) -> Self:
        """Make a generator for an environment.

        Raises:
            UnsupportedEnvError: It is no point maze of OGBench, or its observations
                have no goals.
            MazeOptionError: An option that is negative or no finite number, or a
                fraction of a step.
        """
        return cls(env, **options)

    @classmethod
    def default_episodes(cls, env: gymnasium.Env[Any, Any]) -> int:
        """Return how many episodes OGBench has recorded: those of a million steps."""
        return DATASET_STEPS // cls._steps_of_episode(env)

    @classmethod
    def _steps_of_episode(cls, env: gymnasium.Env[Any, Any]) -> int:
        far = cls.kind == "navigate" and "giant" in _id_of(env)
        return cls.usual_steps * (2 if far else 1)

    def record(self, seed: int) -> MazeEpisode:
        """Return the episode of a seed."""
        rng = np.random.default_rng(seed)
        base: Any = self.env.unwrapped
        start = _choice(rng, self.maze.cells)
        task = {"init_ij": start, "goal_ij": self._goal_cell(rng, start)}
        observation, _ = self.env.reset(seed=seed, options={"task_info": task})
        noise = rng.normal(0.0, self.noise, (self.num_steps, 2))
        points, goals = np.empty((2, self.num_steps + 1, 2))
        actions = np.empty((self.num_steps, 2), np.float32)
        rewards = np.zeros(self.num_steps)
        points[0], goals[0] = observation["observation"], base.cur_goal_xy
        for step in range(self.num_steps):  # the loop that takes all the time
            offset = self.maze.toward(points[step], goals[step]) - points[step]
            direction = offset / (np.linalg.norm(offset) + 1e-6)
            actions[step] = np.clip(direction + noise[step], -1.0, 1.0)
            # The wrappers' step limit and the end at the goal do not matter here.
            observation, *_, info = self.env.step(actions[step].copy())
            points[step + 1], goals[step + 1] = observation["observation"], goals[step]
            if info["success"]:
                rewards[step] = 1.0
                if self.kind == "navigate":
                    middle = self.maze.middle(_choice(rng, self.maze.corners))
                    goals[step + 1] = (
                        middle + rng.uniform(-1, 1, 2) * self.maze.unit / 4
                    )
                    base.set_goal(goal_xy=goals[step + 1])
        observations = {
            "observation": points,
            "achieved_goal": points,
            "desired_goal": goals,
        }
        return MazeEpisode(observations=observations, actions=actions, rewards=rewards)

    def _goal_cell(self, rng: np.random.Generator, start: Cell) -> Cell:  # noqa: ARG002
        return _choice(rng, self.maze.corners)


class StitchGenerator(NavigateGenerator):
    """Short episodes to a goal four cells away.

    Args:
        env: As for `NavigateGenerator`.
        noise: Standard deviation of the noise on every action.
        num_steps: Env steps of an episode; 0 for OGBench's.
    """

    kind = "stitch"
    usual_steps = 200

    def _goal_cell(self, rng: np.random.Generator, start: Cell) -> Cell:
        steps = self.maze.steps_to(start)
        near = [cell for cell, count in steps.items() if count == STITCH_CELLS]
        return _choice(rng, near) if near else start


PointMazeDemonstrator.generators = {
    "navigate": NavigateGenerator,
    "stitch": StitchGenerator,
}


def _id_of(env: gymnasium.Env[Any, Any]) -> str:
    return env.spec.id if env.spec else ""


def _choice(rng: np.random.Generator, cells: list[Cell]) -> Cell:
    return cells[int(rng.integers(len(cells)))]
