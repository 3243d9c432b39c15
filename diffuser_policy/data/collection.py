"""Recording datasets: many runs on all cores, interrupted and resumed at will.

`collect` splits the steps into runs (`recipe.py`). Run `i` depends on `(seed, i)`
alone, so the dataset is the same, bit for bit, whatever the number of workers and
however often it was interrupted. Finished runs are shards in a hidden folder beside
the dataset to be; the last step turns them into one Minari dataset.

`collect_episodes` records ordinary episodes of any environment with any policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from diffuser_policy.data.demonstrators import (
    Policy,
    default_demonstrator,
    demonstrator_options,
)
from diffuser_policy.data.episodes import Episode
from diffuser_policy.data.minari import check_spaces, new_folder, write_minari
from diffuser_policy.data.recipe import Recipe, check_goal_env, record_run
from diffuser_policy.data.shards import ShardFolder
from diffuser_policy.data.workers import map_unordered, num_cores
from diffuser_policy.envs import Env, make_env
from diffuser_policy.errors import ConfigError, require_extra
from diffuser_policy.versions import versions

FALLBACK_STEPS_PER_GOAL = 1000  # for environments without a step limit
GENERATOR = ("diffuser-policy", "gymnasium", "gymnasium-robotics", "mujoco", "numpy")


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What to record, and how.

    Attributes:
        env_id: A goal environment whose goals can be switched without a reset.
        dataset_id: Minari id; derived from the environment's by default.
        num_steps: Env steps in total.
        run_length: Env steps between two resets; the last run may be shorter.
        max_steps_per_goal: Env steps after which a target is given up; the
            environment's step limit by default.
        action_noise: Standard deviation of Gaussian noise on the actions.
        demonstrator: Name of the expert; the environment's own by default.
        demonstrator_options: Keyword arguments of the demonstrator.
        seed: Fixes everything that is drawn.
        num_workers: Processes; one per core by default. Not part of the result.
        overwrite: Replace a dataset, or unfinished work, of the same id.
    """

    env_id: str
    dataset_id: str | None = None
    num_steps: int = 1_000_000
    run_length: int = 10_000
    max_steps_per_goal: int | None = None
    action_noise: float = 0.0
    demonstrator: str | None = None
    demonstrator_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    num_workers: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Reject settings that cannot work, before anything starts."""
        for name in ("num_steps", "run_length", "max_steps_per_goal", "num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        for name in ("action_noise", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{name} must not be negative, got {getattr(self, name)}."
                )


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that the runs of a dataset depend on."""

    env_id: str
    num_steps: int
    run_length: int
    seed: int
    recipe: Recipe
    versions: Mapping[str, str]

    @property
    def num_runs(self) -> int:
        """Number of runs that the steps are split into."""
        return -(-self.num_steps // self.run_length)

    def length(self, index: int) -> int:
        """Env steps of a run."""
        return min(self.run_length, self.num_steps - index * self.run_length)

    def record(self, index: int, env: Env) -> Episode:
        """Record one run; it depends on nothing but the plan and its index."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(index,))
        return record_run(env, self.recipe, length=self.length(index), seed=seed)


def default_dataset_id(env_id: str) -> str:
    """Return `diffuser/<lower-case name of the environment>`.

    Example: `diffuser_envs/Multi2D-Large-v1` → `diffuser/multi2d-large-v1`.
    """
    return f"diffuser/{env_id.rpartition(':')[2].rpartition('/')[2].lower()}"


def collect(settings: CollectSettings, *, progress: bool = True) -> Path:
    """Record a Minari dataset with D4RL's maze2d recipe (`recipe.py`).

    Interrupted at any moment, it goes on where it was when called again with the same
    settings (`num_workers` may differ). Worker processes import the caller's main
    module, so a script needs the usual `if __name__ == "__main__":`.

    Args:
        settings: What to record.
        progress: Show a bar with steps/s and the time left, on a terminal.

    Returns:
        The folder of the dataset.

    Raises:
        UnknownNameError: No such environment or demonstrator.
        ConfigError: The environment cannot be recorded in this way, or unfinished
            work of this id has other settings.
        DatasetError: The dataset exists already.
        StorageError: The disk is full, or cannot be written.
    """
    dataset_id = settings.dataset_id or default_dataset_id(settings.env_id)
    folder = new_folder(dataset_id, overwrite=settings.overwrite)
    require_extra("minari", "data")  # before an hour's work, not after it
    env = make_env(settings.env_id)
    try:
        plan = _plan(settings, env)
        shards = ShardFolder.beside(folder, dataclasses.asdict(plan))
        shards.open(discard=settings.overwrite)
        _record_missing(plan, shards, settings.num_workers, progress=progress)
        write_minari(
            dataset_id,
            map(shards.load, range(plan.num_runs)),
            env=env,
            collection={
                **dataclasses.asdict(plan),
                "policy": plan.recipe.demonstrator,
                "observation_columns": _observation_columns(env),
            },
            overwrite=settings.overwrite,
        )
    finally:
        env.close()
    shards.remove()
    return folder


def collect_episodes(
    env: Env,
    policy: Policy,
    *,
    num_episodes: int,
    dataset_id: str,
    seed: int = 0,
    deterministic: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Record episodes of any environment with any policy as a Minari dataset.

    Args:
        env: Box or goal-Dict observations, Box actions; ends its own episodes
            (`gymnasium.make` adds the step limit).
        policy: Follows Stable-Baselines3's `predict`.
        num_episodes: How many.
        dataset_id: Minari id of the new dataset.
        seed: Episode `i` is reset with a seed drawn from `(seed, i)`.
        deterministic: Passed to the policy.
        overwrite: Replace a dataset of the same id.
        progress: Show a bar, on a terminal.

    Returns:
        The folder of the dataset; `load_flat` reads it.

    Raises:
        ConfigError: Fewer than one episode, or a malformed id.
        DatasetError: The dataset exists, or the spaces are of an unsupported kind.
        StorageError: The disk is full, or cannot be written.
    """
    if num_episodes < 1:
        raise ConfigError(f"num_episodes must be at least 1, got {num_episodes}.")
    new_folder(dataset_id, overwrite=overwrite)
    check_spaces(env)
    bar = tqdm(range(num_episodes), unit="episode", disable=None if progress else True)
    episodes = [
        record_episode(env, policy, _env_seed(seed, i), deterministic=deterministic)
        for i in bar
    ]
    return write_minari(
        dataset_id,
        episodes,
        env=env,
        collection={
            "policy": type(policy).__name__,
            "num_episodes": num_episodes,
            "seed": seed,
            "deterministic": deterministic,
            "versions": versions(*GENERATOR),
            "observation_columns": _observation_columns(env),
        },
        overwrite=overwrite,
    )


def record_episode(
    env: Env, policy: Policy, seed: int, *, deterministic: bool = False
) -> Episode:
    """Record one episode, from a reset to its end."""
    observation, _ = env.reset(seed=seed)
    observations, steps = [observation], []
    state, starting, done = None, True, False
    while not done:
        action, state = policy.predict(
            observation, state, np.array([starting]), deterministic
        )
        observation, reward, terminated, truncated, _ = env.step(action)
        observations.append(observation)
        steps.append((action, reward, terminated, truncated))
        starting, done = False, bool(terminated or truncated)
    actions, rewards, terminations, truncations = zip(*steps, strict=True)
    return Episode(
        observations=_stacked(observations),
        actions=np.asarray(actions, env.action_space.dtype),
        rewards=np.asarray(rewards, np.float64),
        terminations=np.asarray(terminations, np.bool_),
        truncations=np.asarray(truncations, np.bool_),
        seed=seed,
    )


def _plan(settings: CollectSettings, env: Env) -> RunPlan:
    """Fill in what the settings leave open, and check the rest."""
    check_goal_env(env)
    demonstrator = settings.demonstrator or default_demonstrator(env)
    limit = env.spec.max_episode_steps if env.spec else None
    return RunPlan(
        env_id=settings.env_id,
        num_steps=settings.num_steps,
        run_length=min(settings.run_length, settings.num_steps),
        seed=settings.seed,
        recipe=Recipe(
            demonstrator=demonstrator,
            max_steps_per_goal=(
                settings.max_steps_per_goal or limit or FALLBACK_STEPS_PER_GOAL
            ),
            action_noise=settings.action_noise,
            options=demonstrator_options(demonstrator, settings.demonstrator_options),
        ),
        versions=versions(*GENERATOR),
    )


def _record_missing(
    plan: RunPlan, shards: ShardFolder, num_workers: int | None, *, progress: bool
) -> None:
    """Record the runs that have no shard yet, showing all steps as one bar."""
    missing = [i for i in range(plan.num_runs) if not shards.has(i)]
    finished = plan.num_steps - sum(map(plan.length, missing))
    results = map_unordered(
        partial(_record_shard, plan, shards),
        missing,
        num_workers=num_workers or num_cores(),
    )
    bar = tqdm(
        desc=f"Collecting {plan.env_id}",
        total=plan.num_steps,
        initial=finished,
        unit="step",
        unit_scale=True,
        disable=None if progress else True,
    )
    with closing(results), bar:
        for index in results:
            bar.update(plan.length(index))


def _record_shard(plan: RunPlan, shards: ShardFolder, index: int) -> int:
    """Record one run in a worker and save it; return its index."""
    shards.save(index, plan.record(index, _worker_env(plan.env_id)))
    return index


@lru_cache(maxsize=1)
def _worker_env(env_id: str) -> Env:
    """Return this process's environment: making one takes longer than a short run."""
    return make_env(env_id)


def _env_seed(seed: int, index: int) -> int:
    """Return the reset seed of an episode."""
    sequence = np.random.SeedSequence(seed, spawn_key=(index,))
    return int(sequence.generate_state(1)[0])


def _stacked(observations: list[Any]) -> dict[str, np.ndarray]:
    """Turn a list of observations into arrays, one per field."""
    if not isinstance(observations[0], Mapping):
        return {"observation": np.asarray(observations)}
    return {
        name: np.asarray([observation[name] for observation in observations])
        for name in observations[0]
    }


def _observation_columns(env: Env) -> dict[str, list[int]]:
    """Return the names that the environment gives to columns of its observation."""
    return dict(env.unwrapped.metadata.get("observation_columns", {}))
