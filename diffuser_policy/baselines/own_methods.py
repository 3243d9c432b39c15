"""Diffuser, and the demonstrators that the data are from, as methods."""

from __future__ import annotations

import dataclasses
from typing import Any

from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.training import Training
from diffuser_policy.data.demonstrators import (
    Policy,
    default_demonstrator,
    find_demonstrator,
)
from diffuser_policy.errors import ConfigError

PLANNER = "planner"  # subfolder of a training's folder
SAVE_INTERVAL = 500


@register_method("diffuser", label="Diffuser", needs_dataset=False)
def diffuser(
    training: Training, *, planner: str | None = None, preset: str | None = None
) -> Any:
    """Load a trained planner, or train one with the settings of a preset.

    Args:
        training: The workplace.
        planner: Name of a shipped planner, folder, or hub id.
        preset: Settings of the training, as `diffuser-policy train` knows them, but for
            the dataset and the seed, and for the gradient steps if there is a budget.

    Raises:
        ConfigError: Both are given, or neither; or the planner is of other data.
    """
    import torch

    from diffuser_policy.policy import DiffuserPolicy

    if (planner is None) == (preset is None):
        raise ConfigError(
            f"The method 'diffuser' needs either planner (a name or a folder) or "
            f"preset (settings to train with); got planner={planner!r} and "
            f"preset={preset!r}."
        )
    torch.set_num_threads(1)
    source = planner or _train(training, str(preset))
    policy = DiffuserPolicy.from_pretrained(source, seed=training.seed)
    recorded = policy.config.provenance.get("dataset", {}).get("dataset_id")
    if recorded != training.problem.dataset:
        raise ConfigError(
            f"The planner {planner!r} was trained on {recorded!r}, but methods of "
            f"{training.problem.name} learn from {training.problem.dataset!r}. Name a "
            f"planner of the same data, or train one with preset=…."
        )
    parameters = sum(p.numel() for p in policy.networks.parameters())
    training.facts |= {
        "num_steps": policy.config.provenance.get("steps"),
        "num_parameters": parameters,
        "loaded": planner is not None,
    }
    return policy


def _train(training: Training, preset_name: str) -> str:
    """Train until the preset's or the budget's last step; return the folder."""
    from diffuser_policy.training.presets import preset
    from diffuser_policy.training.trainer import Trainer

    config = preset(preset_name)
    optimization = config.optimization
    if training.num_steps is not None:
        optimization = dataclasses.replace(optimization, num_steps=training.num_steps)
    config = dataclasses.replace(
        config,
        dataset=training.problem.dataset,
        seed=training.seed,
        optimization=optimization,
    )
    folder = training.folder / PLANNER
    trainer = Trainer(config, training.dataset, folder)
    trainer.run(
        save_interval=min(SAVE_INTERVAL, optimization.num_steps),
        progress=False,
        on_metrics=lambda step, losses: training.progress(
            step, optimization.num_steps, figures=losses
        ),
    )
    return str(folder)


@register_method("demonstrator", label="Demonstrator", needs_dataset=False)
def demonstrator(training: Training) -> Any:
    """Act as the environment's demonstrator, with the variety that the data have."""
    env = training.make_env()
    try:
        factory = find_demonstrator(default_demonstrator(env))
        return AsRecorded(factory.from_env(env, seed=training.seed))
    finally:
        env.close()


class AsRecorded:
    """A demonstrator that always acts as it does when data are recorded.

    Args:
        demonstrator: With `predict`.
    """

    def __init__(self, demonstrator: Policy) -> None:
        self.demonstrator = demonstrator

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,  # noqa: ARG002 (never)
    ) -> tuple[Any, Any]:
        """Return actions, and what to pass as `state` the next time."""
        return self.demonstrator.predict(observation, state, episode_start)
