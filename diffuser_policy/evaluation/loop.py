"""The evaluator: N episodes, each fixed by its seed, on K environments at a time.

Episode i resets its environment with `seed + i` and draws its noise from a random
stream of `(seed, i)`, so its start, goal and noise don't depend on K. Environments are
plain ones, stepped here: a finished one is neither stepped nor planned for, which no
vector environment offers. For a given K results are bit-equal; across K only the last
bits of batched arithmetic may differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from tqdm import tqdm

from diffuser_policy.envs import Env, make_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.drivers import Driver, episode_stream, make_driver
from diffuser_policy.evaluation.records import EpisodeRecord, Evaluation
from diffuser_policy.versions import versions

UNRECORDED = ("episode",)  # wrappers put wall-clock times there


def evaluate(
    policy: Any,
    env: str | Callable[[], Env],
    *,
    episodes: int = 100,
    seed: int = 0,
    num_envs: int = 16,
    deterministic: bool = False,
    progress: bool | None = None,
    env_options: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Run episodes and keep the result of each.

    Args:
        policy: A `DiffuserPolicy`, or anything with Stable-Baselines3's `predict`.
            What the latter draws at random is its own affair.
        env: Id, or a function that makes the environment; it has to end its episodes.
        episodes: How many.
        seed: Episode i uses `seed + i`.
        num_envs: Environments at a time.
        deterministic: Passed to `predict`.
        progress: Show a progress bar; not given: if standard error is a terminal.
        env_options: Settings of the environment, as `gymnasium.make` takes them.

    Raises:
        ConfigError: A count that is not positive, an environment that was made
            already, of which there is only one, or options that it does not have.
        UnknownNameError: No environment of that id.
        SpaceMismatchError: An environment with other spaces than the policy's.
    """
    _check(episodes=episodes, num_envs=num_envs, seed=seed)
    options = dict(env_options or {})
    make = _maker(env, options)
    with contextlib.ExitStack() as stack:
        envs = []
        for _ in range(min(num_envs, episodes)):
            envs.append(made := make())
            stack.callback(made.close)
        if hasattr(policy, "spaces"):
            policy.spaces.check(envs[0])
        driver = make_driver(policy, len(envs), deterministic=deterministic)
        bar = stack.enter_context(ProgressBar(envs[0], episodes, progress))
        loop = EpisodeLoop(envs, driver, num_episodes=episodes, seed=seed)
        records = loop.run(bar)
        env_id = envs[0].spec.id if envs[0].spec else type(envs[0].unwrapped).__name__
    settings = {
        "env": env_id,
        **({"env_options": options} if options else {}),
        "episodes": episodes,
        "seed": seed,
        "num_envs": num_envs,
        "deterministic": deterministic,
        "policy": describe(policy),
    }
    return Evaluation(
        episodes=records,
        timing=driver.timing,
        settings=settings,
        versions=versions(),
    )


class Tally:
    """Adds up the results of one episode."""

    def __init__(self, seed: int, observation: Any) -> None:
        self.seed = seed
        self.total, self.length = 0.0, 0
        self.success: bool | None = None
        self.time_to_goal: int | None = None
        self.info: dict[str, Any] = {}
        self.usual: set[str] = set()  # what info also holds before the end
        has_goal = isinstance(observation, dict) and "desired_goal" in observation
        self.goal = _numbers(observation["desired_goal"]) if has_goal else None
        self.start = _numbers(observation["achieved_goal"] if has_goal else observation)

    def add(self, reward: float, info: dict[str, Any]) -> None:
        """Count one env step."""
        self.length += 1
        self.total += float(reward)
        self.usual |= self.info.keys()
        self.info = info
        reached = info.get("success", info.get("is_success"))
        self.success = None if reached is None else bool(reached)
        if self.success and self.time_to_goal is None:
            self.time_to_goal = self.length

    def record(self, env: Env, num_plans: int | None = None) -> EpisodeRecord:
        """Return the results of the episode that just ended in `env`."""
        score, details = self._own_score()
        normalized = getattr(env.unwrapped, "get_normalized_score", None)
        if score is None and normalized is not None:
            score = float(normalized(self.total))
        return EpisodeRecord(
            seed=self.seed,
            episode_return=self.total,
            score=score,
            length=self.length,
            success=None if self.success is None else self.time_to_goal is not None,
            final_success=self.success,
            time_to_goal=self.time_to_goal,
            num_plans=num_plans,
            start=self.start,
            goal=self.goal,
            details=details,
        )

    def _own_score(self) -> tuple[float | None, dict[str, Any]]:
        """Return the environment's score of the episode and what else it says of it."""
        score = self.info.get("score")
        if not isinstance(score, Real) or not math.isfinite(score):
            return None, {}
        known = self.usual | {"score", *UNRECORDED}
        details = {k: json_data(v) for k, v in self.info.items() if k not in known}
        return float(score), details


