"""How few denoising steps are enough: every sampler and step grid on the same episodes.

    python examples/experiments/few_steps.py
    python examples/experiments/few_steps.py --episodes 2 --mazes umaze \
        --only "ddim 1" "ddim 3" --repetitions 2 \
        --results demo/few_steps --picture demo/few_steps.png

Each setting plays the episodes of `diffuser-policy evaluate`: the same starts, goals
and random streams. The full chain is DDPM with all denoising steps of training. Most of
a score is decided by how far away an episode's goal is, which is the same for all
settings. What a setting loses is therefore the mean of the episodes' *differences* to
the full chain. A setting is within noise of the full chain if the 95 % bootstrap
interval of that mean reaches zero. For each maze, the setting with the fewest steps
that is within noise is printed, in bold in the table.

Times are the median over plans for one environment, in seconds of work on one core and
not of the clock, so other programs matter little. The first command takes an hour of
one core. It saves every setting when it is done, resumes there when it is run again,
and measures the times anew. Settings of a planner that was trained anew are played
again.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

import diffuser_envs  # noqa: F401 (registers the environments)
from diffuser_policy import DiffuserPolicy
from diffuser_policy.evaluation import evaluate
from diffuser_policy.evaluation.statistics import mean_interval, proportion_interval
from diffuser_policy.files import replaced_file
from diffuser_policy.plotting import save_figure
from diffuser_policy.versions import versions

ENVIRONMENTS = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}
FULL = "ddpm full"
NUM_STEPS = (1, 2, 3, 5, 10)
CURVES = {
    "DDIM": ("ddim", "linspace", "#2b5fd9"),
    "DPM-Solver++": ("dpm", "linspace", "#e07b39"),
    "DDIM, trailing": ("ddim", "trailing", "#2a9d6f"),
}
STYLE = {"ms": 4, "lw": 1.2, "capsize": 2}
HEADING = """# How few denoising steps are enough

Made by `python examples/experiments/few_steps.py`, whose docstring explains the
columns. Brackets are 95 % intervals. In bold: the fewest steps within noise
of the full chain, which is "ddpm full". One or two steps of DPM-Solver++ (dpm)
are DDIM.
"""
Cell = dict[str, Any]  # what is kept of one setting in one maze


@dataclass(frozen=True)
class Setting:
    """How to sample: a line of the table."""

    sampler: str
    num_sampling_steps: int | None
    step_spacing: str = "linspace"
    temperature: float = 1.0

    @property
    def name(self) -> str:
        """What the line is called; what is usual goes without saying."""
        words = [self.sampler, str(self.num_sampling_steps or "full")]
        if self.step_spacing != "linspace":
            words.append(self.step_spacing)
        if self.temperature != 1.0:
            words.append(f"temperature {self.temperature}")
        return " ".join(words)


# DPM-Solver++ of one or two steps is DDIM, and one step has no grid to choose.
SETTINGS = (
    Setting("ddpm", None),
    *(Setting("ddim", steps) for steps in NUM_STEPS),
    *(Setting("dpm", steps) for steps in (3, 5, 10)),
    Setting("ddim", 2, "trailing"),
    Setting("ddim", 1, temperature=0.5),
    Setting("ddim", 2, "trailing", 0.5),
    Setting("ddim", 3, "trailing"),
    Setting("dpm", 3, "trailing"),
    Setting("ddim", 3, "log-snr"),
    Setting("dpm", 3, "log-snr"),
)


def planner(maze: str, setting: Setting) -> DiffuserPolicy:
    """Return the shipped planner of a maze with one setting."""
    return DiffuserPolicy.from_pretrained(
        f"multi2d-{maze}",
        sampler=setting.sampler,
        num_sampling_steps=setting.num_sampling_steps,
        step_spacing=setting.step_spacing,
        temperature=setting.temperature,
    )


def play(maze: str, setting: Setting, episodes: int) -> Cell:
    """Return score and env steps to the goal (none: not reached) of every episode."""
    env = f"diffuser_envs/Multi2D-{ENVIRONMENTS[maze]}-v1"
    policy = planner(maze, setting)
    records = evaluate(policy, env, episodes=episodes).episodes
    return {
        "planner": policy.planner.fingerprint,
        "scores": [round(record.score or 0.0, 4) for record in records],
        "env_steps": [record.time_to_goal for record in records],
    }


def is_kept(cell: Cell, fingerprint: int, episodes: int) -> bool:
    """Return whether a cell has enough episodes, of the planner with these weights.

    Cells of earlier versions don't say of which planner they are.
    """
    of_it = cell.get("planner", fingerprint) == fingerprint
    return of_it and len(cell.get("scores", [])) >= episodes


def milliseconds(maze: str, setting: Setting, repetitions: int) -> float:
    """Return the processor's time for one plan, the median of repeated ones."""
    policy = planner(maze, setting)
    env = gymnasium.make(f"diffuser_envs/Multi2D-{ENVIRONMENTS[maze]}-v1")
    times = []
    for seed in range(repetitions + 1):
        observation, _ = env.reset(seed=seed)
        began = time.process_time()
        policy.plan(observation)
        times.append(1000 * (time.process_time() - began))
    env.close()
    return float(np.median(times[1:]))


def lost(cell: Cell, full: Cell) -> list[float]:
    """Return by how much the score differs from the full chain's: mean, interval."""
    interval = mean_interval(np.subtract(cell["scores"], full["scores"]))
    return [interval.mean, interval.low, interval.high]


