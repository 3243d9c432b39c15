"""How fast block stacking is, and where the time of an episode goes.

    python examples/experiments/block_stacking_speed.py
    python examples/experiments/block_stacking_speed.py --candidates 1 4 --steps 2 \
        --repetitions 2 --results demo/speed.json

Three things are measured. Env steps per second of one environment, while the arm moves
about without touching anything, and while the demonstrator builds towers. Seconds per
plan, for one environment, by candidates and denoising steps. And one whole episode of
each task with the settings of the table in `block_stacking.py`, divided into

- network: the denoiser;
- guide: the gradient steps along the guide;
- ranking: feasibility and the guide's value of every candidate;
- rest of planning: sampling, features, inverse kinematics, bookkeeping;
- environment: physics and observations.

Plans and shares are seconds of one core's work, not of the clock, so other programs
matter little. Measure on an idle machine all the same.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro

from diffuser_envs import StackDemonstrator
from diffuser_policy import DiffuserPolicy, make_guide
from diffuser_policy.files import replaced_file
from diffuser_policy.versions import versions

TASKS = ("Unconditional", "Conditional", "Rearrangement")
SETTINGS: dict[str, Any] = {
    "num_sampling_steps": 4,
    "num_candidates": 16,
    "ranking": "sum",
    "steadiness": 0.01,
    "replan_interval": 12,
}
PARTS = ("network", "guide", "ranking", "rest of planning", "environment")

Env = gymnasium.Env[Any, Any]


class Clock:
    """Adds up the time of some functions, each without those within it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.since = 0.0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what runs inside under a name.

        Args:
            name: Of the part.
        """
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls are counted.

        Args:
            name: Of the part.
            function: What is called.
        """

        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return call

    def _switch(self) -> None:
        now = time.process_time()
        if self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now


