"""Teach a robot to walk: record, train a planner and a clone, and compare them.

    python examples/07_walk.py
    python examples/07_walk.py --robot Hopper --episodes 100 --output runs/hopper

Half of the data is of a robot that walks well, half of one that stumbles; only the
rewards tell which is which. *Behavior cloning* imitates all of it. The planner is
trained with the settings that suit the data: it learns what the best episodes have in
common, plans in every env step, and applies the first action of the plan.

This takes about 6 minutes on one core. The last lines compare the return of the data
with the returns and D4RL's scores of the clone and of the planner (0: random actions,
100: D4RL's expert), on the same episodes.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import nn
from torch.nn import functional as F

from diffuser_policy import (
    CollectSettings,
    DiffuserPolicy,
    FlatDataset,
    TrainConfig,
    Trainer,
    collect,
    evaluate,
    load_flat,
)


class Clone:
    """Imitates the recorded actions with a network of two hidden layers."""

    def __init__(self, flat: FlatDataset, num_steps: int, seed: int) -> None:
        """Train it with the squared error of actions, on all episodes."""
        torch.manual_seed(seed)
        seen, acted = (
            torch.from_numpy(np.array(flat.fields[name], np.float32))
            for name in ("observation", "action")
        )
        self.mean, self.std = seen.mean(dim=0), seen.std(dim=0) + 1e-3
        self.network = nn.Sequential(
            *(nn.Linear(seen.shape[1], 256), nn.ReLU()),
            *(nn.Linear(256, 256), nn.ReLU()),
            *(nn.Linear(256, acted.shape[1]), nn.Tanh()),
        )
        optimizer = torch.optim.Adam(self.network.parameters())
        for _ in range(num_steps):
            rows = torch.randint(len(seen), (256,))
            predicted = self.network((seen[rows] - self.mean) / self.std)
            optimizer.zero_grad()
            loss: Any = F.mse_loss(predicted, acted[rows])
            loss.backward()
            optimizer.step()

    @torch.inference_mode()
    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,  # noqa: ARG002 (it remembers nothing)
        deterministic: bool = False,  # noqa: ARG002
    ) -> tuple[np.ndarray, Any]:
        """Return actions for one observation or a batch, as Stable-Baselines3 does."""
        rows = torch.as_tensor(np.asarray(observation, np.float32))
        return self.network((rows - self.mean) / self.std).numpy(), state


def cpu_seconds() -> float:
    """Return the processor time of this process and of those it waited for."""
    return sum(os.times()[:4])


def report(label: str, policy: Any, env_id: str, episodes: int, seed: int) -> None:
    """Evaluate a policy; print return and score with 95 % intervals, and its speed."""
    evaluation = evaluate(policy, env_id, episodes=episodes, seed=seed)
    summary = evaluation.summary()
    earned, score = summary["return"], summary["score"]
    if earned is None or score is None:
        raise SystemExit(f"{env_id} has no scores")
    print(
        f"{label}: return {earned.mean:,.0f} [{earned.low:,.0f}, {earned.high:,.0f}], "
        f"score {score.mean:.1f} [{score.low:.1f}, {score.high:.1f}], "
        f"{evaluation.timing.control_rate:,.0f} actions a second"
    )


def main(
    *,
    robot: Literal["Walker2d", "Hopper", "HalfCheetah"] = "Walker2d",
    quality: Literal["medium-expert", "medium", "medium-replay"] = "medium-expert",
    num_data_episodes: int | None = None,
    num_gradient_steps: int = 8_000,
    num_clone_steps: int = 20_000,
    episodes: int = 20,
    seed: int = 0,
    output: Path | None = None,
) -> None:
    """Record, train, compare.

    Args:
        robot: Which one walks.
        quality: Of the data.
        num_data_episodes: Episodes to record; about 300,000 env steps if not given.
        num_gradient_steps: Length of the planner's training.
        num_clone_steps: Length of the clone's training.
        episodes: Of each evaluation.
        seed: Fixes everything.
        output: Folder for the planner; nothing is left behind if not given.
    """
    torch.set_num_threads(1)
    env_id, name = f"{robot}-v5", f"{robot.lower()}-{quality}"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder  # instead of ~/.minari/datasets
        began = cpu_seconds()
        collect(
            CollectSettings(
                env_id=env_id,
                demonstrator=name,
                num_episodes=num_data_episodes,
                seed=seed,
            )
        )
        flat = load_flat(f"diffuser/{name}-v1", cache_dir=folder)
        recorded = cpu_seconds()
        clone = Clone(flat, num_clone_steps, seed)
        cloned = cpu_seconds()
        config = TrainConfig.for_dataset(
            flat, optimization={"num_steps": num_gradient_steps}, seed=seed
        )
        output = Path(folder) / "planner" if output is None else output
        Trainer(config, flat, output).run()
        planner = DiffuserPolicy.from_pretrained(output)
        trained = cpu_seconds()
        returns = np.add.reduceat(flat.fields["reward"], flat.run_starts[:-1])
    print(
        f"CPU minutes: {(recorded - began) / 60:.1f} to record {flat.num_rows:,} env "
        f"steps, {(cloned - recorded) / 60:.1f} to clone, "
        f"{(trained - cloned) / 60:.1f} to train the planner"
    )
    print(f"the data: return {returns.mean():,.0f}, of the best {returns.max():,.0f}")
    report("the clone", clone, env_id, episodes, seed)
    report("the planner", planner, env_id, episodes, seed)


if __name__ == "__main__":
    tyro.cli(main)
