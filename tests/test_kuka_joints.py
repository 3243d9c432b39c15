"""Planning in the observation itself: nothing is lost on the way there and back."""

from __future__ import annotations

import numpy as np

from diffuser_envs.kuka.features import BlockFeatures
from diffuser_envs.kuka.joints import JointFeatures
from diffuser_envs.kuka.kinematic import KinematicGenerator
from diffuser_policy.columns.features import make_featurizer, planning_columns
from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.planning.executors import FeaturesExecutor
from diffuser_policy.planning.plan import Following

DEMONSTRATION = KinematicGenerator().demonstrate((5, 0))
OBSERVATIONS, ACTIONS = DEMONSTRATION.observations, DEMONSTRATION.actions


def test_columns_are_those_of_the_observation() -> None:
    featurizer = make_featurizer("kuka-joints")

    planned = planning_columns(featurizer, OBSERVATIONS)

    np.testing.assert_array_equal(planned, OBSERVATIONS)
    assert featurizer.columns["flag_2"] == (30,)
    assert featurizer.objects[1] == tuple(range(15, 23))
    TrajectoryLayout(
        action_dim=0,
        observation_dim=featurizer.num_columns,
        aliases=featurizer.columns,
        objects=featurizer.objects,
    )


def test_following_a_demonstration_gives_its_actions() -> None:
    """Joint targets of the demonstration are the joints it has a step later."""
    rows = len(ACTIONS)
    plans = Following(
        observations=np.repeat(OBSERVATIONS[None], rows, axis=0),
        actions=np.zeros((rows, len(OBSERVATIONS), 0)),
        lengths=np.full(rows, len(OBSERVATIONS)),
        progress=np.arange(rows, dtype=np.float64),
        stride=1,
    )

    actions = FeaturesExecutor(JointFeatures()).act(plans, OBSERVATIONS[:-1])

    np.testing.assert_allclose(actions[:, :7], ACTIONS[:, :7], atol=1e-5)
    np.testing.assert_array_equal(actions[:, 7], ACTIONS[:, 7])


def test_feasibility_is_that_of_the_blocks() -> None:
    good = OBSERVATIONS[None, ::4]
    floating = good.copy()
    floating[:, 5:, 9] += 0.1  # block 0 is lifted by nothing

    joints, blocks = JointFeatures(), BlockFeatures()
    value = joints.feasibility(np.concatenate([good, floating]), 4)

    np.testing.assert_allclose(
        value[:1], blocks.feasibility(blocks.features(good), 4), atol=1e-6
    )
    assert value[1] < value[0] - 0.05
