"""How observations become rows of numbers: the named columns of an observation space.

A space is a tree. `Dict` and `Tuple` branch, and every `Box` is a *part*: an array of
any shape, laid out row by row. The parts follow each other in the space's own order:

    Box(2, 3)                                       6 columns
    Dict(arm=Dict(angles=Box(7)), block=Box(3))     arm/angles 0 … 6, block 7 … 9
    Tuple(Box(2), Box())                            "0" 0 … 1, "1" 2

Goals stand apart. The two *goal keys* say where a space has them (by default
`achieved_goal` and `desired_goal`, Gymnasium-Robotics' convention); all that is neither
is the observation. Desired goals follow the order of the achieved ones.

Parts are found by their keys, never by their place in an array. A flat array of several
parts is read only where the wrapper that flattens them shows their order: `flat_order`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces

from diffuser_policy.choices import GOAL_KEYS
from diffuser_policy.errors import ConfigError, DatasetError
from diffuser_policy.words import counted

RESERVED = ("action", "observation", "goal")  # names with a meaning of their own
PIXEL_RANK = 2  # arrays of bytes with as many axes are pictures
FILTER = "leave it out (gymnasium.wrappers.FilterObservation)"
ONE_HOT = (
    "encode it as numbers (gymnasium.wrappers.FlattenObservation, or where there are "
    f"goals, which that would hide, TransformObservation), or {FILTER}"
)
ADVICE = {
    "pixels": "encode pictures as a few numbers (gymnasium.wrappers."
    f"TransformObservation), or {FILTER}",
    "Discrete": ONE_HOT,
    "MultiDiscrete": ONE_HOT,
    "MultiBinary": ONE_HOT,
}
# Wrappers that change the numbers of observations, and not their structure.
SCALING = ("NormalizeObservation", "RescaleObservation", "VecNormalize")
# Wrappers that hand observations on as they are, by name and package.
TRANSPARENT = {
    "gymnasium": (
        "Autoreset",
        "ClipAction",
        "ClipReward",
        "HumanRendering",
        "NormalizeReward",
        "OrderEnforcing",
        "PassiveEnvChecker",
        "RecordEpisodeStatistics",
        "RecordVideo",
        "RenderCollection",
        "RepeatAction",
        "RescaleAction",
        "StickyAction",
        "TimeLimit",
        "TransformAction",
        "TransformReward",
    ),
    "stable_baselines3": ("Monitor", "VecMonitor"),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A box within an observation.

    Attributes:
        path: Keys of `Dict` spaces and indices of `Tuple` spaces that lead to it.
        shape: Shape in a single observation.

    Raises:
        ConfigError: A negative length.
    """

    path: tuple[str | int, ...] = ()
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(length < 0 for length in self.shape):
            raise ConfigError(f"{self.name} cannot have the shape {self.shape}.")

    @cached_property
    def size(self) -> int:
        """Number of columns."""
        return math.prod(self.shape)

    @cached_property
    def name(self) -> str:
        """Its keys, joined by slashes; "observation" for an observation that is one."""
        return "/".join(map(str, self.path)) or "observation"

    def below(self, key: str) -> bool:
        """Whether it is what a key, such as `robot/target`, leads to, or within."""
        keys = key.split("/")
        return [str(step) for step in self.path[: len(keys)]] == keys

    def of(self, observation: Any) -> Any:
        """Return its values.

        Raises:
            LookupError: The observation has no such part.
        """
        for step in self.path:
            kind = Mapping if isinstance(step, str) else tuple
            if not isinstance(observation, kind):
                raise LookupError(step)
            branch: Any = observation
            observation = branch[step]
        return observation


