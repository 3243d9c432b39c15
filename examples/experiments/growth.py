"""How the cost of a plan grows with everything that it may grow with.

    python examples/experiments/growth.py
    python examples/experiments/growth.py --rounds 2 --only candidates rows \
        --results demo/growth --picture demo/growth.png

One size varies at a time; the others are those of `multi2d-large`, made
plain: one candidate, five denoising steps, 64 planning steps, for one observation.
Costs do not depend on the weights, so networks of other widths are untrained. All cases
take turns. Times are processor time on one core, so other programs matter little; run
it with OMP_NUM_THREADS=1.

The exponent p says how cost grows at the large end: twice the size costs 2^p as much.
It is the slope of log cost over log size through the three largest sizes. Below 1, work
is shared; at 1, nothing is.

The second table is arithmetic, not measurement: floating point operations as PyTorch
counts them, over the published peak of a GPU and a share of it that well-made programs
reach. The first command takes about ten minutes on one core.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_policy import DiffuserPolicy
from diffuser_policy.build import build_networks
from diffuser_policy.config import NetworkConfig, WindowConfig
from diffuser_policy.data.windows import WindowDataset
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.envs import make_env, reset_env
from diffuser_policy.files import replaced_file
from diffuser_policy.guides.builtin import KeepOut
from diffuser_policy.observations import batched
from diffuser_policy.plotting import save_figure
from diffuser_policy.speed.cases import Case, network_flops
from diffuser_policy.speed.measurement import Timing, measure
from diffuser_policy.testing import toy_config, toy_dataset
from diffuser_policy.training.trainer import untrained, window_settings
from diffuser_policy.versions import versions

PLANNER, ENV = "multi2d-large", "diffuser_envs/Multi2D-Large-v1"
PLANNING_STEPS, STEPS = 64, 5
LARGE_END = 3  # sizes through which the exponent is fitted
SIZES: dict[str, tuple[int, ...]] = {
    "candidates": (1, 2, 4, 8, 16, 32, 64),
    "denoising steps": (1, 2, 4, 8, 16, 32),
    "horizon": (16, 32, 64, 128, 256, 512, 1024),
    "rows": (1, 8, 64, 512, 4096),
    "width": (8, 16, 32, 64, 128, 256),
    "guides": (1, 2, 4, 8, 16),
    "dataset, first batch": (10_000, 100_000, 1_000_000, 4_000_000),
    "dataset, next batch": (10_000, 100_000, 1_000_000, 4_000_000),
}
UNITS = {
    "horizon": "planning steps",
    "rows": "observations planned for in one call",
    "width": "channels of the first block",
    "guides": "discs to avoid, by gradient",
    "dataset, first batch": "env steps; reading and normalizing, then 32 windows",
    "dataset, next batch": "env steps; 32 windows",
}
# A full-size planner, and an NVIDIA H200 as its maker describes it: dense bfloat16.
FULL = NetworkConfig(dim=128, multipliers=(1, 4, 8))
FULL_LENGTH, FULL_STEPS, FULL_BATCH = 256, 20, 32
H200_PEAK, REACHED = 989e12, 0.3
TRANSITIONS, ENVS = 10**9, 10_000

HEADING = """# How cost grows

Made by `python examples/experiments/growth.py`, whose docstring says what is measured.
Milliseconds are processor time on one core.
"""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the cost of a plan grows."""

    rounds: int = 5
    """Turns that every case has."""
    only: tuple[str, ...] = tuple(SIZES)
    """What to vary."""
    results: Path = Path("examples/results/growth")
    """Written with the suffixes .json and .md."""
    picture: Path = Path("examples/images/growth.png")
    """The curves."""


# --- what is measured ---------------------------------------------------------------


def plain(planning_steps: int = PLANNING_STEPS, **settings: Any) -> DiffuserPolicy:
    """Return the planner with plans of one length, and nothing that depends on luck."""
    policy = DiffuserPolicy.from_pretrained(PLANNER)
    usual = {
        "num_candidates": 1,
        "num_sampling_steps": STEPS,
        "satisficing": False,
        "horizon": "fixed",
    }
    window = policy.config.window
    horizon = planning_steps * window.stride
    window = replace(window, horizon=horizon, min_horizon=None)
    planner = replace(policy.config.planner, **{**usual, **settings})
    execution = replace(policy.config.execution, replan_deviation=None)
    config = replace(policy.config, window=window, planner=planner, execution=execution)
    return DiffuserPolicy(config, policy.networks)


