"""Block stacking: three tasks, one planner, and what each part of it adds.

    python examples/experiments/block_stacking.py
    python examples/experiments/block_stacking.py --episodes 100 --num-envs 20 \
        --methods planner "paper's budget of plans" "single candidate" demonstrator \
        --results demo/block_stacking.json
    python examples/experiments/block_stacking.py --episodes 30 --num-envs 15 \
        --methods all --results demo/block_stacking_parts.json

(Janner et al. 2022, section 5.2 and table 3.) One planner, trained on demonstrations of
tower building, does three tasks that differ only in the guide:

- Unconditional: build a tower of all blocks, in any order; no guide;
- Conditional: build the tower that is asked for, a new order in every episode;
- Rearrangement: bring every block to its place, from random stacks to random stacks.

The score, 0 to 100, is that of the final state, after the tool let go and the blocks
settled. The paper's environment counts every pair of blocks that ever touched; its
figures compare with the latched score, but are of other physics and demonstrations.

A method changes one thing of the planner, of its guide `stack-task`, or of the
environment, or runs the demonstrator. "The paper's budget" is three plans, each carried
out to its end, and seven for a rearrangement, which takes up to seven moves. Episodes
start from `--seed`: nothing was tuned on seeds from 20000 on. Every row is saved when
it is done, in a folder named like the results; the same command resumes, and may ask
for more rows. The two last commands make the published tables, the last of them with
some rows more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from diffuser_envs import StackDemonstrator
from diffuser_policy import DiffuserPolicy, evaluate, make_guide
from diffuser_policy.errors import GuideError
from diffuser_policy.evaluation.report import to_json
from diffuser_policy.evaluation.statistics import mean_interval, proportion_interval
from diffuser_policy.files import replaced_file
from diffuser_policy.versions import versions

PAPER = {"Unconditional": 58.7, "Conditional": 45.6, "Rearrangement": 58.9}
GUIDED = ("Conditional", "Rearrangement")
NUM_PLANS = {"Unconditional": 3, "Conditional": 3, "Rearrangement": 7}
PLAN_STEPS = 125  # env steps until a plan of the shipped planner has run out
# Those of the shipped planner, so that one of your own is measured in the same way.
SETTINGS = {
    "num_sampling_steps": 4,
    "num_candidates": 16,
    "ranking": "sum",
    "steadiness": 0.01,
    "replan_interval": 12,
}
SINGLE = {"num_candidates": 1, "ranking": "first", "steadiness": None}

Row = dict[str, Any]
Task = Literal["Unconditional", "Conditional", "Rearrangement"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a task is done; by default, as the planner is meant to be used.

    Attributes:
        settings: Planning and execution settings, other than `SETTINGS`.
        guide: Parameters of the guide `stack-task`; none to plan without.
        env: Settings of the environment.
        demonstrator: Run it instead of a planner.
        budget: Carry out every plan to its end, and make no more than `NUM_PLANS`.
        tasks: Those where this makes a difference.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    guide: Mapping[str, Any] | None = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    demonstrator: bool = False
    budget: bool = False
    tasks: tuple[str, ...] = tuple(PAPER)

    def policy(self, planner: str, task: str, seed: int) -> Any:
        """Return what acts.

        Args:
            planner: Name or folder.
            task: One of the three.
            seed: Of what is drawn at random.
        """
        if self.demonstrator:
            return StackDemonstrator(task.lower(), seed=seed)
        policy = DiffuserPolicy.from_pretrained(planner, seed=seed)
        # The Unconditional task asks for no block in particular: nothing to guide to.
        guided = task in GUIDED and self.guide is not None
        guide = make_guide("stack-task", **(self.guide or {})) if guided else None
        return policy.with_guide(guide, **SETTINGS).with_settings(**self.settings)

    def env_options(self, task: str) -> dict[str, Any]:
        """Return the settings of a task's environment."""
        if not self.budget:
            return dict(self.env)
        return {**self.env, "max_episode_steps": NUM_PLANS[task] * PLAN_STEPS}