@dataclass(frozen=True, kw_only=True)
class ObservationColumns:
    """The parts of an observation, in the order of the columns.

    Attributes:
        observation: Parts that are no goals.
        achieved_goal: Parts of the goal that was achieved; none without goals.
        desired_goal: Parts of the goal that is due, in the order of the achieved ones.
        goal_keys: Where the goals are: keys, joined by slashes.

    Raises:
        ConfigError: No parts, or the same one twice.
    """

    observation: tuple[Part, ...]
    achieved_goal: tuple[Part, ...] = ()
    desired_goal: tuple[Part, ...] = ()
    goal_keys: tuple[str, str] = GOAL_KEYS

    def __post_init__(self) -> None:
        for name, parts in self.fields.items():
            paths = [part.path for part in parts]
            if not parts or len(set(paths)) < len(paths):
                raise ConfigError(f"{name} needs parts, each once; got {paths}.")

    @classmethod
    def usual(cls, size: int, goal_size: int = 0) -> ObservationColumns:
        """Return those of a flat box, or of a goal dictionary of three flat boxes."""
        if not goal_size:
            return cls(observation=(Part(shape=(size,)),))
        goals = [(Part(path=(key,), shape=(goal_size,)),) for key in GOAL_KEYS]
        return cls(
            observation=(Part(path=("observation",), shape=(size,)),),
            achieved_goal=goals[0],
            desired_goal=goals[1],
        )

    @classmethod
    def of(
        cls, parts: Iterable[Part], goal_keys: tuple[str, str] = GOAL_KEYS
    ) -> ObservationColumns:
        """Tell the goals of a space from the rest of it.

        Args:
            parts: Of the space, as `parts_of` returns them.
            goal_keys: Keys of the achieved and the desired goal. The usual ones need
                not be there; then the space has no goals.

        Raises:
            ConfigError: No parts of these keys.
            DatasetError: Goals of two sizes, or no columns at all.
        """
        parts = tuple(parts)
        achieved, desired = ([p for p in parts if p.below(k)] for k in goal_keys)
        if not achieved or not desired:
            if tuple(goal_keys) != GOAL_KEYS:
                found = zip(goal_keys, (achieved, desired), strict=True)
                missing = [repr(key) for key, goal in found if not goal]
                raise ConfigError(
                    f"Observations have no {' and no '.join(missing)} to be "
                    f"the goal; they have {', '.join(p.name for p in parts)}. Name the "
                    f"keys of the achieved and the desired goal (--goal-keys of "
                    f"`train`)."
                )
            achieved, desired = [], []
        sizes = [sum(part.size for part in goal) for goal in (achieved, desired)]
        if sizes[0] != sizes[1]:
            raise DatasetError(
                f"{goal_keys[0]!r} has {counted(sizes[0], 'number')} and "
                f"{goal_keys[1]!r} has {sizes[1]:,}: a goal is achieved where the "
                "two are equal, so both need the same number. Name other keys "
                "(--goal-keys of `train`), or wrap the environment."
            )
        rest = [part for part in parts if part not in (*achieved, *desired)]
        rest = rest or achieved  # the observation is what the goal is about
        if not any(part.size for part in rest):
            raise DatasetError("Observations have no numbers to plan in.")
        first, second = (key.count("/") + 1 for key in goal_keys)
        inner = {part.path[second:]: part for part in desired}
        order = [part.path[first:] for part in achieved]
        if set(order) == set(inner):
            desired = [inner[path] for path in order]
        return cls(
            observation=tuple(rest),
            achieved_goal=tuple(achieved),
            desired_goal=tuple(desired),
            goal_keys=(goal_keys[0], goal_keys[1]),
        )

    @property
    def size(self) -> int:
        """Number of columns of the observation, without goals."""
        return sum(part.size for part in self.observation)

    @property
    def goal_size(self) -> int:
        """Number of columns of a goal; zero without."""
        return sum(part.size for part in self.desired_goal)

    @property
    def fields(self) -> dict[str, tuple[Part, ...]]:
        """The parts of the observation and of the goals, by the names of the three."""
        goals = {GOAL_KEYS[0]: self.achieved_goal, GOAL_KEYS[1]: self.desired_goal}
        return {
            "observation": self.observation,
            **{name: parts for name, parts in goals.items() if parts},
        }

    @cached_property
    def is_tuple(self) -> bool:
        """Whether observations are tuples."""
        return isinstance((*self.observation[0].path, "")[0], int)

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """What parts of the observation are called, and their columns.

        Every key on the way to a part is a name: `arm` and `arm/angles`. The key
        `observation` is left out of the names of what it leads to.
        """
        paths = [part.path for part in self.observation]
        if all(path[:1] == ("observation",) for path in paths):
            paths = [path[1:] for path in paths]
        named: dict[str, list[int]] = {}
        first = 0
        for path, part in zip(paths, self.observation, strict=True):
            for depth in range(1, len(path) + 1):
                name = "/".join(map(str, path[:depth]))
                named.setdefault(name, []).extend(range(first, first + part.size))
            first += part.size
        return {
            name: tuple(columns)
            for name, columns in named.items()
            if columns and name not in RESERVED
        }

    def rows(self, observations: Any, count: int) -> dict[str, np.ndarray]:
        """Return `[count, columns]` of the observation and of the goals.

        Args:
            observations: Many observations as one: with a leading axis in every part.
            count: Their number.

        Raises:
            LookupError: A part is missing.
            ValueError: A part is of another shape.
        """
        return {
            name: joined(_flat_rows(part, observations, count) for part in parts)
            for name, parts in self.fields.items()
        }

    def space(self) -> spaces.Space[Any]:
        """Return the space of observations: unbounded, float64."""
        every = [part for parts in self.fields.values() for part in parts]
        return _space([(part.path, part.shape) for part in dict.fromkeys(every)])


