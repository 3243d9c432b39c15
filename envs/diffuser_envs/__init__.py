"""Gymnasium environments for Diffuser planners.

Importing this package registers the mazes and the block-stacking tasks by name. It
loads neither a simulator nor torch; making an environment does.

    import gymnasium, diffuser_envs
    env = gymnasium.make("diffuser_envs/Multi2D-Large-v1")

`gymnasium.make("diffuser_envs:diffuser_envs/Multi2D-Large-v1")` does both in one line.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium
from gymnasium.envs.registration import WrapperSpec

from diffuser_envs.maze.layouts import LAYOUTS

if TYPE_CHECKING:
    from diffuser_envs.kuka.demonstrator import StackDemonstrator
    from diffuser_envs.kuka.env import KukaStackEnv
    from diffuser_envs.maze.demonstrator import WaypointDemonstrator
    from diffuser_envs.maze.env import Maze2DEnv
    from diffuser_envs.maze.wrappers import GoalResampling
    from diffuser_envs.scores import REFERENCE_SCORES, get_normalized_score

__all__ = [
    "REFERENCE_SCORES",
    "GoalResampling",
    "KukaStackEnv",
    "Maze2DEnv",
    "StackDemonstrator",
    "WaypointDemonstrator",
    "get_normalized_score",
    "register_envs",
]

_LAZY = {
    "GoalResampling": "diffuser_envs.maze.wrappers",
    "KukaStackEnv": "diffuser_envs.kuka.env",
    "Maze2DEnv": "diffuser_envs.maze.env",
    "StackDemonstrator": "diffuser_envs.kuka.demonstrator",
    "WaypointDemonstrator": "diffuser_envs.maze.demonstrator",
    "REFERENCE_SCORES": "diffuser_envs.scores",
    "get_normalized_score": "diffuser_envs.scores",
}
# Plans have 128 steps. An episode is three plans, as in the paper; a rearrangement
# takes up to seven.
_STACKING_STEPS = {"Unconditional": 384, "Conditional": 384, "Rearrangement": 896}
_FINAL_SCORE = WrapperSpec(
    name="FinalScore", entry_point="diffuser_envs.kuka.wrappers:FinalScore", kwargs={}
)


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def register_envs() -> None:
    """Register the mazes and the block-stacking tasks.

    The ids are `diffuser_envs/{Maze2D,Multi2D}-{UMaze,Medium,Large}-v1` and
    `diffuser_envs/KukaStack-{Unconditional,Conditional,Rearrangement}-v1`. The package
    calls this on import; calling it again changes nothing.
    """
    for family, goal in (("Maze2D", "fixed"), ("Multi2D", "random")):
        for layout in LAYOUTS.values():
            env_id = f"diffuser_envs/{family}-{layout.title}-v1"
            if env_id not in gymnasium.registry:
                gymnasium.register(
                    id=env_id,
                    entry_point="diffuser_envs.maze.env:Maze2DEnv",
                    max_episode_steps=layout.max_episode_steps,
                    kwargs={"layout": layout.name, "goal": goal},
                )
    for task, max_episode_steps in _STACKING_STEPS.items():
        env_id = f"diffuser_envs/KukaStack-{task}-v1"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point="diffuser_envs.kuka.env:KukaStackEnv",
                max_episode_steps=max_episode_steps,
                kwargs={"task": task.lower()},
                additional_wrappers=(_FINAL_SCORE,),
            )


register_envs()
