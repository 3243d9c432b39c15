"""Environments by id, from any package, and checks of what they return.

Gymnasium loads no plugins by itself: `diffuser_envs/Multi2D-Large-v1` exists only
after `import diffuser_envs`. By convention the namespace of an id is the name of the
module that registers it, so that module is imported when the namespace is unknown.
Two packages whose ids have no namespace are known by how their ids begin.

| name | is |
|---|---|
| `Pendulum-v1` | an id that is registered |
| `diffuser_envs/Multi2D-Large-v1` | an id; `diffuser_envs` is imported |
| `my_module:mine/Point-v0` | an id; `my_module` is imported |
| `my_module:make_env` | a class or function of `my_module` that makes one |

A name that a user gives may import any module. One in a file of a planner or a dataset
imports nothing but packages that offer plug-ins to this one (those of `HOMES` and of
entry points): a downloaded file must not decide which code is run.

`reset_env` and `step_env` call an environment and keep nothing that it may use again:
some return the same array at every step and change it in place.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import PurePath
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator, parse_env_id
from gymnasium.error import DependencyNotInstalled

from diffuser_policy.errors import (
    ConfigError,
    DiffuserPolicyError,
    EnvContractError,
    MissingExtraError,
    UnknownNameError,
    shown,
)
from diffuser_policy.observations import whole_numbers
from diffuser_policy.ogbench import OGBenchEnv, is_ogbench

PLUGINS = "diffuser_policy."  # begins the names of our entry-point groups
Env = gym.Env[Any, Any]
Space = gym.Space[Any]
# Packages whose ids have no namespace: the extras that install them, how ids begin.
HOMES = {
    "gymnasium_robotics": ("maze", "PointMaze_|AntMaze_|Fetch|Hand|Adroit|Franka"),
    "ogbench": (
        "ogbench",
        "(visual-)?((point|ant|humanoid)maze|antsoccer|cube|scene|puzzle|powder)",
    ),
}
# Simulators, and the extras that install them.
SIMULATORS = {
    "gymnasium_robotics": "maze",
    "mujoco": "maze",
    "pybullet": "kuka",
    "ogbench": "ogbench",
    "dm_control": "ogbench",
}
POINT_MAZES = "PointMaze_"  # ids of Gymnasium-Robotics; their columns have no names
MOST_STEPS = 10_000  # of an episode without a limit
ADVICE = {
    "pybullet": "It has wheels for CPython up to 3.11 on Linux (x86-64) alone; "
    "elsewhere the extra leaves it out, and `pip install pybullet` has to compile it."
}


def register_namespace(env_id: str) -> str:
    """Import the module that registers an id, and return the id without prefix.

    Args:
        env_id: `module:id` imports `module`; `namespace/Name-v1` imports the module
            named like the namespace, if that namespace is not registered yet; ids of
            Gymnasium-Robotics and OGBench import those.

    Raises:
        MissingExtraError: Gymnasium-Robotics or OGBench is needed and not installed.
    """
    module, bare_id = imported_by(env_id), env_id.rpartition(":")[2]
    if not module.endswith(".py") and all(
        part.isidentifier() for part in module.split(".")
    ):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            # A missing module (or missing parent package) is not an error here.
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            if module in HOMES and ":" not in env_id:
                raise MissingExtraError(module, HOMES[module][0]) from error
    return bare_id


def imported_by(env_id: str) -> str:
    """Return the module that the use of an id imports; empty if there is none."""
    module, _, bare_id = env_id.rpartition(":")
    namespace = bare_id.rpartition("/")[0]
    known = {spec.namespace for spec in gym.registry.values()}
    if not module and namespace.isidentifier() and namespace not in known:
        module = namespace
    homes = (
        home
        for home, (_, beginning) in HOMES.items()
        if bare_id not in gym.registry and re.match(beginning, bare_id)
    )
    return module or next(homes, "")


def is_trusted(env_id: str) -> bool:
    """Return whether the use of an id imports nothing, or a package with plug-ins."""
    points = entry_points()
    groups = [group for group in points.groups if group.startswith(PLUGINS)]
    offering = {
        point.module.partition(".")[0]
        for group in groups
        for point in points.select(group=group)
    }
    module = imported_by(env_id)
    return not module or module in {*HOMES, *offering}


def check_recorded(env_id: str, owner: str) -> None:
    """Refuse an environment that only a file names, and that has to be imported.

    Args:
        env_id: As the file has it.
        owner: What has the file, such as "The planner 'runs/mine'".

    Raises:
        ConfigError: The message says how to allow it.
    """
    if not is_trusted(env_id):
        module, _, bare_id = env_id.rpartition(":")
        module = module or "MODULE"
        raise ConfigError(
            f"{owner} names the environment {env_id!r}, which is not registered here: "
            "its module would have to be imported, but a file must not decide which "
            f"code runs. Name the module that registers it: --env {module}:{bare_id}."
        )


def env_spec(env_id: str) -> EnvSpec:
    """Return the registration of an environment, importing its namespace if needed.

    Raises:
        UnknownNameError: No environment of that id; the nearest are named.
        MissingExtraError: As `register_namespace`.
    """
    bare_id = register_namespace(env_id)
    try:
        return gym.spec(bare_id)
    except gym.error.Error as error:
        module = env_id.rpartition(":")[0]
        namespace = bare_id.rpartition("/")[0]
        known = {spec.namespace for spec in gym.registry.values()}
        remark = ""
        if namespace and namespace not in known:
            remark = f" (one of your own needs its module: MODULE:{bare_id})"
        if module.endswith(".py"):
            file = PurePath(module)
            remark = (
                f" (an environment is named by its module, '{file.stem}:{bare_id}', "
                f"with its folder on Python's path: `export PYTHONPATH={file.parent}`)"
            )
        elif module:
            remark = (
                f" (the module {module!r} neither registers nor defines it)"
                if module in sys.modules
                else f" (no module {module!r} on Python's path; for one in the current "
                f"folder, `export PYTHONPATH=.`)"
            )
        # No id is near one whose namespace its module has yet to bring.
        is_to_come = module and module not in sys.modules and namespace
        near = None if is_to_come else _near(bare_id) or None
        raise UnknownNameError("environment", env_id, near, remark) from error


def other_versions(env_id: str) -> list[str]:
    """Return the ids of an environment's versions, if that of the id is not among them.

    None for environments that are not known here, for those without a namespace
    (Gymnasium drops versions of its own that much data is from), and for those that
    have to be imported from a package that offers no plug-ins.

    Args:
        env_id: As data records it.
    """
    with contextlib.suppress(ImportError):  # a package that is broken says so when used
        if is_trusted(env_id):
            env_id = register_namespace(env_id)
    try:
        namespace, name, version = parse_env_id(env_id)
    except gym.error.Error:  # no id
        return []
    if namespace is None:
        return []
    known = [
        s for s in gym.registry.values() if (s.namespace, s.name) == (namespace, name)
    ]
    if version in {spec.version for spec in known}:
        return []
    return sorted(spec.id for spec in known)


def split_version(env_id: str) -> tuple[str, int | None]:
    """Return an id without its version, and the version, if it has one.

    Args:
        env_id: The name of a module before it is dropped. A text that is no id is
            returned as it is.
    """
    try:
        namespace, name, version = parse_env_id(env_id.rpartition(":")[2])
    except gym.error.Error:
        return env_id, None
    return name if namespace is None else f"{namespace}/{name}", version


def is_other_version(env_id: str, recorded: str) -> bool:
    """Return whether two ids name different versions of one environment.

    An id without a version may be any of them: Gymnasium takes the newest.
    """
    (name, version), (own, own_version) = map(split_version, (env_id, recorded))
    versions = {version, own_version}
    return name == own and len(versions) == 2 and None not in versions


def make_env(env_id: str, **kwargs: Any) -> Env:
    """Make an environment, importing the module its namespace is named after.

    Those of OGBench become goal environments (`diffuser_policy.ogbench`).

    Args:
        env_id: An id that Gymnasium knows, or will know after that import; or
            `module:attribute`, a class or function that makes the environment.
        **kwargs: Passed to `gymnasium.make`, or to that class or function.

    Raises:
        UnknownNameError: No environment of that id; the nearest are named.
        MissingExtraError: The simulator is not installed.
        ConfigError: The environment refuses or lacks an argument, says what else has to
            be installed, or what was named makes none.
    """
    if not isinstance(env_id, str):
        raise ConfigError(
            f"An environment is named by a text, such as 'Pendulum-v1'; got "
            f"{shown(env_id)}."
        )
    factory = _factory(env_id)
    try:
        if factory is not None:
            return _made_by(factory, env_id, kwargs)
        spec = env_spec(env_id)
        made = gym.make(spec, **kwargs)
        return OGBenchEnv(made) if is_ogbench(spec) else made
    except ConfigError:
        raise
    except (
        *(TypeError, ValueError, AttributeError, LookupError, OSError),
        AssertionError,  # of Gymnasium 1.0 and OGBench
    ) as error:
        if isinstance(error, DiffuserPolicyError):
            raise
        if not kwargs:
            if factory is None and isinstance(error, TypeError):
                _check_registered(env_id)
            raise
        raise ConfigError(f"{env_id} cannot be made with {kwargs}: {error}") from error
    except (ImportError, DependencyNotInstalled) as error:
        missing = _missing_simulator(error)
        if missing is None and getattr(error, "name", None):  # a module cannot be found
            raise
        if missing is None:  # advice of the environment or of Gymnasium
            raise ConfigError(f"{env_id} cannot be made: {error}") from error
        extra, advice = SIMULATORS[missing], ADVICE.get(missing, "")
        raise MissingExtraError(missing, extra, advice) from error


class Step(NamedTuple):
    """What `step` returned: copied, and as plain numbers and flags."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


