"""Diffuser as a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import ConfigError


def _refuse_planner(problem: Problem, settings: Mapping[str, Any]) -> None:
    """Refuse settings that name no planner or two, or a planner of other data."""
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
    context: MethodContext, *, planner: str | None = None, preset: str | None = None
) -> Any:
    """Load a trained planner, or train one with the settings of a preset.

    Args:
        context: Of the method.
        planner: Name of a shipped planner, folder, or hub id.
        preset: Settings of the training, as `diffuser-policy train` knows them, but for
            the dataset and the seed, and for the gradient steps if there is a budget.
    """
    import torch

    from diffuser_policy.baselines.learning import num_parameters, train_run
    from diffuser_policy.policy import DiffuserPolicy
    from diffuser_policy.training.presets import preset as find_preset
    from diffuser_policy.training.trainer import Trainer

    torch.set_num_threads(1)
    source = planner or str(context.folder / "planner")
    if planner is None:
        config = find_preset(str(preset))
        num_steps = context.num_steps or config.optimization.num_steps
        config = dataclasses.replace(
            config,
            dataset=context.problem.dataset,
            seed=context.seed,
            optimization=dataclasses.replace(config.optimization, num_steps=num_steps),
        )
        trainer = Trainer(config, context.dataset, Path(source))
        train_run(context, trainer, num_steps)
    policy = DiffuserPolicy.from_pretrained(source, seed=context.seed)
    context.facts |= {
        "num_steps": policy.config.provenance.get("steps"),
        "num_parameters": num_parameters(policy.networks),
        "loaded": planner is not None,
    }
    return policy
