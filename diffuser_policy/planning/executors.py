r"""Executors: how a plan and the current observation become an action.

- `PlannedActions` applies the plan's own actions.
- `TrackingExecutor` steers towards the planned states, as the authors' Maze2D
  evaluation does (with unit gains):
  $a = k_p\,(p_{t+1} - p) + k_v\,(v_{t+1} - v)$, clipped to the action space. After
  the plan it holds the last planned position at zero velocity, so the goal is kept.
- `PursuitExecutor` follows the path as fast as the actions allow.
- `PathExecutor` keeps to the path, at the planned speed or slower.
- `InverseDynamicsExecutor` asks a network for the action that leads to a planned state.
- `FeaturesExecutor` asks the featurizer, which maps derived planning columns back to
  actions.

Indices: a plan made at env step 0 with stride 1 has observations s_0 … s_{L-1} and
actions a_0 … a_{L-1}; at age t the executor applies a_t, or steers towards s_{t+1}.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffuser_policy.columns.features import FeaturizerError, numbers_of, who_lacks_it
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import Normalizer
from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.inverse_dynamics import InverseDynamics
from diffuser_policy.planning.plan import Following, interpolate

SEARCH = 20  # planned env steps ahead in which the nearest point is looked for


class Executor:
    """Turns plans and observations into actions; subclasses implement `act`.

    Attributes:
        holds_goal: Whether it keeps the goal after the plan has ended; if not, a plan
            that has ended is replaced.
        sees_environment: Whether it gets the environment's own observations; if not,
            it gets the planning columns that a featurizer makes of them.
    """

    holds_goal: bool = True
    sees_environment: bool = False

    def progress(
        self,
        following: Following,
        observations: np.ndarray,  # noqa: ARG002 (subclasses look at where they are)
    ) -> np.ndarray:
        """Return how far the plans have been followed after one more env step.

        Args:
            following: The plans, and how far they had been followed.
            observations: `[rows, observation]` current observations.
        """
        return following.progress + 1

    def act(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return actions `[rows, action]`, not yet clipped to the action space.

        Args:
            following: The plans, and how far they have been followed.
            observations: `[rows, observation]` current observations.
        """
        raise NotImplementedError


class PlannedActions(Executor):
    """Applies the planned actions; it cannot hold a goal beyond them."""

    holds_goal = False

    def __init__(self, layout: TrajectoryLayout, stride: int) -> None:
        """Check that there is one planned action per env step.

        Raises:
            ConfigError: States-only plans, or a stride above one.
        """
        if layout.action_dim == 0 or stride != 1:
            raise ConfigError(
                f"The executor 'actions' needs planned actions at every env step; this "
                f"planner has {layout.action_dim} action columns and stride {stride}. "
                f"Use 'inverse-dynamics' (train with --inverse-dynamics, or "
                f"TrainConfig.inverse_dynamics), or 'tracking' where every action "
                f"pushes along a column of 'position'."
            )

    def act(
        self,
        following: Following,
        observations: np.ndarray,  # noqa: ARG002 (open loop)
    ) -> np.ndarray:
        """Return the action of the current planning step."""
        step = np.minimum(following.progress, following.lengths - 1).astype(np.int64)
        actions: np.ndarray = following.actions[np.arange(len(step)), step]
        return actions


class FeaturesExecutor(Executor):
    """Lets the featurizer turn plans of derived columns into actions."""

    sees_environment = True

    def __init__(self, featurizer: Any, num_actions: int) -> None:
        """Store the featurizer.

        Args:
            featurizer: `act(plans, observations)` returns actions `[rows, action]` for
                `Following` and the environment's observations.
            num_actions: Columns of an action.

        Raises:
            ConfigError: It has no method `act`.
        """
        if not callable(getattr(featurizer, "act", None)):
            raise ConfigError(
                f"The executor 'features' needs a featurizer with a method `act`, its "
                f"way back from planning columns to actions, and "
                f"{who_lacks_it(featurizer)}. Use another executor."
            )
        self.featurizer, self.num_actions = featurizer, num_actions

    def act(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the featurizer's actions.

        Raises:
            FeaturizerError: It fails, or returns something other than finite numbers,
                one action per plan.
        """
        copied = following.rows(np.arange(len(observations))), observations.copy()
        given = f"plans and observations of shape {list(observations.shape)}"
        actions = numbers_of(self.featurizer, "act", *copied, given=given)
        expected, name = (len(observations), self.num_actions), type(self.featurizer)
        if actions.shape != expected or not np.isfinite(actions).all():
            raise FeaturizerError(
                f"`act` of the featurizer {name.__name__} must return finite actions "
                f"[rows, action] of shape {expected}, got {actions.shape}: {actions}."
            )
        return actions


class InverseDynamicsExecutor(Executor):
    """Asks a network for the action that leads to a planned state.

    The target is the first planning step that is at least `lookahead` env steps away,
    or the last one of the plan, at which it stays. If that is further ahead than the
    network has learned, the target is the planned state at the longest time that it has
    learned. Plans without actions, of any stride and any columns, can be followed like
    this.
    """

    def __init__(
        self,
        network: InverseDynamics,
        normalizer: Normalizer,
        layout: TrajectoryLayout,
        *,
        lookahead: float = 1.0,
    ) -> None:
        """Store network and settings.

        Args:
            network: Predicts actions.
            normalizer: Between environment units and the network's.
            layout: Columns of a trajectory.
            lookahead: How far ahead to steer, in planned env steps; at most as far as
                the network has learned.
        """
        self.network, self.normalizer = network, normalizer
        self.columns = layout.columns("observation")
        self.lookahead = lookahead

    def act(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the network's actions."""
        stride, progress = following.stride, following.progress
        step = np.ceil((progress + self.lookahead) / stride)
        step = np.minimum(step, following.lengths - 1)
        away = np.minimum(step * stride - progress, self.network.max_steps)
        # After the end, and in plans of one step: the last state, in an env step.
        ahead, target = np.maximum(away, 1), following.reference(away)
        device = self.normalizer.shift.device

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=torch.float32, device=device)

        def normalized(values: np.ndarray) -> torch.Tensor:
            return self.normalizer.normalize(tensor(values), self.columns)

        before = following.previous
        with torch.inference_mode():
            actions: np.ndarray = (
                self.network.act(
                    normalized(observations if before is None else before),
                    normalized(observations),
                    normalized(target),
                    tensor(ahead),
                )
                .cpu()
                .numpy()
            )
        return actions


