"""`diffuser-policy evaluate`: run episodes and report scores with intervals."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from diffuser_policy.cli.options import (
    Assignments,
    Flag,
    PlannerSettings,
    parse_assignments,
    shown_as,
    writes_log,
)

if TYPE_CHECKING:
    from diffuser_policy.evaluation.records import EpisodeRecord

LINE_INTERVAL = 30.0  # seconds from one line in a log to the next


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(PlannerSettings):
    """Run episodes with a planner and report its score with 95 % intervals.

    A seed fixes the start, goal and noise of every episode, whatever --num-envs is.
    OGBench's environments are evaluated by their own protocol, on all of their tasks.
    """

    env_option: Assignments = ()
    """Setting of the environment; may be given several times.
    For example --env-option joint_noise=0.01 --env-option grasp=magic."""
    episodes: Annotated[int | None, shown_as("N")] = None
    """How many, of each task in environments with several (default: 100, or 50 of each
    task)."""
    seed: int = 0
    """Episode i is reset with seed + i."""
    num_envs: int = 16
    """Environments at a time; they share each planning call."""
    deterministic: Flag = False
    """Act deterministically: the seed fixes the initial noise of an episode's first
    plan, of its second, and so on, and denoising adds none."""
    json: Annotated[Path | None, shown_as("FILE")] = None
    """File for the results of every episode, their summary, settings and versions."""
    card: Flag = False
    """Write the figures into the model card of the planner, which must be a folder."""


def evaluate(settings: EvaluateSettings) -> int:
    """Evaluate, write the file, and print the table; return the exit status.

    A terminal shows a progress bar; a log gets a line now and then.
    """
    from rich.console import Console

    from diffuser_policy import evaluation
    from diffuser_policy.checkpoint import CARD
    from diffuser_policy.evaluation.loop import describe
    from diffuser_policy.evaluation.report import (
        check_card,
        table,
        to_json,
        write_card,
    )
    from diffuser_policy.files import check_writable, write_json

    if settings.json is not None:
        check_writable(settings.json)
    env_options = parse_assignments(settings.env_option, option="--env-option")
    policy, env_id = settings.load(env_options)
    if settings.card:
        facts = {
            "policy": describe(policy),
            "env_options": env_options,
            "deterministic": settings.deterministic,
        }
        check_card(facts, Path(settings.planner))
    results = evaluation.evaluate(
        policy,
        env_id,
        episodes=settings.episodes,
        seed=settings.seed,
        num_envs=settings.num_envs,
        deterministic=settings.deterministic,
        env_options=env_options,
        on_episode=_lines() if writes_log() else None,
    )
    named = {"planner": settings.planner, **results.settings}
    results = dataclasses.replace(results, settings=named)
    if settings.json is not None:  # first: what is printed may be lost
        write_json(settings.json, to_json(results))
    if settings.card:
        write_card(results, Path(settings.planner))
    Console().print(table(results))
    if settings.json is not None:
        print(f"Wrote {settings.json}")
    if settings.card:
        print(f"Wrote {Path(settings.planner) / CARD}")
    return 0


def _lines() -> Callable[[Sequence[EpisodeRecord], int], None]:
    """Return a function that says in one line how far an evaluation is."""
    from diffuser_policy.evaluation.loop import Means

    means = Means()
    began = said = time.monotonic()

    def line(records: Sequence[EpisodeRecord], total: int) -> None:
        nonlocal said
        means.add(records[-1])
        now = time.monotonic()
        if now - said < LINE_INTERVAL or len(records) == total:  # the table follows
            return
        said = now
        passed = datetime.timedelta(seconds=round(now - began))
        text = f"{len(records):,} of {total:,} episodes after {passed}"
        if told := [f"{name} {mean}" for name, mean in means.shown().items()]:
            text += f": {', '.join(told)}"
        with contextlib.suppress(OSError):  # nobody reads it: the results matter more
            print(text, file=sys.stderr)

    return line