def _flat_rows(part: Part, observations: Any, count: int) -> np.ndarray:
    """Return `[count, size]` of a part of many observations.

    Raises:
        LookupError: It is missing.
        ValueError: It is of another shape.
    """
    values = np.asarray(part.of(observations))
    given, expected = values.shape, (count, *part.shape)
    if (
        _without_ones(given[1:]) != _without_ones(expected[1:])
        or given[:1] != expected[:1]
    ):
        raise ValueError(
            f"{part.name} has the shape {given}, and {expected} was expected"
        )
    return values.reshape(count, part.size)


def _without_ones(shape: tuple[int, ...]) -> list[int]:
    """Return a shape without its axes of one, which files may lack."""
    return [length for length in shape if length != 1]


def is_finite(numbers: np.ndarray) -> bool:
    """Return whether no number is NaN or infinite, in a fifth of NumPy's time.

    The sum of squares is finite exactly if all numbers are and it does not overflow.
    """
    return math.isfinite(np.vdot(numbers, numbers)) or bool(np.isfinite(numbers).all())


def whole_numbers(values: Iterable[int], dtype: Any) -> np.ndarray:
    """Return whole numbers in a type, which may be bool, as an array `[values]`.

    What the type cannot hold becomes the nearest number that it can.
    """
    least, most = 0, 1
    if dtype != np.bool_:
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.array([min(max(each, least), most) for each in values], dtype)


def joined(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Return blocks of columns side by side; a single one is not copied."""
    blocks = list(blocks)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)


def described(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return the facts of a space that count, in the form of Minari."""
    if isinstance(space, spaces.Dict):
        inner = {key: described(item) for key, item in space.spaces.items()}
        return {"type": "Dict", "subspaces": inner}
    if isinstance(space, spaces.Tuple):
        return {"type": "Tuple", "subspaces": [described(item) for item in space]}
    if isinstance(space, spaces.Box):
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape)}
    return {"type": type(space).__name__}


def parts_of(
    space: spaces.Space[Any] | Mapping[str, Any], path: tuple[str | int, ...] = ()
) -> tuple[Part, ...]:
    """Return the boxes of a space in its own order.

    Args:
        space: A space, or its form in Minari's metadata.
        path: Leads to it.

    Raises:
        DatasetError: A space that is no numbers to plan in; the message says what to
            do about it.
    """
    data = described(space) if isinstance(space, spaces.Space) else space
    inner = data.get("subspaces")
    if data["type"] in ("Dict", "Tuple") and inner is not None:
        items = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
        found = [parts_of(item, (*path, key)) for key, item in items]
        return tuple(part for parts in found for part in parts)
    kind, shape = data["type"], tuple(data.get("shape") or ())
    if kind == "Box" and (data.get("dtype") != "uint8" or len(shape) < PIXEL_RANK):
        return (Part(path=path, shape=shape),)
    what = f"a {kind} space"
    if kind == "Box":
        kind, what = "pixels", f"an image: a Box of bytes of shape {list(shape)}"
    raise DatasetError(
        f"{Part(path=path, shape=()).name} is {what}. Planning needs Box spaces of "
        f"numbers, or Dict and Tuple spaces of them: {ADVICE.get(kind, FILTER)}, and "
        "record the data again."
    )


def flat_order(env: Any) -> tuple[Part, ...] | None:
    """Return what the flat observations of an environment consist of, in their order.

    Args:
        env: An environment, or several: Gymnasium's or Stable-Baselines3's.

    Returns:
        The parts that Gymnasium's `FlattenObservation` lays out, if nothing outside of
        it can have changed observations. None where that is unknown.
    """
    from gymnasium import wrappers
    from gymnasium.wrappers import vector

    while True:
        inside: Any = getattr(env, "env", getattr(env, "venv", None))
        if type(env) in (wrappers.FlattenObservation, vector.FlattenObservation):
            return parts_of(single_space(inside, "observation"))
        package = type(env).__module__.partition(".")[0]
        if type(env).__name__ in TRANSPARENT.get(package, ()) and inside is not None:
            env = inside
        elif type(env).__name__ in ("SyncVectorEnv", "DummyVecEnv") and env.envs:
            env = env.envs[0]
        else:
            return None


