"""Far goals: planning by diffusion beside random shooting with the true simulator.

    python examples/experiments/long_horizon.py
    python examples/experiments/long_horizon.py --episodes 100 --num-sequences 10 100 \
        --results demo/long_horizon.json

(The first property of Janner et al. 2022, figure 3.) Random shooting draws sequences of
pushes, simulates all of them, executes the beginning of the best one, and draws again.
It may use what no learned planner has: MuJoCo itself instead of a model of it, as often
as it likes. It maximizes one of

- the reward: env steps inside the goal disc. Few sequences of random pushes ever get to
  a far goal, and all others are equally good;
- D4RL's dense reward, the sum of exp(-distance). Straight towards the goal often leads
  into a wall, but it is a direction.

In its plain form it draws a push for every env step; a push that lasts half a second
gets further. Sequences are 400 env steps long, and a new one is chosen every 50.
Episode i is reset with seed i and ends at the goal. The first command takes half a
minute on one core, the second ten minutes. The last line gives the goals at least 8
cells away that each method reached within the longest plan that the planner was trained
to make, with 95 % intervals; the lines above give the rates for whole episodes and the
seconds of computing.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import tyro
from matplotlib.figure import Figure

import diffuser_envs
from diffuser_policy import DiffuserPolicy
from diffuser_policy.evaluation.statistics import proportion_interval
from diffuser_policy.plotting import Scene, draw_ends, draw_plan, draw_scene
from diffuser_policy.plotting import save_figure as save

FAR = 8  # cells
PLANNER, SHOOTING = "#2b5fd9", ("#9b6fd0", "#e0a52c", "#e0632b")  # by kind
Objective = Literal["reward", "dense"]
# What random shooting maximizes, and for how many env steps it keeps each push.
KINDS: tuple[tuple[Objective, int], ...] = (
    ("reward", 1),
    ("reward", 50),
    ("dense", 50),
)


def simulate(env: Any, state: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Return the states `[sequences, steps, 4]` that pushes lead to.

    Args:
        env: A maze, unwrapped; it is left alone.
        state: `[4]` position and velocity to start from.
        actions: `[sequences, steps, 2]`.
    """
    states: np.ndarray = env.simulate(np.tile(state, (len(actions), 1)), actions)
    return states


def largest_error(env: Any, seed: int = 0, num_steps: int = 400) -> float:
    """Return by how much the copy is off after one step, at worst (meters, m/s)."""
    actions = random_pushes(np.random.default_rng(seed), 1, num_steps, 50)[0]
    state = env.reset(seed=seed)[0]["observation"]
    worst = 0.0
    for action in actions:
        expected = simulate(env.unwrapped, state, action[None, None])[0, 0]
        state = env.step(action)[0]["observation"]
        worst = max(worst, float(np.abs(state - expected).max()))
    return worst


