"""Multi2D as a wrapper: a new goal in every episode, for any maze with goals.

Janner et al. (2022, section 5) turn the single-task Maze2D into Multi2D by drawing the
goal anew, from the free cells +- 0.1 m. This wrapper does the same to our mazes and to
Gymnasium-Robotics' `PointMaze_*-v3` and `AntMaze_*`, and lets `reset` place the goal,
and a ball's start, exactly:

    env = GoalResampling(gymnasium.make("PointMaze_Large-v3"))
    env.reset(options={"goal": [1.5, -2.0], "start": [-4.5, 3.0]})
"""

from __future__ import annotations

from typing import Any, Literal

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from diffuser_envs.errors import MazeOptionError, UnsupportedEnvError, check_number
from diffuser_envs.maze.layouts import (
    D4RL_NOISE,
    FloatArray,
    layout_of,
    read_reset_options,
)

# Gymnasium-Robotics' mazes test success against this literal.
_ROBOTICS_SUCCESS_RADIUS = 0.45
_MAX_DRAWS = 100


class GoalResampling(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Draw a new goal at every reset and, if asked to, whenever the goal is reached.

    Goals come from all free cells (D4RL's points of them in our mazes, the centers
    elsewhere) and from the environment's own random stream, so the seed given to
    `reset` fixes them. `reset(options=...)` accepts `goal`, shape `[2]`, and, where the
    agent is a ball, `start`, shape `[2]` or `[4]` (x, y, vx, vy); both are placed
    exactly.

    With `on_success="resample"` the step that reaches a goal returns its reward and
    `info["success"]`, an observation that already carries the **new** goal (one that is
    not reached yet), and `info["goal_changed"]` true. `info["goal"]` is always the goal
    of the returned observation.

    Args:
        env: A maze with goals, wrapped or not; its observations are goal dictionaries.
        goal_noise: Half width in meters of the uniform noise around a cell's point.
        on_success: `"keep"` or `"resample"` a goal that is reached.

    Raises:
        UnsupportedEnvError: The environment is not a maze with goals, or a wrapper
            hides them.
        MazeOptionError: `on_success` is not one of the two values, or goals with that
            much noise could lie in walls.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        goal_noise: float = D4RL_NOISE,
        on_success: Literal["keep", "resample"] = "keep",
    ) -> None:
        if on_success not in ("keep", "resample"):
            raise MazeOptionError(
                f'on_success must be "keep" or "resample", not {on_success!r}'
            )
        layout = layout_of(env)
        most, why = layout.most_noise, "in meters; with more, goals may lie in walls"
        check_number(
            "goal_noise", goal_noise, MazeOptionError, least=0.0, most=most, why=why
        )
        goal_noise = float(goal_noise)
        RecordConstructorArgs.__init__(
            self, goal_noise=goal_noise, on_success=on_success
        )
        gymnasium.Wrapper.__init__(self, env)
        self._maze: Any = env.unwrapped
        self._layout = layout
        if not hasattr(self._maze, "compute_reward"):
            raise UnsupportedEnvError(f"{self._maze!r} has no goals (compute_reward)")
        seen = env.observation_space
        keys = set(seen) if isinstance(seen, spaces.Dict) else set()
        if missing := {"observation", "achieved_goal", "desired_goal"} - keys:
            raise UnsupportedEnvError(
                f"observations of {env} lack {', '.join(sorted(missing))}; put "
                "GoalResampling inside of the wrapper that hides them"
            )
        self._radius = getattr(self._maze, "success_radius", _ROBOTICS_SUCCESS_RADIUS)
        self._goal_noise = goal_noise
        self._resamples = on_success == "resample"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode with a new goal.

        Args:
            seed: Fixes all later randomness of the environment.
            options: `goal` (shape `[2]`) and `start` (shape `[2]` or `[4]`).

        Raises:
            MazeOptionError: An option is unknown or has the wrong shape.
            MazePositionError: A goal or start is in a wall, outside, or not finite.
            UnsupportedEnvError: A start is given and the agent is not a ball.
        """
        goal, start = read_reset_options(self._layout, options)
        ball: Any = getattr(self._maze, "point_env", None)
        if start is not None and ball is None:
            raise UnsupportedEnvError(f"{self._maze!r} has no ball to place at a start")
        observation, info = self.env.reset(seed=seed)
        if start is not None:
            ball.set_state(start[:2], start[2:])
            observation = {
                **observation,
                "observation": start,
                "achieved_goal": start[:2].copy(),
            }
        drawn = self._layout.sample_point(self.np_random, self._goal_noise)
        self._set_goal(drawn if goal is None else goal)
        return self._report(observation, {**info, "goal_changed": True}, success=None)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; with `on_success="resample"`, replace a goal that it reaches."""
        previous = np.array(self._maze.goal)
        observation, reward, terminated, truncated, info = self.env.step(action)
        position = observation["achieved_goal"]
        success = self._is_reached(position, previous)
        if success and self._resamples and not terminated:
            self._set_goal(self._sample_unreached(position))
        changed = not np.array_equal(previous, self._maze.goal)
        observation, info = self._report(
            observation, {**info, "goal_changed": changed}, success=success
        )
        return observation, reward, terminated, truncated, info

    def _report(
        self, observation: Any, info: dict[str, Any], *, success: bool | None
    ) -> tuple[Any, dict[str, Any]]:
        """Return observation and info with the current goal.

        Without a `success`, info tells whether the current goal is reached.
        """
        goal = np.array(self._maze.goal)
        if success is None:
            success = self._is_reached(observation["achieved_goal"], goal)
        info.update(success=success, goal=goal)
        return {**observation, "desired_goal": goal.copy()}, info

    def _set_goal(self, goal: FloatArray) -> None:
        if hasattr(self._maze, "set_goal"):
            self._maze.set_goal(goal)
        else:
            self._maze.goal = goal.copy()
            self._maze.update_target_site_pos()

    def _sample_unreached(self, position: FloatArray) -> FloatArray:
        """Draw a goal that is not reached yet; a maze of one cell may have none."""
        goal = self._layout.sample_point(self.np_random, self._goal_noise)
        for _ in range(_MAX_DRAWS):
            if not self._is_reached(position, goal):
                break
            goal = self._layout.sample_point(self.np_random, self._goal_noise)
        return goal

    def _is_reached(self, position: npt.ArrayLike, goal: FloatArray) -> bool:
        return bool(np.linalg.norm(np.asarray(position) - goal) <= self._radius)
