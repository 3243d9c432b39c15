"""The evaluator: N episodes, fixed by seed and number, on K environments at a time.

Episode i resets its environment with `seed + i` and draws its noise from a random
stream of `(seed, i)`, so its start, goal and noise don't depend on K. Environments are
plain ones, stepped here: a finished one is neither stepped nor planned for, which no
vector environment offers. For a given K results are bit-equal; across K only the last
bits of batched arithmetic may differ.

An environment may name several tasks to be evaluated on, and what its `reset` takes for
each: `metadata["evaluation_tasks"] = {"near": {"task_id": 1}, …}`. Then N episodes of
each are run, one task after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.envs import (
    Env,
    action_and_state,
    check_call,
    check_ends,
    check_length,
    check_predicts,
    copied,
    env_name,
    env_of,
    evaluation_tasks,
    flag,
    make_env,
    reset_env,
    step_env,
    step_limit,
)
from diffuser_policy.errors import ConfigError, EnvContractError, shown
from diffuser_policy.evaluation.records import EpisodeRecord, Evaluation, Timing
from diffuser_policy.evaluation.scores import score_of_returns
from diffuser_policy.observations import batched, numbers, part_at
from diffuser_policy.settings import converted, json_data, seed_or_drawn
from diffuser_policy.spaces import FlattenedSpaces, SpaceSpec, fitted
from diffuser_policy.versions import versions

if TYPE_CHECKING:
    from diffuser_policy.planning.plan import Plan
    from diffuser_policy.policy import DiffuserPolicy

UNRECORDED = ("episode",)  # wrappers put wall-clock times there
DEFAULT_EPISODES = 100
DEFAULT_TASK_EPISODES = 50  # of each task: OGBench's protocol


def evaluate(
    policy: Any,
    env: str | Callable[[], Env],
    *,
    episodes: int | None = None,
    seed: int | None = 0,
    num_envs: int = 16,
    deterministic: bool = False,
    progress: bool | None = None,
    env_options: Mapping[str, Any] | None = None,
    on_episode: Callable[[Sequence[EpisodeRecord], int], None] | None = None,
) -> Evaluation:
    """Run episodes and keep the result of each.

    Args:
        policy: A `DiffuserPolicy`, or anything with Stable-Baselines3's `predict`.
            `seed` does not fix the random numbers of the latter.
        env: Id, or a class or function that makes a new environment at every call; it
            has to end its episodes.
        episodes: How many, of each task in environments with several: 100, or 50 of
            each task, by default.
        seed: Episode i uses `seed + i`. None: drawn at random, and recorded.
        num_envs: Environments at a time.
        deterministic: Passed to `predict`.
        progress: Show a progress bar; not given: if standard error is a terminal.
        env_options: Settings of the environment, as `gymnasium.make` takes them.
        on_episode: Called whenever an episode ends, with the records so far, in the
            order in which they ended, and with how many there will be.

    Raises:
        ConfigError: A count that is not positive, something without `predict`, an
            environment instead of a way to make new ones, a function that makes none,
            or options that it does not have.
        EnvContractError: The environment breaks Gymnasium's rules, or its episodes do
            not end.
        UnknownNameError: No environment of that id.
        SpaceMismatchError: An environment with other spaces than the policy's.
    """
    episodes = converted(episodes, int | None, "episodes")
    num_envs = converted(num_envs, int, "num_envs")
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}.")
    seed = seed_or_drawn(seed)
    check_predicts(policy)
    options = _env_options(env_options)
    make = _maker(env, options)
    with contextlib.ExitStack() as stack:

        def made() -> Env:
            env = make()
            stack.callback(_close, env)
            return env

        envs = [made()]
        check_ends(envs[0])
        bare = {id(envs[0].unwrapped): envs[0].unwrapped}
        tasks = evaluation_tasks(envs[0])
        if episodes is None:
            episodes = DEFAULT_TASK_EPISODES if tasks else DEFAULT_EPISODES
        schedule = [name for name in tasks or (None,) for _ in range(episodes)]
        while len(envs) < min(num_envs, len(schedule)):
            new = made()
            _check_distinct(bare, new)
            envs.append(new)
        policy = fitted(policy, envs[0])
        driver = Driver(policy, len(envs), deterministic=deterministic)
        bar = stack.enter_context(
            contextlib.closing(Progress(envs[0], len(schedule), progress))
        )
        records = _run(
            envs,
            driver,
            bar,
            schedule=schedule,
            tasks=tasks,
            seed=seed,
            on_episode=on_episode,
        )
        name = env_name(envs[0])
    settings = {
        "env": name,
        **({"env_options": options} if options else {}),
        "episodes": episodes,
        **({"tasks": tasks} if tasks else {}),
        "seed": seed,
        "num_envs": num_envs,
        "deterministic": deterministic,
        "policy": describe(policy),
    }
    return Evaluation(
        episodes=records, timing=driver.timing(), settings=settings, versions=versions()
    )


def _close(env: Env) -> None:
    """Close an environment; an error in closing must not cost the results."""
    try:
        env.close()
    except Exception as error:  # of whoever wrote the environment
        warnings.warn(f"{env_name(env)} was not closed: {error!r}.", stacklevel=2)


def has_rows(policy: Any) -> bool:
    """Return whether a policy's state has rows, as `PolicyState` has.

    Then `initial_state(num_envs, streams)` makes one, with a random stream for each
    row. Another method of this name may mean anything.
    """
    make = getattr(policy, "initial_state", None)
    if not callable(make):
        return False
    try:
        state = make(1, np.zeros(1, np.int64))
    except Exception:  # it is something else
        return False
    return all(hasattr(state, name) for name in ("rows", "with_rows", "num_plans"))


def _env_options(given: Any) -> dict[str, Any]:
    """Return the settings of an environment; empty for None.

    Raises:
        ConfigError: They are no table of names and values.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(k, str) for k in given):
        raise ConfigError(
            f"env_options (--env-option KEY=VALUE) are names and values, such as "
            f"{{'joint_noise': 0.01}}; got {shown(given)}."
        )
    return dict(given)


