"""Ids, imports and specs of the mazes, and D4RL's normalized scores."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import diffuser_envs
from diffuser_envs.errors import UnknownEnvError
from diffuser_envs.maze.env import Maze2DEnv
from diffuser_envs.scores import REFERENCE_SCORES, get_normalized_score

STEPS = {"UMaze": 300, "Medium": 600, "Large": 800}
IDS = [f"diffuser_envs/{f}-{t}-v1" for f in ("Maze2D", "Multi2D") for t in STEPS]


def run_python(code: str) -> str:
    """Run a fresh interpreter beside the package and return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(diffuser_envs.__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


# --- registration ---------------------------------------------------------------------


def test_ids_are_registered_with_d4rls_step_limits() -> None:
    for env_id in IDS:
        spec = gymnasium.spec(env_id)
        title = env_id.split("-")[1]
        assert spec.max_episode_steps == STEPS[title]
        assert isinstance(spec.entry_point, str)


def test_registering_again_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    diffuser_envs.register_envs()
    assert gymnasium.registry == before


def test_module_prefix_makes_the_env() -> None:
    env = gymnasium.make("diffuser_envs:diffuser_envs/Multi2D-Large-v1")
    assert env.spec is not None
    assert env.spec.id == "diffuser_envs/Multi2D-Large-v1"


def test_import_loads_neither_torch_nor_a_simulator() -> None:
    code = (
        "import sys, diffuser_envs, diffuser_envs.scores;"
        "heavy = {'torch', 'mujoco', 'gymnasium_robotics', 'PIL', 'minari'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_a_missing_simulator_is_named_with_its_remedy() -> None:
    code = (
        "import sys; sys.modules['gymnasium_robotics'] = None\n"
        "import diffuser_envs.errors as errors\n"
        "try:\n    import diffuser_envs.maze.env\n"
        "except errors.MissingExtraError as error:\n    print(error)"
    )
    assert "pip install" in run_python(code)


def test_public_names_resolve() -> None:
    pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    for name in diffuser_envs.__all__:
        assert getattr(diffuser_envs, name) is not None
        assert name in dir(diffuser_envs)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = diffuser_envs.no_such_name


def test_spec_round_trips_through_json() -> None:
    env = gymnasium.make("diffuser_envs/Multi2D-Medium-v1", renderer="topdown")
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    twin = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    assert twin.spec == env.spec
    first, _ = env.reset(seed=3)
    second, _ = twin.reset(seed=3)
    np.testing.assert_equal(first, second)


def test_copies_are_made_with_the_same_arguments() -> None:
    env = Maze2DEnv("umaze", goal="random", width=64)
    twin = copy.deepcopy(env)
    np.testing.assert_equal(twin.reset(seed=1)[0], env.reset(seed=1)[0])


def test_making_an_env_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    Maze2DEnv("umaze").close()
    assert list(tmp_path.iterdir()) == []


# --- scores ---------------------------------------------------------------------------


def test_scores_are_d4rls() -> None:
    assert set(REFERENCE_SCORES) == set(IDS)
    assert get_normalized_score("diffuser_envs/Maze2D-Large-v1", 6.7) == 0.0
    scores = get_normalized_score("m:diffuser_envs/Multi2D-UMaze-v1", [23.85, 161.86])
    np.testing.assert_allclose(scores, [0.0, 100.0])
    # Always inside the disc: 200.1, 222.1 and 296.8 by D4RL's formula.
    for title, best in (("UMaze", 200.1), ("Medium", 222.1), ("Large", 296.8)):
        env = Maze2DEnv(title.lower(), goal="random")
        assert env.get_normalized_score(STEPS[title]) == pytest.approx(best, abs=0.05)
    with pytest.raises(UnknownEnvError, match="Maze2D-UMaze-v1") as caught:
        get_normalized_score("diffuser_envs/Maze2D-Umaze-v0", 1.0)
    assert isinstance(caught.value, LookupError)
