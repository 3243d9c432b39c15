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
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box
from tqdm import tqdm

from diffuser_policy.envs import Env, make_env
from diffuser_policy.errors import ConfigError
from diffuser_policy.evaluation.records import EpisodeRecord, Evaluation, Timing
from diffuser_policy.observations import batched, numbers
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
            `seed` does not govern what the latter draws at random.
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
    counts = {"episodes": (episodes, 1), "num_envs": (num_envs, 1), "seed": (seed, 0)}
    for name, (value, least) in counts.items():
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")
    options = dict(env_options or {})
    make = _maker(env, options)
    with contextlib.ExitStack() as stack:
        envs = []
        for _ in range(min(num_envs, episodes)):
            envs.append(made := make())
            stack.callback(made.close)
        if hasattr(policy, "for_env"):
            policy = policy.for_env(envs[0])
        elif hasattr(policy, "spaces"):
            policy.spaces.check(envs[0])
        driver = Driver(policy, len(envs), deterministic=deterministic)
        bar = stack.enter_context(
            contextlib.closing(Progress(envs[0], episodes, progress))
        )
        records = _run(envs, driver, bar, num_episodes=episodes, seed=seed)
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
        episodes=records, timing=driver.timing, settings=settings, versions=versions()
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
        self.goal = numbers(observation["desired_goal"]) if has_goal else None
        start = observation.get("achieved_goal", ()) if has_goal else observation
        self.start = numbers(start)

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
        score, details = self.info.get("score"), {}
        normalized = getattr(env.unwrapped, "get_normalized_score", None)
        if isinstance(score, Real) and math.isfinite(score):  # the environment's own
            known = self.usual | {"score", *UNRECORDED}
            details = {k: json_data(v) for k, v in self.info.items() if k not in known}
        else:
            score = None if normalized is None else normalized(self.total)
        return EpisodeRecord(
            seed=self.seed,
            episode_return=self.total,
            score=None if score is None else float(score),
            length=self.length,
            success=None if self.success is None else self.time_to_goal is not None,
            final_success=self.success,
            time_to_goal=self.time_to_goal,
            num_plans=num_plans,
            start=self.start,
            goal=self.goal,
            details=details,
        )


class Driver:
    """Asks a policy for the actions of those environments that still run.

    Each environment has a slot. Two kinds of policies:

    - The policy's state has rows (`PolicyState`). Only running slots are passed, and
      each episode brings its own random stream.
    - Any other by Stable-Baselines3's contract, whose state is opaque. The batch keeps
      its size; finished slots repeat their last observation, and their actions are
      dropped.

    Attributes:
        num_plans: Plans made in each slot's episode; none if the policy doesn't tell.
        timing: Wall-clock times of all calls so far.
    """

    def __init__(self, policy: Any, num_slots: int, *, deterministic: bool) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.starting = np.ones(num_slots, np.bool_)
        self.latest: list[Any] = [None] * num_slots
        self.num_plans: list[int | None] = [None] * num_slots
        self.timing = Timing(predict_seconds=0.0, env_steps=0)
        self.has_rows = hasattr(policy, "initial_state")
        self.state: Any = None
        if self.has_rows:
            self.state = policy.initial_state(num_slots, np.zeros(num_slots, np.int64))

    def begin(self, slot: int, stream: int) -> None:
        """Forget the slot's last episode; the next one draws from a random stream."""
        self.starting[slot] = True
        if self.has_rows:
            fresh = self.policy.initial_state(1, np.array([stream], np.int64))
            self.state = self.state.with_rows([slot], fresh)

    def act(self, slots: Sequence[int], observations: Sequence[Any]) -> np.ndarray:
        """Return actions `[slots, …]` for the observations of some slots."""
        index = np.asarray(slots)
        state, starting = self.state, self.starting.copy()
        if self.has_rows:
            state, starting = state.rows(index), starting[index]
        else:
            for slot, observation in zip(slots, observations, strict=True):
                self.latest[slot] = observation
            observations = self.latest
        batch = batched(observations)
        begin, made = time.perf_counter(), 0
        actions, following = self.policy.predict(
            batch,
            state=state,
            episode_start=starting,
            deterministic=self.deterministic,
        )
        seconds = time.perf_counter() - begin
        chosen: np.ndarray = np.asarray(actions)
        if self.has_rows:
            made = int((following.num_plans - state.num_plans).sum())
            following = self.state.with_rows(index, following)
            self.num_plans = list(map(int, following.num_plans))
        else:
            chosen = chosen[index]
        self.timing = self.timing.add(seconds, env_steps=len(index), num_plans=made)
        self.state, self.starting[index] = following, False
        return chosen


