"""The score of an episode, added to the last step's `info`."""

from __future__ import annotations

from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs


class FinalScore(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Lets the blocks settle at the end of an episode, and adds the score to `info`.

    `gymnasium.make` puts this wrapper around the step limit. It adds the result of
    `KukaStackEnv.finish` to `info`; on the last step, "success" refers to the settled
    state.

    Args:
        env: A block-stacking environment with its step limit.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)

    @property
    def compute_reward(self) -> Any:
        """The environment's, where it has goals."""
        base: Any = self.unwrapped
        return base.compute_reward

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step, and score the episode if the step is its last.

        Args:
            action: An action of the environment.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            base: Any = self.unwrapped
            scored = base.finish()
            info = {**info, **scored, "success": bool(scored["score"] >= 100.0)}
        return observation, reward, terminated, truncated, info
