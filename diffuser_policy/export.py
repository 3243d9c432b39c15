"""Planners as ONNX files: plans without PyTorch, for a robot's computer.

    denoiser.onnx       noisy trajectories, denoising step → clean trajectories
    time_to_goal.onnx   observations, goals → env steps, where plans need it
    planner.json        what surrounds the networks, as numbers; while the files are
                        being replaced, it is empty

`planner.json` spells out what a `Planner` does with the networks, so that a reader of
it needs no more than array arithmetic:

    num_actions         columns that hold actions; the others hold the observation
    position            columns by which rankings compare planning steps
    shift, scale        of each column: normalized = (value - shift) / scale
    lengths             planning steps of a plan, and how a predicted time gives them
    conditions          planning step, columns, and what is pinned there: the
                        observation, the goal, or zeros
    steps               denoising step i and the weights of the sum that leaves it: of
                        the noisy trajectories, of the prediction at i, of that before
    candidates          how many to sample, in turn, until the best is good_enough
    good_enough         the value that it needs, or none: then all are sampled; plans of
                        `reach` planning steps or fewer need it in proportion
    ranking             how a candidate is valued

The planner that the numbers describe is the one of `deterministic=True`: the initial
noise alone decides.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffuser_policy.columns.features import Featurizer, Identity
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.files import json_text, replaced_file, write_text
from diffuser_policy.planning.planner import Planner
from diffuser_policy.planning.ranking import (
    FirstRanking,
    GuideRanking,
    Ranking,
    SmoothnessRanking,
    TimeToGoalRanking,
)

FORMAT = 1  # of planner.json
OPSET = 17
RANKINGS: dict[type[Ranking], str] = {
    FirstRanking: "first",
    SmoothnessRanking: "smoothness",
    TimeToGoalRanking: "time_to_goal",
}


class Exported(nn.Module):
    """The map from noisy to clean trajectories, with the step as a tensor."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Hold the denoiser."""
        super().__init__()
        self.denoiser = denoiser

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        """Map `[batch, horizon, transition]` at a step `[]`."""
        return self.denoiser.predicted(noisy, step.expand(noisy.shape[0]))


def write_export(folder: Path, planner: Planner, featurizer: Featurizer) -> None:
    """Write the files of a planner.

    Args:
        folder: Created if needed. Its files are replaced once all are complete.
        planner: What to export.
        featurizer: Makes its planning columns.

    Raises:
        ConfigError: It plans with a guide, in derived columns, or with a ranking that
            takes Python.
        MissingExtraError: `onnx` is not installed.
        StorageError: Out of space, or not permitted.
    """
    refuse_python(planner, featurizer)
    require_extra("onnx", "export")
    layout, horizons = planner.layout, planner.horizons
    shape = (2, horizons.min_planning_steps, layout.transition_dim)
    facts = folder / "planner.json"
    with replaced_file(facts) as described, ExitStack() as networks:
        described.write_bytes(json_text(facts, description(planner)).encode())
        network = networks.enter_context(replaced_file(folder / "denoiser.onnx"))
        write_denoiser(network, planner.sampler.denoiser, shape)
        if horizons.time_to_goal is not None:
            size = len(layout.columns("goal"))
            inputs = {
                "observations": _zeros(2, 3, layout.observation_dim),
                "goals": _zeros(2, 3, size),
            }
            network = networks.enter_context(
                replaced_file(folder / "time_to_goal.onnx")
            )
            write_network(network, horizons.time_to_goal, inputs, "times")
        # The networks are replaced one by one, then planner.json. If that is
        # interrupted, no program can plan with the networks of two planners.
        if facts.exists():
            write_text(facts, "")


