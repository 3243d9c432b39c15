"""A planner for an environment of your own: register, record, train, check, compare.

    python examples/04_your_own_env.py
    python examples/04_your_own_env.py --num-gradient-steps 3000 --episodes 200

A puck on a table with a wall. The goal may be on the other side of the wall, and the
way there leads through a gap. A planner needs from an environment

- a Box action space, and observations that are a Box or a goal dictionary;
- for tracking, `metadata["observation_columns"]`: which columns are position and which
  are velocity (without them, plan actions and use `executor="actions"`);
- for success rates, `info["success"]`.

This takes about 40 s on one core. It ends with the success rates of random actions, of
the script that recorded the data, and of the planner.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tyro
from gymnasium import spaces

from diffuser_policy import (
    DiffuserPolicy,
    TrainConfig,
    Trainer,
    collect_episodes,
    evaluate,
    load_flat,
)
from diffuser_policy.config import (
    ExecutionConfig,
    NetworkConfig,
    OptimizationConfig,
    PlannerConfig,
    TimeToGoalConfig,
    WindowConfig,
)
from diffuser_policy.testing import check_policy

ENV_ID, DATASET = "examples/Table-v0", "examples/table-v0"
SECONDS_PER_STEP = 0.1
WALL_X, WALL_Y = 0.2, 0.4  # the wall fills |x| < 0.2, y < 0.4; the table ends at 1
Observation = dict[str, np.ndarray]


class TableEnv(gymnasium.Env[Any, np.ndarray]):
    """Push a puck (a double integrator) to a goal, around a wall."""

    metadata: dict[str, Any] = {  # noqa: RUF012 (Gymnasium declares it like this)
        "render_modes": [],
        "observation_columns": {"position": [0, 1], "velocity": [2, 3]},
    }

    def __init__(self) -> None:
        def box(size: int) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, (size,), np.float64)

        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = spaces.Dict(
            observation=box(4), achieved_goal=box(2), desired_goal=box(2)
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Draw start and goal beside the wall; the puck is at rest."""
        super().reset(seed=seed, options=options)
        sides = self.np_random.choice([-1.0, 1.0], 2)
        xs, ys = self.np_random.uniform([[0.3], [-0.9]], 0.9, (2, 2))
        self.position, self.goal = np.stack([sides * xs, ys], axis=1)
        self.velocity = np.zeros(2)
        return self.observe(), {}

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Accelerate; edge and wall stop the puck in the direction they block."""
        self.velocity += SECONDS_PER_STEP * np.clip(action, -1.0, 1.0)
        for axis in (0, 1):
            moved = self.position.copy()
            moved[axis] += SECONDS_PER_STEP * self.velocity[axis]
            x, y = moved
            if abs(x) > 1 or abs(y) > 1 or (abs(x) < WALL_X and y < WALL_Y):
                self.velocity[axis] = 0.0
            else:
                self.position = moved
        success = bool(np.linalg.norm(self.position - self.goal) < 0.1)
        return self.observe(), float(success), False, False, {"success": success}

    def observe(self) -> Observation:
        """Return position and velocity, where the puck is, and where it should be."""
        return {
            "observation": np.concatenate([self.position, self.velocity]),
            "achieved_goal": self.position.copy(),
            "desired_goal": self.goal.copy(),
        }


class ScriptedPolicy:
    """Goes to the goal, through the gap if it has to; not always straight."""

    def __init__(self, noise: float) -> None:
        self.noise, self.rng = noise, np.random.default_rng(0)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, Any]:
        """Return accelerations for one observation `[4]` or a batch `[n, 4]`."""
        position, velocity = np.split(observation["observation"], 2, axis=-1)
        goal = observation["desired_goal"]
        (x, y), side = np.moveaxis(position, -1, 0), np.sign(goal[..., 0])
        climbing = (np.abs(x) > WALL_X) & (y < WALL_Y + 0.1)
        gap_x = np.where(climbing, -0.4 * side, 0.4 * side)
        gap = np.stack([gap_x, np.full_like(gap_x, 0.7)], axis=-1)
        target = np.where((x * side > WALL_X)[..., None], goal, gap)
        action = 4.0 * (target - position) - 3.0 * velocity
        action = action + self.noise * self.rng.standard_normal(action.shape)
        return np.clip(action, -1.0, 1.0).astype(np.float32), state


class RandomPolicy(ScriptedPolicy):
    """Uniformly random actions."""

    def predict(
        self, observation: Any, state: Any = None, *_: Any, **__: Any
    ) -> tuple[np.ndarray, Any]:
        """Return accelerations for one observation or a batch."""
        shape = np.shape(observation["desired_goal"])
        return self.rng.uniform(-1.0, 1.0, shape).astype(np.float32), state


def train(num_gradient_steps: int, output: Path) -> DiffuserPolicy:
    """Train a planner on the recorded episodes."""
    config = TrainConfig(
        dataset=DATASET,
        # States every 3rd env step, in windows of 24 to 72 env steps.
        window=WindowConfig(horizon=72, min_horizon=24, stride=3, actions=False),
        network=NetworkConfig(dim=16),
        time_to_goal=TimeToGoalConfig(max_steps=72, width=128, batch_size=256),
        optimization=OptimizationConfig(
            num_steps=num_gradient_steps, learning_rate=2e-3, ema_decay=0.99
        ),
        planner=PlannerConfig(horizon="predicted", ranking="time_to_goal"),
        # Action per meter, and per meter per second, off the plan.
        execution=ExecutionConfig(position_gain=10.0, velocity_gain=5.0),
    )
    Trainer(config, load_flat(DATASET, cache_dir=output), output).run()
    return DiffuserPolicy.from_pretrained(output)


def success(policy: Any, episodes: int) -> str:
    """Return the success rate and its 95 % interval."""
    rate = evaluate(policy, ENV_ID, episodes=episodes).summary()["success_rate"]
    return f"{rate.mean:.0%} [{rate.low:.0%}, {rate.high:.0%}]" if rate else "unknown"


def main(
    *,
    num_data_episodes: int = 300,
    num_gradient_steps: int = 800,
    episodes: int = 50,
) -> None:
    """Record, train, check, compare.

    Args:
        num_data_episodes: Episodes to record, of 100 env steps each.
        num_gradient_steps: Length of the training.
        episodes: Of each evaluation.
    """
    gymnasium.register(
        ENV_ID, entry_point=f"{__name__}:TableEnv", max_episode_steps=100
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder  # instead of ~/.minari/datasets
        env = gymnasium.make(ENV_ID)
        collect_episodes(
            env,
            ScriptedPolicy(noise=0.5),
            num_episodes=num_data_episodes,
            dataset_id=DATASET,
        )
        policy = train(num_gradient_steps, Path(folder) / "planner")
        rules = check_policy(policy, env.observation_space, env.action_space)
        env.close()
    print(f"contract of predict: {len(rules)} rules kept")
    print(f"random actions: success {success(RandomPolicy(0.0), episodes)}")
    print(f"the script:     success {success(ScriptedPolicy(0.0), episodes)}")
    print(f"the planner:    success {success(policy, episodes)}")


if __name__ == "__main__":
    tyro.cli(main)