def random_pushes(
    rng: np.random.Generator, num_sequences: int, horizon: int, hold: int
) -> np.ndarray:
    """Return actions `[sequences, horizon, 2]`: uniform, each kept for a while."""
    pushes = rng.uniform(-1.0, 1.0, (num_sequences, -(-horizon // hold), 2))
    held: np.ndarray = pushes.repeat(hold, axis=1)[:, :horizon]
    return held


@dataclass(kw_only=True)
class RandomShooting:
    """Model-predictive control by random shooting; keeps `predict`'s contract."""

    env: Any
    objective: Objective
    num_sequences: int
    horizon: int = 400
    hold: int = 50
    replan_interval: int = 50
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def predict(
        self, observation: Any, state: Any = None, *_: Any, **__: Any
    ) -> tuple[np.ndarray, Any]:
        """Return the next action and, as the state, those still to be executed."""
        if state is None or len(state) == 0:
            state = self.best(observation)
        return state[0], state[1:]

    def best(self, observation: Any) -> np.ndarray:
        """Return the beginning `[replan_interval, 2]` of the best of many sequences."""
        actions = random_pushes(self.rng, self.num_sequences, self.horizon, self.hold)
        states = simulate(self.env.unwrapped, observation["observation"], actions)
        offset = states[..., :2] - observation["desired_goal"]
        distance = np.linalg.norm(offset, axis=-1)
        inside = distance <= self.env.unwrapped.success_radius
        reward = inside if self.objective == "reward" else np.exp(-distance)
        chosen: np.ndarray = actions[reward.sum(axis=1).argmax()]
        return chosen[: self.replan_interval]


@dataclass(frozen=True)
class Outcome:
    """One episode.

    Attributes:
        cells: Shortest way from start to goal.
        steps: Env steps to the goal; none if it was not reached.
        seconds: Of computing, spent in `predict`.
    """

    cells: int
    steps: int | None
    seconds: float


def run(policy: Any, env: Any, seed: int) -> Outcome:
    """Run one episode until the goal is reached or time is up."""
    observation, info = env.reset(seed=seed)
    way = diffuser_envs.WaypointDemonstrator.from_env(env).cells_to_goal(
        observation["achieved_goal"], observation["desired_goal"]
    )
    state, steps, seconds, truncated = None, 0, 0.0, False
    while not (info["success"] or truncated):
        began = time.process_time()
        action, state = policy.predict(observation, state)
        seconds += time.process_time() - began
        observation, _, _, truncated, info = env.step(action)
        steps += 1
    return Outcome(len(way) - 1, steps if info["success"] else None, seconds)


def reached(outcomes: list[Outcome], within: int) -> str:
    """Return how many far goals were reached within some env steps, in words."""
    far = [each for each in outcomes if each.cells >= FAR]
    hits = sum(each.steps is not None and each.steps <= within for each in far)
    if not far:
        return "none of 0"
    share = proportion_interval(hits, len(far))
    return f"{share.mean:.0%} [{share.low:.0%}, {share.high:.0%}]"


def draw(outcomes: dict[str, list[Outcome]], env: Any, policy: Any) -> Figure:
    """Draw what is chosen from, and how many far goals were reached by when."""
    figure = Figure(figsize=(12.6, 4.6), layout="compressed")
    left, right = figure.subplots(1, 2, width_ratios=(1.35, 1))
    places = {"start": (-4.5, -3.0), "goal": (4.5, 3.0)}
    observation, _ = env.reset(options=places)
    pushes = random_pushes(np.random.default_rng(0), 150, 400, 50)
    states = simulate(env.unwrapped, observation["observation"], pushes)
    scene = Scene.of(env, policy.planner.layout, observation)
    draw_scene(left, scene)
    left.plot(*states[..., :2].T, color=SHOOTING[2], lw=0.6, alpha=0.35, zorder=2)
    left.plot(
        [], [], color=SHOOTING[2], label="150 random sequences of pushes, 400 env steps"
    )
    draw_plan(left, policy.plan(observation), scene, candidates=False)
    draw_ends(left, scene, observation["observation"][:2])
    left.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=4, frameon=False)
    left.set_title("one plan, and what random shooting chooses from")
    limit = env.get_wrapper_attr("layout").max_episode_steps
    for index, (name, each) in enumerate(outcomes.items()):
        size, kind = divmod(index - 1, len(KINDS))
        color = SHOOTING[kind] if index else PLANNER
        style = "--" if size == 0 else "-"  # the smallest sample
        far = [one.steps or np.inf for one in each if one.cells >= FAR]
        shares = [100 * np.mean(np.array(far) <= step) for step in range(limit + 1)]
        right.plot(shares, color=color, ls=style if index else "-", lw=2, label=name)
    right.axvline(policy.config.window.horizon, color="#8b97b5", lw=1, ls=":")
    right.set(xlim=(0, limit), ylim=(0, 103))
    right.set(xlabel="env steps", ylabel="far goals reached (%)")
    right.spines[["top", "right"]].set_visible(False)
    right.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False
    )
    right.set_title(f"goals at least {FAR} cells away; dotted: the longest plan")
    return figure


def write(outcomes: dict[str, list[Outcome]], path: Path) -> None:
    """Write the outcome of every episode so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {name: [asdict(one) for one in each] for name, each in outcomes.items()}
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main(
    planner: str = "multi2d-large",
    env_id: str = "diffuser_envs/Multi2D-Large-v1",
    *,
    episodes: int = 12,
    num_sequences: tuple[int, ...] = (10,),
    results: Path | None = None,
    picture: Path = Path("demo/long_horizon.png"),
) -> None:
    """Run the same episodes with the planner and with random shooting.

    Args:
        planner: A shipped planner, or a folder.
        env_id: The maze it was trained for.
        episodes: How many; far ones are about half of them.
        num_sequences: Sizes of the sample that random shooting chooses from.
        results: Where to write the outcome of every episode, as JSON.
        picture: Where to save the picture.
    """
    env = gymnasium.make(env_id)
    print(
        f"one step of the copied simulator is off by {largest_error(env):.1e} at most"
    )
    policy = DiffuserPolicy.from_pretrained(planner)
    limit = env.get_wrapper_attr("layout").max_episode_steps
    policies: dict[str, Any] = {"Diffuser": policy}
    for number in num_sequences:
        for objective, hold in KINDS:
            name = f"{number} sequences, {objective}, pushes of {hold}"
            policies[name] = RandomShooting(
                env=env, objective=objective, num_sequences=number, hold=hold
            )
    outcomes: dict[str, list[Outcome]] = {}
    for name, each in policies.items():
        outcomes[name] = [run(each, env, seed) for seed in range(episodes)]
        seconds = np.mean([one.seconds for one in outcomes[name]])
        whole = reached(outcomes[name], limit)
        print(f"{name:<36} {seconds:6.2f} s an episode, in time {whole}")
        if results is not None:
            write(outcomes, results)
    save(draw(outcomes, env, policy), picture)
    env.close()
    print(f"picture: {picture}")
    within = policy.config.window.horizon
    rates = (f"{name} {reached(each, within)}" for name, each in outcomes.items())
    print(f"far goals reached within {within} env steps: {'; '.join(rates)}")


if __name__ == "__main__":
    tyro.cli(main)
