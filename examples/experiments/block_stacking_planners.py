"""What makes a small planner stack blocks: columns, network, conditioning, loss.

    python examples/experiments/block_stacking_planners.py
    python examples/experiments/block_stacking_planners.py --num-steps 20 \
        --num-starts 8 --results demo/planners

Trains planners that differ in one thing from the shipped one, or from their neighbour
in the table, on the same windows and for the same number of gradient steps (batches of
64). Single plans (no selection, 8 denoising steps) are made from held-out first states
of demonstrations, and measured: how far off the block the tool is where a plan takes
hold of it, sideways and in height; how far blocks drift that no plan touches; and the
share of plans that could be carried out, with a first grasp within 35 mm and 20 mm.

This needs the dataset: diffuser-policy collect diffuser_envs/KukaStack-Unconditional-v1
It takes about four minutes on one core for each planner, and keeps finished ones.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.generators import KinematicGenerator
from diffuser_policy import DiffuserPolicy, Trainer, load_flat, preset
from diffuser_policy.config import NetworkConfig, TrainConfig
from diffuser_policy.files import replaced_file

HEADING = """# What makes a small planner stack blocks

Made by `python examples/experiments/block_stacking_planners.py`, whose docstring
explains the columns. Millimeters: medians over plans, 10 % and 90 % quantiles in
brackets.

| planner | parameters | ms a step | sideways | in height | drift | usable % |
|---|---|---|---|---|---|---|
"""
SIDEWAYS, UPWARDS = 0.035, 0.020  # of a first grasp that succeeds, m
HELD_OUT = 7  # seed of demonstrations that are not in the dataset
UNET = NetworkConfig(dim=32, loss_floor=0.1)


def with_network(**changes: Any) -> Callable[[TrainConfig], TrainConfig]:
    """Return what changes the network of the shipped planner's settings."""
    return lambda config: dataclasses.replace(
        config, network=dataclasses.replace(config.network, **changes)
    )


def unet(features: str, *, residual: bool) -> Callable[[TrainConfig], TrainConfig]:
    """Return what makes a U-Net of them, in the columns of a featurizer."""
    return lambda config: dataclasses.replace(
        config,
        network=dataclasses.replace(UNET, residual=residual),
        window=dataclasses.replace(config.window, features=features),
    )


PLANNERS: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "U-Net, 39 columns": unet("kuka-joints", residual=False),
    "U-Net, 39 columns, residual": unet("kuka-joints", residual=True),
    "U-Net, 19 columns": unet("kuka-blocks", residual=False),
    "U-Net, 19 columns, residual": unet("kuka-blocks", residual=True),
    "objects, 19 columns, residual (shipped)": with_network(),
    "… all denoising steps weigh alike": with_network(loss_floor=None),
    "… predicts velocities": with_network(
        prediction_target="velocity", loss_floor=None
    ),
    "… tokens of 4 planning steps": with_network(patch=4),
}


@dataclass(frozen=True)
class Settings:
    """Compare planners."""

    num_steps: int = 2000
    """Gradient steps of each."""
    num_starts: int = 256
    """Held-out first states to plan from."""
    only: tuple[str, ...] = tuple(PLANNERS)
    """Which planners."""
    results: Path = Path("examples/results/block_stacking_planners")
    """Where the table (.md) and the figures (.json) go."""