class Tally:
    """Adds up the results of one episode."""

    def __init__(
        self,
        env: Env,
        seed: int,
        observation: Any,
        task: str | None = None,
        *,
        goal_keys: tuple[str, str] = GOAL_KEYS,
    ) -> None:
        self.env, self.seed, self.task = env, seed, task
        self.total, self.length = 0.0, 0
        self.success: bool | None = None  # in the last step, if that says
        self.says_success = False
        self.time_to_goal: int | None = None
        self.info: dict[str, Any] = {}
        self.usual: set[str] = set()  # what info also holds before the end
        achieved, desired = (part_at(observation, key) for key in goal_keys)
        self.goal = None if desired is None else _numbers(desired)
        start = observation if desired is None else achieved
        self.start = () if start is None else _numbers(start)

    def add(self, reward: float, info: dict[str, Any]) -> None:
        """Count one env step."""
        self.length += 1
        self.total += float(reward)
        self.usual |= self.info.keys()
        self.info = info
        reached = info.get("success", info.get("is_success"))
        self.success = None if reached is None else flag(self.env, "success", reached)
        self.says_success |= reached is not None
        if self.success and self.time_to_goal is None:
            self.time_to_goal = self.length

    def _normalized(self, score_of: Any) -> float | None:
        """Return the score of the return; none if the environment has none for it."""
        score = np.asarray(score_of(self.total))
        usable = score.size == 1 and score.dtype.kind in "biuf"
        return float(score.reshape(())) if usable and np.isfinite(score) else None

    def record(self, num_plans: int | None = None) -> EpisodeRecord:
        """Return the results of the episode that just ended."""
        score, details = self.info.get("score"), {}
        normalized = score_of_returns(self.env)
        if isinstance(score, Real) and math.isfinite(score):  # the environment's own
            known = self.usual | {"score", *UNRECORDED}
            details = {k: json_data(v) for k, v in self.info.items() if k not in known}
        else:
            score = None if normalized is None else self._normalized(normalized)
        return EpisodeRecord(
            seed=self.seed,
            task=self.task,
            episode_return=self.total,
            score=None if score is None else float(score),
            length=self.length,
            success=self.time_to_goal is not None if self.says_success else None,
            final_success=self.success,
            time_to_goal=self.time_to_goal,
            num_plans=num_plans,
            start=self.start,
            goal=self.goal,
            details=details,
        )


def _tally(
    policy: Any, env: Env, seed: int, observation: Any, task: str | None = None
) -> Tally:
    """Return the empty tally of an episode; the policy knows where goals are."""
    spaces: Any = getattr(policy, "spaces", None)
    if isinstance(spaces, FlattenedSpaces):
        observation = spaces.in_parts(observation)
    own = isinstance(spaces, SpaceSpec)
    goal_keys = spaces.parts.goal_keys if own else GOAL_KEYS
    return Tally(env, seed, observation, task, goal_keys=goal_keys)