def of_width(dim: int) -> DiffuserPolicy:
    """Return the planner with an untrained network of another width."""
    policy = plain()
    config = replace(policy.config, network=replace(policy.config.network, dim=dim))
    return DiffuserPolicy(config, build_networks(config))


def guided(number: int) -> DiffuserPolicy:
    """Return the planner, steered around some discs."""
    rng = np.random.default_rng(0)
    discs = [
        KeepOut(center=tuple(rng.uniform(-3, 3, 2)), radius=0.3) for _ in range(number)
    ]
    guide: Any = discs[0]
    for disc in discs[1:]:
        guide = guide + disc
    return plain().with_guide(guide)


def cases(only: tuple[str, ...]) -> Iterator[Case]:
    """Yield every case."""
    env = make_env(ENV)
    most = max(SIZES["rows"]) if "rows" in only else 1
    observations = [reset_env(env, seed=seed)[0] for seed in range(most)]
    env.close()
    policies: dict[str, Callable[[int], DiffuserPolicy]] = {
        "candidates": lambda size: plain(num_candidates=size),
        "denoising steps": lambda size: plain(num_sampling_steps=size),
        "horizon": plain,
        "width": of_width,
        "guides": guided,
    }
    for group, make in policies.items():
        for size in SIZES[group] if group in only else ():
            run = partial(_plan, make(size), observations[0])
            yield Case(group=group, name=str(size), run=run)
    for size in SIZES["rows"] if "rows" in only else ():
        run = partial(_plan, plain(), batched(observations[:size]))
        yield Case(group="rows", name=str(size), run=run, once=size > 64)
    for size in SIZES["dataset, next batch"]:
        if {"dataset, first batch", "dataset, next batch"} & set(only):
            yield from _of_dataset(size, only)


def _plan(policy: DiffuserPolicy, observation: Any) -> int:
    policy.plan(observation)
    return 1  # what a call costs, however many rows it has


