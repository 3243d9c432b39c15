r"""Whether a trained critic says what could be true.

A value is a discounted sum of rewards, $Q = \sum_t \gamma^t r_t$, so it lies between
the lowest and the highest reward, or 0 where an episode ends, times $1 / (1 - \gamma)$.
A critic that bootstraps can leave this range without any loss becoming infinite: it has
diverged, and its policy's score is that of a failed training. `clip_targets` keeps what
critics learn from inside of it. That makes values possible, not right: in trials of
20,000 steps BCQ's on the arm became nearly the highest, CQL's on U-Maze nearly 0, and
neither scored more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffuser_policy.baselines.transitions import Batch

QUANTILES = (0.05, 0.5, 0.95)


def possible_values(rewards: np.ndarray, discount: float) -> tuple[float, float]:
    r"""Return the lowest and the highest value that rewards allow.

    Args:
        rewards: Of any shape.
        discount: $\gamma$, below 1.
    """
    low, high = min(float(rewards.min()), 0.0), max(float(rewards.max()), 0.0)
    return low / (1 - discount), high / (1 - discount)


def clip_targets(algorithm: Any, possible: tuple[float, float]) -> None:
    """Let an algorithm bootstrap from values that are possible, and no others.

    As in hindsight experience replay (Andrychowicz et al. 2017, appendix A).

    Args:
        algorithm: Of d3rlpy, whose networks are made; it is changed.
        possible: The lowest and the highest value.
    """
    impl, (low, high) = algorithm.impl, possible
    unclipped = impl.compute_target
    impl.compute_target = lambda batch: unclipped(batch).clamp(low, high)


def value_facts(algorithm: Any, batch: Batch) -> dict[str, Any] | None:
    """Return what a critic says of the data's own actions, as JSON data.

    Args:
        algorithm: Of d3rlpy.
        batch: Transitions of its data.

    Returns:
        Quantiles `low`, `median` and `high` of the values, and the range `possible`;
        none if it has no critic.
    """
    try:
        found = algorithm.predict_value(batch.observations, batch.actions)
    except NotImplementedError:
        return None
    low, median, high = (float(q) for q in np.quantile(found, QUANTILES))
    possible = possible_values(batch.rewards, algorithm.gamma)
    return {"low": low, "median": median, "high": high, "possible": list(possible)}