def refuse_python(planner: Planner, featurizer: Featurizer) -> None:
    """Refuse planners that need more than their networks.

    Raises:
        ConfigError: Names every reason, and what to change.
    """
    if type(featurizer) is not Identity:
        raise ConfigError(
            f"Plans in the columns of {type(featurizer).__name__} need its code, which "
            f"ONNX files cannot hold. Only planners of plain observations are exported."
        )
    reasons = []
    if planner.guidance is not None:
        reasons.append(
            "A guide is a function in Python, which ONNX files cannot hold. Export the "
            "planner without it: policy.with_guide(None).export(…), or --guide none on "
            "the command line."
        )
    if planner.routes is not None:
        reasons.append(
            "Subgoals are looked up in Python, which ONNX files cannot hold. Export "
            "the planner without them: policy.with_settings(subgoal=None).export(…)."
        )
    # A ranking by the guide goes with it.
    if type(planner.ranking) not in (*RANKINGS, GuideRanking):
        reasons.append(
            f"{type(planner.ranking).__name__} is not exported: choose one of "
            f"{', '.join(map(repr, RANKINGS.values()))} with "
            f"policy.with_settings(ranking=…)."
        )
    if reasons:
        raise ConfigError(" ".join(reasons))


def write_denoiser(path: Path, denoiser: Denoiser, shape: tuple[int, ...]) -> None:
    """Write a denoiser, of "noisy" trajectories and a "step", to "clean" ones.

    Args:
        path: The file.
        denoiser: What to write.
        shape: `[batch, horizon, transition]` of an example, of a length that it takes.
    """
    inputs = {"noisy": _zeros(*shape), "step": torch.tensor(1)}
    write_network(path, Exported(denoiser), inputs, "clean")


def _zeros(*shape: int) -> Tensor:
    """Return an example in the networks' precision, whatever the user's default is."""
    return torch.zeros(*shape, dtype=torch.float32)


def write_network(
    path: Path, network: nn.Module, inputs: dict[str, Tensor], output: str
) -> None:
    """Write a network for batches of any size and plans of any length.

    Args:
        path: The file.
        network: Takes the inputs in their order.
        inputs: Examples, by name.
        output: Name of the result.
    """
    device = next(network.parameters()).device
    sizes = {
        name: {0: "batch", 1: "steps"} for name, given in inputs.items() if given.ndim
    }
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter by tracing is the older one: it takes one second instead of 30,
        # and these networks have no branches that it could miss.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(given.to(device) for given in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={**sizes, output: {0: "batch", 1: "steps"}},
            opset_version=OPSET,
            dynamo=False,
        )


def description(planner: Planner) -> dict[str, Any]:
    """Return what `planner.json` holds; the module's text explains it."""
    layout, horizons, sampler = planner.layout, planner.horizons, planner.sampler
    grid = sampler.grid_from(1.0, sampler.num_steps)
    weights = [
        sampler.weights(i, j, h)
        for h, (i, j) in zip([None, *grid], pairwise(grid), strict=False)
    ]
    conditions = [[0, list(layout.columns("observation")), "observation"]]
    if layout.goal_conditioned:
        conditions.append([-1, list(layout.columns("goal")), "goal"])
        if planner.pin_goal_velocity:
            conditions.append([-1, list(layout.columns("velocity")), "zeros"])
    good_enough = planner.ranking.good_enough(planner.stride)
    first = [1] if planner.satisficing and good_enough is not None else []
    name = "goal" if layout.goal_conditioned else "observation"
    ranking: dict[str, Any] = {"name": RANKINGS[type(planner.ranking)]}
    if isinstance(planner.ranking, TimeToGoalRanking):
        ranking["reach"] = planner.ranking.reach
    return {
        "format": FORMAT,
        "num_actions": layout.action_dim,
        "position": list(layout.columns(name)),
        "shift": planner.normalizer.shift.tolist(),
        "scale": planner.normalizer.scale.tolist(),
        "stride": planner.stride,
        "lengths": {
            "predicted": horizons.choice == "predicted" and layout.goal_conditioned,
            "shortest": horizons.min_planning_steps,
            "longest": horizons.max_planning_steps,
            "multiple": horizons.multiple,
            "time_scale": horizons.scale,
        },
        "conditions": conditions,
        "temperature": sampler.temperature,
        "steps": [
            [i, each.noisy, each.clean, each.before]
            for i, each in zip(grid, weights, strict=False)
        ],
        "candidates": sorted({*first, planner.num_candidates}),
        "good_enough": good_enough if first else None,
        "ranking": ranking,
    }
