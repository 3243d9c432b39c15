"""Environments by id: namespaces are imported, wrong ids get nearest ones."""

from __future__ import annotations

import builtins
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import DependencyNotInstalled

from diffuser_policy.envs import (
    check_recorded,
    env_spec,
    make_env,
    other_versions,
    reward_of_goals,
)
from diffuser_policy.errors import ConfigError, MissingExtraError, UnknownNameError


def of_goals(achieved: Any, desired: Any, info: Any) -> float:  # noqa: ARG001
    return 0.0


def of_steps(observation: Any, action: Any) -> float:  # noqa: ARG001
    return 0.0


@pytest.mark.parametrize(
    ("compute_reward", "found"),
    [
        (of_goals, True),
        (math.hypot, True),  # compiled: it may take anything
        (of_steps, False),
        (list, False),
    ],
)
def test_compute_reward_takes_goals_or_is_something_else(
    compute_reward: Any, *, found: bool
) -> None:
    env = gym.make("Pendulum-v1")
    assert reward_of_goals(env) is None
    env.unwrapped.compute_reward = compute_reward  # type: ignore[attr-defined]
    wrapped = gym.wrappers.TimeAwareObservation(env)
    assert (reward_of_goals(wrapped) is not None) == found


PLUGIN = """
import gymnasium
gymnasium.register("tiny_plugin/Small-v0", "gymnasium.envs.classic_control:PendulumEnv")
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a module that registers an environment when it is imported."""
    (tmp_path / "tiny_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiny_plugin", raising=False)
    gym.registry.pop("tiny_plugin/Small-v0", None)
    return "tiny_plugin/Small-v0"


@pytest.mark.parametrize("prefix", ["", "tiny_plugin:"])
def test_what_only_a_file_names_is_not_imported(plugin: str, prefix: str) -> None:
    with pytest.raises(ConfigError, match=f"--env (tiny_plugin|MODULE):{plugin}"):
        check_recorded(prefix + plugin, "The planner 'x'")
    assert other_versions(plugin) == []
    assert "tiny_plugin" not in sys.modules
    make_env(prefix + plugin).close()
    check_recorded(plugin, "The planner 'x'")  # now it is there


@pytest.mark.parametrize(
    "env_id", ["diffuser_envs/Multi2D-UMaze-v1", "PointMaze_UMaze-v3", "Pendulum-v1"]
)
def test_environments_of_packages_with_plug_ins_are_trusted(env_id: str) -> None:
    check_recorded(env_id, "The planner 'x'")


@pytest.mark.parametrize("prefix", ["", "tiny_plugin:"])
def test_the_module_named_like_the_namespace_is_imported(
    plugin: str, prefix: str
) -> None:
    env = make_env(prefix + plugin, max_episode_steps=7)
    assert env.spec is not None
    assert (env.spec.id, env.spec.max_episode_steps) == (plugin, 7)
    env.close()


@pytest.mark.parametrize("folder", ["", "folder/"])
def test_an_environment_of_a_file_is_named_by_its_module(
    plugin: str, folder: str
) -> None:
    message = f"its module, 'tiny_plugin:make'.*PYTHONPATH={folder.rstrip('/') or '.'}`"
    with pytest.raises(UnknownNameError, match=message):
        make_env(f"{folder}tiny_plugin.py:make")
    assert "tiny_plugin" not in sys.modules
    with pytest.raises(UnknownNameError, match=f"'tiny_plugin:{plugin}'"):
        make_env(f"tiny_plugin.py:{plugin}")


def test_ids_without_namespace_are_gymnasiums() -> None:
    assert env_spec("Pendulum-v1").id == "Pendulum-v1"


@pytest.mark.parametrize(
    ("module", "env_id"),
    [
        ("gymnasium_robotics", "PointMaze_UMaze-v3"),
        ("gymnasium_robotics", "AntMaze_UMaze-v4"),
        ("gymnasium_robotics", "FrankaKitchen-v1"),
        ("gymnasium_robotics", "AdroitHandDoor-v1"),
        ("ogbench", "pointmaze-medium-v0"),
        ("ogbench", "visual-cube-single-v0"),
        ("ogbench", "powderworld-easy-v0"),
    ],
)
def test_packages_whose_ids_have_no_namespace_are_imported_when_asked_for(
    module: str, env_id: str
) -> None:
    pytest.importorskip(module)
    assert env_spec(env_id).id == env_id


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("diffuser_envs/Multi2D-Lrge-v1", "diffuser_envs/Multi2D-Large-v1"),
        ("diffuser_envs/Multi2D-Large-v7", "diffuser_envs/Multi2D-Large-v1"),
        ("diffuser_envs/Multi2D-Large", "diffuser_envs/Multi2D-Large-v1"),
        ("Pendulm-v1", "Pendulum-v1"),
        ("no_such_plugin/Pendulum-v1", "Pendulum-v1"),
        ("no_such_plugin:Pendulm-v1", "Pendulum-v1"),
    ],
)
def test_unknown_ids_name_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(UnknownNameError, match="environment") as caught:
        make_env(wrong)
    assert near in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("wrong", ["", "   ", "ns/", "not an id"])