def cheapest(cells: dict[str, Cell]) -> str:
    """Return the setting of fewest steps within noise of the full chain.

    Of several, the one that comes first in `SETTINGS`, where plainer ones do. A single
    episode has no interval and rules nothing out.
    """
    high = {name: lost(cell, cells[FULL])[2] for name, cell in cells.items()}
    enough = [name for name in cells if not high[name] < 0]
    steps = {setting.name: setting.num_sampling_steps for setting in SETTINGS}
    return min(enough, key=lambda name: steps[name] or math.inf)


def table(cells: dict[str, Cell]) -> str:
    """Return the table of one maze in Markdown, the cheapest setting in bold."""
    titles = "| sampler, steps | score | minus full chain | success % | ms a plan |"
    lines = [titles, "|---|---|---|---|---|"]
    best = cheapest(cells)
    for name, cell in cells.items():
        score = mean_interval(cell["scores"])
        reached = [steps is not None for steps in cell["env_steps"]]
        success = proportion_interval(sum(reached), len(reached))
        mean, low, high = lost(cell, cells[FULL])
        less = "" if name == FULL else f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        lines.append(
            f"| {f'**{name}**' if name == best else name} "
            f"| {score.mean:.1f} [{score.low:.1f}, {score.high:.1f}] | {less} "
            f"| {100 * success.mean:.0f} [{100 * success.low:.0f}, "
            f"{100 * success.high:.0f}] | {cell['milliseconds']:.1f} |"
        )
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Cell]]) -> Figure:
    """Draw the difference to the full chain against the number of steps."""
    figure = Figure(figsize=(4 * len(results), 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for ax, (maze, cells) in zip(panels, results.items(), strict=True):
        ax.axhline(0, color="#3d465c", lw=0.8)
        for index, (label, (sampler, spacing, color)) in enumerate(CURVES.items()):
            usual = [Setting(sampler, n, spacing) for n in NUM_STEPS]
            shown = [setting for setting in usual if setting.name in cells]
            if not shown:
                continue
            steps = np.array([setting.num_sampling_steps for setting in shown])
            mean, low, high = np.transpose(
                [lost(cells[setting.name], cells[FULL]) for setting in shown]
            )
            bars = np.array([mean - low, high - mean])
            x = steps * 1.05 ** (index - 1)  # side by side
            ax.errorbar(x, mean, bars, fmt="o-", color=color, label=label, **STYLE)
        ax.set_xscale("log")
        ax.set_xticks(NUM_STEPS, map(str, NUM_STEPS))
        ax.set_xticks([], minor=True)
        ax.set(title=f"Multi2D-{ENVIRONMENTS[maze]}", xlabel="denoising steps")
        ax.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score minus the full chain's")
    panels[-1].legend(frameon=False)
    return figure


def main(
    *,
    episodes: int = 100,
    mazes: tuple[str, ...] = ("umaze", "medium", "large"),
    only: tuple[str, ...] = (),
    repetitions: int = 30,
    results: Path = Path("examples/results/few_steps"),
    picture: Path = Path("examples/images/few_steps.png"),
) -> None:
    """Fill the table, print it, and draw it.

    Args:
        episodes: Per setting and maze, with seeds from 0.
        mazes: Of "umaze", "medium" and "large".
        only: Names of settings to measure besides the full chain; not given: all.
        repetitions: Plans of which the time is taken.
        results: Where to write the table, without ".json" and ".md".
        picture: Where to save the picture.
    """
    torch.set_num_threads(1)
    settings = [s for s in SETTINGS if not only or s.name in (*only, FULL)]
    kept, measured = results.with_suffix(".json"), {}
    if kept.exists():
        measured = json.loads(kept.read_text(encoding="utf-8"))["mazes"]
    results.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        document = {"versions": versions(), "mazes": measured}
        with replaced_file(kept) as partial:
            partial.write_text(json.dumps(document) + "\n", encoding="utf-8")

    current = {maze: planner(maze, settings[0]).planner.fingerprint for maze in mazes}
    for setting in settings:
        for maze in mazes:
            cells = measured.setdefault(maze, {})
            if not is_kept(cells.get(setting.name, {}), current[maze], episodes):
                cells[setting.name] = play(maze, setting, episodes)
                keep()
    shown: dict[str, dict[str, Cell]] = {maze: {} for maze in mazes}
    for maze in mazes:
        for setting in settings:
            cell = measured[maze][setting.name]
            cell["milliseconds"] = milliseconds(maze, setting, repetitions)
            played = {key: cell[key][:episodes] for key in ("scores", "env_steps")}
            shown[maze][setting.name] = {**cell, **played}
    keep()
    parts = [
        HEADING,
        *(f"## Multi2D-{ENVIRONMENTS[m]}\n\n{table(shown[m])}\n" for m in mazes),
    ]
    results.with_suffix(".md").write_text("\n".join(parts), encoding="utf-8")
    print("\n".join(parts))
    save_figure(draw(shown), picture)
    for maze in mazes:
        print(
            f"cheapest within noise of the full chain on {maze}: "
            f"{cheapest(shown[maze])}"
        )
    first = shown[mazes[0]]
    ratio = first[FULL]["milliseconds"] / first[cheapest(first)]["milliseconds"]
    print(f"picture: {picture}; on {mazes[0]} that is {ratio:.0f} times faster")


if __name__ == "__main__":
    tyro.cli(main)
