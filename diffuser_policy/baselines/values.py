r"""Whether the values of a trained critic are possible.

A value is a discounted sum of rewards, $Q = \sum_t \gamma^t r_t$, so it lies between
the lowest and the highest reward, or 0 where an episode ends, times $1 / (1 - \gamma)$.
A critic that bootstraps can leave this range without any loss becoming infinite: it has
diverged, and its policy's score is that of a failed training.
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
