r"""Following a planned path carefully: at the planned speed or slower, and close to it.

A guide may bend a plan away from what the dynamics can follow on time. The path is
worth keeping all the same, so `PathExecutor` lets its clock run slow. With the planned
positions p(s) at s env steps and the planned speed |v(s)|, progress per env step is

$$\dot s = \min\Bigl(r, \frac{|v(s)|}{|p'(s)|}\Bigr)\;
\mathrm{clip}\bigl(2 - 2\,|p(s) - p| / d, f, 1\bigr)$$

with tempo r, tolerance d and floor f: planned positions say where to go, planned
velocities how fast, and a ball that has strayed is waited for. The action is
$k_p\,(p(s) - p) + k_v\,(\dot s\,p'(s) - v)$.
"""

from __future__ import annotations

import numpy as np

from diffuser_policy.errors import ConfigError
from diffuser_policy.executors import Following, TrackingExecutor
from diffuser_policy.layout import TrajectoryLayout
from diffuser_policy.plan import interpolate

FLOOR = 0.2  # share of the tempo at which the clock runs at least
STILL = 1e-9  # planned displacement per env step below which nothing moves


class PathExecutor(TrackingExecutor):
    """Stays on the planned path, in its own time."""

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
            tempo: Planned env steps per env step, at most; below 1 it is slower than
                planned.
            tolerance: Distance from the path at which the clock almost stops, in units
                of the position.
            position_gain: Action per meter of position error.
            velocity_gain: Action per meter per second of velocity error.

        Raises:
            ConfigError: The observation does not name position and velocity, or a
                duration, tempo or tolerance that is not positive.
        """
        super().__init__(
            layout, position_gain=position_gain, velocity_gain=velocity_gain
        )
        for name, value in (
            ("seconds_per_step", seconds_per_step),
            ("tempo", tempo),
            ("tolerance", tolerance),
        ):
            if not 0 < value < np.inf:
                raise ConfigError(f"{name} must be positive and finite, got {value}.")
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
        off_position = (
            following.reference()[:, self.position] - observations[:, self.position]
        )
        off_velocity = velocity - observations[:, self.velocity]
        action: np.ndarray = (
            self.position_gain * off_position + self.velocity_gain * off_velocity
        )
        return action

    def pace(self, following: Following) -> np.ndarray:
        """Return planned env steps `[rows]` per env step, on the path."""
        step = np.linalg.norm(self._along(following), axis=1)
        speed = np.linalg.norm(following.reference()[:, self.velocity], axis=1)
        planned = speed * self.seconds_per_step / np.maximum(step, STILL)
        pace: np.ndarray = np.clip(planned, FLOOR * self.tempo, self.tempo)
        return pace

    def _along(self, following: Following) -> np.ndarray:
        """Return the planned displacement `[rows, 2]` per env step."""
        half = following.stride / 2
        behind = np.maximum(following.progress - half, 0.0)
        between = np.stack([behind, following.progress + half], axis=1)
        points = interpolate(
            following.observations, following.lengths, following.stride, between
        )[..., self.position]
        along: np.ndarray = np.diff(points, axis=1)[:, 0] / np.diff(between, axis=1)
        return along
