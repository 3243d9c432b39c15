"""Files of D4RL, OGBench and others become Minari datasets, or say what is wrong."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from diffuser_policy.cli import main
from diffuser_policy.config import CollectSettings
from diffuser_policy.data.arrays import Array, ArrayNames
from diffuser_policy.data.collection import collect
from diffuser_policy.data.flat import FlatDataset
from diffuser_policy.data.foreign import Imported, import_file
from diffuser_policy.data.minari import at_work, load_flat, own_dataset_id
from diffuser_policy.envs import make_env
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    UnknownNameError,
)
from diffuser_policy.files import hidden_sibling
from diffuser_policy.versions import RECORDERS, versions
from tests.data_helpers import EXPERT, SMALL
from tests.point_env import POINT, PointEnv

minari = pytest.importorskip("minari", reason="needs the extra 'data'")
h5py: Any = pytest.importorskip("h5py", reason="needs the extra 'data'")

pytestmark = pytest.mark.usefixtures("datasets")

PENDULUM = "Pendulum-v1"  # observations [3], actions [1] in [-2, 2], 200 env steps


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def rows(count: int = 12, size: int = 3, actions: int = 1) -> dict[str, np.ndarray]:
    """Return D4RL's arrays: an episode terminates after 4 rows, one is cut after 9."""
    rng = np.random.default_rng(0)
    flags = np.zeros((2, count), np.bool_)
    flags[0, 3] = flags[1, 8] = True
    return {
        "observations": rng.uniform(-1, 1, (count, size)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (count, actions)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": flags[0],
        "timeouts": flags[1],
    }


def hdf5(arrays: Mapping[str, Any], name: str = "some-data-v3.hdf5") -> str:
    with h5py.File(name, "w") as file:
        for key, value in arrays.items():
            file[key] = value
    return name


def npz(arrays: Mapping[str, Any], name: str = "some-data-v3.npz") -> str:
    np.savez(name, **arrays)
    return name


def imported(file: str, env: str = PENDULUM, **options: Any) -> FlatDataset:
    made = import_file(file, env, progress=False, **options)
    return load_flat(made.dataset_id, progress=False)


def assert_rows(flat: FlatDataset, name: str, expected: np.ndarray) -> None:
    np.testing.assert_allclose(flat.fields[name], expected, atol=1e-6, err_msg=name)


# --- D4RL ---------------------------------------------------------------------------


def test_episodes_end_where_d4rl_says() -> None:
    """A terminated one keeps its last step; a cut one ends in its last observation."""
    arrays = rows()
    made = import_file(hdf5(arrays), PENDULUM, progress=False)
    assert (made.dataset_id, made.num_episodes) == ("diffuser/some-data-v3", 3)
    assert (made.num_steps, made.num_rows) == (10, 12)
    flat = load_flat(made.dataset_id, progress=False)
    assert flat.run_lengths.tolist() == [4, 4, 2]
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    for field, name in (("observation", "observations"), ("action", "actions")):
        assert_rows(flat, field, arrays[name][kept])
    assert_rows(flat, "reward", arrays["rewards"][kept])
    assert flat.fields["terminated"].nonzero()[0].tolist() == [3]
    assert flat.metadata["env_id"] == PENDULUM
    episodes = list(minari.load_dataset(made.dataset_id).iterate_episodes())
    np.testing.assert_array_equal(episodes[1].observations, arrays["observations"][4:9])
    assert episodes[1].truncations.tolist() == [False, False, False, True]
    assert not made.remarks


def test_next_observations_keep_every_step() -> None:
    arrays = rows()
    after = np.random.default_rng(1).normal(size=(12, 3)).astype(np.float32)
    arrays["next_observations"] = after
    flat = imported(hdf5(arrays))
    assert flat.run_lengths.tolist() == [4, 5, 3]
    assert_rows(flat, "action", arrays["actions"])
    episodes = list(minari.load_dataset("diffuser/some-data-v3").iterate_episodes())
    lasts = [episode.observations[-1] for episode in episodes]
    np.testing.assert_array_equal(lasts, after[[3, 8, 11]])


def test_cuts_that_no_array_names_are_found() -> None:
    arrays = rows()
    del arrays["timeouts"]
    after = np.roll(arrays["observations"], -1, axis=0).copy()
    after[[3, 8, 11]] += 1  # an end that is named, one that is not, and the last
    made = import_file(hdf5(arrays | {"next_observations": after}), PENDULUM)
    assert made.num_episodes == 3
    assert any("1 ends of episodes were found" in remark for remark in made.remarks)
    assert load_flat(made.dataset_id).run_lengths.tolist() == [4, 5, 3]


def test_next_observations_alone_say_where_episodes_are_cut() -> None:
    arrays = without("terminals", "timeouts")
    after = np.roll(arrays["observations"], -1, axis=0).copy()
    after[[3, 8, 11]] += 1
    made = import_file(npz(arrays | {"next_observations": after}), PENDULUM)
    assert any("2 ends of episodes were found" in remark for remark in made.remarks)
    flat = load_flat(made.dataset_id)
    assert flat.run_lengths.tolist() == [4, 5, 3]
    assert not flat.fields["terminated"].any()
    masked = arrays | {"next_observations": after, "masks": np.ones(12)}
    with pytest.raises(DatasetError, match="does not say where episodes end"):
        import_file(npz(masked, "masked.npz"), PENDULUM)


@pytest.mark.parametrize(
    ("first", "second"), [("f4", "f8"), ("f8", "f4"), ("f2", "f4"), ("f4", "f2")]
)
def test_arrays_of_two_types_continue_each_other(first: str, second: str) -> None:
    """The same numbers, written in two precisions."""
    whole = np.random.default_rng(0).uniform(-1, 1, (13, 3))
    arrays = rows() | {"observations": whole[:-1].astype(first)}
    del arrays["timeouts"]
    file = npz(arrays | {"next_observations": whole[1:].astype(second)})
    made = import_file(file, PENDULUM, progress=False)
    assert (made.num_episodes, made.remarks) == (2, ())


def test_without_any_sign_of_cuts_the_step_limit_counts() -> None:
    arrays = rows(450)
    del arrays["timeouts"]
    flat = imported(hdf5(arrays))
    assert flat.run_lengths.tolist() == [4, 199, 199, 45]


def endless(env_id: str = PENDULUM) -> Any:
    """Make an environment that names no step limit."""
    return gym.make(env_id, max_episode_steps=-1)


@pytest.mark.parametrize("left_out", [["timeouts"], [], ["timeouts", "rewards"]])
def test_a_file_that_marks_no_end_is_not_one_long_episode(left_out: list[str]) -> None:
    """Nor where it has no rewards, as OGBench's."""
    arrays = without(*left_out)
    flags = [name for name in ("terminals", "timeouts") if name in arrays]
    arrays |= {name: np.zeros(12) for name in flags}
    with pytest.raises(DatasetError, match=f"no row of {' and '.join(flags)} marks"):
        import_file(npz(arrays), endless(), progress=False)
    after = np.roll(arrays["observations"], -1, axis=0).copy()
    after[8] += 1
    file = npz(arrays | {"next_observations": after})
    assert import_file(file, endless(), progress=False).num_episodes == 2
    arrays["timeouts"] = np.arange(12) == 11  # as the error advises
    made = import_file(npz(arrays), endless(), progress=False, overwrite=True)
    assert (made.num_episodes, made.num_steps) == (1, 11)


def test_cuts_that_nothing_marks_are_remarked_on() -> None:
    made = import_file(npz(without("timeouts")), endless(), progress=False)
    assert made.num_episodes == 2
    assert "names no step limit" in made.remarks[0]


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_maze2d_is_turned_into_the_coordinates_of_our_mazes(scale: float) -> None:
    """D4RL's rows and columns, written from our own recording, come back as it was."""
    pytest.importorskip("gymnasium_robotics", reason="needs the extra 'maze'")
    env_id = "diffuser_envs/Maze2D-UMaze-v1"
    settings = CollectSettings(
        env_id=env_id,
        demonstrator=EXPERT,
        num_steps=400,
        num_workers=1,
        dataset_id="diffuser/own-v0",
    )
    collect(settings, progress=False)
    own = load_flat("diffuser/own-v0", progress=False)

    def turned(vectors: np.ndarray) -> np.ndarray:
        return np.stack([-vectors[:, 1], vectors[:, 0]], axis=1)

    def placed(points: np.ndarray) -> np.ndarray:  # U-Maze has 5 rows and columns
        return np.stack([2.5 - 0.7 - points[:, 1], points[:, 0] - 0.7 + 2.5], axis=1)

    states = own.fields["observation"]
    arrays = {
        "observations": np.hstack([placed(states[:, :2]), turned(states[:, 2:])]),
        "actions": turned(own.fields["action"]),
        "rewards": own.fields["reward"],
        "terminals": np.zeros(400, np.bool_),
        "timeouts": np.arange(400) == 399,
        "infos/goal": placed(own.fields["desired_goal"]),
    }
    assert arrays["observations"][:, :2].min() > 0.3  # D4RL counts from the corner
    if scale == 1.0:
        flat = imported(hdf5(arrays, "maze2d-umaze-sparse-v1.hdf5"), env_id)
        for name, values in own.fields.items():
            assert_rows(flat, name, values[:399])
        goals = {"mine": own.fields["desired_goal"], "observations": states}
        names = ArrayNames(desired_goals="mine")  # these are not D4RL's
        same = imported(hdf5(arrays | goals, "own-v1.hdf5"), env_id, names=names)
        assert_rows(same, "observation", states[:399])
        assert_rows(same, "desired_goal", own.fields["desired_goal"][:399])
        del arrays["infos/goal"]
        goals["desired_goals"] = goals.pop("mine")  # nor are these
        same = imported(hdf5(arrays | goals, "own-v2.hdf5"), env_id)
        assert_rows(same, "observation", states[:399])
        assert_rows(same, "desired_goal", own.fields["desired_goal"][:399])
        assert flat.metadata["observation_columns"]["velocity"] == [2, 3]
    else:
        arrays["observations"][:, :2] *= 3
        with pytest.raises(DatasetError, match="walls of UMaze or outside"):
            imported(hdf5(arrays), env_id)
        with pytest.raises(DatasetError, match=r"Import it for diffuser_envs/Maze2D"):
            imported(hdf5(arrays), "PointMaze_UMaze-v3")


# --- OGBench ------------------------------------------------------------------------


OGBENCH = "pointmaze-medium-v0"
needs_ogbench = pytest.mark.filterwarnings("ignore::glfw.GLFWError")


def ogbench_file(name: str = "pointmaze-medium-navigate-v0.npz") -> str:
    """Write what OGBench's scripts write: three trajectories of 40 rows."""
    pytest.importorskip("ogbench", reason="needs the extra 'ogbench'")
    env: Any = make_env(OGBENCH)
    rng = np.random.default_rng(0)
    kept: dict[str, list[Any]] = {"observations": [], "actions": [], "qpos": []}
    for episode in range(3):
        task = {"task_info": {"init_ij": (6, 5), "goal_ij": (1, 1)}}
        observation, _ = env.reset(seed=episode, options=task)
        if episode == 0:  # passes the goal of the first task, in and out
            env.unwrapped.set_xy(np.array([20.0, 17.0]))
        for _ in range(40):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            action[1] = 0.5
            xy = env.unwrapped.get_xy()
            kept["observations"].append(xy)
            kept["actions"].append(action)
            kept["qpos"].append(xy)
            observation, *_ = env.step(action)
    env.close()
    del observation
    arrays = {key: np.array(value, np.float32) for key, value in kept.items()}
    return npz({**arrays, "terminals": np.arange(120) % 40 == 39}, name)


@needs_ogbench
def test_trajectories_are_those_that_ogbench_loads() -> None:
    file = ogbench_file()
    import ogbench

    flat = imported(file, OGBENCH)
    own = ogbench.load_dataset(file)
    assert flat.run_lengths.tolist() == [39, 39, 39]
    assert_rows(flat, "observation", own["observations"])
    assert_rows(flat, "achieved_goal", own["observations"])
    assert_rows(flat, "action", own["actions"])
    following = np.arange(117) % 39 != 38
    np.testing.assert_array_equal(
        flat.fields["observation"][1:][following[:-1]],
        own["next_observations"][:-1][following[:-1]],
    )
    assert not flat.fields["terminated"].any()
    ends = own["next_observations"][own["terminals"] == 1]
    assert_rows(flat, "desired_goal", np.repeat(ends, 39, axis=0))
    assert flat.metadata["observation_columns"] == {"position": [0, 1]}


@needs_ogbench
@pytest.mark.parametrize("compact", [True, False])
def test_what_ogbench_loads_can_be_imported_too(compact: bool) -> None:
    file = ogbench_file()
    import ogbench

    raw = imported(file, OGBENCH)
    loaded = ogbench.load_dataset(file, compact_dataset=compact)
    flat = imported(npz(loaded, "loaded-v0.npz"), OGBENCH)
    np.testing.assert_array_equal(flat.run_starts, raw.run_starts)
    for name, values in raw.fields.items():
        assert_rows(flat, name, values)


@needs_ogbench
def test_single_tasks_terminate_at_success() -> None:
    """From the raw file or from OGBench's own relabelling; steps at the goal go."""
    file = ogbench_file()
    import ogbench

    task = "pointmaze-medium-singletask-v0"
    env, own, _ = ogbench.make_env_and_datasets(
        "pointmaze-medium-navigate-singletask-v0", dataset_path=validated(file)
    )
    env.close()
    relabelled = npz(own, "relabelled-v0.npz")
    success = own["masks"] == 0
    assert 0 < success.sum() < 39
    for source in (file, relabelled):
        flat = imported(source, task)
        terminated = flat.fields["terminated"]
        assert not flat.has_goals
        # A success state ends an episode, unless the one before was one already.
        first = success & ~np.concatenate([[False], success[:-1]])
        assert terminated.sum() == first.sum() >= 1
        kept = ~success | first
        assert_rows(flat, "observation", own["observations"][kept])
        assert_rows(flat, "reward", own["rewards"][kept])
        np.testing.assert_array_equal(terminated, first[kept])
        assert set(flat.fields["reward"][terminated]) == {0.0}


def validated(file: str) -> str:
    """Copy a file to where OGBench expects that of its validation, too."""
    other = file.replace(".npz", "-val.npz")
    Path(other).write_bytes(Path(file).read_bytes())
    return str(Path(file).resolve())


# --- other arrays -------------------------------------------------------------------


def test_other_names_are_given_by_options() -> None:
    arrays = rows()
    other = {
        "obs": arrays["observations"],
        "act": arrays["actions"][:, 0],  # one number a row is as good
        "r": arrays["rewards"][:, None],
        "done": arrays["terminals"].astype(float),
        "cut": arrays["timeouts"].astype(np.int64),
    }
    names = ArrayNames(
        observations="obs", actions="act", rewards="r", terminals="done", timeouts="cut"
    )
    flat = imported(npz(other), names=names)
    expected = imported(hdf5(arrays, "usual-v0.hdf5"))
    for name, values in expected.fields.items():
        assert_rows(flat, name, values)


def test_who_names_terminals_means_terminated() -> None:
    arrays = {k: v for k, v in rows().items() if k not in ("rewards", "timeouts")}
    assert not imported(npz(arrays)).fields["terminated"].any()
    names = ArrayNames(terminals="terminals")
    flat = imported(npz(arrays), names=names, overwrite=True)
    assert flat.fields["terminated"].nonzero()[0].tolist() == [3]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"terminals": "rewards"}, "rewards .* both the rewards and the terminals"),
        ({"terminals": "timeouts", "timeouts": "timeouts"}, "--terminals, --timeouts"),
        ({"next_observations": "observations"}, "--observations, --next-observations"),
    ],
)
def test_an_array_has_one_role(names: dict[str, str], told: str) -> None:
    arrays = rows() | {"rewards": np.zeros(12)}
    with pytest.raises(ConfigError, match=told):
        imported(npz(arrays), names=ArrayNames(**names))


