"""What a new user does first, against the installed wheel: load, make, act, compare.

Runs in a clean environment outside the repository, with the `maze` extra only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium

import diffuser_policy
from diffuser_policy import DiffuserPolicy
from diffuser_policy.benchmark.methods import METHODS, find_method

NUM_STEPS = 3


def main() -> int:
    """Load a shipped planner and act a few steps with it."""
    location = Path(diffuser_policy.__file__)
    if "site-packages" not in location.parts:
        print(f"not the installed package: {location}")
        return 1
    env = gymnasium.make("diffuser_envs:diffuser_envs/Multi2D-UMaze-v1")
    policy = DiffuserPolicy.from_pretrained("multi2d-umaze")
    observation, _ = env.reset(seed=0)
    state = None
    for _ in range(NUM_STEPS):
        action, state = policy.predict(observation, state)
        if not env.action_space.contains(action):
            print(f"not an action of the environment: {action!r}")
            return 1
        observation, *_ = env.step(action)
    labels = [find_method(name).label for name in METHODS.names()]
    if "Diffuser" not in labels:
        print(f"methods are missing: {labels}")
        return 1
    print(f"wheel: version {diffuser_policy.__version__} acts, {len(labels)} methods")
    return 0


if __name__ == "__main__":
    sys.exit(main())
