"""Diffuser as a method: the settings that suit the data, or the paper's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffuser_policy.benchmark.context import MethodContext
from diffuser_policy.benchmark.methods import register_method
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import ConfigError


def _trains(settings: Mapping[str, Any]) -> bool:
    return settings["planner"] is None


def _refuse_planner(problem: Problem, settings: Mapping[str, Any]) -> None:
    """Refuse a planner and a preset at once, and a planner of other data."""
    planner, preset = settings["planner"], settings["preset"]
    if planner is not None and preset is not None:
        raise ConfigError(
            f"Diffuser takes either planner (a name or a folder) or preset (settings "
            f"to train with), or neither (settings that suit the data); got planner="
            f"{planner!r} and preset={preset!r}."
        )
    if preset is not None:
        from diffuser_policy.training.presets import preset as find_preset

        find_preset(preset)
    if planner is None:
        return
    from diffuser_policy.checkpoint import read_planner

    config, _ = read_planner(planner)
    recorded = config.provenance.get("dataset", {}).get("dataset_id")
    if recorded != problem.dataset:
        raise ConfigError(
            f"The planner {planner!r} was trained on {recorded!r}, but methods of "
            f"{problem.name} learn from {problem.dataset!r}. Name a planner of the "
            f"same data, or train one: leave planner out."
        )


def _refuse_paper(problem: Problem, settings: Mapping[str, Any]) -> None:
    preset = settings["preset"]
    if settings["planner"] is None:
        preset = preset or _papers_preset(problem)
    _refuse_planner(problem, {**settings, "preset": preset})


def _papers_preset(problem: Problem) -> str:
    """Return the name of the paper's settings for a dataset: `<its name>-paper`."""
    name = problem.dataset.rpartition("/")[2]
    return f"{re.sub(r'-v[0-9]+$', '', name)}-paper"


@register_method(
    "diffuser", label="Diffuser", needs_dataset=_trains, refuses=_refuse_planner
)
def diffuser(
    context: MethodContext,
    *,
    planner: str | None = None,
    preset: str | None = None,
    planning: Mapping[str, Any] | None = None,
) -> Any:
    """Load a trained planner, or train one: as suits the data, or as a preset says.

    Args:
        context: The method's context.
        planner: Name of a shipped planner, folder, or hub id.
        preset: Settings of the training, as `diffuser-policy train` knows them, but for
            the dataset and the seed, and for the gradient steps if there is a budget.
            Without it, and without a planner, `diffuser-policy train --dataset` would
            choose the same settings.
        planning: Settings of planning and execution that differ from the planner's.
    """
    return _made(context, planner, preset, planning or {}, curve=True)


@register_method(
    "diffuser-paper",
    label="Diffuser (paper)",
    needs_dataset=_trains,
    refuses=_refuse_paper,
)
def diffuser_paper(
    context: MethodContext,
    *,
    planner: str | None = None,
    preset: str | None = None,
    planning: Mapping[str, Any] | None = None,
) -> Any:
    """Load a planner of the paper's recipe, or train one.

    It has no learning curve: on a CPU, its plans take longer than its training.

    Args:
        context: The method's context.
        planner: As for `diffuser`.
        preset: By default that of the dataset: `hopper-medium-paper` for
            `diffuser/hopper-medium-v1`.
        planning: As for `diffuser`.
    """
    if planner is None:
        preset = preset or _papers_preset(context.problem)
    return _made(context, planner, preset, planning or {}, curve=False)


def _made(
    context: MethodContext,
    planner: str | None,
    preset: str | None,
    planning: Mapping[str, Any],
    *,
    curve: bool,
) -> Any:
    """Return a planner, loaded or trained, and note the facts."""
    import torch

    from diffuser_policy.baselines.learning import train_run
    from diffuser_policy.build import num_parameters
    from diffuser_policy.defaults import choose
    from diffuser_policy.policy import DiffuserPolicy
    from diffuser_policy.training.presets import preset as find_preset
    from diffuser_policy.training.trainer import Trainer

    torch.set_num_threads(1)
    source = planner or str(context.folder / "planner")

    def load() -> DiffuserPolicy:
        return DiffuserPolicy.from_pretrained(source, seed=context.seed, **planning)

    if planner is None:
        given: dict[str, Any] = {
            "dataset": context.problem.dataset,
            "seed": context.seed,
        }
        budget: dict[str, Any] = {}
        if context.num_steps:
            budget = {"num_steps": context.num_steps}
        if preset is None:
            chosen = {**given, "optimization": budget}
            config = choose(context.dataset, chosen).config
        else:
            found = find_preset(preset)
            optimization = dataclasses.replace(found.optimization, **budget)
            config = dataclasses.replace(found, **given, optimization=optimization)
        num_steps = config.optimization.num_steps
        trainer = Trainer(config, context.dataset, Path(source), device="cpu")
        train_run(context, trainer, num_steps, evaluated=load if curve else None)
        if (values := trainer.critic_values()) is not None:
            context.facts["values"] = values._asdict()
    policy = load()
    context.facts |= {
        "num_steps": policy.config.provenance.get("steps"),
        "num_parameters": num_parameters(policy.networks),
        "loaded": planner is not None,
    }
    return policy