def _of_dataset(size: int, only: tuple[str, ...]) -> Iterator[Case]:
    length = 1000
    flat = toy_dataset(size // length, length)
    config = toy_config(window=WindowConfig(horizon=PLANNING_STEPS, min_horizon=None))
    made, networks, windows = untrained(config, flat)
    cut = window_settings(made, networks.normalizer)
    steps = made.window.num_planning_steps

    def draw(source: WindowDataset) -> int:
        source.sample(FULL_BATCH, steps, torch.Generator().manual_seed(0))
        return 1

    def first() -> int:
        untrained(config, flat)
        return draw(WindowDataset(flat, **cut))

    runs: dict[str, Callable[[], int]] = {
        "dataset, first batch": first,
        "dataset, next batch": partial(draw, windows),
    }
    for group, run in runs.items():
        if group in only:
            yield Case(group=group, name=str(size), run=run)


# --- what is written ----------------------------------------------------------------


def exponent(timings: list[Timing]) -> float:
    """Return the slope of log cost over log size at the large end."""
    sizes = np.log([float(timing.case.name) for timing in timings])[-LARGE_END:]
    costs = np.log([timing.cpu_ms for timing in timings])[-LARGE_END:]
    return float(np.polyfit(sizes, costs, 1)[0])


def by_group(timings: list[Timing]) -> dict[str, list[Timing]]:
    """Return the timings of each size that was varied."""
    found: dict[str, list[Timing]] = {}
    for timing in timings:
        found.setdefault(timing.case.group, []).append(timing)
    return found


def measured_table(timings: list[Timing]) -> str:
    """Return the table of what was measured."""
    lines = ["| size | from | to | ms | exponent |", "|---|---|---|---|---|"]
    for group, members in by_group(timings).items():
        first, last = members[0], members[-1]
        unit = f" ({UNITS[group]})" if group in UNITS else ""
        lines.append(
            f"| {group}{unit} | {int(first.case.name):,} | {int(last.case.name):,} | "
            f"{first.cpu_ms:,.1f} to {last.cpu_ms:,.1f} | {exponent(members):.2f} |"
        )
    return "\n".join(lines)


def on_paper() -> dict[str, float]:
    """Return what a full-size planner asks for, in operations and seconds."""
    config = replace(plain(FULL_LENGTH).config, network=FULL)
    denoiser: Denoiser = build_networks(config).denoiser
    weights = sum(part.numel() for part in denoiser.parameters())
    columns = config.layout.transition_dim
    call = network_flops(denoiser, columns, FULL_LENGTH)
    reached = REACHED * H200_PEAK
    step = 3 * FULL_BATCH * call  # forward, and twice as much backward
    return {
        "weights": weights,
        "call": call,
        "plan": FULL_STEPS * call,
        "plans_per_second": reached / (FULL_STEPS * call),
        "all_envs_seconds": ENVS * FULL_STEPS * call / reached,
        "step": step,
        "million_steps_hours": 1e6 * step / reached / 3600,
        "row_bytes": 4 * columns,
        "dataset_gb": TRANSITIONS * 4 * columns / 1e9,
        "epoch_hours": TRANSITIONS / (FULL_BATCH * FULL_LENGTH) * step / reached / 3600,
    }


def paper_table(facts: dict[str, float]) -> str:
    """Return the table of what was worked out."""
    rows = {
        "weights of the network": f"{facts['weights'] / 1e6:.0f} M",
        f"one call, {FULL_LENGTH} planning steps": f"{facts['call'] / 1e9:.1f} GFLOP",
        f"a plan of {FULL_STEPS} denoising steps": f"{facts['plan'] / 1e12:.2f} TFLOP",
        "plans a second": f"{facts['plans_per_second']:,.0f}",
        f"one for each of {ENVS:,} environments": f"{facts['all_envs_seconds']:.1f} s",
        f"a training step of {FULL_BATCH} windows": f"{facts['step'] / 1e12:.1f} TFLOP",
        "1,000,000 such steps": f"{facts['million_steps_hours']:.1f} hours",
        "1,000,000,000 transitions in memory": f"{facts['dataset_gb']:.0f} GB",
        "every transition seen once": f"{facts['epoch_hours']:.1f} hours",
    }
    lines = ["| what | estimate, for one H200 |", "|---|---|"]
    return "\n".join(
        [*lines, *(f"| {name} | {value} |" for name, value in rows.items())]
    )


def picture(timings: list[Timing]) -> Figure:
    """Return a panel for each size that was varied."""
    groups = by_group(timings)
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.7 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(groups) :]:
        panel.set_visible(False)
    for panel, (group, members) in zip(panels, groups.items(), strict=False):
        sizes = np.array([float(timing.case.name) for timing in members])
        costs = np.array([timing.cpu_ms for timing in members])
        panel.loglog(sizes, costs, "o-", color="#2b5fd9", ms=4)
        panel.loglog(sizes, costs[-1] * sizes / sizes[-1], "--", color="#8b97b5", lw=1)
        panel.set_title(f"{group}: exponent {exponent(members):.2f}", fontsize=9)
        panel.set_ylabel("ms")
        panel.set_ylim(0.6 * costs.min(), 1.6 * costs.max())
        panel.grid(alpha=0.3)
    return figure


def main(settings: Settings) -> None:
    """Measure, and write the tables and the picture."""
    timings = measure(cases(settings.only), rounds=settings.rounds)
    facts = on_paper()
    assumed = (
        f"Operations as PyTorch counts them, divided by {REACHED:.0%} of the GPU's "
        f"published peak ({H200_PEAK / 1e12:.0f} TFLOP/s in bfloat16). "
        "Small batches reach less."
    )
    parts = [
        HEADING.rstrip(),
        measured_table(timings),
        "## A full-size planner, on paper",
        assumed,
        paper_table(facts),
    ]
    written = {
        "sizes": {
            group: {timing.case.name: timing.cpu_seconds for timing in members}
            for group, members in by_group(timings).items()
        },
        "on_paper": facts,
        "versions": versions(),
    }
    texts = {".json": json.dumps(written, indent=1), ".md": "\n\n".join(parts)}
    for suffix, text in texts.items():
        with replaced_file(settings.results.with_suffix(suffix)) as partial_file:
            partial_file.write_text(text.rstrip() + "\n", encoding="utf-8")
    save_figure(picture(timings), settings.picture)
    print(texts[".md"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Settings, description=__doc__))