def test_an_end_may_have_the_name_of_the_other() -> None:
    flat = imported(npz(rows()), names=ArrayNames(timeouts="terminals"))
    assert not flat.fields["terminated"].any()


def test_cuts_that_all_terminate_too_are_cuts() -> None:
    """Stable-Baselines3's dones mark every end, and its timeouts those by the limit."""
    arrays = rows()
    arrays["dones"] = arrays.pop("terminals") | arrays["timeouts"]
    made = import_file(npz(arrays), PENDULUM, names=ArrayNames(terminals="dones"))
    assert "were cut (1 row) count as cut: dones marks every end." in made.remarks[0]
    flat = load_flat(made.dataset_id)
    assert flat.fields["terminated"].nonzero()[0].tolist() == [3]
    assert flat.run_lengths.tolist() == [4, 4, 2]


def test_one_cut_of_several_that_terminates_too_terminates() -> None:
    arrays = rows()
    arrays["timeouts"][3] = True
    made = import_file(npz(arrays), PENDULUM)
    assert "were cut (1 row) count as terminated." in made.remarks[0]
    terminated = load_flat(made.dataset_id).fields["terminated"]
    assert terminated.nonzero()[0].tolist() == [3]


def test_empty_names_are_refused() -> None:
    """No text is no default."""
    with pytest.raises(ConfigError, match="'' is not a Minari id"):
        imported(npz(rows()), dataset_id="")
    with pytest.raises(ConfigError, match="'' is not a Minari id"):
        collect(dataclasses.replace(SMALL, dataset_id=""))
    for name in ("--rewards", "--desired-goals"):
        assert main(["import", npz(rows(size=4, actions=2)), "--env", POINT, name, ""])


