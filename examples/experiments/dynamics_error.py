"""How wrong models of the dynamics are: a learned one, and a Diffuser with actions.

    python examples/experiments/dynamics_error.py
    python examples/experiments/dynamics_error.py --planner runs/umaze-actions \
        --results examples/results/dynamics_error.json
    python examples/experiments/dynamics_error.py --num-starts 8 \
        --num-dynamics-steps 20 --num-planner-steps 2 --num-sampling-steps 1 \
        --folder demo/small

MPPI in a Diffuser did no better than random actions (Janner et al. 2022). This example
looks at the model that it plans in. From states of the data, every model is given a
sequence of actions and compared with the environment's simulator: how far apart the
positions are after 1, 8 and 63 env steps, in meters, mean over starts with its 95 %
bootstrap interval. A Diffuser of 64 planning steps can predict no more than 63.

- Actions "of the data" are those that were recorded after the state, which all models
  were trained on; "new every step" are uniform random ones, and "kept for 9 steps"
  change only every ninth env step, like the sequences that MPPI tries.
- "Standing still" says that the ball stays where it is; "no actions" is the simulator
  itself, but nothing pushes the ball.
- "Learned" models predict one env step and are fed their own predictions: a single
  network, and the mean of an ensemble's states, of which that network is a member.
- "Diffuser" fills in states between the first one and all actions, which are pinned.
- "The recording" is what followed in the data. It is off by the data's single precision
  and by the simulator's last digits along walls.

Intervals are over starts and actions; models and denoising noise have a single seed.
This needs the dataset: diffuser-policy collect diffuser_envs/Multi2D-UMaze-v1
The ensemble takes a minute or two on one core; the Diffuser, if none is given, a
quarter of an hour. The folder keeps what was trained, and it is not trained again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tyro

import diffuser_envs  # noqa: F401 (registers the environments)
from diffuser_policy import DiffuserPolicy
from diffuser_policy.baselines.dynamics import (
    ACTION_PLANNER_STEPS,
    DiffuserDynamics,
    learn_dynamics,
    simulator_of,
    train_action_planner,
)
from diffuser_policy.baselines.shooting import Model
from diffuser_policy.benchmark import MethodContext
from diffuser_policy.benchmark.cells import Cell, CellFolder
from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.evaluation.statistics import mean_interval
from diffuser_policy.files import replaced_file
from diffuser_policy.versions import versions

PROBLEM = Problem(
    env="diffuser_envs/Multi2D-UMaze-v1", dataset="diffuser/multi2d-umaze-v1"
)
MOMENTS = {1: 5, 8: 4, 63: 2}  # env steps that are looked at: digits in the table
NUM_STEPS = max(MOMENTS)
KEPT = 9  # env steps
OF_DATA, NEW, LASTING = "of the data", "new every step", f"kept for {KEPT} steps"
STILL, UNPUSHED, RECORDING = "standing still", "no actions", "the recording"
MEMBER, ENSEMBLE = "learned, one", "learned, mean of {}"
HEADING = """# How far off models of the dynamics are

Made by `python examples/experiments/dynamics_error.py`, whose docstring explains
the rows. `{env}`, {num_starts} starts; the ensemble was trained for
{num_dynamics_steps:,} gradient steps, the Diffuser for {num_planner_steps:,}. Distance
to the simulator's position in meters: mean and 95 % interval.
"""

Simulate = Callable[[np.ndarray, np.ndarray], np.ndarray]  # states, actions → states
Errors = dict[str, dict[str, dict[int, list[float]]]]  # actions → model → env steps


def training(folder: Path, method: str, num_steps: int) -> MethodContext:
    """Return the context of a method, as the benchmark makes it."""
    cell = Cell(problem=PROBLEM, method=method, num_steps=num_steps)
    files = CellFolder(folder, cell.id)
    files.prepare(cell)
    return MethodContext(cell, files, {})


def learned_models(work: MethodContext) -> dict[str, Simulate]:
    """Train one-step dynamics; return the first member, and the mean of all."""
    ensemble = learn_dynamics(work, num_members=5, width=128)

    def member(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        first: np.ndarray = ensemble.simulate(states, actions)[0]
        return first

    def mean(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        average: np.ndarray = ensemble.simulate(states, actions).mean(axis=0)
        return average

    return {MEMBER: member, ENSEMBLE.format(ensemble.num_members): mean}


def diffuser_models(
    policy: DiffuserPolicy, num_sampling_steps: tuple[int, ...]
) -> dict[str, Simulate]:
    """Return a planner as a model of the dynamics, for some numbers of steps."""
    changed = {
        steps: policy.with_settings(num_sampling_steps=steps)
        for steps in num_sampling_steps
    }
    return {
        f"Diffuser, {steps} denoising step{'s' * (steps > 1)}": (
            DiffuserDynamics(copy.planner).simulate
        )
        for steps, copy in changed.items()
    }


def simple_models(simulator: Model) -> dict[str, Simulate]:
    """Return what every model should beat: no motion, and no actions."""

    def unpushed(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
        return simulator.simulate(states, np.zeros_like(actions))

    return {STILL: stand_still, UNPUSHED: unpushed}


def stand_still(states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the first states, as often as there are actions `[n, steps, state]`."""
    return np.repeat(states[:, None], actions.shape[1], axis=1)