def reset_env(
    env: Env, *, seed: int | None = None, options: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Reset an environment; return the observation, copied, and the info.

    Where the space is a Tuple, the observation is one, even if the environment returned
    a list, which Gymnasium takes as well.

    Raises:
        EnvContractError: It returned something else, or an observation whose shape is
            not that of its space.
    """
    given = {} if options is None else {"options": dict(options)}
    returned = env.reset(seed=seed, **given)
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise EnvContractError(
            f"{env_name(env)}: reset() must return (observation, info), and it "
            f"returned {_kind(returned)}. Environments of the old `gym` have to be "
            f"adapted to Gymnasium."
        )
    observation, info = returned
    return _read(env, observation), _checked_info(env, info)


def goal_radius(env: Env) -> float | None:
    """Return the distance in meters at which an environment counts a goal as reached.

    That is the attribute `success_radius`, its own or a wrapper's; None without it.
    """
    try:
        return float(env.get_wrapper_attr("success_radius"))
    except (AttributeError, TypeError, ValueError):
        return None


def glimpses(env: Env) -> list[Any]:
    """Return observations after resets and random actions: resets may look alike."""
    seen, actions = [], copy.deepcopy(env.action_space)
    for seed in range(8):
        seen.append(reset_env(env, seed=seed)[0])
        actions.seed(seed)
        for _ in range(3):
            observation, _, terminated, truncated, _ = step_env(env, actions.sample())
            seen.append(observation)
            if terminated or truncated:
                break
    return seen


def step_env(env: Env, action: Any) -> Step:
    """Act; return what the environment says, copied, with tuples as in `reset_env`.

    The environment gets a copy of the action as well: some clip it in place.

    Raises:
        EnvContractError: It returned anything but Gymnasium's five values, a reward
            that is no number, or an observation whose shape is not that of its space;
            or the action is not one of its numbers.
    """
    returned = env.step(usable_action(env, action))
    if not isinstance(returned, tuple) or len(returned) != 5:
        raise EnvContractError(
            f"{env_name(env)}: step() must return (observation, reward, terminated, "
            f"truncated, info), and it returned {_kind(returned)}. Environments of the "
            f"old `gym` have to be adapted to Gymnasium."
        )
    observation, reward, terminated, truncated, info = returned
    return Step(
        _read(env, observation),
        _number(env, "reward", reward),
        flag(env, "terminated", terminated),
        flag(env, "truncated", truncated),
        _checked_info(env, info),
    )


def action_and_state(returned: Any) -> tuple[Any, Any]:
    """Return what `predict` returned, by Stable-Baselines3's contract.

    Raises:
        EnvContractError: Anything but an action and a state.
    """
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise EnvContractError(
            f"The policy's predict() must return (action, state), and it returned "
            f"{_kind(returned)}. Correct the policy."
        )
    return returned


def usable_action(env: Env, action: Any) -> Any:
    """Return a copy of an action that an environment can take.

    Numbers for a space of whole numbers are rounded to the nearest. Whether they are
    within the bounds is the environment's business.

    Raises:
        EnvContractError: For a Box, an action of another shape, or that has anything
            but finite real numbers.
    """
    space = env.action_space
    if not isinstance(space, gym.spaces.Box):
        return copied(action)
    try:
        given = np.array(action)
    except (TypeError, ValueError, RuntimeError):  # ragged; a tensor with gradients
        given = np.array(None)
    if (
        given.dtype.kind not in "biuf"
        or given.shape != space.shape
        or not np.isfinite(given).all()
    ):
        raise EnvContractError(
            f"The policy returned the action {shown(action)}, and {env_name(env)} "
            f"takes finite numbers of shape {space.shape}. Correct the policy."
        )
    if given.dtype.kind == "f" and not np.issubdtype(space.dtype, np.floating):
        whole = map(int, np.rint(given).ravel().tolist())
        given = whole_numbers(whole, space.dtype).reshape(space.shape)
    return given


def flag(env: Env, name: str, value: Any) -> bool:
    """Return whether a flag is set.

    Raises:
        EnvContractError: It is no number, or NaN.
    """
    number = _number(env, name, value)
    if math.isnan(number):
        raise EnvContractError(f"{env_name(env)}: {name} is NaN, not true or false.")
    return bool(number)


def copied(value: Any) -> Any:
    """Return an observation or action that shares no memory with the given one."""
    if type(value) is np.ndarray:  # most are; `deepcopy` takes ten times as long
        return value.copy()
    if type(value) is dict:
        return {key: copied(part) for key, part in value.items()}
    return copy.deepcopy(value)


def check_one(given: Any) -> None:
    """Refuse what is neither an environment nor an id.

    Raises:
        ConfigError: It is neither.
    """
    if not isinstance(given, gym.Env | str):
        raise ConfigError(
            f"Pass one gymnasium.Env (not a vector environment, and none of the old "
            f"`gym`), or an id such as 'Pendulum-v1'; got {_kind(given)}."
        )


def env_of(made: Any, factory: Any) -> Env:
    """Return what a class or function made, if it is an environment.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(made, gym.Env):
        raise ConfigError(
            f"{getattr(factory, '__qualname__', factory)} returned {_kind(made)} "
            f"instead of a gymnasium.Env. Name a class or function that makes one."
        )
    return made


def check_call(
    factory: Callable[..., Any], name: str, given: Mapping[str, Any]
) -> None:
    """Refuse a class or function that needs other arguments than it gets.

    Raises:
        ConfigError: It does.
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:  # built in: its arguments are unknown
        return
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be called with {', '.join(given) or 'no arguments'}: "
            f"{error}. Name a function without arguments that makes the environment, "
            f"or its arguments (--env-option KEY=VALUE of `evaluate`)."
        ) from error


def check_predicts(policy: Any) -> None:
    """Refuse what is no policy by Stable-Baselines3's contract.

    Raises:
        ConfigError: It has no method `predict`.
    """
    if isinstance(policy, type) or not callable(getattr(policy, "predict", None)):
        raise ConfigError(
            "A policy needs Stable-Baselines3's method predict, which "
            f"{shown(policy)} lacks. DiffuserPolicy.from_pretrained(…) loads a "
            "planner as one."
        )


def evaluation_tasks(env: Env) -> dict[str, Mapping[str, Any] | None]:
    """Return the tasks of an environment: what `reset` takes as options for each.

    Raises:
        EnvContractError: They are named in another form.
    """
    tasks = env.metadata.get("evaluation_tasks") or {}
    is_table = isinstance(tasks, Mapping) and all(
        isinstance(name, str) and isinstance(options, Mapping | None)
        for name, options in tasks.items()
    )
    if not is_table:
        raise EnvContractError(
            f"{env_name(env)}: metadata['evaluation_tasks'] must name the options of "
            f"reset() for each task, such as {{'near': {{'task_id': 1}}}}; got "
            f"{shown(tasks)}."
        )
    return dict(tasks)


def reward_of_goals(env: Env) -> Callable[..., Any] | None:
    """Return `compute_reward(achieved, desired, info)` of an environment, if any.

    A method of that name that takes another number of arguments is something else.
    """
    if not env.has_wrapper_attr("compute_reward"):
        return None
    found: Callable[..., Any] = env.get_wrapper_attr("compute_reward")
    try:
        inspect.signature(found).bind(None, None, {})
    except ValueError:  # compiled, without a signature
        return found
    except TypeError:
        return None
    return found


def env_name(env: Env) -> str:
    """Return the id of an environment, or the name of its class."""
    return env.spec.id if env.spec else type(env.unwrapped).__name__


def step_limit(env: Env) -> int | None:
    """Return after how many env steps an episode is cut; none if nothing says so."""
    limits = [env.spec.max_episode_steps if env.spec else None]
    inner: Any = env
    while isinstance(inner, gym.Wrapper):
        limits.append(getattr(inner, "_max_episode_steps", None))  # TimeLimit's
        inner = inner.env
    return min((n for n in limits if isinstance(n, int) and n > 0), default=None)


def check_ends(env: Env) -> None:
    """Refuse an environment whose step limit was switched off.

    Raises:
        EnvContractError: It was.
    """
    if env.spec is None or step_limit(env) is not None:
        return
    usual = env.spec.max_episode_steps
    if env.spec.id in gym.registry:
        usual = usual or gym.spec(env.spec.id).max_episode_steps
    if usual is not None:
        raise EnvContractError(
            f"{env_name(env)} was made without its step limit (max_episode_steps=-1): "
            f"its episodes may never end. Give it one: "
            f"gymnasium.make(…, max_episode_steps=1000)."
        )


def check_length(env: Env, length: int) -> None:
    """Refuse an episode that goes on for thousands of env steps without any limit.

    Args:
        env: Where it runs.
        length: Env steps so far.

    Raises:
        EnvContractError: It is that long, and nothing says when it would end.
    """
    if length != MOST_STEPS or step_limit(env) is not None:
        return
    raise EnvContractError(
        f"An episode of {env_name(env)} has run for {length:,} env steps, and the "
        f"environment names no limit. Give it one: max_episode_steps="
        f"{2 * MOST_STEPS} where it is registered or made, or "
        f"gymnasium.wrappers.TimeLimit."
    )


def _read(env: Env, observation: Any) -> Any:
    """Return an observation, copied, if its parts have the shapes of the space's."""
    space = env.observation_space
    _check_part(env, space, observation, "The observation")
    return _with_tuples(space, copied(observation))


def _with_tuples(space: Space, value: Any) -> Any:
    """Return a value of a space with tuples for the lists that stand for them."""
    if isinstance(space, gym.spaces.Tuple):
        return tuple(map(_with_tuples, space.spaces, value))
    if isinstance(space, gym.spaces.Dict):
        for key, part in space.spaces.items():
            if isinstance(part, gym.spaces.Tuple | gym.spaces.Dict):
                value = {**value, key: _with_tuples(part, value[key])}
    return value


def _check_part(env: Env, space: Space, value: Any, name: str) -> None:
    """Raise unless a value has the shape of its space; look into its parts."""
    if isinstance(space, gym.spaces.Box):
        if getattr(value, "shape", None) == space.shape:  # np.shape takes longer
            return
        try:
            given: Any = np.shape(value)
        except ValueError:
            given = "of lists that differ in length"
        if given != space.shape:
            raise EnvContractError(
                f"{env_name(env)}: {name} has the shape {given}, and the environment's "
                f"space has {space.shape}. Correct the environment, or wrap it so that "
                f"every observation is in its space."
            )
    elif isinstance(space, gym.spaces.Dict):
        known: Any = value if isinstance(value, Mapping) else ()
        if missing := [key for key in space.spaces if key not in known]:
            raise EnvContractError(
                f"{env_name(env)}: {name} lacks {missing}, which are in the "
                f"environment's space; got {_kind(value)}."
            )
        for key, part in space.spaces.items():
            _check_part(env, part, value[key], f"{name}'s part {key!r}")
    elif isinstance(space, gym.spaces.Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            raise EnvContractError(
                f"{env_name(env)}: {name} must be a tuple of {len(space.spaces)} "
                f"parts; got {_kind(value)}."
            )
        for index, part in enumerate(space.spaces):
            _check_part(env, part, value[index], f"{name}'s part {index}")


def _number(env: Env, name: str, value: Any) -> float:
    """Return a value that stands for one number, such as an array of one, as that."""
    with contextlib.suppress(TypeError, ValueError, OverflowError, RuntimeError):
        if isinstance(value, (float, int)):  # most are
            return float(value)
        array = np.asarray(value)
        if array.size == 1 and array.dtype.kind in "biuf":
            return float(array.reshape(()))
    raise EnvContractError(
        f"{env_name(env)}: {name} must be one number, and step() returned "
        f"{_kind(value)}. Correct the environment, or wrap it."
    )


def _checked_info(env: Env, info: Any) -> dict[str, Any]:
    if isinstance(info, Mapping):
        return dict(info)
    raise EnvContractError(
        f"{env_name(env)}: info must be a dictionary, got {_kind(info)}. Correct the "
        f"environment, or wrap it."
    )


def _kind(value: Any) -> str:
    """Return what a value is, in a few words."""
    if isinstance(value, tuple):
        return f"{len(value)} values"
    shape = np.shape(value) if isinstance(value, np.ndarray) else ""
    name = type(value).__name__
    return f"{name} of shape {shape}" if shape != "" else f"{name} {value!r:.60}"


def _factory(env_id: str) -> Callable[..., Any] | None:
    """Return the class or function that `module:attribute` names, if it does."""
    module, _, name = env_id.rpartition(":")
    if not module or not name.isidentifier():
        return None
    if register_namespace(env_id) in gym.registry:
        return None
    found = getattr(sys.modules.get(module), name, None)
    return found if callable(found) else None


def _check_registered(env_id: str) -> None:
    """Refuse an environment whose registration does not give all arguments it needs.

    Raises:
        ConfigError: It does not.
    """
    spec = env_spec(env_id)
    creator: Any = spec.entry_point
    if isinstance(creator, str):
        creator = load_env_creator(creator)
    check_call(creator, env_id, spec.kwargs)


def _made_by(
    factory: Callable[..., Any], env_id: str, kwargs: Mapping[str, Any]
) -> Env:
    own = dict(kwargs)
    most = own.pop("max_episode_steps", None)  # as `gymnasium.make` takes it
    check_call(factory, env_id, own)
    made = env_of(factory(**own), env_id)
    return made if most in (None, -1) else gym.wrappers.TimeLimit(made, most)


def _missing_simulator(error: BaseException | None) -> str | None:
    """Return which simulator is not installed, if that is what caused an error."""
    while error is not None:
        name = ""
        if isinstance(error, ModuleNotFoundError):
            name = (error.name or "").partition(".")[0]
        elif isinstance(error, DependencyNotInstalled):
            words = re.findall(r"[\w-]+", str(error))  # mujoco_py is another
            name = next((name for name in SIMULATORS if name in words), "")
        if name in SIMULATORS:
            return name
        error = error.__cause__ or error.__context__
    return None


def _near(env_id: str) -> list[str]:
    namespace = env_id.rpartition("/")[0]
    same = [i for i in gym.registry if namespace and i.startswith(f"{namespace}/")]
    return same or difflib.get_close_matches(env_id, gym.registry, n=5, cutoff=0.5)