def test_goals_are_found_in_observations_or_given() -> None:
    rng = np.random.default_rng(0)
    arrays = rows(12, size=4, actions=2)
    flat = imported(npz(arrays), POINT)  # achieved goals: the first two columns
    assert_rows(flat, "achieved_goal", flat.fields["observation"][:, :2])
    last = arrays["observations"][8, :2]
    assert flat.fields["desired_goal"][4:8].tolist() == [last.tolist()] * 4
    goals = rng.normal(size=(2, 12, 2)).astype(np.float32)
    given = arrays | {"mine/achieved": goals[0], "mine/desired": goals[1]}
    names = ArrayNames(achieved_goals="mine/achieved", desired_goals="mine/desired")
    flat = imported(hdf5(given), POINT, names=names, overwrite=True)
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert_rows(flat, "achieved_goal", goals[0][kept])
    assert_rows(flat, "desired_goal", goals[1][kept])
    episodes = list(minari.load_dataset("diffuser/some-data-v3").iterate_episodes())
    lasts = [e.observations["achieved_goal"][-1] for e in episodes]
    np.testing.assert_array_equal(lasts, goals[0][[3, 8, 11]])  # 3: once more


def test_goals_in_an_array_of_that_name_are_read() -> None:
    goals = np.random.default_rng(0).normal(size=(2, 12, 2)).astype(np.float32)
    own = {"achieved_goals": goals[0], "desired_goals": goals[1]}
    arrays = rows(12, size=4, actions=2) | own
    kept = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    flat = imported(npz(arrays), POINT)
    assert_rows(flat, "desired_goal", goals[1][kept])
    arrays["infos/goal"] = goals[1] + 1
    flat = imported(hdf5(arrays), POINT, overwrite=True)
    assert_rows(flat, "desired_goal", goals[1][kept] + 1)


