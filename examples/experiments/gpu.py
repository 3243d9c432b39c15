"""Whether everything works on a GPU, and how fast, in eight minutes.

    python examples/experiments/gpu.py
    python examples/experiments/gpu.py --device cpu --quick

It runs the tests that need a GPU, compares plans with those of the CPU, with the
network as it is and recorded as a CUDA graph, counts plans a second for growing numbers
of environments, and times a training step of a full-size network in single precision
and in bfloat16. The second command checks what a CPU can check of this script.

What does not fit into the time is left out and named. Results go to the screen and, as
JSON, to a file; the exit status says whether all went well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_policy import DiffuserPolicy
from diffuser_policy.build import build_networks
from diffuser_policy.choices import Acceleration
from diffuser_policy.config import NetworkConfig
from diffuser_policy.diffusion.conditions import Conditions
from diffuser_policy.envs import make_env, reset_env
from diffuser_policy.files import replaced_file
from diffuser_policy.observations import batched
from diffuser_policy.versions import versions

PLANNER, ENV = "multi2d-large", "diffuser_envs/Multi2D-Large-v1"
ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-3  # meters, between plans of two devices
ROWS, QUICK_ROWS = (1, 64, 512, 4096), (1, 4)
FULL = NetworkConfig(dim=128, multipliers=(1, 4, 8))
SMALL = NetworkConfig(dim=16, multipliers=(1, 4))
FULL_BATCH, QUICK_BATCH = 256, 4
ENOUGH = 2.0  # seconds of repetitions for one figure


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Check and measure on a GPU."""

    device: str = "cuda"
    """Where to plan and train."""
    quick: bool = False
    """Small sizes: to try the script itself."""
    minutes: float = 8.0
    """After these, nothing new begins."""
    results: Path = Path("demo/gpu.json")
    """Where the figures go."""


# --- the stages: each yields lines of name and figure -------------------------------


Figures = Iterator[tuple[str, float | str]]


def tests(_: Settings) -> Figures:
    """Run the tests that need a GPU."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.strip().splitlines() or [run.stderr.strip()]
    yield "tests that need a GPU", lines[-1]
    if run.returncode:
        print(run.stdout)
        raise RuntimeError("Tests failed; their output is above.")


def plans(settings: Settings) -> Figures:
    """Compare plans with those of the CPU."""
    observation = batched(_observations(QUICK_ROWS[-1]))
    on_cpu = _policy(replace(settings, device="cpu"), "off")
    expected = on_cpu.plan(observation).observations
    for acceleration in _accelerations(settings):
        made = _policy(settings, acceleration).plan(observation).observations
        furthest = float(np.abs(made - expected).max())
        yield f"largest difference of plans to the CPU's, {acceleration}", furthest
        if not furthest < TOLERANCE:
            raise ArithmeticError(f"{furthest} m is more than {TOLERANCE} m.")


def planning(settings: Settings) -> Figures:
    """Count plans a second."""
    observations = _observations((QUICK_ROWS if settings.quick else ROWS)[-1])
    for acceleration in _accelerations(settings):
        policy = _policy(settings, acceleration)
        for rows in QUICK_ROWS if settings.quick else ROWS:
            batch = batched(observations[:rows])
            seconds = _seconds(settings, partial(policy.plan, batch))
            yield f"plans a second, {rows:,} rows, {acceleration}", rows / seconds


def training(settings: Settings) -> Figures:
    """Time a training step of the denoiser: loss, gradients, optimizer."""
    config = DiffuserPolicy.from_pretrained(PLANNER).config
    config = replace(config, network=SMALL if settings.quick else FULL)
    networks = build_networks(config).to(settings.device).train()
    denoiser = networks.denoiser
    batch = QUICK_BATCH if settings.quick else FULL_BATCH
    steps = config.window.num_planning_steps
    windows = torch.randn(batch, steps, config.layout.transition_dim)
    windows = windows.to(settings.device)
    given = Conditions().pin(
        0, "observation", windows[:, 0, config.layout.observations]
    )
    inpainting = given.compile(
        config.layout, networks.normalizer, num_planning_steps=steps, batch_size=batch
    )
    optimizer = torch.optim.Adam(denoiser.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    weights = sum(part.numel() for part in denoiser.parameters())
    yield "weights of the trained network", float(weights)

    def step(low: bool) -> None:
        kind = torch.device(settings.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=low):
            loss = denoiser.loss(windows, inpainting, generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    for name, low in (("float32", False), ("bfloat16", True)):
        seconds = _seconds(settings, partial(step, low))
        yield f"ms a training step, {batch} windows, {name}", 1e3 * seconds
    if not all(bool(part.isfinite().all()) for part in denoiser.parameters()):
        raise ArithmeticError("Some weights are NaN or infinite after training.")


STAGES = (tests, plans, planning, training)


def _accelerations(settings: Settings) -> tuple[Acceleration, ...]:
    return ("off", "cuda-graphs" if settings.device.startswith("cuda") else "fused")


def _policy(settings: Settings, acceleration: Acceleration) -> DiffuserPolicy:
    policy = DiffuserPolicy.from_pretrained(
        PLANNER, satisficing=False, num_candidates=1
    )
    return policy.to(settings.device).accelerated(acceleration)


def _observations(number: int) -> list[Any]:
    env = make_env(ENV)
    observations = [reset_env(env, seed=seed)[0] for seed in range(number)]
    env.close()
    return observations


def _seconds(settings: Settings, work: Callable[[], object]) -> float:
    """Return the median time of some work, GPU included."""

    def once() -> float:
        begin = time.perf_counter()
        work()
        if settings.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    once()  # compiles, records and allocates
    taken = [once()]
    while sum(taken) < (0.1 if settings.quick else ENOUGH):
        taken.append(once())
    return float(np.median(taken))


def main(settings: Settings) -> int:
    """Run the stages, print and save their figures; return the exit status."""
    begin, figures, failed = time.monotonic(), {}, []
    for stage in STAGES:
        name = stage.__name__
        if time.monotonic() - begin > 60 * settings.minutes:
            print(f"{name}: left out, {settings.minutes:g} minutes are over")
            failed.append(name)
            continue
        try:
            for label, figure in stage(settings):
                figures[label] = figure
                shown = figure if isinstance(figure, str) else f"{figure:,.4g}"
                print(f"{label}: {shown}", flush=True)
        except Exception as error:  # the other stages are worth their figures
            print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
            failed.append(name)
    gpu = settings.device.startswith("cuda") and torch.cuda.is_available()
    written = {
        "device": torch.cuda.get_device_name() if gpu else settings.device,
        "seconds": round(time.monotonic() - begin, 1),
        "failed": failed,
        "figures": figures,
        "versions": versions(),
    }
    settings.results.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(settings.results) as partial_file:
        partial_file.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(f"{written['seconds']:.0f} s. Wrote {settings.results}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings, description=__doc__)))