class EpisodeLoop:
    """Keeps every environment busy until all episodes have been given out."""

    def __init__(
        self, envs: list[Env], driver: Driver, *, num_episodes: int, seed: int
    ) -> None:
        self.envs, self.driver = envs, driver
        self.num_episodes, self.seed = num_episodes, seed
        self.next_episode = 0
        self.observations: dict[int, Any] = {}  # of running slots
        self.tallies: dict[int, Tally] = {}

    def run(self, bar: ProgressBar) -> tuple[EpisodeRecord, ...]:
        """Return the records of all episodes, in the order of their seeds."""
        finished: dict[int, EpisodeRecord] = {}
        for slot in range(len(self.envs)):
            self._begin(slot)
        while self.observations:
            slots = sorted(self.observations)
            actions = self.driver.act(slots, [self.observations[s] for s in slots])
            for slot, action in zip(slots, actions, strict=True):
                bar.step()
                if self._step(slot, action):
                    env, tally = self.envs[slot], self.tallies[slot]
                    record = tally.record(env, self.driver.num_plans[slot])
                    finished[record.seed] = record
                    bar.finish(record)
                    self._begin(slot)
        return tuple(finished[key] for key in sorted(finished))

    def _begin(self, slot: int) -> None:
        """Start the next episode in a slot, or leave it idle if there is none."""
        if self.next_episode == self.num_episodes:
            del self.observations[slot]
            return
        seed = self.seed + self.next_episode
        observation, _ = self.envs[slot].reset(seed=seed)
        self.observations[slot] = observation
        self.tallies[slot] = Tally(seed, observation)
        self.driver.begin(slot, episode_stream(self.seed, self.next_episode))
        self.next_episode += 1

    def _step(self, slot: int, action: np.ndarray) -> bool:
        observation, reward, terminated, truncated, info = self.envs[slot].step(action)
        self.observations[slot] = observation
        self.tallies[slot].add(float(reward), info)
        return bool(terminated or truncated)


class ProgressBar:
    """Env steps done and to do, with the results so far."""

    def __init__(self, env: Env, num_episodes: int, progress: bool | None) -> None:
        self.limit = env.spec.max_episode_steps if env.spec else None
        self.records: list[EpisodeRecord] = []
        self.bar: tqdm[Any] = tqdm(
            total=num_episodes * self.limit if self.limit else None,
            desc="evaluate",
            unit="step",
            unit_scale=True,
            disable=None if progress is None else not progress,
        )

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def step(self) -> None:
        """Count one env step."""
        self.bar.update()

    def finish(self, record: EpisodeRecord) -> None:
        """Count one episode; steps that it did not need are done as well."""
        self.records.append(record)
        if self.limit:
            self.bar.update(self.limit - record.length)
        shown = {"episodes": str(len(self.records))}
        scores = [r.score for r in self.records if r.score is not None]
        successes = [r.success for r in self.records if r.success is not None]
        if scores:
            shown["score"] = f"{np.mean(scores):.1f}"
        if successes:
            shown["success"] = f"{np.mean(successes):.2f}"
        self.bar.set_postfix(shown, refresh=False)


def json_data(value: Any) -> Any:
    """Return a value as JSON data: arrays as lists, and strings for what JSON lacks.

    Numbers that are not finite, which JSON lacks as well, become none.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_data(item) for key, item in value.items()}
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (np.ndarray, list, tuple)):
        return [json_data(item) for item in value]
    return str(value)


def describe(policy: Any) -> dict[str, Any]:
    """Return what a policy says of itself, as JSON data, to go with its results."""
    described: dict[str, Any] = {"class": type(policy).__name__}
    config: Any = getattr(policy, "config", None)
    if hasattr(config, "provenance") and hasattr(config, "to_json"):
        # Described apart, because a guide need not have a form in JSON.
        guide = getattr(config, "guide", None)
        if guide is not None:
            from diffuser_policy.guides.registry import guide_record  # imports torch

            config = dataclasses.replace(config, guide=None)
            described["guide"] = guide_record(guide)
        data = config.to_json()
        described |= {key: data[key] for key in ("planner", "execution")}
        described["seed"] = policy.seed
        provenance = data["provenance"]
        described["trained_steps"] = provenance.get("steps")
        described["dataset"] = provenance.get("dataset", {}).get("dataset_id")
    return described


def _check(*, episodes: int, num_envs: int, seed: int) -> None:
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}.")


def _maker(
    env: str | Callable[[], Env], options: Mapping[str, Any]
) -> Callable[[], Env]:
    if isinstance(env, str):
        return lambda: _make_with(env, options)
    if options:
        raise ConfigError(
            "env_options go with the id of an environment; a function that makes one "
            "sets them itself."
        )
    if not callable(env):
        raise ConfigError(
            f"evaluate makes its own environments, so that episodes can run side by "
            f"side. Pass an id, or a function that makes one, instead of {env!r}."
        )
    return env


def _make_with(env_id: str, options: Mapping[str, Any]) -> Env:
    if not options:
        return make_env(env_id)
    try:
        return make_env(env_id, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{env_id} cannot be made with {options}: {error}") from error


def _numbers(values: Any) -> tuple[float, ...]:
    flat = np.ravel(np.asarray(values, dtype=np.float64))
    return tuple(flat.tolist())