def test_goals_of_another_kind_are_left_aside() -> None:
    """D4RL's ants have goals (x, y), and OGBench's are whole observations."""
    arrays = rows(12, size=4, actions=2) | {"infos/goal": np.zeros((12, 3))}
    made = import_file(hdf5(arrays), POINT, progress=False)
    assert any("The file has no goals" in remark for remark in made.remarks)


def test_goals_that_observations_lack_have_to_be_given() -> None:
    class Elsewhere(gym.Env[Any, Any]):
        observation_space = gym.spaces.Dict(
            dict.fromkeys(
                ("observation", "achieved_goal", "desired_goal"),
                gym.spaces.Box(-9, 9, (3,)),
            )
        )
        action_space = gym.spaces.Box(-2, 2, (1,))

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            names = ("observation", "achieved_goal", "desired_goal")
            return {name: self.np_random.uniform(size=3) for name in names}, {}

        def step(self, _: Any) -> Any:
            return self.reset()[0], 0.0, False, False, {}

    with pytest.raises(DatasetError, match=r"no part of its observation.*--achieved"):
        import_file(npz(rows()), Elsewhere(), progress=False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("maze2d-large-sparse-v1", "diffuser/maze2d-large-sparse-v1"),
        ("My data (2)", "diffuser/my-data-2-v0"),
        ("…", "diffuser/unnamed-v0"),
    ],
)
def test_the_id_is_made_of_the_files_name(name: str, expected: str) -> None:
    assert own_dataset_id(name) == expected


