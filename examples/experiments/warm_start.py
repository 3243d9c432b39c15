"""Making plans anew from what is left of the last one: score and denoising steps.

    python examples/experiments/warm_start.py
    python examples/experiments/warm_start.py --planner multi2d-large \
        --env-id diffuser_envs/Multi2D-Large-v1 --executors pursuit tracking \
        --intervals 10 1 --num-steps 1 2 5 10 20 --episodes 40 \
        --results examples/results/warm_start.json \
        --picture examples/images/warm_start.png

Of a robot that walks, by a planner of four env steps, trained on the data that
`docs/locomotion.md` records:

    diffuser-policy train --dataset diffuser/walker2d-medium-expert-v1 \
        --window.horizon 4 --num-steps 8000 --output runs/walker2d-4
    python examples/experiments/warm_start.py --planner runs/walker2d-4 \
        --env-id Walker2d-v5 --executors actions --intervals 1 \
        --num-steps 1 2 5 10 20 --max-rate 20 --temperatures 0 1 --episodes 10 \
        --results examples/results/warm_start_walker2d.json \
        --picture examples/images/warm_start_walker2d.png

(Janner et al. 2022, figure 7.) Every few env steps the plan is made anew with K
denoising steps and a single candidate, in three ways:

- cold: DDIM from noise, K steps over the whole schedule;
- last K: what is left of the plan is noised to step K of the schedule, and DDPM takes
  the last K steps. This is the paper's warm start;
- from 0.3: it is noised to 0.3 of the schedule, and DDIM takes K steps from there.

An episode's first plan has nothing to start from: it takes K steps when cold, all of
the schedule before "last K", and 20 before "from 0.3". All cells share their episodes,
so differences are between equal starts and goals. Cells of the same planner that are in
the results file are not run again. Times are always measured: of one plan for one
environment, on one thread.

A warm start keeps much of the first plan, and DDPM's first plans differ from DDIM's.
The report therefore also says how both score when plans are followed to their end. The
last line names the warm start of the fewest steps that costs at most 5 % of the score
of the longest cold chain: the 95 % interval of the paired difference lies above that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure

import diffuser_envs  # noqa: F401 (registers the mazes)
from diffuser_policy import DiffuserPolicy, evaluate
from diffuser_policy.evaluation.statistics import (
    Interval,
    mean_interval,
    proportion_interval,
)
from diffuser_policy.files import replaced_file
from diffuser_policy.words import counted

Executor = Literal["pursuit", "tracking", "actions"]
Start = Literal["cold", "last K", "from 0.3"]
STARTS: tuple[Start, ...] = ("cold", "last K", "from 0.3")
LEVEL = 0.3
MARGIN = 0.05  # share of the reference's score that a warm start may cost
FIRST_STEPS = 20  # of the first plan, before warm ones "from 0.3"
Episode = tuple[float, bool | None, int]  # score, success, number of plans
COLORS = {"cold": "tab:gray", "last K": "tab:orange", "from 0.3": "tab:blue"}


class Cell(NamedTuple):
    """One way to plan anew: how, how often, and what follows the plan."""

    executor: Executor
    interval: int | None
    start: Start
    num_steps: int
    temperature: float | None = None  # not given: the planner's own

    @property
    def key(self) -> str:
        """Its name in the results file."""
        every = "once" if self.interval is None else f"every {self.interval}"
        key = f"{self.executor}, {every}, {self.start}, {self.num_steps} steps"
        at = "" if self.temperature is None else f", temperature {self.temperature:g}"
        return key + at

    @property
    def work(self) -> str:
        """What the time of its plans depends on."""
        return f"{self.start}, {self.num_steps} steps"

    def policy(self, base: DiffuserPolicy) -> DiffuserPolicy:
        """Return the policy that plans like this."""
        available = base.config.network.num_denoising_steps
        settings: dict[Start, dict[str, Any]] = {
            "cold": {"sampler": "ddim", "num_sampling_steps": self.num_steps},
            "last K": {
                "sampler": "ddpm",
                "num_sampling_steps": None,
                "warm_start": self.num_steps / available,
                "warm_start_steps": self.num_steps,
            },
            "from 0.3": {
                "sampler": "ddim",
                "num_sampling_steps": min(FIRST_STEPS, available),
                "warm_start": LEVEL,
                "warm_start_steps": self.num_steps,
            },
        }
        chosen = settings[self.start]
        if self.interval is None:  # no plan is made anew, from what is left or not
            chosen = {k: v for k, v in chosen.items() if not k.startswith("warm_start")}
        if self.temperature is not None:
            chosen["temperature"] = self.temperature
        return base.with_settings(
            num_candidates=1,
            ranking="first",
            step_spacing="linspace",
            executor=self.executor,
            replan_interval=self.interval,
            **chosen,
        )


@dataclass
class Results:
    """Everything that was measured.

    Attributes:
        settings: Planner, with the fingerprint of its weights, environment and
            episodes.
        episodes: By cell, each episode's score, success (none where there are no
            goals) and number of plans.
        milliseconds: By start and steps, the median time of a plan for one row.
    """

    settings: dict[str, Any]
    episodes: dict[str, list[Episode]] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)

    def scores(self, cell: Cell) -> np.ndarray:
        """Return the scores `[episodes]` of a cell."""
        return np.array([score for score, _, _ in self.episodes[cell.key]])

    @property
    def has_success(self) -> bool:
        """Whether there are goals to reach."""
        return any(each[0][1] is not None for each in self.episodes.values())

    def difference(self, cell: Cell, reference: Cell) -> Interval:
        """Return the mean difference of a cell's scores to another's, in pairs."""
        return mean_interval(self.scores(cell) - self.scores(reference))

    def save(self, path: Path) -> None:
        """Write everything to a file, a line for each cell."""
        parts = [
            f'"{name}": {{\n'
            + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in part.items())
            + "}"
            for name, part in asdict(self).items()
        ]
        with replaced_file(path) as partial:
            partial.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


def load(path: Path, settings: dict[str, Any]) -> Results:
    """Return what earlier runs with the same settings have measured.

    Files of earlier versions don't hold the fingerprint of the planner.
    """
    if not path.exists():
        return Results(settings)
    saved = Results(**json.loads(path.read_text(encoding="utf-8")))
    return saved if saved.settings.items() <= settings.items() else Results(settings)


def run_cell(policy: DiffuserPolicy, env_id: str, episodes: int) -> list[Episode]:
    """Return score, success and number of plans of every episode."""
    evaluation = evaluate(policy, env_id, episodes=episodes, num_envs=episodes)
    return [
        (round(each.score or 0.0, 4), each.success, int(each.num_plans or 0))
        for each in evaluation.episodes
    ]


def time_plans(policy: DiffuserPolicy, env_id: str, num_plans: int) -> float:
    """Return the median milliseconds of a call of `predict` that plans anew.

    Of processor time, which on one thread is what the clock shows on an idle machine.
    The first plan of an episode is left out: it is always cold.
    """
    env = gymnasium.make(env_id)
    times: list[float] = []
    seed = 0
    while len(times) < num_plans:
        observation, _ = env.reset(seed=seed)
        _, state = policy.predict(observation)
        for _ in range(num_plans):
            begin, plans = time.process_time(), state.num_plans[0]
            action, state = policy.predict(observation, state)
            if state.num_plans[0] > plans:
                times.append(1000 * (time.process_time() - begin))
            observation, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        seed += 1
    env.close()
    return float(np.median(times[:num_plans]))


@dataclass(frozen=True)
class Panel:
    """Cells that share all but start and steps, and what they are compared with.

    Attributes:
        cells: All ways to plan anew.
        reference: The executor's longest cold chain, at the longest interval.
        once: What plans give that are followed to their end, by either sampler.
    """

    cells: tuple[Cell, ...]
    reference: Cell
    once: tuple[Cell, Cell]

    @property
    def title(self) -> str:
        """What the cells share."""
        executor, interval, *_, temperature = self.cells[0]
        every = "env step" if interval == 1 else f"{interval} env steps"
        at = "" if temperature is None else f", temperature {temperature:g}"
        return f"{executor}: a plan every {every}{at}"

    def cheapest(self, results: Results) -> Cell | None:
        """Return the warm cell of the fewest steps that surely costs little."""
        most = MARGIN * abs(float(results.scores(self.reference).mean()))

        def cost(cell: Cell) -> tuple[int, float]:
            return cell.num_steps, -results.scores(cell).mean()

        warm = [cell for cell in self.cells if cell.start != "cold"]
        good = [c for c in warm if results.difference(c, self.reference).low > -most]
        return min(good, key=cost, default=None)

    def conclusion(self, results: Results) -> str:
        """Return the cheapest good warm start, in words."""
        best = self.cheapest(results)
        kept = f"{100 * (1 - MARGIN):.0f} % of the score of {self.reference.key}"
        if best is None:
            return f"No warm start surely keeps {kept}."
        milliseconds = results.milliseconds[best.work]
        return (
            f"The warm start of the fewest steps that surely keeps {kept}: "
            f"{best.start}, {counted(best.num_steps, 'step')}; score "
            f"{results.scores(best).mean():.1f}, {milliseconds:.1f} ms a plan, "
            f"{1000 / milliseconds:.0f} plans a second."
        )


def make_panels(
    executors: Sequence[Executor],
    intervals: Sequence[int],
    num_steps: Sequence[int],
    temperatures: Sequence[float | None],
    *,
    max_rate: float,
    num_denoising_steps: int,
) -> list[Panel]:
    """Return a panel for each executor, interval and temperature; see `main`."""
    panels = []
    longest = max(k for k in num_steps if k <= max_rate * max(intervals))
    first = min(FIRST_STEPS, num_denoising_steps)
    for executor, interval, at in product(executors, intervals, temperatures):
        once = (
            Cell(executor, None, "cold", first, at),
            Cell(executor, None, "last K", num_denoising_steps, at),
        )
        most = {"from 0.3": LEVEL * num_denoising_steps}
        cells = tuple(
            Cell(executor, interval, start, k, at)
            for start, k in product(STARTS, num_steps)
            if k <= min(max_rate * interval, most.get(start, num_denoising_steps))
        )
        reference = Cell(executor, max(intervals), "cold", longest, at)
        panels.append(Panel(cells, reference, once))
    return panels


def as_markdown(results: Results, panels: Sequence[Panel]) -> str:
    """Return a table for every panel."""
    settings = results.settings
    made = (
        f"Made by `examples/experiments/warm_start.py`: {settings['planner']} in "
        f"{settings['env_id']}, {settings['episodes']} episodes, one candidate. Means "
        f"with 95 % intervals. Differences are paired: all rows ran the same episodes. "
        f"Milliseconds are on one core."
    )
    ways = (
        f"*Cold*: DDIM, from noise. *Last K*: what is left of the plan is noised to "
        f"step K of the schedule, and DDPM takes the last K steps, as in the paper. "
        f"*From {LEVEL}*: it is noised to {LEVEL} of the schedule, and DDIM takes K "
        f"steps."
    )
    name = settings["env_id"].rpartition("/")[2]
    title = f"# Warm start in {name}: score against denoising steps"
    lines = [title, "", made, "", ways]
    for panel in panels:
        ddim, ddpm = (_shown(mean_interval(results.scores(c))) for c in panel.once)
        columns = ["start", "steps", "score", "difference"]
        columns += ["success %"] if results.has_success else []
        columns += ["plans an episode", "ms a plan"]
        once = (
            f"Followed to their end, plans score {ddim} with DDIM and "
            f"{panel.once[0].num_steps} steps, and {ddpm} with DDPM and all "
            f"{panel.once[1].num_steps}. Differences are to: {panel.reference.key}."
        )
        lines += ["", f"## {panel.title.capitalize()}", "", once, ""]
        lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [_row(results, cell, panel.reference) for cell in panel.cells]
        lines += ["", panel.conclusion(results)]
    return "\n".join(lines) + "\n"


def _row(results: Results, cell: Cell, reference: Cell) -> str:
    episodes = results.episodes[cell.key]
    reached = ""
    if results.has_success:
        count = sum(bool(success) for _, success, _ in episodes)
        rate = proportion_interval(count, len(episodes))
        reached = (
            f"| {100 * rate.mean:.0f} [{100 * rate.low:.0f}, {100 * rate.high:.0f}] "
        )
    plans = np.mean([count for _, _, count in episodes])
    return (
        f"| {cell.start} | {cell.num_steps} "
        f"| {_shown(mean_interval(results.scores(cell)))} "
        f"| {_shown(results.difference(cell, reference))} "
        f"{reached}| {plans:.0f} "
        f"| {results.milliseconds[cell.work]:.1f} |"
    )


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def draw(results: Results, panels: Sequence[Panel], path: Path) -> None:
    """Draw the paired differences of the score against denoising steps."""
    figure = Figure(figsize=(3.6 * len(panels) + 0.6, 3.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    ticks = sorted({cell.num_steps for panel in panels for cell in panel.cells})
    for axis, panel in zip(axes, panels, strict=True):
        for shift, start in zip((0.95, 1.0, 1.05), STARTS, strict=True):
            drawn = [cell for cell in panel.cells if cell.start == start]
            means = [results.difference(cell, panel.reference) for cell in drawn]
            axis.errorbar(
                [shift * cell.num_steps for cell in drawn],
                [mean.mean for mean in means],
                yerr=np.array([[m.mean - m.low, m.high - m.mean] for m in means]).T,
                label="cold" if start == "cold" else f"warm, {start}",
                color=COLORS[start],
                marker="o",
                markersize=4,
                capsize=2,
            )
        for cell, name in zip(panel.once, ("DDIM", "DDPM"), strict=True):
            axis.axhline(
                results.difference(cell, panel.reference).mean,
                label=f"plans to their end: {name}, {cell.num_steps} steps",
                color=COLORS[cell.start],
                linestyle=":",
            )
        axis.set_xscale("log")
        axis.set_xlim(0.8, 1.25 * max(ticks))
        axis.set_xticks(ticks, list(map(str, ticks)), minor=False)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("denoising steps a plan")
        axis.set_title(panel.title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    steps = panels[0].reference.num_steps
    axes[0].set_ylabel(f"score minus that of cold, {steps} steps [95 %]")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), max(2, 3 * len(panels) // 2))  # as wide as the panels
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(
    planner: str = "multi2d-umaze",
    env_id: str = "diffuser_envs/Multi2D-UMaze-v1",
    *,
    executors: tuple[Executor, ...] = ("pursuit",),
    intervals: tuple[int, ...] = (10,),
    num_steps: tuple[int, ...] = (1, 2, 5),
    temperatures: tuple[float, ...] = (),
    max_rate: float = 5.0,
    episodes: int = 10,
    timed_plans: int = 40,
    results: Path = Path("demo/warm_start.json"),
    picture: Path = Path("demo/warm_start.png"),
) -> None:
    """Measure, print and draw score against denoising steps.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The environment it was trained for.
        executors: What follows the plans.
        intervals: Env steps between plans.
        num_steps: Denoising steps of a plan.
        temperatures: Of the noise; the planner's own if none are given.
        max_rate: Cells with more denoising steps than this for an env step are left
            out: they take hours.
        episodes: Of every cell.
        timed_plans: How many plans the time is measured with.
        results: Where to save what was measured, and a table beside it.
        picture: Where to save the picture.
    """
    torch.set_num_threads(1)
    base = DiffuserPolicy.from_pretrained(planner)
    settings = {
        "planner": planner,
        "fingerprint": base.planner.fingerprint,
        "env_id": env_id,
        "episodes": episodes,
    }
    measured = load(results, settings)
    panels = make_panels(
        executors,
        intervals,
        num_steps,
        temperatures or (None,),
        max_rate=max_rate,
        num_denoising_steps=base.config.network.num_denoising_steps,
    )
    for panel in panels:
        for cell in (*panel.once, panel.reference, *panel.cells):
            if cell.key not in measured.episodes:
                policy = cell.policy(base)
                measured.episodes[cell.key] = run_cell(policy, env_id, episodes)
                measured.save(results)
            mean = mean_interval(measured.scores(cell))
            print(f"{cell.key:40} score {_shown(mean)}", flush=True)
    for cell in max((panel.cells for panel in panels), key=len):
        policy = cell._replace(interval=1).policy(base)
        measured.milliseconds[cell.work] = time_plans(policy, env_id, timed_plans)
    measured.save(results)
    results.with_suffix(".md").write_text(
        as_markdown(measured, panels), encoding="utf-8"
    )
    draw(measured, panels, picture)
    for panel in panels:
        print(panel.conclusion(measured))


if __name__ == "__main__":
    tyro.cli(main)