METHODS = {
    "planner": Method(),
    "paper's budget of plans": Method(settings={"replan_interval": None}, budget=True),
    "single candidate": Method(settings=SINGLE),
    "64 candidates": Method(settings={"num_candidates": 64}),
    "no guide": Method(guide=None, tasks=GUIDED),
    "no Contact": Method(guide={"contact": 0.0}, tasks=GUIDED),
    "no Place": Method(guide={"place": 0.0}, tasks=GUIDED),
    "StackMatch instead of Place": Method(
        guide={"match": 1.0, "place": 0.0}, tasks=GUIDED
    ),
    "StackMatch besides": Method(guide={"match": 1.0}, tasks=GUIDED),
    "StackMatch alone": Method(
        guide={"match": 1.0, "place": 0.0, "contact": 0.0}, tasks=GUIDED
    ),
    "joint noise 0.01 rad": Method(env={"joint_noise": 0.01}),
    "joint noise 0.02 rad": Method(env={"joint_noise": 0.02}),
    "magic grasp": Method(env={"grasp": "magic"}),
    "paper's budget of plans, magic grasp": Method(
        settings={"replan_interval": None}, env={"grasp": "magic"}, budget=True
    ),
    "single candidate, magic grasp": Method(settings=SINGLE, env={"grasp": "magic"}),
    "demonstrator": Method(demonstrator=True),
    "demonstrator, joint noise 0.01 rad": Method(
        demonstrator=True, env={"joint_noise": 0.01}
    ),
    "demonstrator, joint noise 0.02 rad": Method(
        demonstrator=True, env={"joint_noise": 0.02}
    ),
    "demonstrator, magic grasp": Method(demonstrator=True, env={"grasp": "magic"}),
}


def measure(
    method: Method, task: str, *, planner: str, episodes: int, seed: int, num_envs: int
) -> Row:
    """Run the episodes of one row.

    Args:
        method: How the task is done.
        task: One of the three.
        planner: Name or folder.
        episodes: How many.
        seed: Of the first.
        num_envs: Environments that share each planning call.

    Returns:
        The evaluation as JSON data.
    """
    results = evaluate(
        method.policy(planner, task, seed),
        f"diffuser_envs/KukaStack-{task}-v1",
        episodes=episodes,
        seed=seed,
        num_envs=num_envs,
        env_options=method.env_options(task),
    )
    return to_json(results)


def dependencies(method: Method, task: str, settings: Mapping[str, Any]) -> Row:
    """Return what the results of a row depend on, as JSON data.

    Args:
        method: How the task is done.
        task: One of the three.
        settings: Keyword arguments of `measure`.
    """
    wanted = {"task": task, **vars(method), "defaults": SETTINGS}
    wanted |= {name: settings[name] for name in ("episodes", "seed")}
    if not method.demonstrator:
        planner = DiffuserPolicy.from_pretrained(settings["planner"]).planner
        wanted["planner"] = planner.fingerprint
    data: Row = json.loads(json.dumps(wanted))
    return data


def saved_or_measured(path: Path, wanted: Row, run: Callable[[], Row]) -> Row:
    """Return a row from its file, if that is of the same settings, or measure it.

    Args:
        path: Of the file.
        wanted: What the row depends on.
        run: Measures it.
    """
    if path.exists():
        row: Row = json.loads(path.read_text(encoding="utf-8"))
        if row["wanted"] == wanted:
            return row
    row = {"wanted": wanted, **run()}
    with replaced_file(path) as partial:
        partial.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
    return row


def run_rows(
    names: Sequence[str], tasks: Sequence[str], folder: Path, settings: Row
) -> dict[str, dict[str, Row]]:
    """Return the rows of every task by the method's name, and print them.

    Args:
        names: Of the methods.
        tasks: Some of the three.
        folder: Where rows are saved.
        settings: Keyword arguments of `measure`.
    """
    rows: dict[str, dict[str, Row]] = {task: {} for task in tasks}
    for name in names:
        method = METHODS[name]
        for task in tasks:
            if task not in method.tasks:
                continue
            slug = "".join(c if c.isalnum() else "-" for c in name.replace("'", ""))
            try:
                rows[task][name] = saved_or_measured(
                    folder / f"{task}-{slug}.json".lower(),
                    dependencies(method, task, settings),
                    partial(measure, method, task, **settings),
                )
            except GuideError as error:  # a planner without a classifier
                print(f"{task} | {name} | left out: {error}", flush=True)
                continue
            print(f"{task} {cells(name, rows[task][name])}", flush=True)
    return rows


def cells(name: str, row: Row) -> str:
    """Return a row of the table in Markdown.

    Args:
        name: Of the method.
        row: Its results.
    """
    episodes = row["episodes"]
    scores = [episode["score"] for episode in episodes]
    latched = [episode["details"]["latched_score"] for episode in episodes]
    full = proportion_interval(sum(score >= 100 for score in scores), len(scores))
    failures = row["summary"]["failures"]
    common = max(failures, key=failures.__getitem__, default=None)
    worst = "none" if common is None else f"{common} ({failures[common]})"
    return (
        f"| {name} | {_figure(scores, bold=True)} | {_figure(latched)} | "
        f"{100 * full.mean:.0f} [{100 * full.low:.0f}, {100 * full.high:.0f}] | "
        f"{worst} |"
    )


