"""Normalized scores of D4RL's maze2d benchmark (Fu et al., 2020, appendix).

    score = 100 (return - min) / (max - min)

where `min` is the published return of a uniform random policy and `max` that of D4RL's
waypoint controller. Only steps inside the goal disc are rewarded, so the score measures
how fast a policy arrives and how well it then stays. D4RL did not restart the
controller between episodes, so `max` is no upper bound: standing on the goal from the
first step scores 200 on U-Maze, 222 on Medium and 297 on Large
(`examples/experiments/reference_returns.py`).
Multi2D uses the scores of Maze2D, as the paper does (Janner et al., 2022, table 1).
"""

from __future__ import annotations

from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from diffuser_envs.errors import UnknownEnvError, nearest_names


class ReferenceScore(NamedTuple):
    """The returns that score 0 and 100."""

    min: float
    max: float


_MAZE_SCORES = {
    "UMaze": ReferenceScore(23.85, 161.86),
    "Medium": ReferenceScore(13.13, 277.39),
    "Large": ReferenceScore(6.7, 273.99),
}

REFERENCE_SCORES: dict[str, ReferenceScore] = {
    f"diffuser_envs/{family}-{title}-v1": score
    for family in ("Maze2D", "Multi2D")
    for title, score in _MAZE_SCORES.items()
}


@overload
def get_normalized_score(env_id: str, returns: float) -> float: ...
@overload
def get_normalized_score(
    env_id: str, returns: npt.ArrayLike
) -> float | npt.NDArray[np.float64]: ...
def get_normalized_score(
    env_id: str, returns: npt.ArrayLike
) -> float | npt.NDArray[np.float64]:
    """Convert episode returns to D4RL's score: 0 is random, 100 is its controller.

    Args:
        env_id: Id of a registered maze, with or without the `module:` prefix.
        returns: One undiscounted episode return or an array of them.

    Returns:
        A number for a number, otherwise an array of the same shape.

    Raises:
        UnknownEnvError: `env_id` has no reference scores.
    """
    name = env_id.rpartition(":")[2]
    if name not in REFERENCE_SCORES:
        hint = nearest_names(name, REFERENCE_SCORES)
        raise UnknownEnvError(f"no reference scores for {env_id!r}; {hint}")
    low, high = REFERENCE_SCORES[name]
    scores = 100.0 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)
    return float(scores) if scores.ndim == 0 else np.asarray(scores)