# --- what is wrong --------------------------------------------------------------------


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in rows().items() if key not in names}


def changed(**arrays: Any) -> dict[str, Any]:
    return rows() | arrays


def bad_row(name: str, value: float) -> dict[str, Any]:
    arrays = rows()
    arrays[name] = arrays[name].copy()
    arrays[name][6] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (without("actions"), r"no array 'actions'.*It has: obs.*--actions NAME"),
        (without("terminals", "timeouts"), "does not say where episodes end"),
        (changed(rewards=np.zeros(11)), "rewards has 11 rows.* 12"),
        (changed(observations=np.zeros((12, 5))), r"\[12, 5\].*needs \[rows, 3\]"),
        (changed(observations=np.zeros((12, 8, 8, 3))), "needs .rows, 3.*--env"),
        (changed(actions=np.float32(1)), r"actions has the shape \[\]"),
        (changed(actions=np.full((12, 1), "left")), "actions must hold numbers"),
        (changed(terminals=np.arange(12)), "terminals must be 0 or 1"),
        (
            bad_row("observations", np.nan),
            r"observations is .* in row 6: column 0 is nan\.",
        ),
        (bad_row("rewards", np.inf), r"rewards is not finite in row 6: inf\."),
        (changed(rewards=np.full(12, 1e39)), "row 0: 1e.39.* too large for single"),
        (bad_row("actions", 2.5), r"action of row 6 is \[2.5\].*scale or clip"),
        (changed(masks=np.zeros((12, 2))), r"masks need \[rows\]\. Remove or rename"),
        (changed(rewards=np.zeros((12, 2))), r"rewards need \[rows\]\. Name another"),
        (changed(rewards=np.zeros((3, 4))), r"need \[rows\]\. It seems to have an"),
        (changed(observations=np.zeros((4, 3, 3))), "an axis of episodes or environ"),
        (changed(rewards=np.full(12, np.inf, np.float16)), "not finite in row 0"),
        ({k: v[:0] for k, v in rows().items()}, "observations has no rows"),
        (changed(timeouts=np.ones(12)) | {"terminals": np.zeros(12)}, "no episode of"),
    ],
)
@pytest.mark.parametrize("write", [hdf5, npz])
def test_arrays_that_do_not_fit_are_named(
    write: Any, arrays: dict[str, Any], message: str
) -> None:
    if write is hdf5:
        arrays = {
            key: value.astype("S") if np.asarray(value).dtype.kind == "U" else value
            for key, value in arrays.items()
        }
    with pytest.raises(DatasetError, match=message):
        imported(write(arrays))
    assert not list(Path("datasets").glob("diffuser/*/"))  # no part of a dataset


