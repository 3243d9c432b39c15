"""Diffuser as a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.benchmark.training import Training
from diffuser_policy.errors import ConfigError

PLANNER = "planner"  # subfolder of a training's folder
SAVE_INTERVAL = 500


def _refuse_planner(problem: Problem, settings: Mapping[str, Any]) -> None:
    """Refuse settings that name no planner, two, or one of other data."""
    planner, preset = settings["planner"], settings["preset"]
    if (planner is None) == (preset is None):
        raise ConfigError(
            f"The method 'diffuser' needs either planner (a name or a folder) or "
            f"preset (settings to train with); got planner={planner!r} and "
            f"preset={preset!r}."
        )
    if planner is None:
        from diffuser_policy.training.presets import preset as find_preset

        find_preset(preset)
        return
    from diffuser_policy.checkpoint import read_planner

    config, _ = read_planner(planner)
    recorded = config.provenance.get("dataset", {}).get("dataset_id")
    if recorded != problem.dataset:
        raise ConfigError(
            f"The planner {planner!r} was trained on {recorded!r}, but methods of "
            f"{problem.name} learn from {problem.dataset!r}. Name a planner of the "
            f"same data, or train one with preset=…."
        )


@register_method(
    "diffuser", label="Diffuser", needs_dataset=False, refuses=_refuse_planner
)
def diffuser(
    training: Training, *, planner: str | None = None, preset: str | None = None
) -> Any:
    """Load a trained planner, or train one with the settings of a preset.

    Args:
        training: The workplace.
        planner: Name of a shipped planner, folder, or hub id.
        preset: Settings of the training, as `diffuser-policy train` knows them, but for
            the dataset and the seed, and for the gradient steps if there is a budget.
    """
    import torch

    from diffuser_policy.policy import DiffuserPolicy

    torch.set_num_threads(1)
    source = planner or _train(training, str(preset))
    policy = DiffuserPolicy.from_pretrained(source, seed=training.seed)
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
