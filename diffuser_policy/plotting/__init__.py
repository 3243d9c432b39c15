"""Pictures of plans: the maze, the candidates, the rollout, the denoising chain.

    scene = Scene.of(env, policy.planner.layout, observation)
    plan = policy.plan(observation, keep_chain=True)
    save_figure(plan_figure(plan, scene), Path("plan.png"))
    save_chain_gif(plan, scene, Path("chain.gif"))

Drawn with Matplotlib's objects on its Agg canvas: no display, no global state.
"""

from __future__ import annotations

from diffuser_policy.plotting.drawing import (
    draw_chain_step,
    draw_ends,
    draw_maze,
    draw_plan,
    draw_rollout,
    draw_scene,
)
from diffuser_policy.plotting.figures import (
    chain_figure,
    plan_figure,
    save_chain_gif,
    save_figure,
)
from diffuser_policy.plotting.scene import Scene

__all__ = [
    "Scene",
    "chain_figure",
    "draw_chain_step",
    "draw_ends",
    "draw_maze",
    "draw_plan",
    "draw_rollout",
    "draw_scene",
    "plan_figure",
    "save_chain_gif",
    "save_figure",
]
