"""Recording datasets on all cores, with interrupts and resumption.

`collect` records long runs of many goals or, if the demonstrator offers generators,
whole episodes (`diffuser_policy.data.demonstrators`). It splits both into shards. Shard
`i` depends on the settings and `i` alone: the dataset is the same bit for bit, whatever
the number of workers and however often the work was interrupted. Finished shards wait
in a hidden folder beside the future dataset; the last step turns them into one Minari
dataset.

    <root>/diffuser/.multi2d-large-v1.collecting/
        lock                held while a process collects this dataset
        settings.json       the settings and versions of all shards, and a checksum of
                            the demonstrator's file where no version tells its code
        shard-00000.npz …   some episodes each (or one long run), written at once

Only a call with the same settings, versions and code resumes the work; otherwise the
episodes of one dataset would come from different generators.

`collect_episodes` records ordinary episodes of any environment with any policy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from diffuser_policy.config import RUN_SETTINGS, CollectSettings
from diffuser_policy.data.arrays import DAMAGE
from diffuser_policy.data.demonstrators import (
    DEMONSTRATORS,
    EpisodeProtocol,
    Recipe,
    RunProtocol,
    check_goal_env,
    default_demonstrator,
    generators_of,
    verify_sample,
)
from diffuser_policy.data.episodes import Policy, check_episode, record_episode
from diffuser_policy.data.flat import Episode
from diffuser_policy.data.minari import (
    COLLECTION,
    at_work,
    check_is_new,
    check_spaces,
    dataset_folder,
    own_dataset_id,
    recorded_facts,
    work_folder,
    write_minari,
)
from diffuser_policy.data.workers import map_unordered, num_cores
from diffuser_policy.envs import (
    Env,
    check_ends,
    check_one,
    check_predicts,
    env_name,
    env_of,
    make_env,
    step_limit,
)
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    UnknownNameError,
    require_extra,
)
from diffuser_policy.files import (
    LOCK_FILE,
    remove,
    replaced_file,
    write_json,
)
from diffuser_policy.plugins import checksum_of_code
from diffuser_policy.settings import (
    all_options,
    converted,
    differences,
    json_data,
    parameters_of,
    seed_or_drawn,
)
from diffuser_policy.spaces import fitted
from diffuser_policy.versions import RECORDERS, versions

OBSERVATION_PREFIX = "observations."  # of arrays in a shard
STEP_ARRAYS = ("actions", "rewards", "terminations", "truncations")
NO_SEED = -1
FALLBACK_STEPS_PER_GOAL = 1000  # for environments without a step limit
DEFAULT_STEPS = 1_000_000
DEFAULT_RUN_LENGTH = 10_000
DEFAULT_EPISODES = 1_000


@dataclass(frozen=True)
class ShardFolder:
    """The finished shards of one unfinished dataset.

    Attributes:
        path: The hidden folder.
        identity: Everything that determines the episodes, JSON-able.
    """

    path: Path
    identity: Mapping[str, Any]

    @classmethod
    def beside(cls, dataset_folder: Path, identity: Mapping[str, Any]) -> ShardFolder:
        """Return the folder that belongs to a dataset's folder."""
        return cls(work_folder(dataset_folder), json.loads(json.dumps(identity)))

    def open(self, *, discard: bool) -> None:
        """Create the folder, or check that the work in it has the same settings.

        Args:
            discard: Delete other work instead of raising.

        Raises:
            ConfigError: The folder holds unfinished work with other settings, or with
                settings that cannot be read.
            StorageError: The folder cannot be written.
        """
        if self._settings.is_file():
            found: Any = None
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(self._settings.read_text(encoding="utf-8"))
            if not (discard or isinstance(found, dict)):
                raise ConfigError(
                    f"{self.path} holds unfinished work, and its settings.json is "
                    f"damaged. Choose another dataset id, or discard the work "
                    f"(--overwrite)."
                )
            if found == self.identity:
                return
            if not discard:
                different = "; ".join(differences(found, self.identity))
                raise ConfigError(
                    f"{self.path} holds unfinished work with other settings: "
                    f"{different}. Finish it with its own settings, choose another "
                    f"dataset id, or discard it (--overwrite)."
                )
        if self.path.exists():
            for path in self.path.iterdir():
                if path.name != LOCK_FILE:
                    remove(path)
        write_json(self._settings, self.identity)

    def remove(self) -> None:
        """Delete the folder, the settings last: until then, `are_in` finds them."""
        for path in self.path.glob("shard-*"):
            remove(path)
        remove(self.path)

    def are_in(self, dataset_folder: Path) -> bool:
        """Return whether a dataset has been written from these very shards."""
        if not self._settings.is_file() or not dataset_folder.exists():
            return False
        try:
            recorded = recorded_facts(dataset_folder).get(COLLECTION) or {}
        except DatasetError:
            return False
        return all(recorded.get(key) == value for key, value in self.identity.items())

    def has(self, index: int) -> bool:
        """Return whether a shard is finished."""
        return self._file(index).is_file()

    def save(self, index: int, episodes: Sequence[Episode], failures: int = 0) -> None:
        """Write a finished shard.

        Args:
            index: Which one.
            episodes: At least one.
            failures: Number of failed attempts, which are left out.

        Raises:
            StorageError: The file could not be written; nothing is left behind.
        """
        arrays = {
            f"{OBSERVATION_PREFIX}{name}": np.concatenate(
                [episode.observations[name] for episode in episodes]
            )
            for name in episodes[0].observations
        }
        for name in STEP_ARRAYS:
            arrays[name] = np.concatenate([getattr(each, name) for each in episodes])
        arrays["lengths"] = np.array([len(episode) for episode in episodes])
        seeds = [NO_SEED if each.seed is None else each.seed for each in episodes]
        arrays["seeds"] = np.array(seeds)
        arrays["failures"] = np.asarray(failures)
        with replaced_file(self._file(index)) as partial, partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def load(self, index: int) -> list[Episode]:
        """Read a finished shard: episodes of L steps and L + 1 observations.

        Raises:
            DatasetError: The file is damaged.
        """
        with self._opened(index) as stored:
            arrays = dict(stored)
            steps = np.cumsum(arrays["lengths"])[:-1]
            rows = np.cumsum(arrays["lengths"] + 1)[:-1]
            observations = {
                name.removeprefix(OBSERVATION_PREFIX): np.split(values, rows)
                for name, values in arrays.items()
                if name.startswith(OBSERVATION_PREFIX)
            }
            parts = {name: np.split(arrays[name], steps) for name in STEP_ARRAYS}
            return [
                Episode(
                    observations={name: cut[i] for name, cut in observations.items()},
                    seed=None if seed == NO_SEED else seed,
                    **{name: cut[i] for name, cut in parts.items()},
                )
                for i, seed in enumerate(arrays["seeds"].tolist())
            ]

    def facts(self, index: int) -> tuple[list[int], int]:
        """Return the seeds of a finished shard's episodes, and its failures.

        Raises:
            DatasetError: The file is damaged.
        """
        with self._opened(index) as stored:
            return stored["seeds"].tolist(), int(stored["failures"])

    @contextmanager
    def _opened(self, index: int) -> Iterator[Mapping[str, np.ndarray]]:
        """Open a finished shard; an error within the block means that it is damaged."""
        path = self._file(index)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                yield stored
        except DAMAGE as error:
            reason = str(error) or type(error).__name__
            raise DatasetError(
                f"{path} is damaged: {reason}. Delete it and collect again; the other "
                "shards are kept."
            ) from error

    @property
    def _settings(self) -> Path:
        return self.path / "settings.json"

    def _file(self, index: int) -> Path:
        return self.path / f"shard-{index:05d}.npz"


