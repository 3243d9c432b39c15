"""Collect a small dataset, train a small planner on it, evaluate before and after.

    python examples/03_collect_train_evaluate.py
    python examples/03_collect_train_evaluate.py --num-data-steps 200000 \
        --num-gradient-steps 6000 --episodes 100

This takes about 40 s on one core, ends with success rate and score, and leaves nothing
behind. It is a small experiment in the smallest maze: the shipped planners had at least
50 times the data, 20 times the training, and networks four times as large. The
untrained planner reaches some goals: every plan ends at the goal, whatever the network
says, and goals in a straight line need no more.

The command line does the same on any scale: see docs/data.md.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import tyro

from diffuser_policy import (
    CollectSettings,
    DiffuserPolicy,
    Trainer,
    collect,
    evaluate,
    load_flat,
    preset,
)
from diffuser_policy.config import NetworkConfig, OptimizationConfig, WindowConfig

ENV_ID = "diffuser_envs/Multi2D-UMaze-v1"
DATASET = "examples/umaze-v0"


def report(label: str, policy: DiffuserPolicy, *, episodes: int, seed: int) -> None:
    """Evaluate a policy and print success rate and score with 95 % intervals."""
    summary = evaluate(policy, ENV_ID, episodes=episodes, seed=seed).summary()
    success, score = summary["success_rate"], summary["score"]
    if success is None or score is None:
        raise SystemExit(f"{ENV_ID} reports neither success nor scores")
    print(
        f"{label}: success {success.mean:.0%} [{success.low:.0%}, {success.high:.0%}], "
        f"score {score.mean:.0f} [{score.low:.0f}, {score.high:.0f}]"
    )


def main(
    *,
    num_data_steps: int = 20_000,
    num_gradient_steps: int = 600,
    episodes: int = 20,
    num_workers: int | None = None,
    seed: int = 0,
) -> None:
    """Collect, train, evaluate.

    Args:
        num_data_steps: Env steps to record.
        num_gradient_steps: Length of the training.
        episodes: Of each evaluation.
        num_workers: Processes that record; one per core if not given.
        seed: Fixes everything.
    """
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder  # instead of ~/.minari/datasets
        collect(
            CollectSettings(
                env_id=ENV_ID,
                dataset_id=DATASET,
                num_steps=num_data_steps,
                run_length=5000,
                seed=seed,
                num_workers=num_workers,
            )
        )
        config = replace(
            preset("multi2d-umaze"),
            dataset=DATASET,
            window=WindowConfig(horizon=192, min_horizon=48, stride=6, actions=False),
            network=NetworkConfig(dim=16),
            optimization=OptimizationConfig(
                num_steps=num_gradient_steps,
                ema_decay=0.99,  # the average has to forget the beginning in time
            ),
            seed=seed,
        )
        output = Path(folder) / "planner"
        trainer = Trainer(config, load_flat(DATASET, cache_dir=folder), output)
        untrained = DiffuserPolicy(trainer.policy_config, trainer.planner_networks)
        report("untrained", untrained, episodes=episodes, seed=seed)
        trainer.run()
        trained = DiffuserPolicy.from_pretrained(output)
        label = f"trained, {num_gradient_steps} steps"
        report(label, trained, episodes=episodes, seed=seed)


if __name__ == "__main__":
    tyro.cli(main)