class TrackingExecutor(Executor):
    """Steers towards planned positions and velocities, and holds the last one.

    If velocities are not observed, the displacement of the position in the last env
    step replaces them, in the plan and in the environment.
    """

    ahead: float = 1.0  # of the progress along the plan, in planned env steps

    def __init__(
        self,
        layout: TrajectoryLayout,
        *,
        position_gain: float = 1.0,
        velocity_gain: float = 1.0,
    ) -> None:
        """Find the columns and store the gains.

        Args:
            layout: Needs the alias "position". Without "velocity", velocities are
                differences of positions, in meters per env step.
            position_gain: Action per meter of position error.
            velocity_gain: Action per unit of velocity error.

        Raises:
            ConfigError: The observation does not name the position.
        """
        if "position" not in layout.aliases:
            raise ConfigError(
                "Tracking needs observation columns named 'position'. Name them in the "
                "environment's metadata['observation_columns'], or train with their "
                "numbers (--window.position, WindowConfig.position). An executor that "
                "needs no names is 'inverse-dynamics': train with --inverse-dynamics "
                "(TrainConfig.inverse_dynamics)."
            )
        self.position = list(layout.observation_columns("position"))
        self.velocity: list[int] | None = None
        if "velocity" in layout.aliases:
            self.velocity = list(layout.observation_columns("velocity"))
        self.position_gain, self.velocity_gain = position_gain, velocity_gain

    def act(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the action towards the state planned `ahead` env steps from here."""
        target = following.reference(self.ahead)
        arrived = following.progress + self.ahead > following.durations
        planned = self._planned_velocity(following, target)
        velocity = np.where(arrived[:, None], 0.0, planned)
        return self._steer(following, target, velocity, observations)

    def _planned_velocity(self, following: Following, target: np.ndarray) -> np.ndarray:
        """Return the planned velocities `[rows, position]` at a planned state."""
        if self.velocity is not None:
            return target[:, self.velocity]
        before = following.reference(self.ahead - 1)
        moved = target[:, self.position] - before[:, self.position]
        # An env step, or less where that would reach back beyond the plan's start.
        time = np.minimum(following.progress + self.ahead, 1.0)
        planned: np.ndarray = moved / time[:, None]
        return planned

    def _observed_velocity(
        self, following: Following, observations: np.ndarray
    ) -> np.ndarray:
        """Return the velocities `[rows, position]` now."""
        if self.velocity is not None:
            return observations[:, self.velocity]
        before = observations if following.previous is None else following.previous
        observed: np.ndarray = observations[:, self.position] - before[:, self.position]
        return observed

    def _steer(
        self,
        following: Following,
        target: np.ndarray,
        velocity: np.ndarray,
        observations: np.ndarray,
    ) -> np.ndarray:
        """Return the proportional-derivative action towards position and velocity."""
        off_position = target[:, self.position] - observations[:, self.position]
        off_velocity = velocity - self._observed_velocity(following, observations)
        action: np.ndarray = (
            self.position_gain * off_position + self.velocity_gain * off_velocity
        )
        return action


class PursuitExecutor(TrackingExecutor):
    """Follows the planned *path* as fast as the actions allow (pure pursuit).

    Instead of the state planned for the next env step, it steers towards the one
    `lookahead` env steps beyond the point of the path that is nearest to the current
    position (Coulter 1992). The planned speed is a lower bound: every env step makes
    at least one planned env step of progress, and never goes back.
    """

    def __init__(
        self,
        layout: TrajectoryLayout,
        *,
        position_gain: float = 10.0,
        velocity_gain: float = 1.0,
        lookahead: float = 10.0,
    ) -> None:
        """Store the settings.

        Args:
            layout: As for tracking.
            position_gain: Action per meter of position error.
            velocity_gain: Action per unit of velocity error.
            lookahead: How far ahead to steer, in planned env steps.
        """
        super().__init__(
            layout, position_gain=position_gain, velocity_gain=velocity_gain
        )
        self.ahead = lookahead

    def progress(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the nearest point of each path from the current progress on."""
        ahead = following.progress[:, None] + np.arange(SEARCH + 1)
        points = interpolate(
            following.observations, following.lengths, following.stride, ahead
        )
        off = points[..., self.position] - observations[:, None, self.position]
        nearest = np.square(off).sum(axis=2).argmin(axis=1)
        on_path = np.minimum(following.progress + nearest, following.durations)
        # Never slower than the plan, and past its end the clock runs on.
        progress: np.ndarray = np.maximum(on_path, following.progress + 1)
        return progress


FLOOR = 0.2  # least share of the tempo on the path, and of that pace off the path
STILL = 1e-9  # planned displacement per env step below which nothing moves


class PathExecutor(TrackingExecutor):
    r"""Keeps to the planned path, at the planned speed or slower.

    A guide may bend a plan so that the dynamics cannot follow it on time. The path is
    still worth following, so this executor slows its clock down. With the
    planned positions p(s) at s env steps, the planned speed |v(s)| in units per second
    and the duration $\Delta t$ of an env step, its pace on the path c and its progress
    per env step are

    $$c = \mathrm{clip}\Bigl(\frac{|v(s)|\,\Delta t}{|p'(s)|}, f r, r\Bigr), \qquad
    \dot s = c\;\mathrm{clip}\bigl(2 - 2\,|p(s) - p| / d, f, 1\bigr)$$

    with tempo r, tolerance d and floor f: planned positions say where to go, planned
    velocities how fast, and the clock waits for a ball that has strayed, at a pace of
    no less than $f^2 r$. The action is
    $k_p\,(p(s) - p) + k_v\,(c\,p'(s) / \Delta t - v)$: only the clock waits.
    """

    def __init__(
        self,
        layout: TrajectoryLayout,
        *,
        seconds_per_step: float,
        tempo: float = 1.0,
        tolerance: float = 0.3,
        position_gain: float = 40.0,
        velocity_gain: float = 2.0,
    ) -> None:
        """Store the settings.

        Args:
            layout: Needs the aliases "position" and "velocity".
            seconds_per_step: Duration of an env step; compares velocities with
                positions.
            tempo: Most planned env steps per env step; below 1, slower than planned.
            tolerance: Distance from the path at which the clock almost stops, in units
                of the position.
            position_gain: Action per meter of position error.
            velocity_gain: Action per meter per second of velocity error.

        Raises:
            ConfigError: The observation does not name position and velocity.
        """
        super().__init__(
            layout, position_gain=position_gain, velocity_gain=velocity_gain
        )
        if self.velocity is None:
            raise ConfigError(
                "The executor 'path' needs the planned velocities: observation columns "
                "named 'velocity' (--window.velocity, WindowConfig.velocity). Without "
                "them, use 'tracking', 'pursuit' or 'inverse-dynamics'."
            )
        self.seconds_per_step, self.tempo = seconds_per_step, tempo
        self.tolerance = tolerance

    def progress(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the progress of the clock, which waits for a ball off the path."""
        position = following.reference()[:, self.position]
        off = np.linalg.norm(position - observations[:, self.position], axis=1)
        waiting = np.clip(2 - 2 * off / self.tolerance, FLOOR, 1.0)
        rate = self.pace(following) * waiting
        over = following.progress >= following.durations
        progress: np.ndarray = following.progress + np.where(over, 1.0, rate)
        return progress

    def act(self, following: Following, observations: np.ndarray) -> np.ndarray:
        """Return the action towards the current point of the path."""
        along = self._along(following) * self.pace(following)[:, None]
        over = following.progress >= following.durations
        velocity = np.where(over[:, None], 0.0, along / self.seconds_per_step)
        return self._steer(following, following.reference(), velocity, observations)

    def pace(self, following: Following) -> np.ndarray:
        """Return planned env steps `[rows]` per env step, on the path."""
        step = np.linalg.norm(self._along(following), axis=1)
        here = following.reference()
        speed = np.linalg.norm(self._planned_velocity(following, here), axis=1)
        planned = speed * self.seconds_per_step / np.maximum(step, STILL)
        pace: np.ndarray = np.clip(planned, FLOOR * self.tempo, self.tempo)
        return pace

    def _along(self, following: Following) -> np.ndarray:
        """Return the planned displacement `[rows, position]` per env step."""
        half = following.stride / 2
        # Within the plan only: beyond its ends it stays, which is no part of its pace.
        behind = np.maximum(following.progress - half, 0.0)
        ahead = np.minimum(following.progress + half, following.durations)
        between = np.stack([behind, ahead], axis=1)
        points = interpolate(
            following.observations, following.lengths, following.stride, between
        )[..., self.position]
        # Plans of one step take no time, nor do those that are over.
        time = np.maximum(ahead - behind, STILL)
        along: np.ndarray = np.diff(points, axis=1)[:, 0] / time[:, None]
        return along
