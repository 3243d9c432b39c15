"""For tests, ours and yours: a conformance check, an exact denoiser, toy planners.

from diffuser_policy.testing import check_policy

def test_my_policy():
    check_policy(MyPolicy(), observation_space=..., action_space=...)
"""

from diffuser_policy.testing.contract import RULES, PolicyContractError, check_policy
from diffuser_policy.testing.gaussian import GaussianDenoiser
from diffuser_policy.testing.toys import toy_config, toy_dataset, toy_policy

__all__ = [
    "RULES",
    "GaussianDenoiser",
    "PolicyContractError",
    "check_policy",
    "toy_config",
    "toy_dataset",
    "toy_policy",
]
