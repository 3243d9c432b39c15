"""Environments by id, whoever registered them.

Gymnasium loads no plugins by itself: `diffuser_envs/Multi2D-Large-v1` exists only
after `import diffuser_envs`. By convention the namespace of an id is the name of the
module that registers it, so that module is imported when the namespace is unknown.

An id that a user gives may import any module. An id in a file of a planner or a dataset
imports nothing but packages that offer plug-ins to this one (`TRUSTED`, and those of
entry points): a downloaded file must not decide which code is run.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, parse_env_id
from gymnasium.error import DependencyNotInstalled

from diffuser_policy.errors import ConfigError, MissingExtraError, UnknownNameError

PLUGINS = "diffuser_policy."  # begins the names of our entry-point groups
Env = gym.Env[Any, Any]
Space = gym.Space[Any]
TRUSTED = ("gymnasium_robotics",)  # besides the packages that offer plug-ins
# Simulators, and the extras that install them.
SIMULATORS = {"gymnasium_robotics": "maze", "mujoco": "maze", "pybullet": "kuka"}
ADVICE = {
    "pybullet": "It has wheels for CPython up to 3.11 on Linux (x86-64) alone; "
    "elsewhere the extra leaves it out, and `pip install pybullet` has to compile it."
}


def register_namespace(env_id: str) -> str:
    """Import the module that registers an id, and return the id without prefix.

    Args:
        env_id: `module:id` imports `module`; `namespace/Name-v1` imports the module
            named like the namespace, if that namespace is not registered yet.
    """
    module = imported_by(env_id)
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    return env_id.rpartition(":")[2]


def imported_by(env_id: str) -> str:
    """Return the module that the use of an id imports; empty if there is none."""
    module, _, bare_id = env_id.rpartition(":")
    namespace = bare_id.rpartition("/")[0]
    known = {spec.namespace for spec in gym.registry.values()}
    if not module and namespace.isidentifier() and namespace not in known:
        module = namespace
    if bare_id.startswith("PointMaze") and bare_id not in gym.registry:
        module = module or "gymnasium_robotics"
    return module


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
    return not module or module in {*TRUSTED, *offering}


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
        module = module or imported_by(env_id)
        raise ConfigError(
            f"{owner} names the environment {env_id!r}, which would import the module "
            f"{module!r}. A file must not decide which code is run: if you trust that "
            f"module, name the environment yourself, --env {module}:{bare_id}."
        )


def env_spec(env_id: str) -> EnvSpec:
    """Return the registration of an environment, importing its namespace if needed.

    Raises:
        UnknownNameError: No environment of that id; the nearest are named.
    """
    bare_id = register_namespace(env_id)
    try:
        return gym.spec(bare_id)
    except gym.error.Error as error:
        raise UnknownNameError("environment", env_id, _near(bare_id)) from error


def other_versions(env_id: str) -> list[str]:
    """Return the ids of an environment's versions, if that of the id is not among them.

    None for environments that are not known here, for those without a namespace
    (Gymnasium drops versions of its own that much data is from), and for those that
    have to be imported from a package that offers no plug-ins.

    Args:
        env_id: As data record it.
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


def make_env(env_id: str, **kwargs: Any) -> Env:
    """Make an environment, importing the module its namespace is named after.

    Args:
        env_id: An id that Gymnasium knows, or will know after that import.
        **kwargs: Passed to `gymnasium.make`.

    Raises:
        UnknownNameError: No environment of that id; the nearest are named.
        MissingExtraError: The simulator is not installed.
        ConfigError: The environment refuses an argument.
    """
    spec = env_spec(env_id)
    try:
        return gym.make(spec, **kwargs)
    except (TypeError, ValueError) as error:
        if not kwargs:
            raise
        raise ConfigError(f"{env_id} cannot be made with {kwargs}: {error}") from error
    except (ImportError, DependencyNotInstalled) as error:
        missing = _missing_simulator(error)
        if missing is None:
            raise
        extra, advice = SIMULATORS[missing], ADVICE.get(missing, "")
        raise MissingExtraError(missing, extra, advice) from error


def _missing_simulator(error: BaseException | None) -> str | None:
    """Return which simulator is not installed, if that is what caused an error."""
    while error is not None:
        name = ""
        if isinstance(error, ModuleNotFoundError):
            name = (error.name or "").partition(".")[0]
        elif isinstance(error, DependencyNotInstalled):
            name = next((name for name in SIMULATORS if name in str(error)), "")
        if name in SIMULATORS:
            return name
        error = error.__cause__ or error.__context__
    return None


def _near(env_id: str) -> list[str]:
    namespace = env_id.rpartition("/")[0]
    same = [i for i in gym.registry if namespace and i.startswith(f"{namespace}/")]
    return same or difflib.get_close_matches(env_id, gym.registry, n=5, cutoff=0.3)