def _figure(values: list[float], *, bold: bool = False) -> str:
    found = mean_interval(values)
    shown = f"**{found.mean:.1f}**" if bold else f"{found.mean:.1f}"
    return f"{shown} [{found.low:.1f}, {found.high:.1f}]" if len(values) > 1 else shown


def report(rows: dict[str, dict[str, Row]], settings: Mapping[str, Any]) -> str:
    """Return the results as a Markdown page."""
    first, count = settings["seed"], settings["episodes"]
    page = [
        "# Block stacking",
        "",
        "Made by `python examples/experiments/block_stacking.py`.",
        f"Planner: `{Path(settings['planner']).name}`.",
        f"{count} episodes per row, seeds {first} to {first + count - 1}. The score is",
        "that of the final state, settled after release; no episode stops early on",
        "success. Brackets are 95 % intervals (full success: Wilson, scores:",
        "bootstrap). The paper's score counts pairs that ever touched: it is of the",
        "kind of the latched one, though of the authors' environment and data.",
    ]
    header = "| method | score | latched score | full success % | most common failure |"
    for task, methods in rows.items():
        if not methods:
            continue
        page += [
            "",
            f"## {task}",
            "",
            header,
            "|---|---|---|---|---|",
            f"| Diffuser, as the paper reports it | | {PAPER[task]} | | |",
            *(cells(name, row) for name, row in methods.items()),
        ]
    return "\n".join(page) + "\n"


def save(
    rows: dict[str, dict[str, Row]], settings: Mapping[str, Any], results: Path
) -> None:
    """Write the figures of all rows as JSON, and the tables as Markdown beside it."""
    kept = {
        task: {
            name: {
                "summary": row["summary"],
                "policy": row["settings"]["policy"],
                "env_options": row["settings"].get("env_options", {}),
                "scores": [episode["score"] for episode in row["episodes"]],
                "failures": [e["details"]["failure"] for e in row["episodes"]],
            }
            for name, row in methods.items()
        }
        for task, methods in rows.items()
    }
    named = {**settings, "planner": Path(settings["planner"]).name}
    data = {"settings": named, "tasks": kept, "versions": versions()}
    with replaced_file(results) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    with replaced_file(results.with_suffix(".md")) as partial:
        partial.write_text(report(rows, settings), encoding="utf-8")


def chosen(names: Sequence[str]) -> list[str]:
    """Return methods whose names begin with one of these, or all of them.

    Args:
        names: Beginnings of names; a whole name stands for this one alone.
    """
    if "all" in names:
        return list(METHODS)
    every = [name for name in METHODS if name in names]
    for start in names:
        found = [name for name in METHODS if name.startswith(start)]
        if not found:
            raise SystemExit(f"No method {start!r}. There are: {', '.join(METHODS)}.")
        every += [] if start in METHODS else found
    return [name for name in METHODS if name in every]


def main(
    planner: str = "kuka-stack",
    *,
    episodes: int = 2,
    seed: int = 20000,
    tasks: tuple[Task, ...] = ("Unconditional", "Conditional", "Rearrangement"),
    methods: tuple[str, ...] = ("planner",),
    num_envs: int = 10,
    results: Path = Path("demo/block_stacking.json"),
) -> None:
    """Measure rows, and print and save the table.

    Args:
        planner: The shipped planner, or a folder.
        episodes: How many per row.
        seed: Of the first.
        tasks: Unconditional, Conditional and Rearrangement, or some of them.
        methods: Names of rows, beginnings of such names, or all.
        num_envs: Environments that share each planning call.
        results: JSON with the figures; the table in Markdown is written beside it.
    """
    torch.set_num_threads(1)
    settings = {
        "planner": planner,
        "episodes": episodes,
        "seed": seed,
        "num_envs": num_envs,
    }
    rows = run_rows(chosen(methods), tasks, results.with_suffix(""), settings)
    save(rows, settings, results)
    scores = [
        episode["score"]
        for every in rows.values()
        for row in every.values()
        for episode in row["episodes"]
    ]
    if scores:
        mean = sum(scores) / len(scores)
        print(f"mean score of all {len(scores)} episodes: {mean:.1f}")


if __name__ == "__main__":
    tyro.cli(main)