def starts(flat: FlatDataset, number: int, rng: np.random.Generator) -> np.ndarray:
    """Return rows of the data after which the same run continues for long enough."""
    ends = np.repeat(flat.run_starts[1:], flat.run_lengths)
    usable = np.flatnonzero(np.arange(flat.num_rows) + NUM_STEPS < ends)
    return rng.choice(usable, number, replace=False)


def sequences(recorded: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Return actions of all kinds, each shaped like the recorded ones.

    Args:
        recorded: `[n, NUM_STEPS, action]`.
        rng: Draws the others.
    """
    number, _, size = recorded.shape
    few = rng.uniform(-1, 1, (number, NUM_STEPS // KEPT, size))
    return {
        OF_DATA: recorded,
        NEW: rng.uniform(-1, 1, recorded.shape),
        LASTING: few.repeat(KEPT, axis=1),
    }


def error(states: np.ndarray, truth: np.ndarray) -> dict[int, list[float]]:
    """Return the mean distance of positions, and its interval, at some env steps.

    Args:
        states: `[n, NUM_STEPS, state]` predicted; positions come first.
        truth: Those that the simulator says.
    """
    distances = np.linalg.norm(states[..., :2] - truth[..., :2], axis=-1)
    intervals = {step: mean_interval(distances[:, step - 1]) for step in MOMENTS}
    return {step: [i.mean, i.low, i.high] for step, i in intervals.items()}


def measure(
    flat: FlatDataset, simulator: Model, models: dict[str, Simulate], num_starts: int
) -> Errors:
    """Return how far off every model is, for every kind of actions."""
    rng = np.random.default_rng(0)
    rows = starts(flat, num_starts, rng)
    within = rows[:, None] + np.arange(NUM_STEPS)
    states = flat.fields["observation"][rows].astype(np.float64)
    recorded = flat.fields["action"][within].astype(np.float64)
    errors: Errors = {}
    for kind, actions in sequences(recorded, rng).items():
        truth = simulator.simulate(states, actions)
        errors[kind] = {
            name: error(simulate(states, actions), truth)
            for name, simulate in models.items()
        }
        if kind == OF_DATA:
            after = flat.fields["observation"][within + 1]
            errors[kind][RECORDING] = error(after, truth)
    return errors


def table(errors: Errors) -> str:
    """Return the table in Markdown."""
    moments = [f"after {step} env step{'s' * (step > 1)}" for step in MOMENTS]
    lines = [f"| actions | model | {' | '.join(moments)} |", "|---" * 5 + "|"]
    for kind, models in errors.items():
        for name, figures in models.items():
            cells = [
                f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
                for digits, (mean, low, high) in zip(
                    MOMENTS.values(), figures.values(), strict=True
                )
            ]
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    *,
    planner: Path | None = None,
    num_starts: int = 256,
    num_dynamics_steps: int = 20_000,
    num_planner_steps: int = ACTION_PLANNER_STEPS,
    num_sampling_steps: tuple[int, ...] = (1, 8, 64),
    folder: Path = Path("demo/dynamics_error"),
    results: Path | None = None,
) -> None:
    """Train the models, compare them with the simulator, print the table.

    Args:
        planner: Folder of a Diffuser of 64 planning steps that plans actions for every
            env step; not given: one is trained.
        num_starts: States to predict from.
        num_dynamics_steps: Gradient steps of the ensemble.
        num_planner_steps: Gradient steps of the Diffuser, if it is trained.
        num_sampling_steps: Numbers of denoising steps to predict with.
        folder: Where the trained models are kept.
        results: JSON file for the figures; a table in Markdown is written beside it.
    """
    torch.set_num_threads(1)
    work = training(folder, "mppi-learned", num_dynamics_steps)
    env = PROBLEM.make_env()
    simulator = simulator_of(env)
    models = {**simple_models(simulator), **learned_models(work)}
    if planner is None:
        planner = train_action_planner(
            training(folder, "mppi-diffuser", num_planner_steps)
        )
    policy = DiffuserPolicy.from_pretrained(planner)
    models |= diffuser_models(policy, num_sampling_steps)
    errors = measure(work.dataset, simulator, models, num_starts)
    env.close()
    trained = policy.config.provenance["training"]["optimization"]
    settings = {
        "env": PROBLEM.env,
        "num_starts": num_starts,
        "num_dynamics_steps": num_dynamics_steps,
        "num_planner_steps": trained["num_steps"],
    }
    page = f"{HEADING.format(**settings)}\n{table(errors)}\n"
    if results is not None:
        document = {"settings": settings, "versions": versions(), "errors": errors}
        with replaced_file(results) as partial:
            partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        with replaced_file(results.with_suffix(".md")) as partial:
            partial.write_text(page, encoding="utf-8")
    print(page)
    last = [(name, figures[NUM_STEPS][0]) for name, figures in errors[LASTING].items()]
    figures = "; ".join(f"{name} {mean:.2f} m" for name, mean in last)
    print(f"off after {NUM_STEPS} env steps of random actions {LASTING}: {figures}")


if __name__ == "__main__":
    tyro.cli(main)
