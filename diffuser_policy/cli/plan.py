"""`diffuser-policy plan`: draw one plan, how it was followed and how it came about."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.cli.options import (
    Assignments,
    PlannerSettings,
    parse_assignments,
    print_table,
    shown_as,
    table,
)
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.words import counted

if TYPE_CHECKING:
    from diffuser_policy.envs import Env
    from diffuser_policy.plotting import Scene

FILES = ("plan.png", "chain.png", "chain.gif")
MOST_SHOWN = 12  # numbers of a point


@dataclass(frozen=True, kw_only=True)
class PlanSettings(PlannerSettings):
    """Draw one plan, how it was followed, and how it came out of noise.

    Pictures show the position, in a maze or of an arm's tool, from above. The files are
    plan.png, chain.png and chain.gif. For plans of a single action, only plan.png is
    written, and shows what happened.
    """

    seed: int = 0
    """Fixes start, goal and noise."""
    goal: Annotated[tuple[float, float] | None, shown_as("X Y")] = None
    """Mazes: where to go, in meters (default: as the environment draws it)."""
    start: Annotated[tuple[float, float] | None, shown_as("X Y")] = None
    """Mazes: where to start, in meters (default: as the environment draws it)."""
    reset: Assignments = ()
    """How the episode begins: an option of the environment's `reset`, as JSON, such as
    task_id=3 in OGBench."""
    out: Annotated[Path, tyro.conf.arg(metavar="FOLDER")] = Path("plan")
    """Folder for the pictures."""


def plan(settings: PlanSettings) -> int:
    """Plan, execute, draw, and report the outcome; return the exit status."""
    require_extra("matplotlib", "plot")
    require_extra("PIL", "plot")
    from diffuser_policy.envs import make_env
    from diffuser_policy.evaluation.loop import planned_episode
    from diffuser_policy.evaluation.scores import reference_of
    from diffuser_policy.files import check_writable
    from diffuser_policy.plotting import (
        Scene,
        chain_figure,
        plan_figure,
        save_chain_gif,
        save_figure,
    )

    plan_file, chain_file, film_file = (settings.out / name for name in FILES)
    for file in (plan_file, chain_file, film_file):
        check_writable(file)
    policy, env_id = settings.load()
    with closing(make_env(env_id)) as env:
        policy = policy.for_env(env)
        observation = _reset(env, settings, policy.spaces.parts.goal_keys)
        scene = Scene.of_policy(policy, env, observation)
        made, path, record = planned_episode(
            policy, env, observation, seed=settings.seed, keep_chain=True
        )
    name = f"{env_id.rpartition('/')[2]}, seed {settings.seed}"
    title = f"{name}: {record.outcome}"
    save_figure(plan_figure(made, scene, rollout=path, title=title), plan_file)
    written = [plan_file]
    if made.durations[0]:  # a single action has no path whose denoising can be seen
        save_figure(chain_figure(made, scene, title=f"{name}: denoising"), chain_file)
        save_chain_gif(made, scene, film_file, title=name)
        written += [chain_file, film_file]
    planned = scene.arrival(made)
    score = f"score (100: {reference_of(env)})"
    rows = (
        ("start", _point(record.start)),
        ("goal", _point(record.goal)),
        *_way(scene),
        ("planned length", _length(int(made.durations[0]))),
        ("planned arrival", _arrival(planned)),
        ("actual arrival", _arrival(record.time_to_goal)),
        (
            "return",
            f"{record.episode_return:.1f} in {counted(record.length, 'env step')}",
        ),
        (score, "–" if record.score is None else f"{record.score:.1f}"),
    )
    print_table(table("", "", rows=rows, title=name))
    print(f"Wrote {', '.join(map(str, written))}")
    return 0


def _reset(
    env: Env, settings: PlanSettings, goal_keys: tuple[str, str] = GOAL_KEYS
) -> Any:
    """Reset to the start and goal that were asked for; return the observation."""
    from diffuser_policy.envs import reset_env
    from diffuser_policy.observations import (
        begins_with,
        is_dictionary_inside,
        part_at,
    )
    from diffuser_policy.walls import Walls

    named = {"goal": settings.goal, "start": settings.start}
    wanted = {name: list(xy) for name, xy in named.items() if xy is not None}
    options = parse_assignments(settings.reset, option="--reset")
    for name in wanted:
        if name in options:
            raise ConfigError(
                f"The {name} was given twice, by --{name} and by --reset {name}=…. "
                f"Leave one out."
            )
    options |= wanted
    try:
        observation, _ = reset_env(env, seed=settings.seed, options=options or None)
    except ValueError as error:  # the environment knows its walls, and says so
        raise ConfigError(str(error)) from error
    seen = observation if isinstance(observation, dict) else {}
    if wanted and not seen and is_dictionary_inside(env):
        print(
            f"note: observations are flat, so nobody checks that the environment "
            f"begins with this {' and '.join(wanted)}.",
            file=sys.stderr,
        )
        return observation
    parts = (part_at(seen, key) for key in goal_keys)
    found = dict(zip(("start", "goal"), parts, strict=True))
    for name, xy in wanted.items():
        if found[name] is None or not begins_with(found[name], xy):
            advice = f"Leave --{name} out"
            if "desired_goal" in seen and Walls.of(env) is not None:
                advice += ", or wrap the environment in diffuser_envs.GoalResampling"
            raise ConfigError(
                f"{settings.env or 'This environment'} ignores reset(options={{"
                f"{name!r}: …}}). {advice}."
            )
    return observation


def _way(scene: Scene) -> tuple[tuple[str, str], ...]:
    """Describe the route, if the plan does not lead straight to the goal."""
    if scene.route is None:
        return ()
    return (("way", f"over {counted(len(scene.route) - 1, 'landmark')}"),)


def _length(duration: int) -> str:
    """Return how far a plan reaches, in words."""
    return counted(duration, "env step") if duration else "the next action alone"


def _arrival(step: int | None) -> str:
    """Return when the goal is reached, in words; a dash for never."""
    if step is None:
        return "–"
    return (
        f"after {counted(step, 'env step')}" if step else "at the goal from the start"
    )


def _point(values: tuple[float, ...] | None) -> str:
    """Return coordinates with two digits, how many if there are many, or a dash."""
    if values is None:
        return "–"
    if len(values) > MOST_SHOWN:
        return f"{len(values)} numbers"
    return f"({', '.join(f'{value:.2f}' for value in values)})"
