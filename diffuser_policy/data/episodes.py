"""Recording one episode of an environment with a policy, checked while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from diffuser_policy.data.flat import FLOAT32_MOST, Episode, first_not_finite
from diffuser_policy.envs import (
    Env,
    action_and_state,
    check_length,
    copied,
    env_name,
    reset_env,
    step_env,
    usable_action,
)
from diffuser_policy.errors import EnvContractError, shown
from diffuser_policy.observations import arrays_in, batched, numbers
from diffuser_policy.spaces import outside

Observation = np.ndarray | dict[str, np.ndarray]
State = tuple[np.ndarray, ...] | None


class Policy(Protocol):
    """Stable-Baselines3's contract."""

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """Return the action, and what to pass as `state` the next time."""


def record_episode(
    env: Env,
    policy: Policy,
    seed: int,
    *,
    deterministic: bool = False,
    bar: tqdm | None = None,
) -> Episode:
    """Record one episode, from a reset to its end.

    Args:
        env: Where.
        policy: Follows Stable-Baselines3's `predict`.
        seed: Seed of the reset.
        deterministic: Passed to the policy.
        bar: Shows the env steps of the episode.

    Raises:
        EnvContractError: The environment breaks Gymnasium's rules, returns numbers that
            are not finite, or its episode does not end.
    """
    observation, _ = reset_env(env, seed=seed)
    _check_recorded(env, "the reset", observation=observation)
    observations = [observation]
    steps: list[tuple[np.ndarray, float, bool, bool]] = []
    state, starting, done = None, True, False
    while not done:
        action, state = action_and_state(
            policy.predict(
                copied(observation), state, np.array([starting]), deterministic
            )
        )
        action = np.array(usable_action(env, action), env.action_space.dtype)
        after = step_env(env, action)
        observation = after.observation
        step = len(steps)
        _check_recorded(
            env,
            f"env step {step}",
            observation=observation,
            action=action,
            reward=after.reward,
        )
        _check_actions(env, action[None], step)
        check_length(env, len(steps) + 1)
        observations.append(observation)
        steps.append((action, after.reward, after.terminated, after.truncated))
        if bar is not None:
            bar.set_postfix(env_step=len(steps), refresh=False)
            bar.update(0)
        starting, done = False, after.terminated or after.truncated
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    if not isinstance(observation, Mapping):
        observations = [{"observation": each} for each in observations]
    return Episode(
        observations=batched(observations),
        actions=np.asarray(actions, env.action_space.dtype),
        rewards=np.asarray(rewards, np.float64),
        terminations=np.asarray(terminations, np.bool_),
        truncations=np.asarray(truncations, np.bool_),
        seed=seed,
    )


def _check_recorded(env: Env, when: str, **named: Any) -> None:
    """Refuse now what could not be read from the dataset later.

    Args:
        env: For the message.
        when: The moment, for the message.
        **named: Observation, action and reward.

    Raises:
        EnvContractError: Numbers that are not finite in float32.
    """
    for name, value in arrays_in(named):
        # The comparison is false for NaN too, and float32 has to hold the value.
        if not np.all(np.abs(numbers(value)) <= FLOAT32_MOST):
            raise _not_finite(env, f"{name} of {when}", value)


def _check_actions(env: Env, actions: np.ndarray, step: int = 0) -> None:
    """Refuse actions that the environment's space does not have.

    Raises:
        EnvContractError: Names the first of them.
    """
    space: Any = env.action_space
    beyond = outside(actions, space)
    if beyond.any():
        row = int(np.argmax(beyond))
        raise EnvContractError(
            f"The action of env step {step + row} is {shown(actions[row].tolist())}, "
            f"and those of {env_name(env)} lie in {space}. Correct the policy, or clip "
            f"its actions."
        )


def check_episode(env: Env, episode: Episode) -> None:
    """Refuse a finished episode that could not be read from the dataset later.

    Raises:
        EnvContractError: Numbers that are not finite in float32; names the first step.
    """
    named = {
        "observation": dict(episode.observations),
        "action": episode.actions,
        "reward": episode.rewards,
    }
    found = []
    for name, values in arrays_in(named):
        good = np.abs(np.asarray(values, np.float64)) <= FLOAT32_MOST  # no NaN is
        if not good.all():
            row = int(np.argmin(good.reshape(len(good), -1).all(axis=1)))
            # The first row of observations is the reset's, the next is of step 0.
            step = row - 1 if name.startswith("observation") else row
            found.append((step, name, values[row]))
    if found:
        step, name, value = min(found, key=lambda each: each[0])
        when = "the reset" if step < 0 else f"env step {step}"
        raise _not_finite(env, f"{name} of {when}", value)
    _check_actions(env, episode.actions)


def _not_finite(env: Env, what: str, value: Any) -> EnvContractError:
    return EnvContractError(
        f"{env_name(env)}: the {what} is not finite in float32: "
        f"{first_not_finite(np.asarray(numbers(value)))}. Correct the environment or "
        f"the policy: nothing can be learned from it."
    )