def test_a_file_with_a_group_for_each_episode_is_to_be_joined() -> None:
    """As robomimic writes them; to name one group would import one episode."""
    groups = {
        f"data/demo_{number}/{name}": array[:4]
        for number in range(12)
        for name, array in {"obs/pos": np.zeros((4, 3)), **rows()}.items()
        if name in ("obs/pos", "actions")
    }
    told = "group of arrays for each episode: data/demo_0, data/demo_1 and so on. Join"
    with pytest.raises(DatasetError, match=told):
        imported(hdf5(groups))
    layers = {f"metadata/policy/fc{layer}/weight": np.zeros(3) for layer in range(3)}
    with pytest.raises(DatasetError, match="no array 'observations'"):
        imported(hdf5(layers | without("observations"), "layers.hdf5"))


def test_what_is_no_such_file_is_refused() -> None:
    with pytest.raises(DatasetNotFoundError, match=r"no file nowhere\.npz"):
        imported("nowhere.npz")
    Path("text.hdf5").write_text("observations, actions\n")
    with pytest.raises(DatasetError, match=r"neither HDF5 nor NumPy's .npz"):
        imported("text.hdf5")
    with pytest.raises(DatasetError, match="cannot be read"):
        imported(".")
    for name in (hdf5(rows()), npz(rows())):
        whole = Path(name).read_bytes()
        Path(name).write_bytes(whole[: len(whole) // 3])
        with pytest.raises(DatasetError, match="damaged"):
            imported(name)


def test_every_kind_of_damage_is_named() -> None:
    arrays: Any = rows(3000)
    np.savez_compressed("ends-early.npz", **arrays)
    damaged = bytearray(Path("ends-early.npz").read_bytes())
    size = damaged.index(b"PK\x01\x02") + 20  # of the packed observations
    damaged[size : size + 4] = (5).to_bytes(4, "little")
    Path("ends-early.npz").write_bytes(damaged)
    whole = Path(npz(arrays, "header.npz")).read_bytes()
    Path("header.npz").write_bytes(whole.replace(b"'shape': (3", b"'shape': ((", 1))
    for name in ("ends-early.npz", "header.npz"):
        with pytest.raises(DatasetError, match=f"{name} is damaged"):
            imported(name)


@pytest.mark.parametrize("write", [hdf5, npz])
@pytest.mark.parametrize("error", [RuntimeError, ValueError, OSError])
def test_an_error_of_the_environment_is_not_blamed_on_the_file(
    write: Any, error: type[Exception]
) -> None:
    class Broken(PointEnv):
        def reset(self, **_: Any) -> Any:
            raise error("the motor is off")

    with pytest.raises(error, match="the motor is off"):
        import_file(write(rows(12, size=4, actions=2)), Broken(), progress=False)


def test_a_wrong_bit_of_an_array_is_damage_of_the_file() -> None:
    file, arrays = Path("some-data-v3.npz"), rows()
    npz(arrays)
    content, numbers = file.read_bytes(), arrays["observations"].tobytes()
    file.write_bytes(content.replace(numbers, numbers[:-1] + b"?"))
    with pytest.raises(DatasetError, match=r"npz is damaged: .*CRC"):
        imported(str(file))


def test_pickled_arrays_are_not_opened() -> None:
    arrays = changed(actions=np.array([{"a": 1}] * 12, dtype=object))
    with pytest.raises(DatasetError, match=r"actions cannot be read.*numbers"):
        imported(npz(arrays))


def test_observations_outside_of_the_space_are_counted() -> None:
    rows_outside = changed(observations=np.full((12, 3), 1.0005, np.float32))
    rows_outside["observations"][2:5, 1] = -1.1
    made = import_file(npz(rows_outside), PENDULUM, progress=False)
    assert made.remarks[0].startswith("3 of 12 observations lie outside of the space")


def test_fewer_rows_are_compared_at_a_time_where_they_are_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With next observations alone, a file is compared with itself, too."""
    given = changed(observations=np.full((12, 3), 1.1, np.float32))
    del given["terminals"], given["timeouts"]
    given["next_observations"] = given["observations"].copy()
    given["next_observations"][4] = 0.0
    counts, read = list[int](), Array.rows

    def noted(array: Array, start: int, stop: int) -> np.ndarray:
        counts.append(stop - start)
        return read(array, start, stop)

    monkeypatch.setattr(Array, "rows", noted)
    monkeypatch.setattr("diffuser_policy.columns.layout.PIECE", 5 * 12)
    made = import_file(hdf5(given), PENDULUM, progress=False)
    assert "12 of 12 observations lie outside" in " ".join(made.remarks)
    assert counts[:9] == [5, 5, 5, 5, 1, 1, 5, 5, 2]
    assert made.num_episodes == 2


def test_whole_numbered_actions_are_whole() -> None:
    env: Any = gym.make(PENDULUM)
    env.action_space = gym.spaces.Box(0, 3, (1,), np.int64)
    whole = changed(actions=np.full((12, 1), 2.0))
    import_file(npz(whole), env, progress=False)
    whole["actions"][5] = 2.7
    with pytest.raises(DatasetError, match=r"row 5 is \[2\.7\].*whole numbers"):
        import_file(npz(whole), env, overwrite=True, progress=False)


def test_goals_have_an_effect_or_are_refused() -> None:
    names = ArrayNames(desired_goals="rewards")
    with pytest.raises(ConfigError, match=r"no goals.*\(--desired-goals\)"):
        imported(npz(rows()), names=names)


def test_one_import_at_a_time_writes_a_dataset_and_tidies_up() -> None:
    file = npz(rows())
    folder = Path("datasets/diffuser/some-data-v3")
    with (
        at_work("diffuser/some-data-v3"),
        pytest.raises(ConfigError, match="Another process is writing the dataset"),
    ):
        imported(file)
    dead = hidden_sibling(folder, "partial")
    pid = str(os.getpid())
    killed = dead.with_name(dead.name.replace(f".{pid}-", ".999999999-"))
    killed.mkdir()
    with pytest.raises(DatasetError, match="needs"):
        imported(npz(changed(observations=np.zeros((12, 5))), "some-data-v3.npz"))
    assert not list(folder.parent.iterdir())


def test_environments_and_ids_are_checked_first() -> None:
    file = npz(rows())
    with pytest.raises(UnknownNameError, match="Pendulum-v1"):
        imported(file, "Pendulm-v1")
    with pytest.raises(DatasetError, match="Discrete"):
        imported(file, "CartPole-v1")
    nested: Any = gym.make(PENDULUM)
    nested.observation_space = gym.spaces.Dict(joints=nested.observation_space)
    told = "observe one array, or a goal dictionary with observation, achieved_goal"
    with pytest.raises(DatasetError, match=told):
        import_file(file, nested, progress=False)
    nested.observation_space = gym.spaces.Tuple([gym.spaces.Box(-1, 1, (3,))])
    with pytest.raises(DatasetError, match=f"{told}.*FlattenObservation"):
        import_file(file, nested, progress=False)
    flat = gym.wrappers.FlattenObservation(nested)
    import_file(file, flat, dataset_id="test/flat-v0", progress=False)
    with pytest.raises(ConfigError, match="not a Minari id"):
        imported(file, dataset_id="nonsense")
    imported(file)
    with pytest.raises(DatasetError, match="--overwrite"):
        imported(file)


# --- the command ----------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_imports_and_its_data_can_be_trained_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arrays = rows(60)
    arrays["terminals"][:] = False
    arrays["done"] = arrays.pop("terminals")
    del arrays["rewards"]
    file = npz(arrays, "my-swings.npz")
    assert main(["import", file, "--env", PENDULUM, "--terminals", "done"]) == 0
    captured = capsys.readouterr()
    assert "Imported 2 episodes, 58 steps of 60 rows" in captured.out
    assert "The file has no rewards" in captured.out
    assert "train --dataset diffuser/my-swings-v0" in captured.out
    small = ["--num-steps", "2", "--batch-size", "2", "--window.horizon", "8"]
    small += ["--network.dim", "8"]
    own = ["--execution.executor", "actions", "--window.hindsight-goal", "none"]
    own += ["--output", "planner"]
    assert main(["train", "--dataset", "diffuser/my-swings-v0", *small, *own]) == 0
    assert main(["import", file, "--env", PENDULUM]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_report_names_what_was_made_up() -> None:
    made = import_file(npz(without("rewards", "timeouts")), PENDULUM, progress=False)
    assert isinstance(made, Imported)
    assert made.remarks == ("The file has no rewards: all are 0.",)
    collection = load_flat(made.dataset_id, progress=False).metadata["collection"]
    assert collection["remarks"] == list(made.remarks)
    assert collection["versions"] == versions(*RECORDERS)
    assert collection["file"] == "some-data-v3.npz"


def test_goals_are_found_where_all_episodes_start_alike() -> None:
    """The velocity is zero at first, like the place; only acting tells them apart."""

    class Pushed(gym.Env[Any, Any]):
        observation_space = gym.spaces.Dict(
            {
                "observation": gym.spaces.Box(-9, 9, (2,)),
                "achieved_goal": gym.spaces.Box(-9, 9, (1,)),
                "desired_goal": gym.spaces.Box(-9, 9, (1,)),
            }
        )
        action_space = gym.spaces.Box(-1, 1, (1,))

        def __init__(self) -> None:
            self.speed = self.place = 0.0

        def observed(self) -> Any:
            place = np.array([self.place], np.float32)
            return {
                "observation": np.array([self.speed, self.place], np.float32),
                "achieved_goal": place,
                "desired_goal": np.ones(1, np.float32),
            }

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            super().reset(seed=seed, options=options)
            self.speed = self.place = 0.0
            return self.observed(), {}

        def step(self, action: Any) -> Any:
            self.speed += float(action[0])
            self.place += 0.1 * self.speed
            return self.observed(), 0.0, False, False, {}

    made = import_file(npz(rows(size=2)), Pushed(), progress=False)
    flat = load_flat(made.dataset_id, progress=False)
    assert_rows(flat, "achieved_goal", flat.fields["observation"][:, 1:])