def is_dictionary_inside(env: Any) -> bool:
    """Return whether observations are dictionaries until a wrapper flattens them."""
    while (inside := getattr(env, "env", getattr(env, "venv", None))) is not None:
        env = inside
        if isinstance(getattr(env, "observation_space", None), spaces.Dict):
            return True
    return False


def scaling_wrappers(env: Any) -> list[str]:
    """Return the names of the wrappers that change the numbers of observations.

    Args:
        env: An environment, or several: Gymnasium's or Stable-Baselines3's.
    """
    found = []
    while env is not None:
        name = type(env).__name__
        if name in SCALING and getattr(env, "norm_obs", True):
            found.append(name)
        inside: Any = getattr(env, "env", getattr(env, "venv", None))
        if name in ("SyncVectorEnv", "DummyVecEnv") and env.envs:
            inside = env.envs[0]
        env = None if inside is env else inside
    return found


def single_space(env: Any, kind: str) -> Any:
    """Return the "observation" or "action" space of one environment of `env`.

    Raises:
        ConfigError: It is no environment.
    """
    name = f"{kind}_space"
    space = getattr(env, f"single_{name}", None) or getattr(env, name, None)
    if space is None:
        raise ConfigError(f"{env!r} has no {name}: pass an environment.")
    return space


def assembled(parts: Mapping[tuple[str | int, ...], Any]) -> Any:
    """Return the observation, of dictionaries and tuples, that has parts at paths."""
    if () in parts:
        return parts[()]
    branches: dict[Any, dict[tuple[str | int, ...], Any]] = {}
    for path, values in parts.items():
        branches.setdefault(path[0], {})[path[1:]] = values
    inner = {step: assembled(branch) for step, branch in branches.items()}
    if isinstance(next(iter(inner)), int):
        # A place without parts, such as an empty dictionary, keeps its number.
        return tuple(inner.get(index, ()) for index in range(max(inner) + 1))
    return inner


def batched(observations: Sequence[Any]) -> Any:
    """Stack observations of single environments along a new first axis."""
    first = observations[0]
    if isinstance(first, Mapping):
        return {key: batched([item[key] for item in observations]) for key in first}
    if isinstance(first, tuple):
        return tuple(batched(each) for each in zip(*observations, strict=True))
    return np.stack([np.asarray(observation) for observation in observations])


def numbers(observation: Any) -> tuple[float, ...]:
    """Return the numbers of an observation, or of a part of it, in its own order."""
    flat: list[float] = []
    for _, part in arrays_in(observation):
        flat += np.ravel(np.asarray(part, np.float64)).tolist()
    return tuple(flat)


def part_at(observation: Any, key: str) -> Any:
    """Return what a key, such as `robot/target`, leads to; None if it is not there."""
    for step in key.split("/"):
        items = dict(enumerate(observation)) if type(observation) is tuple else {}
        branches = observation if isinstance(observation, Mapping) else items
        found = {str(name): part for name, part in branches.items()}
        if step not in found:
            return None
        observation = found[step]
    return observation


def begins_with(observation: Any, values: Sequence[float] | np.ndarray) -> bool:
    """Return whether an observation's first numbers are these, but for rounding.

    Args:
        observation: Or a part of it, such as a goal; in float32 or float64.
        values: `[n]`.
    """
    first = numbers(observation)[: len(values)]
    return len(first) == len(values) and np.allclose(first, values, atol=1e-6)


def arrays_in(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the arrays within dictionaries and tuples, each after the way to it.

    Args:
        tree: An observation, or several things by name.
        name: Begins the way, as in `observation/arm/0`.
    """
    if isinstance(tree, Mapping | tuple):
        parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, part in parts:
            yield from arrays_in(part, f"{name}/{key}" if name else str(key))
    else:
        yield name, tree


def _space(
    parts: Sequence[tuple[tuple[str | int, ...], tuple[int, ...]]],
) -> spaces.Space[Any]:
    """Return the space of parts: their paths and shapes."""
    if parts[0][0] == ():
        return spaces.Box(-np.inf, np.inf, parts[0][1], np.float64)
    inner: OrderedDict[Any, Any] = OrderedDict()
    for path, shape in parts:
        inner.setdefault(path[0], []).append((path[1:], shape))
    if isinstance(parts[0][0][0], int):
        return spaces.Tuple([_space(inner[index]) for index in sorted(inner)])
    return spaces.Dict([(key, _space(group)) for key, group in inner.items()])