def main(settings: Settings) -> None:
    """Train, measure, and write the table."""
    path = settings.results.with_suffix(".json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in settings.only:
        facts = {"num_steps": settings.num_steps, "num_starts": settings.num_starts}
        if facts.items() <= known.get(name, {}).items():
            continue
        policy, milliseconds = trained(PLANNERS[name], settings.num_steps, name)
        row = measured(policy, settings.num_starts)
        size = sum(p.numel() for p in policy.networks.denoiser.parameters())
        known[name] = {**facts, **row, "parameters": size, "ms": milliseconds}
        write(settings.results, known)
        print(name, known[name])
    best = known[settings.only[-1]]
    print(f"usable plans of the last one: {100 * best['usable']:.0f} %")


def trained(
    change: Callable[[TrainConfig], TrainConfig], num_steps: int, name: str
) -> tuple[DiffuserPolicy, float | None]:
    """Return a planner trained for some steps, and milliseconds of CPU per step.

    Training resumes where it was interrupted; the time is that of the steps taken now,
    or none if there were none left to take.
    """
    config = change(preset("kuka-stack"))
    optimization = dataclasses.replace(
        config.optimization, num_steps=num_steps, ema_decay=0.995
    )
    config = dataclasses.replace(config, optimization=optimization)
    folder = Path("runs/planners") / f"{num_steps}-{list(PLANNERS).index(name)}"
    trainer = Trainer(config, load_flat(config.dataset), folder, device="cpu")
    taken_before, begin = trainer.step, time.process_time()
    trainer.run()
    taken = trainer.step - taken_before
    spent = 1e3 * (time.process_time() - begin) / taken if taken else None
    policy = DiffuserPolicy.from_pretrained(
        folder, num_candidates=1, ranking="first", steadiness=None
    )
    return policy, spent


def measured(policy: DiffuserPolicy, num_starts: int) -> dict[str, Any]:
    """Return how good single plans from held-out states are."""
    generator = KinematicGenerator()
    starts = np.stack(
        [
            generator.demonstrate((HELD_OUT, k)).observations[0]
            for k in range(num_starts)
        ]
    )
    blocks = BlockFeatures()
    plans = policy.plan(starts).observations
    if policy.config.window.features == "kuka-joints":
        plans = blocks.features(plans)
    tool, things = plans[..., :3], plans[..., 3:].reshape(*plans.shape[:2], -1, 4)
    place, held = things[..., :3], things[..., 3] > 0.5
    rows = np.arange(num_starts)
    grasps = held.any(axis=(1, 2))
    when = held.any(axis=2).argmax(axis=1)
    which = held[rows, when].argmax(axis=1)
    off = tool[rows, when] - place[rows, 0, which] - (0.0, 0.0, 0.03)
    sideways, upwards = np.hypot(off[:, 0], off[:, 1]), np.abs(off[:, 2])
    moved = np.linalg.norm(place - place[:, :1], axis=-1)  # [starts, steps, blocks]
    early = np.arange(plans.shape[1])[None, :] < when[:, None]
    drift = np.where(early[..., None], moved, 0.0).max(axis=(1, 2))
    usable = grasps & (sideways < SIDEWAYS) & (upwards < UPWARDS)
    return {
        "sideways": spread(sideways[grasps]),
        "upwards": spread(upwards[grasps]),
        "drift": spread(drift[grasps]),
        "usable": float(usable.mean()),
        "grasps": float(grasps.mean()),
    }


def spread(meters: np.ndarray) -> list[float]:
    """Return median, 10 % and 90 % quantile, mm; nothing for no values."""
    if not len(meters):
        return []
    return [float(1e3 * q) for q in np.quantile(meters, (0.5, 0.1, 0.9))]


def write(results: Path, known: dict[str, Any]) -> None:
    """Write the figures and the table."""
    results.parent.mkdir(parents=True, exist_ok=True)

    def shown(values: list[float]) -> str:
        if not values:
            return "no grasp"
        return "{:.0f} [{:.0f}, {:.0f}]".format(*values)

    def time_of(row: dict[str, Any]) -> str:
        return "–" if row["ms"] is None else f"{row['ms']:.0f}"

    lines = [
        f"| {name} | {row['parameters']:,} | {time_of(row)} | "
        f"{shown(row['sideways'])} | {shown(row['upwards'])} | {shown(row['drift'])} | "
        f"{100 * row['usable']:.0f} |"
        for name, row in known.items()
    ]
    with replaced_file(results.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(known, indent=1), encoding="utf-8")
    with replaced_file(results.with_suffix(".md")) as partial:
        partial.write_text(HEADING + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