CollectionProtocol = RunProtocol | EpisodeProtocol


def default_dataset_id(env_id: str) -> str:
    """Return `diffuser/<lower-case name of the environment>`.

    Example: `diffuser_envs/Multi2D-Large-v1` → `diffuser/multi2d-large-v1`.
    """
    return own_dataset_id(env_id.rpartition(":")[2].rpartition("/")[2])


def collect(settings: CollectSettings, *, progress: bool = True) -> Path:
    """Record runs by D4RL's maze2d recipe, or whole episodes; return Minari's folder.

    After an interrupt at any moment, a call with the same settings (`num_workers` may
    differ) resumes the work. Worker processes import the caller's main module, so a
    script needs the usual `if __name__ == "__main__":`.

    Args:
        settings: What to record.
        progress: Show a bar with steps/s and the time left, on a terminal.

    Raises:
        UnknownNameError: No such environment, demonstrator or generator.
        ConfigError: The settings do not suit the environment, unfinished work of this
            id has other settings or another demonstrator's code, or another process is
            collecting it.
        DatasetError: The dataset already exists, or a space is of an unsupported kind.
        EnvContractError: The environment or the demonstrator breaks Gymnasium's rules.
        WorkerError: A worker process died.
        StorageError: The disk is full, or cannot be written.
    """
    require_extra("minari", "data")  # before an hour's work, not after it
    env, held_folder = make_env(settings.env_id), contextlib.ExitStack()
    try:
        check_spaces(env)
        _check_shards_hold(env)
        demonstrator = settings.demonstrator or default_demonstrator(env)
        dataset_id = settings.dataset_id
        protocol = protocol_of(settings, demonstrator, env)
        if isinstance(protocol, EpisodeProtocol):
            made = protocol.make(env)  # an impossible option fails now
            if dataset_id is None:
                dataset_id = getattr(made, "dataset_id", None)
        else:
            protocol.check(env)
        if dataset_id is None:
            dataset_id = default_dataset_id(settings.env_id)
        folder = dataset_folder(dataset_id)
        identity = json_data(dataclasses.asdict(protocol))  # a default may be an array
        if (code := checksum_of_code(demonstrator)) is not None:
            identity["code"] = code
        shards = ShardFolder.beside(folder, identity)
        held_folder.enter_context(at_work(dataset_id, overwrite=True))  # see below
        if not settings.overwrite:
            if shards.are_in(folder):  # killed when only these were left to be removed
                shards.remove()
                return folder
            check_is_new(dataset_id)
        shards.open(discard=settings.overwrite)
        _record_missing(protocol, shards, env, settings.num_workers, progress=progress)
        indices = range(protocol.num_shards)
        outcome: dict[str, Any] = {}
        if isinstance(protocol, EpisodeProtocol):
            facts = [shards.facts(index) for index in indices]
            seeds = [seed for shard_seeds, _ in facts for seed in shard_seeds]
            outcome["failures"] = sum(failures for _, failures in facts)
            outcome["verified"] = verify_sample(protocol.make(env), seeds)
        write_minari(
            dataset_id,
            (each for index in indices for each in shards.load(index)),
            env=env,
            collection={
                **identity,
                **outcome,
                "policy": protocol.demonstrator,
            },
            overwrite=settings.overwrite,
        )
        shards.remove()
    finally:
        held_folder.close()
        env.close()
    return folder