def _numbers(observation: Any) -> tuple[float, ...]:
    """Return the numbers of an observation; empty if it also holds text or such."""
    try:
        return numbers(observation)
    except (TypeError, ValueError):
        return ()


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
    """

    def __init__(self, policy: Any, num_slots: int, *, deterministic: bool) -> None:
        self.policy, self.deterministic = policy, deterministic
        self.starting = np.ones(num_slots, np.bool_)
        self.latest: list[Any] = [None] * num_slots
        self.num_plans: list[int | None] = [None] * num_slots
        self.seconds, self.env_steps = 0.0, 0  # of all calls
        self.plans: list[tuple[float, int]] = []  # seconds and rows of those that plan
        self.has_rows = has_rows(policy)
        self.state: Any = None
        if self.has_rows:
            self.state = policy.initial_state(num_slots, np.zeros(num_slots, np.int64))
        self.beginning: dict[int, int] = {}  # slot → stream of the episode that begins

    def timing(self) -> Timing:
        """Return the wall-clock times of all calls so far."""
        return Timing(
            predict_seconds=self.seconds,
            env_steps=self.env_steps,
            plan_seconds=tuple(seconds for seconds, _ in self.plans),
            plan_rows=tuple(rows for _, rows in self.plans),
        )

    def begin(self, slot: int, stream: int) -> None:
        """Forget the slot's last episode; the next one draws from a random stream."""
        self.starting[slot] = True
        self.beginning[slot] = stream

    def act(self, slots: Sequence[int], observations: Sequence[Any]) -> np.ndarray:
        """Return actions `[slots, …]` for the observations of some slots."""
        index = np.asarray(slots)
        self._write_first_states()
        state, starting = self.state, self.starting.copy()
        if self.has_rows:
            state, starting = state.rows(index), starting[index]
        else:
            for slot, observation in zip(slots, observations, strict=True):
                self.latest[slot] = observation
            observations = self.latest
        batch = batched(observations)
        begin, made = time.perf_counter(), 0
        returned = self.policy.predict(
            batch,
            state=state,
            episode_start=starting,
            deterministic=self.deterministic,
        )
        actions, following = action_and_state(returned)
        seconds = time.perf_counter() - begin
        chosen: np.ndarray = np.asarray(actions)
        if chosen.ndim == 0 or len(chosen) != len(starting):
            raise EnvContractError(
                f"The policy returned actions of shape {chosen.shape} for "
                f"{len(starting)} observations. Correct the policy."
            )
        if self.has_rows:
            made = int((following.num_plans - state.num_plans).sum())
            following = self.state.with_rows(index, following)
            self.num_plans = list(map(int, following.num_plans))
        else:
            chosen = chosen[index]
        self.seconds += seconds
        self.env_steps += len(index)
        if made:
            self.plans.append((seconds, made))
        self.state, self.starting[index] = following, False
        return chosen

    def _write_first_states(self) -> None:
        """Write the states of all episodes that begin into one copy of the state."""
        if self.has_rows and self.beginning:
            streams = np.array([*self.beginning.values()], np.int64)
            fresh = self.policy.initial_state(len(streams), streams)
            self.state = self.state.with_rows([*self.beginning], fresh)
        self.beginning.clear()


def _run(
    envs: Sequence[Env],
    driver: Driver,
    bar: Progress,
    *,
    schedule: Sequence[str | None],
    tasks: Mapping[str, Mapping[str, Any] | None],
    seed: int,
    on_episode: Callable[[Sequence[EpisodeRecord], int], None] | None,
) -> tuple[EpisodeRecord, ...]:
    """Keep every environment busy; return all records in the order of their seeds.

    Args:
        envs: The environments.
        driver: Asks the policy.
        bar: Counts env steps and episodes.
        schedule: The task of each episode; none where there is only one.
        tasks: What `reset` takes for each task.
        seed: Seed of the first episode.
        on_episode: Called with the records so far.
    """
    waiting = iter(range(len(schedule)))
    observations: dict[int, Any] = {}  # of the environments that run
    tallies: dict[int, Tally] = {}
    finished: dict[int, EpisodeRecord] = {}

    def begin(slot: int) -> None:
        episode = next(waiting, None)
        if episode is None:
            del observations[slot]
            return
        task = schedule[episode]
        options = None if task is None else tasks[task]
        observations[slot], _ = reset_env(
            envs[slot], seed=seed + episode, options=options
        )
        tallies[slot] = _tally(
            driver.policy, envs[slot], seed + episode, observations[slot], task
        )
        driver.begin(slot, episode_stream(seed, episode))

    for slot in range(len(envs)):
        begin(slot)
    while observations:
        slots = sorted(observations)
        actions = driver.act(slots, [observations[slot] for slot in slots])
        for slot, action in zip(slots, actions, strict=True):
            after = step_env(envs[slot], action)
            observations[slot] = after.observation
            tallies[slot].add(after.reward, after.info)
            bar.update()
            check_length(envs[slot], tallies[slot].length)
            if after.terminated or after.truncated:
                record = tallies[slot].record(driver.num_plans[slot])
                finished[record.seed] = record
                bar.finish(record)
                if on_episode is not None:
                    on_episode(bar.records, len(schedule))
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
) -> Rollout:
    """Run an episode to its end, from where `env.reset` left it.

    Args:
        policy: Anything with Stable-Baselines3's `predict`.
        env: Just reset.
        observation: What `reset` returned.
        seed: What it was reset with; for the record.
        state: For the first call of `predict`.

    Raises:
        EnvContractError: As `evaluate`.
    """
    check_ends(env)
    observation = copied(observation)
    tally = _tally(policy, env, seed, observation)
    observations = [observation]
    starting, done = True, False
    while not done:
        returned = policy.predict(
            copied(observation),
            state=state,
            episode_start=np.array([starting]),
            deterministic=False,
        )
        action, state = action_and_state(returned)
        after = step_env(env, action)
        observation = after.observation
        observations.append(observation)
        tally.add(after.reward, after.info)
        check_length(env, tally.length)
        starting, done = False, after.terminated or after.truncated
    return Rollout(observations, tally.record())