def _run(
    envs: Sequence[Env],
    driver: Driver,
    bar: Progress,
    *,
    num_episodes: int,
    seed: int,
) -> tuple[EpisodeRecord, ...]:
    """Keep every environment busy; return all records in the order of their seeds."""
    waiting = iter(range(num_episodes))
    observations: dict[int, Any] = {}  # of the environments that run
    tallies: dict[int, Tally] = {}
    finished: dict[int, EpisodeRecord] = {}

    def begin(slot: int) -> None:
        episode = next(waiting, None)
        if episode is None:
            del observations[slot]
            return
        observations[slot], _ = envs[slot].reset(seed=seed + episode)
        tallies[slot] = Tally(seed + episode, observations[slot])
        driver.begin(slot, episode_stream(seed, episode))

    for slot in range(len(envs)):
        begin(slot)
    while observations:
        slots = sorted(observations)
        actions = driver.act(slots, [observations[slot] for slot in slots])
        for slot, chosen in zip(slots, actions, strict=True):
            # Of an array of numbers, rows are scalars, and a Box is made of arrays.
            is_box = isinstance(envs[slot].action_space, Box)
            action = np.asarray(chosen) if is_box else chosen
            observation, reward, terminated, truncated, info = envs[slot].step(action)
            observations[slot] = observation
            tallies[slot].add(float(reward), info)
            bar.update()
            if terminated or truncated:
                record = tallies[slot].record(envs[slot], driver.num_plans[slot])
                finished[record.seed] = record
                bar.finish(record)
                begin(slot)
    return tuple(finished[key] for key in sorted(finished))


class Rollout(NamedTuple):
    """An episode.

    Attributes:
        observations: One for every env step, and the last one.
        record: Its results.
    """

    observations: list[Any]
    record: EpisodeRecord


def run_episode(
    policy: Any,
    env: Env,
    observation: Any,
    *,
    seed: int,
    state: Any = None,
    deterministic: bool = False,
) -> Rollout:
    """Run an episode to its end, from where `env.reset` left it.

    Args:
        policy: Anything with Stable-Baselines3's `predict`.
        env: Just reset.
        observation: What `reset` returned.
        seed: What it was reset with; for the record.
        state: For the first call of `predict`.
        deterministic: Passed to `predict`.
    """
    tally = Tally(seed, observation)
    observations = [observation]
    starting, done = True, False
    while not done:
        action, state = policy.predict(
            observation,
            state=state,
            episode_start=np.array([starting]),
            deterministic=deterministic,
        )
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        tally.add(float(reward), info)
        starting, done = False, bool(terminated or truncated)
    return Rollout(observations, tally.record(env))


def episode_stream(seed: int, episode: int) -> int:
    """Return the random stream of an episode, in 0 … 2^63 - 1."""
    [word] = np.random.SeedSequence((seed, episode)).generate_state(1, np.uint64)
    return int(word) >> 1


class Progress(tqdm):  # type: ignore[misc]
    """Env steps done and to do, with the results so far."""

    def __init__(self, env: Env, num_episodes: int, progress: bool | None) -> None:
        self.most = env.spec.max_episode_steps if env.spec else None
        self.records: list[EpisodeRecord] = []
        super().__init__(
            total=num_episodes * self.most if self.most else None,
            desc="evaluate",
            unit="step",
            unit_scale=True,
            disable=None if progress is None else not progress,
        )

    def finish(self, record: EpisodeRecord) -> None:
        """Count one episode; steps that it did not need are done as well."""
        self.records.append(record)
        if self.most:
            self.update(self.most - record.length)
        shown = {"episodes": str(len(self.records))}
        scores = [r.score for r in self.records if r.score is not None]
        successes = [r.success for r in self.records if r.success is not None]
        if scores:
            shown["score"] = f"{np.mean(scores):.1f}"
        if successes:
            shown["success"] = f"{np.mean(successes):.2f}"
        self.set_postfix(shown, refresh=False)


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
    """Return a policy's settings and origin as JSON data, to store with its results."""
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


def _maker(
    env: str | Callable[[], Env], options: Mapping[str, Any]
) -> Callable[[], Env]:
    if isinstance(env, str):
        return partial(make_env, env, **options)
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