def _check_shards_hold(env: Env) -> None:
    """Refuse observations and actions that a shard cannot hold.

    Raises:
        DatasetError: Dictionaries within dictionaries, tuples, or actions that are no
            numbers in bounds.
    """
    seen, actions = env.observation_space, env.action_space
    parts = seen.values() if isinstance(seen, gym.spaces.Dict) else [seen]
    if not all(isinstance(part, gym.spaces.Box) for part in (*parts, actions)):
        raise DatasetError(
            "`collect` records observations in a Box or a Dict of Boxes, and actions "
            f"in a Box; {env_name(env)} has {seen} and {actions}. Record it with "
            "diffuser_policy.data.collection.collect_episodes, and a policy."
        )


def collect_episodes(
    env: Env | str | Callable[[], Env],
    policy: Policy,
    *,
    num_episodes: int,
    dataset_id: str,
    seed: int | None = 0,
    deterministic: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Path:
    """Record episodes of any environment with any policy; return Minari's folder.

    Args:
        env: The environment, its id, or a class or function that makes it. Observations
            in Box, Dict and Tuple spaces, actions in a Box. It must end its episodes
            itself (`gymnasium.make` adds the step limit).
        policy: Follows Stable-Baselines3's `predict`.
        num_episodes: Number of episodes.
        dataset_id: Minari id of the new dataset.
        seed: Episode `i` is reset with a seed drawn from `(seed, i)`. None: drawn at
            random, and recorded.
        deterministic: Passed to the policy.
        overwrite: Replace a dataset of the same id.
        progress: Show a bar, on a terminal.

    Raises:
        UnknownNameError: No environment of that id.
        ConfigError: Fewer than one episode, a malformed id or seed, or another
            process is collecting this dataset.
        DatasetError: The dataset exists, or a space is of an unsupported kind.
        SpaceMismatchError: A policy for other spaces than the environment's.
        EnvContractError: The environment breaks Gymnasium's rules, returns numbers that
            are not finite, or its episodes do not end; or the policy returns no action
            of the environment's.
        StorageError: The disk is full, or cannot be written.
    """
    seed = seed_or_drawn(seed)
    check_predicts(policy)
    if not callable(env):
        check_one(env)
    num_episodes = converted(num_episodes, int, "num_episodes")
    if num_episodes < 1:
        raise ConfigError(f"num_episodes must be at least 1, got {num_episodes}.")
    with contextlib.ExitStack() as stack:
        stack.enter_context(at_work(dataset_id, overwrite=overwrite))
        if not isinstance(env, gym.Env):
            env = env_of(env(), env) if callable(env) else make_env(env)
            stack.callback(env.close)
        check_spaces(env)
        check_ends(env)
        policy = fitted(policy, env)
        hidden = None if progress else True
        bar = tqdm(range(num_episodes), unit="episode", miniters=0, disable=hidden)
        stack.callback(bar.close)
        try:
            return write_minari(
                dataset_id,
                _episodes(env, policy, seed, bar, deterministic=deterministic),
                env=env,
                collection={
                    "policy": type(policy).__name__,
                    "num_episodes": num_episodes,
                    "seed": seed,
                    "deterministic": deterministic,
                    "versions": versions(*RECORDERS),
                },
                overwrite=overwrite,
            )
        except _RecordingError as failed:
            raise failed.error from None


class _RecordingError(Exception):
    """An environment or policy raised an OSError, as of a lost connection.

    Raised as it is, it would look like an error of writing the dataset.
    """

    def __init__(self, error: OSError) -> None:
        self.error = error


def _episodes(
    env: Env, policy: Policy, seed: int, bar: tqdm, *, deterministic: bool
) -> Iterator[Episode]:
    """Record one episode after the other, when it is asked for."""
    for i in bar:
        sequence = np.random.SeedSequence(seed, spawn_key=(i,))
        env_seed = int(sequence.generate_state(1)[0])
        try:
            episode = record_episode(
                env, policy, env_seed, deterministic=deterministic, bar=bar
            )
        except OSError as error:
            raise _RecordingError(error) from error
        yield episode


def protocol_of(
    settings: CollectSettings, demonstrator: str, env: Env
) -> CollectionProtocol:
    """Return all that determines a dataset, with the usual amount if none is given.

    Raises:
        UnknownNameError: No such demonstrator or generator.
        ConfigError: The settings do not suit the demonstrator or the environment.
    """
    chases_targets = hasattr(DEMONSTRATORS.find(demonstrator).target, "has_reached")
    episodes = settings.generator is not None or generators_of(demonstrator)
    if episodes or not chases_targets:
        return _episode_protocol(settings, demonstrator, env)
    return _run_protocol(settings, demonstrator, env)


def _usual(factory: Any, name: str, env: Env, otherwise: int) -> int:
    """Return how much a demonstrator or generator records of an environment."""
    usual = getattr(factory, name, otherwise)
    return usual(env) if callable(usual) else usual


def _options(owner: str, factory: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a demonstrator or generator: defaults and given values.

    They are what `from_env` takes besides the environment and, where it passes any
    keyword arguments on, what the class takes.

    Args:
        owner: How errors call it.
        factory: Its class.
        given: Options.

    Raises:
        ConfigError: It has no `from_env`, no such option, or the value is of another
            type.
    """
    from_env = getattr(factory, "from_env", None)
    if not callable(from_env):
        raise ConfigError(
            f"{owner[0].upper()}{owner[1:]} lacks the class method `from_env(env, …)`, "
            f"which makes it; got {factory!r}."
        )
    arguments = inspect.signature(from_env).parameters.values()
    env = next((each.name for each in arguments), "env")
    taken = {each.name: each for each in parameters_of(from_env)}
    if any(each.kind is each.VAR_KEYWORD for each in arguments):
        taken = {each.name: each for each in parameters_of(factory)} | taken
    taken.pop(env, None)
    return all_options(owner, tuple(taken.values()), given)


def _episode_protocol(
    settings: CollectSettings, demonstrator: str, env: Env
) -> EpisodeProtocol:
    known, name = generators_of(demonstrator), settings.generator
    if name is not None and not known:
        raise ConfigError(
            f"The demonstrator {demonstrator!r} has no generators of episodes; leave "
            "generator (--generator) out."
        )
    if name is None and known:
        name = next(iter(known))
    if name is not None and name not in known:
        raise UnknownNameError("generator", name, known)
    unused = [each for each in RUN_SETTINGS if getattr(settings, each) is not None]
    unused += ["action_noise"] * (settings.action_noise != 0.0)
    if unused:
        raise ConfigError(
            f"The demonstrator {demonstrator!r} makes whole episodes; "
            f"{', '.join(unused)} apply to runs only. Give num_episodes "
            f"(--num-episodes)."
        )
    if name is None:
        factory, title = DEMONSTRATORS.find(demonstrator).target, "the demonstrator"
    else:
        factory, title = known[name], f"the generator {name!r} of"
    usual = _usual(factory, "default_episodes", env, DEFAULT_EPISODES)
    return EpisodeProtocol(
        env_id=settings.env_id,
        num_episodes=settings.num_episodes or usual,
        demonstrator=demonstrator,
        generator=name,
        seed=settings.seed,
        options=_options(
            f"{title} {demonstrator!r}", factory, settings.demonstrator_options
        ),
        versions=versions(*RECORDERS),
    )


def _run_protocol(
    settings: CollectSettings, demonstrator: str, env: Env
) -> RunProtocol:
    check_goal_env(env)
    if settings.num_episodes is not None:
        raise ConfigError(
            f"The demonstrator {demonstrator!r} makes runs of many goals, not "
            "episodes. Give num_steps (--num-steps) instead of num_episodes."
        )
    limit = step_limit(env)
    factory = DEMONSTRATORS.find(demonstrator).target
    usual = _usual(factory, "default_steps", env, DEFAULT_STEPS)
    num_steps = settings.num_steps or usual
    return RunProtocol(
        env_id=settings.env_id,
        num_steps=num_steps,
        run_length=min(settings.run_length or DEFAULT_RUN_LENGTH, num_steps),
        seed=settings.seed,
        recipe=Recipe(
            demonstrator=demonstrator,
            max_steps_per_goal=(
                settings.max_steps_per_goal or limit or FALLBACK_STEPS_PER_GOAL
            ),
            action_noise=settings.action_noise,
            options=_options(
                f"the demonstrator {demonstrator!r}",
                factory,
                settings.demonstrator_options,
            ),
        ),
        versions=versions(*RECORDERS),
    )


def _record_missing(
    protocol: CollectionProtocol,
    shards: ShardFolder,
    env: Env,
    num_workers: int | None,
    *,
    progress: bool,
) -> None:
    """Record the missing shards; one bar shows the progress of all."""
    missing = [i for i in range(protocol.num_shards) if not shards.has(i)]
    finished = protocol.total - sum(map(protocol.size, missing))
    num_workers = min(num_workers or num_cores(), len(missing))
    # Workers make environments of their own; alone, this process uses the caller's.
    own = None if num_workers > 1 else env
    results = map_unordered(
        partial(_record_shard, protocol, shards, own), missing, num_workers=num_workers
    )
    bar = tqdm(
        desc=f"Collecting {protocol.env_id}",
        total=protocol.total,
        initial=finished,
        unit=protocol.unit,
        unit_scale=True,
        disable=None if progress else True,
    )
    with closing(results), bar:
        for index in results:
            bar.update(protocol.size(index))


def _record_shard(
    protocol: CollectionProtocol, shards: ShardFolder, own: Env | None, index: int
) -> int:
    """Record a shard in an environment or, with none, in that of a worker process."""
    env = _worker_env(protocol.env_id) if own is None else own
    episodes, failures = protocol.record(index, env)
    expert = protocol.demonstrator
    if checksum_of_code(expert) != shards.identity.get("code"):
        raise ConfigError(
            f"The file of the demonstrator {expert!r} was edited while it recorded. "
            f"Undo the edit to resume the work, choose another dataset id, or discard "
            f"the work (--overwrite)."
        )
    for episode in episodes:
        check_episode(env, episode)
    shards.save(index, episodes, failures)
    return index


@lru_cache(maxsize=1)
def _worker_env(env_id: str) -> Env:
    """Return a worker's environment; making one takes longer than a short run."""
    return make_env(env_id)