def test_what_is_no_id_at_all_is_unknown_too(wrong: str) -> None:
    with pytest.raises(UnknownNameError):
        make_env(wrong)


def test_a_plugin_that_fails_to_import_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        make_env("broken_plugin/Any-v0")


def test_an_option_that_names_a_missing_file_is_refused() -> None:
    pytest.importorskip("mujoco")
    with pytest.raises(ConfigError, match=r"cannot be made with .*nowhere\.xml"):
        make_env("Hopper-v5", xml_file="./nowhere.xml")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("moved to another package"),
        DependencyNotInstalled("no mujoco_py: moved to another package (mujoco-py)"),
    ],
)
def test_advice_in_place_of_an_environment_is_passed_on(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(**_: Any) -> gym.Env[Any, Any]:
        raise error

    monkeypatch.setitem(gym.registry, "Moved-v0", EnvSpec("Moved-v0", moved))
    with pytest.raises(ConfigError, match=r"Moved-v0 cannot be made: .*moved to"):
        make_env("Moved-v0")


def test_environments_of_older_simulators_are_refused() -> None:
    with pytest.raises(ConfigError, match="Hopper-v2 cannot be made"):
        make_env("Hopper-v2")


class Sized(gym.Env[Any, Any]):
    """An environment whose registration may not say how large it is."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, size: int) -> None:
        if size < 0:
            raise TypeError("a size is not negative")


@pytest.mark.parametrize("entry_point", [Sized, f"{__name__}:Sized"])
def test_a_registered_environment_that_needs_an_argument_says_which(
    entry_point: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, given in (("Sized-v0", {}), ("Sized-v1", {"size": -1})):
        spec = EnvSpec(name, entry_point, kwargs=given)
        monkeypatch.setitem(gym.registry, name, spec)
    with pytest.raises(
        ConfigError, match=r"Sized-v0 .* 'size'.*--env-option.* of `evaluate`"
    ):
        make_env("Sized-v0")
    make_env("Sized-v0", size=3).close()
    with pytest.raises(TypeError, match="not negative"):  # of its own
        make_env("Sized-v1")


@pytest.mark.parametrize(
    ("module", "extra"),
    [("mujoco", "maze"), ("gymnasium_robotics", "maze"), ("pybullet", "kuka")],
)
def test_a_missing_simulator_names_the_extra(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an environment's own code or Gymnasium's asks for it."""
    (tmp_path / "needs_simulator.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('needs_simulator/Any-v0', 'needs_simulator:make')\n"
        f"def make(render_mode=None):\n    import {module}.absent_part\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "needs_simulator", raising=False)
    gym.registry.pop("needs_simulator/Any-v0", None)
    _hide(module, monkeypatch)
    with pytest.raises(MissingExtraError, match=rf"pip install \"\.\[{extra}\]"):
        make_env("needs_simulator/Any-v0")


def test_block_stacking_without_its_simulator_says_where_it_has_wheels() -> None:
    script = (
        "import sys; sys.modules['pybullet'] = None\n"
        "from diffuser_policy.cli import main\n"
        "sys.exit(main(['collect', 'diffuser_envs/KukaStack-Unconditional-v1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert 'pip install ".[kuka]"' in done.stderr
    assert "up to 3.11 on Linux" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("module", ["mujoco", "gymnasium_robotics"])
def test_mazes_without_their_simulator_name_the_extra(module: str) -> None:
    pytest.importorskip("gymnasium_robotics")
    script = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from diffuser_policy.envs import make_env\n"
        "from diffuser_policy.errors import MissingExtraError\n"
        "try:\n    make_env('diffuser_envs/Multi2D-UMaze-v1')\n"
        "except MissingExtraError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{module!r}, which is not installed" in done.stdout
    assert 'pip install ".[maze]"' in done.stdout


def _hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a package look as if it were not installed."""
    real = builtins.__import__

    def hiding(module: str, *args: object, **kwargs: object) -> ModuleType:
        if module.partition(".")[0] == name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(module, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", hiding)