class TimedGuidance:
    """Stands for a policy's guidance and counts its gradient steps."""

    def __init__(self, guidance: Any, clock: Clock) -> None:
        self.guidance, self.clock = guidance, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guidance, name)

    def steering(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the steering of one sampling call, which counts its time."""
        steering = self.guidance.steering(*arguments, **keywords)
        climb = self.clock.timed("guide", steering.climb)
        object.__setattr__(steering, "climb", climb)  # it is frozen
        return steering


def watch(policy: DiffuserPolicy, clock: Clock) -> None:
    """Count the parts of planning of a policy from now on.

    Args:
        policy: Is changed in place.
        clock: Counts.
    """
    planner: Any = policy.planner
    planner.sampler.denoiser = _Timed("network", planner.sampler.denoiser, clock)
    planner.ranking = _Timed("ranking", planner.ranking, clock)
    if planner.guidance is not None:
        planner.guidance = TimedGuidance(planner.guidance, clock)


class _Timed:
    """Stands for something that is called, and counts the calls' time."""

    def __init__(self, name: str, inner: Any, clock: Clock) -> None:
        self.inner = inner
        self.call = clock.timed(name, inner)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.call(*arguments, **keywords)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def make(task: str, **settings: Any) -> Env:
    """Make the environment of a task."""
    return gymnasium.make(f"diffuser_envs/KukaStack-{task}-v1", **settings)


def policy_of(planner: DiffuserPolicy, task: str, **settings: Any) -> DiffuserPolicy:
    """Return the planner with the guide of a task.

    Args:
        planner: Without one.
        task: One of the three.
        settings: Other than `SETTINGS`.
    """
    guide = None if task == "Unconditional" else make_guide("stack-task")
    return planner.with_guide(guide, **{**SETTINGS, **settings})


def frames_per_second(episodes: int) -> dict[str, float]:
    """Return env steps per second, of the arm alone and of building towers.

    Args:
        episodes: How many of each.
    """
    rates = {}
    for name in ("moving freely", "building towers"):
        env = make("Unconditional")
        demonstrator = StackDemonstrator("unconditional")
        count, spent = 0, 0.0
        for seed in range(episodes):
            observation, _ = env.reset(seed=seed)
            start, state, done = observation[:7].copy(), None, False
            while not done:
                if name == "moving freely":
                    swing = 0.3 * np.sin(count / 20.0) * np.eye(7)[0]
                    action = np.append(start + swing, 0.0).astype(np.float32)
                else:
                    action, state = demonstrator.predict(observation, state)
                begin = time.process_time()
                observation, _, terminated, truncated, _ = env.step(action)
                spent += time.process_time() - begin
                count, done = count + 1, bool(terminated or truncated)
        env.close()
        rates[name] = count / spent
    return rates


def seconds_per_plan(policy: DiffuserPolicy, env: Env, repetitions: int) -> float:
    """Return the median time of a plan for one environment.

    Args:
        policy: Plans anew whenever it has no state.
        env: Gives an observation.
        repetitions: How many plans, after a first one that warms up.
    """
    observation, _ = env.reset(seed=0)
    times = []
    for _ in range(repetitions + 1):
        begin = time.process_time()
        policy.predict(observation)
        times.append(time.process_time() - begin)
    return float(np.median(times[1:]))


def episode(policy: DiffuserPolicy, env: Env) -> dict[str, float]:
    """Run an episode and return the seconds of its parts, and on the clock.

    Args:
        policy: Its parts are counted from now on.
        env: Of its task.
    """
    clock = Clock()
    watch(policy, clock)
    observation, _ = env.reset(seed=0)
    state, done, begin = policy.initial_state(1, np.array([0])), False, time.time()
    while not done:
        with clock.part("rest of planning"):
            action, state = policy.predict(observation, state)
        with clock.part("environment"):
            observation, _, terminated, truncated, info = env.step(action)
        done = bool(terminated or truncated)
    return {
        **{name: clock.seconds[name] for name in PARTS},
        "on the clock": time.time() - begin,
        "plans": float(state.num_plans[0]),
        "score": float(info["score"]),
    }


def report(results: dict[str, Any]) -> list[str]:
    """Return the results as lines of Markdown."""
    lines = ["| one environment | env steps/s |", "|---|---|"]
    lines += [f"| {name} | {rate:.0f} |" for name, rate in results["rates"].items()]
    plans = results["plans"]
    steps = list(next(iter(plans.values())))
    lines += [
        "",
        f"| ms per plan | {' | '.join(f'{n} denoising steps' for n in steps)} |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for count, times in plans.items():
        cells = " | ".join(f"{1000 * times[n]:.0f}" for n in steps)
        lines.append(f"| {count} candidates | {cells} |")
    lines += [
        "",
        f"| one episode | CPU s | s | plans | {' | '.join(PARTS)} |",
        "|---" * (len(PARTS) + 4) + "|",
    ]
    for task, parts in results["episodes"].items():
        total = sum(parts[name] for name in PARTS)
        shares = " | ".join(f"{100 * parts[name] / total:.0f} %" for name in PARTS)
        lines.append(
            f"| {task} | {total:.1f} | {parts['on the clock']:.1f} "
            f"| {parts['plans']:.0f} | {shares} |"
        )
    return lines


def main(
    planner: str = "kuka-stack",
    *,
    candidates: tuple[int, ...] = (1, 4, 16, 64),
    steps: tuple[int, ...] = (2, 4, 8),
    repetitions: int = 10,
    episodes: int = 3,
    tasks: tuple[str, ...] = TASKS,
    results: Path = Path("demo/block_stacking_speed.json"),
) -> None:
    """Measure, print and save.

    Args:
        planner: The shipped planner, or a folder.
        candidates: Numbers of candidates to time plans with.
        steps: Numbers of denoising steps likewise.
        repetitions: Plans of each kind.
        episodes: Of the environment alone.
        tasks: Those to run whole episodes of.
        results: JSON with the figures; tables in Markdown are written beside it.
    """
    torch.set_num_threads(1)
    policy = DiffuserPolicy.from_pretrained(planner)
    env = make("Conditional")
    plans = {
        str(count): {
            str(number): seconds_per_plan(
                policy_of(
                    policy,
                    "Conditional",
                    num_candidates=count,
                    num_sampling_steps=number,
                    min_guided_steps=1,
                ),
                env,
                repetitions,
            )
            for number in steps
        }
        for count in candidates
    }
    env.close()
    measured: dict[str, Any] = {
        "rates": frames_per_second(episodes),
        "plans": plans,
        "episodes": {},
    }
    for task in tasks:
        env = make(task)
        measured["episodes"][task] = episode(policy_of(policy, task), env)
        env.close()
    lines = report(measured)
    saved = {**measured, "settings": SETTINGS, "versions": versions()}
    with replaced_file(results) as partial:
        partial.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    with replaced_file(results.with_suffix(".md")) as partial:
        title = "# Speed of block stacking\n\nMade by"
        page = f"{title} `python examples/experiments/block_stacking_speed.py`.\n\n"
        partial.write_text(page + "\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    tyro.cli(main)
