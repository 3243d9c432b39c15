"""Pictures of plans: what a planner meant to do in an episode, and what came of it.

They show the first episode of an evaluation, planned with the same random stream, and
thus an episode that counts.
"""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuser_policy.benchmark.problem import Problem
from diffuser_policy.errors import require_extra
from diffuser_policy.evaluation.loop import episode_stream, run_episode
from diffuser_policy.files import replaced_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 140
COLORS = 128  # of a picture's palette: half the size, no visible change


def draw_plan(policy: Any, problem: Problem, seed: int, folder: Path) -> Path | None:
    """Draw the plan and the path of the first episode of an evaluation.

    Args:
        policy: Only a `DiffuserPolicy` has plans to draw.
        problem: The problem that the policy acts on.
        seed: Seed of the evaluation.
        folder: Where `plan.png` and its caption are written.

    Returns:
        The picture; None for other policies, and without the extra `plot`.
    """
    from diffuser_policy.policy import DiffuserPolicy

    if not isinstance(policy, DiffuserPolicy) or not _can_draw():
        return None
    from diffuser_policy.plotting import Scene, plan_figure

    env = problem.make_env()
    try:
        observation, _ = env.reset(seed=seed)
        scene = Scene.of(
            env, policy.planner.layout, observation, guide=policy.config.guide
        )
        state = policy.initial_state(1, np.array([episode_stream(seed, 0)]))
        plan = policy.plan(observation, state=state)
        episode = run_episode(policy, env, observation, seed=seed, state=state)
    finally:
        env.close()
    path = np.concatenate([policy.read(o)[0] for o in episode.observations])
    record = episode.record
    arrived = record.time_to_goal
    outcome = "never there" if arrived is None else f"there after {arrived} env steps"
    score = "" if record.score is None else f", score {record.score:.1f}"
    caption = f"first plan and path, seed {seed}: {outcome}{score}"
    picture = folder / "plan.png"
    figure = plan_figure(plan, scene, rollout=path, title=caption)
    save_png(figure, picture, bbox_inches="tight", pad_inches=0.12)
    with replaced_file(picture.with_suffix(".json")) as partial:
        partial.write_text(json.dumps({"caption": caption}) + "\n")
    return picture


def save_png(figure: Figure, path: Path, **options: Any) -> None:
    """Write a figure as a PNG file with a palette, which is small.

    Args:
        figure: What to write.
        path: The file.
        **options: For `Figure.savefig`.

    Raises:
        StorageError: The file could not be written; what was there before is intact.
        MissingExtraError: Pillow is not installed.
    """
    image = require_extra("PIL.Image", "plot")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, **options)
    pixels = image.open(buffer).convert("RGB")
    with replaced_file(path) as partial:
        reduced = pixels.quantize(COLORS, dither=image.Dither.NONE)
        reduced.save(partial, format="PNG", optimize=True)


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