class PlannedEpisode(NamedTuple):
    """An episode with its first plan.

    Attributes:
        plan: The plan for the first observation.
        path: `[steps + 1, planning columns]` what happened.
        record: Its results.
    """

    plan: Plan
    path: np.ndarray
    record: EpisodeRecord


def planned_episode(
    policy: DiffuserPolicy,
    env: Env,
    observation: Any,
    *,
    seed: int,
    keep_chain: bool = False,
) -> PlannedEpisode:
    """Plan and run the first episode of `evaluate` with this seed.

    The plan is the one that is executed, because both draw from the same random stream.

    Args:
        policy: Fitted to the environment.
        env: Just reset, with the options of the first of its tasks, if it has any.
        observation: What `reset` returned.
        seed: What it was reset with.
        keep_chain: Keep how the plan came out of noise.

    Raises:
        EnvContractError: As `evaluate`.
        ObservationError: An observation that cannot be planned from.
    """
    state = policy.initial_state(1, np.array([episode_stream(seed, 0)]))
    plan = policy.plan(observation, state=state, keep_chain=keep_chain)
    episode = run_episode(policy, env, observation, seed=seed, state=state)
    path = np.concatenate([policy.read(each)[0] for each in episode.observations])
    return PlannedEpisode(plan, path, episode.record)


def episode_stream(seed: int, episode: int) -> int:
    """Return the random stream of an episode, in 0 … 2^63 - 1."""
    [word] = np.random.SeedSequence((seed, episode)).generate_state(1, np.uint64)
    return int(word) >> 1


class Progress(tqdm):  # type: ignore[misc]
    """Env steps done and to do, with the results so far."""

    def __init__(self, env: Env, num_episodes: int, progress: bool | None) -> None:
        self.most = step_limit(env)
        self.records: list[EpisodeRecord] = []
        self.means = Means()
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
        if self.disable:
            return
        self.means.add(record)
        shown = {"episodes": str(len(self.records)), **self.means.shown()}
        self.set_postfix(shown, refresh=False)


class Means:
    """Mean score and success of episodes, added one by one."""

    def __init__(self) -> None:
        self.scores = self.successes = 0.0  # sums
        self.num_scores = self.num_successes = 0

    def add(self, record: EpisodeRecord) -> None:
        """Count what an episode has of both."""
        if record.score is not None:
            self.scores += record.score
            self.num_scores += 1
        if record.success is not None:
            self.successes += record.success
            self.num_successes += 1

    def shown(self) -> dict[str, str]:
        """Return both as text, as far as any episode has them."""
        shown = {}
        if self.num_scores:
            shown["score"] = f"{self.scores / self.num_scores:.1f}"
        if self.num_successes:
            shown["success"] = f"{self.successes / self.num_successes:.2f}"
        return shown


def describe(policy: Any) -> dict[str, Any]:
    """Return a policy's settings and origin as JSON data, to store with its results."""
    policy = getattr(policy, "described_as", policy)
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
            "env_options need the id of an environment; a function that makes one "
            "sets them itself."
        )
    if not callable(env):
        raise ConfigError(
            f"evaluate makes its own environments, so that episodes can run side by "
            f"side. Pass an id, or a function that makes one, instead of {env!r}."
        )
    check_call(env, getattr(env, "__qualname__", repr(env)), {})
    return lambda: env_of(env(), env)


def _check_distinct(others: dict[int, Env], new: Env) -> None:
    """Refuse an environment that is one of the others, perhaps in another wrapper.

    Args:
        others: The others, unwrapped, by their `id`; the new one is added.
        new: The environment.

    Raises:
        ConfigError: It is.
    """
    bare = new.unwrapped
    if id(bare) in others:
        raise ConfigError(
            f"The function that makes {env_name(new)} returned the same environment "
            f"twice, and episodes run side by side. Make a new one at every call "
            f"(lambda: gymnasium.make(…)), or set num_envs=1 (--num-envs 1)."
        )
    others[id(bare)] = bare
