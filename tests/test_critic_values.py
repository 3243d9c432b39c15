"""What critics say of the data's actions, against values that are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffuser_policy.baselines.d3rlpy_methods import value_facts
from diffuser_policy.baselines.transitions import Batch
from diffuser_policy.networks.critic import Values

GAMMA = 0.9


class Critic:
    """Says that every action is worth the observation's first number."""

    gamma = GAMMA

    def predict_value(self, x: np.ndarray, action: np.ndarray) -> Any:
        assert len(x) == len(action)
        return x[:, 0]


class Cloner(Critic):
    """Has no values."""

    def predict_value(self, x: np.ndarray, action: np.ndarray) -> Any:
        raise NotImplementedError("there is no critic")


def batch_of(values: np.ndarray, rewards: np.ndarray) -> Batch:
    column = np.zeros((len(values), 1))
    return Batch(
        observations=values[:, None],
        actions=column,
        rewards=rewards[:, None],
        next_observations=values[:, None],
        next_actions=column,
        terminals=column,
    )


def test_quantiles_and_range_are_those_of_the_batch() -> None:
    values, rewards = np.arange(101.0), np.linspace(-2.0, 3.0, 101)
    found = value_facts(Critic(), batch_of(values, rewards))
    assert found is not None
    assert found[:3] == (5.0, 50.0, 95.0)
    assert found.possible == pytest.approx((-20.0, 30.0))


def test_what_has_no_critic_has_no_values() -> None:
    assert value_facts(Cloner(), batch_of(np.zeros(3), np.zeros(3))) is None


def test_rewards_that_no_batch_has_seen_are_no_limit() -> None:
    """Very sparse rewards: the range is that of all, or unknown."""
    values, none = np.full(100, 0.01), np.zeros(100)
    unseen = value_facts(Critic(), batch_of(values, none))
    assert unseen is not None
    assert unseen.possible == (0.0, 0.0)
    assert not unseen.diverged
    assert unseen._replace(median=math.nan).diverged
    known = value_facts(Critic(), batch_of(values, none), np.array([0.0, 1.0]))
    assert known is not None
    assert known.possible[1] > 1.0


@pytest.mark.parametrize(
    "rewards", [[1.0], [0.0, 1.0], [-1.0, 0.0], [-3.0, -1.0], [2.0, 5.0]]
)
@pytest.mark.parametrize("length", [1, 2, 50, 500])
def test_no_sum_of_rewards_is_impossible(rewards: list[float], length: int) -> None:
    """Episodes of any length, of the best and of the worst reward alone."""
    lowest, highest = Values.of(np.zeros(1), np.array(rewards), GAMMA).possible
    for reward in rewards:
        total = sum(GAMMA**step * reward for step in range(length))
        assert lowest <= total <= highest
    longest = max(rewards, key=abs) / (1 - GAMMA)
    assert longest == pytest.approx(lowest if longest < 0 else highest)


@pytest.mark.parametrize(
    ("median", "diverged"),
    [(-69.0, False), (-71.0, True), (79.0, False), (81.0, True), (np.nan, True)],
)
def test_values_out_of_range_by_more_than_its_width_have_diverged(
    median: float, *, diverged: bool
) -> None:
    rewards = np.array([-2.0, 3.0])  # between -20 and 30
    assert Values.of(np.full(9, median), rewards, GAMMA).diverged is diverged
