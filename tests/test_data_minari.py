"""Minari datasets: reading and writing them, and damaged ones."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from diffuser_policy.data.demonstrators import DEMONSTRATORS
from diffuser_policy.data.flat import flatten
from diffuser_policy.data.minari import (
    _any_episodes,
    at_work,
    load_flat,
    local_dataset_ids,
    read_minari,
    write_minari,
)
from diffuser_policy.errors import (
    ConfigError,
    DatasetError,
    DatasetNotFoundError,
    StorageError,
)
from diffuser_policy.observations import ObservationColumns
from diffuser_policy.plugins import Plugin
from diffuser_policy.training.derive import space_spec
from tests.data_helpers import (
    DATASET,
    SpacesOnly,
    cut_stream,
    data_folder,
    make_episode,
    write,
)

pytestmark = pytest.mark.usefixtures("datasets")


def edit_metadata(folder: Path, **changes: object) -> None:
    path = folder / "metadata.json"
    facts = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))


def test_a_goal_dataset_is_read_as_it_was_written() -> None:
    episodes, _ = cut_stream([40, 30, 25])
    write(episodes)
    flat, direct = load_flat(DATASET), flatten(episodes, num_rows=95)
    assert set(flat.fields) == set(direct.fields)
    for name, array in direct.fields.items():
        np.testing.assert_array_equal(flat.fields[name], array, err_msg=name)
    np.testing.assert_array_equal(flat.run_starts, direct.run_starts)
    assert flat.metadata["dataset_id"] == DATASET
    assert flat.metadata["env_id"] == "test/Nowhere-v0"
    assert flat.metadata["action_low"] == [-1.0, -1.0]
    assert flat.metadata["action_high"] == [1.0, 1.0]
    assert flat.metadata["observation_columns"] == {"position": [0, 1]}
    assert flat.metadata["collection"]["policy"] == "test"
    assert flat.metadata["minari_version"]


def test_a_box_dataset_is_read_as_it_was_written() -> None:
    states = np.random.default_rng(0).normal(size=(31, 4))
    write([make_episode(states)], SpacesOnly(spaces.Box(-9, 9, (4,), np.float32)))
    flat = load_flat(DATASET)
    assert not flat.has_goals
    np.testing.assert_array_equal(
        flat.fields["observation"], states[:-1].astype(np.float32)
    )


def test_metadata_of_others_become_json_data(tmp_path: Path) -> None:
    """Minari writes infinite bounds and whatever else it gets; JSON has no NaN."""
    space = spaces.Box(-np.inf, np.inf, (2,))
    write_minari(
        DATASET,
        cut_stream([4])[0],
        env=SpacesOnly(action_space=space),
        collection={"policy": "theirs", "gain": float("nan")},
    )
    for flat in (load_flat(DATASET), load_flat(DATASET)):  # read, and cached
        assert flat.metadata["action_low"] == [None, None]
        assert flat.metadata["collection"]["gain"] is None
    [meta] = tmp_path.rglob("meta.json")
    json.loads(meta.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    with pytest.raises(DatasetError, match="bounded Box of actions"):
        space_spec(flat)


def test_simulators_are_requirements(tmp_path: Path) -> None:
    write_minari(
        DATASET,
        cut_stream([4])[0],
        env=SpacesOnly(),
        collection={"versions": {"numpy": "2.0", "ogbench": "1.1", "mujoco": "3.0"}},
    )
    facts = json.loads((data_folder(tmp_path) / "metadata.json").read_text("utf-8"))
    assert facts["requirements"] == ["ogbench==1.1", "mujoco==3.0"]


def test_minari_reads_the_same(tmp_path: Path) -> None:
    minari = pytest.importorskip("minari")
    from minari.namespace import list_local_namespaces

    episodes, _ = cut_stream([40, 30, 25])
    write(episodes)
    dataset = minari.load_dataset(DATASET)
    assert (dataset.total_steps, dataset.total_episodes) == (95, 3)
    assert set(list_local_namespaces()) == {"test", "test/mazes"}
    assert list(minari.list_local_datasets()) == [DATASET] == local_dataset_ids()
    columns = ObservationColumns.usual(4, 2)
    slow = flatten(_any_episodes(data_folder(tmp_path), columns), num_rows=95)
    for name, array in load_flat(DATASET).fields.items():
        np.testing.assert_array_equal(slow.fields[name], array)


def test_other_formats_are_read_through_minari(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    write(cut_stream([4, 3])[0])
    stored = minari.MinariDataset(data_folder(tmp_path))
    edit_metadata(data_folder(tmp_path), data_format="arrow")
    monkeypatch.setattr(minari, "MinariDataset", lambda _: stored)
    assert read_minari(data_folder(tmp_path)).num_rows == 7


def test_arrow_files_say_what_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import minari

    def without_pyarrow(folder: Path) -> None:
        raise ImportError(f"pyarrow is not installed, {folder} cannot be read")

    write(cut_stream([4, 3])[0])
    edit_metadata(data_folder(tmp_path), data_format="arrow")
    monkeypatch.setattr(minari, "MinariDataset", without_pyarrow)
    with pytest.raises(DatasetError, match=r'pip install "minari\[arrow\]"'):
        read_minari(data_folder(tmp_path))


def test_the_step_limit_and_the_environment_do_not_matter(tmp_path: Path) -> None:
    write(cut_stream([4, 3])[0])
    spec = json.loads((data_folder(tmp_path) / "metadata.json").read_text())["env_spec"]
    limit = {**json.loads(spec), "max_episode_steps": 1000000.0}
    edit_metadata(data_folder(tmp_path), env_spec=json.dumps(limit))
    assert load_flat(DATASET).num_rows == 7


def test_spaces_missing_from_the_metadata_are_read_off_the_file(tmp_path: Path) -> None:
    write(cut_stream([4, 3])[0])
    edit_metadata(data_folder(tmp_path), observation_space=None, action_space=None)
    assert load_flat(DATASET).has_goals


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            SpacesOnly(action_space=spaces.Discrete(3)),
            "action is a Discrete space.*no discrete actions",
        ),
        (
            SpacesOnly(spaces.Box(0, 255, (48, 48, 3), np.uint8)),
            r"observation is an image.*\[48, 48, 3\].*TransformObservation",
        ),
        (
            SpacesOnly(
                spaces.Dict({"mission": spaces.Text(9), "at": spaces.Box(0, 1)})
            ),
            r"mission is a Text space.*leave it out.*FilterObservation",
        ),
        (
            SpacesOnly(spaces.Tuple([spaces.Box(0, 1), spaces.MultiBinary(3)])),
            r"1 is a MultiBinary space.*FlattenObservation",
        ),
    ],
    ids=["discrete", "image", "text", "binary"],
)
def test_unsupported_spaces_are_refused(
    env: SpacesOnly, message: str, tmp_path: Path
) -> None:
    from minari.serialization import serialize_space

    write(cut_stream([4])[0])
    edit_metadata(
        data_folder(tmp_path),
        observation_space=serialize_space(env.observation_space),
        action_space=serialize_space(env.action_space),
    )
    with pytest.raises(DatasetError, match=message):
        load_flat(DATASET)


@pytest.mark.parametrize(
    ("dataset_id", "command"),
    [
        ("diffuser/pendulum-v1", "collect Pendulum-v1`"),
        ("diffuser/pendulum-wild-v1", "collect Pendulum-v1 --generator wild`"),
        ("diffuser/no-such-thing-v0", "collect ENV_ID`"),
        (
            "diffuser/hopper-medium-replay-v1",
            "collect Hopper-v5 --demonstrator hopper-medium-replay`",
        ),
        ("diffuser/hopper-medium-replay-v7", "collect ENV_ID`"),
        (
            "diffuser/kuka-stack-v1",
            "KukaStack-Unconditional-v1 --demonstrator kuka-stack --generator kinema",
        ),
        ("diffuser/antigravity/fly-v0", "collect ENV_ID`"),
        ("antigravity/human-v2", "collect ENV_ID`, download an official"),
    ],
)
def test_a_missing_dataset_says_how_to_record_it(dataset_id: str, command: str) -> None:
    with pytest.raises(DatasetNotFoundError) as caught:
        load_flat(dataset_id)
    assert "`diffuser-policy collect " in str(caught.value)
    assert command in str(caught.value)
    assert "antigravity" not in sys.modules  # a name imports no module


def test_a_generator_declares_its_dataset_under_any_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Maker:
        dataset_id = "me/my-task-v1"
        env_id = "me/MyTask-v1"

    monkeypatch.setattr(Maker, "generators", {"physics": Maker}, raising=False)
    plugin = Plugin(name="my-task", origin="me", address="me:Maker", target=Maker)
    monkeypatch.setattr(DEMONSTRATORS, "entries", lambda: [(plugin, None)])
    command = r"collect me/MyTask-v1 --demonstrator my-task`, or set"
    with pytest.raises(DatasetNotFoundError, match=command):
        load_flat("me/my-task-v1")


def test_a_missing_dataset_says_what_to_do(tmp_path: Path) -> None:
    write(cut_stream([4])[0])
    with pytest.raises(DatasetNotFoundError) as caught:
        load_flat("test/mazes/tinny-v2")
    text = str(caught.value)
    assert "'test/mazes/tinny-v2'" in text
    assert str(tmp_path / "datasets") in text
    assert f"Did you mean '{DATASET}'?" in text
    assert "diffuser-policy collect" in text
    assert "minari download test/mazes/tinny-v2" in text
    assert isinstance(caught.value, FileNotFoundError)


def test_a_file_in_place_of_a_dataset_is_to_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my hopper.hdf5").touch()
    command = "diffuser-policy import 'my hopper.hdf5' --env ENV_ID"
    with pytest.raises(DatasetNotFoundError, match=f"is a file.*`{command}`"):
        load_flat("my hopper.hdf5")
    with pytest.raises(DatasetNotFoundError) as caught:  # there is no such id
        load_flat("my hoper.hdf5")
    assert "minari download" not in str(caught.value)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    episodes, _ = cut_stream([4, 3])
    episodes[1].observations["observation"][1, 2] = np.nan
    write(episodes)
    with pytest.raises(DatasetError, match=rf"{DATASET}: observation .* row 5"):
        load_flat(DATASET)
    assert not [*(tmp_path / "cache").rglob("*.npy")]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write(cut_stream([400, 300])[0])
    path = data_folder(tmp_path) / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match=r"main_data.hdf5 cannot be read"):
        load_flat(DATASET)


def test_a_missing_episode_is_named(tmp_path: Path) -> None:
    import h5py

    write(cut_stream([4, 3])[0])
    with h5py.File(data_folder(tmp_path) / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
    with pytest.raises(DatasetError, match=r"episode 1, cannot be read"):
        load_flat(DATASET)


def test_pictures_in_place_of_numbers_are_named(tmp_path: Path) -> None:
    import h5py

    write(cut_stream([4])[0])
    with h5py.File(data_folder(tmp_path) / "main_data.hdf5", "a") as file:
        del file["episode_0/actions"]
        file["episode_0"].create_dataset("actions", data=[b"jpeg", b"jpeg", b"jpeg"])
    with pytest.raises(DatasetError, match=r"actions holds .*bytes as pictures"):
        load_flat(DATASET)


def test_damaged_metadata_are_refused(tmp_path: Path) -> None:
    write(cut_stream([4])[0])
    (data_folder(tmp_path) / "metadata.json").write_text("{")
    with pytest.raises(DatasetError, match=r"metadata.json cannot be read"):
        load_flat(DATASET)


@pytest.mark.parametrize(
    "damage",
    [
        {"env_spec": "garbage"},
        {"env_spec": "[1]"},
        {"env_spec": 5},
        {"dataset_id": None},
        {"collection": [1]},
        {"collection": "x"},
        {"collection": {"observation_columns": [1]}},
        {"observation_space": "[]"},
        {"observation_space": "{}"},
        {"observation_space": '{"type": "Tuple", "subspaces": [1]}'},
        {"observation_space": '{"type": "Dict", "subspaces": 1}'},
        {"observation_space": '{"type": "Box", "shape": 3}'},
        {"observation_space": '{"type": "Box", "shape": ["x"]}'},
        {"action_space": '"x"'},
        {"action_space": "{}"},
        {"action_space": '{"type": "Box", "low": "x"}'},
        {"total_steps": math.inf},
    ],
    ids=str,
)
def test_metadata_of_another_form_are_refused(
    damage: dict[str, Any], tmp_path: Path
) -> None:
    write(cut_stream([4])[0])
    path = data_folder(tmp_path) / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(DatasetError, match=r"metadata.json cannot be read.*again"):
        load_flat(DATASET)


def test_a_dataset_without_its_id_is_refused(tmp_path: Path) -> None:
    write(cut_stream([4])[0])
    path = data_folder(tmp_path) / "metadata.json"
    facts = json.loads(path.read_text())
    del facts["dataset_id"]
    path.write_text(json.dumps(facts))
    with pytest.raises(DatasetError, match=r"metadata.json cannot be read.*dataset_id"):
        load_flat(DATASET)


# --- writing --------------------------------------------------------------------


def test_a_dataset_is_never_replaced_unasked() -> None:
    write(cut_stream([4])[0])
    with pytest.raises(DatasetError, match="already exists"):
        write(cut_stream([9])[0])
    assert load_flat(DATASET).num_rows == 4


def test_other_files_in_the_folder_of_a_dataset_are_never_replaced(
    tmp_path: Path,
) -> None:
    episodes, folder = cut_stream([4])[0], data_folder(tmp_path).parent
    write(episodes)
    (folder / "thesis.tex").write_text("precious")
    replacing: dict[str, Any] = {
        "env": SpacesOnly(),
        "collection": {},
        "overwrite": True,
    }
    with pytest.raises(DatasetError, match=r"other files: thesis\.tex"):
        write_minari(DATASET, episodes, **replacing)
    with (
        pytest.raises(DatasetError, match="Move them"),
        at_work(DATASET, overwrite=True),
    ):
        pass
    assert (folder / "thesis.tex").read_text() == "precious"
    (folder / "thesis.tex").unlink()
    write_minari(DATASET, cut_stream([9])[0], **replacing)
    assert load_flat(DATASET).num_rows == 9


@pytest.mark.parametrize(
    "dataset_id", ["noversion", "a/b-v0", "x y-v0", "../up-v0", ""]
)
def test_malformed_ids_are_refused(dataset_id: str) -> None:
    with pytest.raises(ConfigError, match="not a Minari id"):
        write_minari(dataset_id, [], env=SpacesOnly(), collection={})


def test_a_full_disk_leaves_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    free = iter([2**30, 2**10])  # room for the first episode only
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    with pytest.raises(StorageError, match="No space left"):
        write_minari(DATASET, cut_stream([4, 3])[0], env=SpacesOnly(), collection={})
    assert local_dataset_ids() == []
    files = {p.name for p in (tmp_path / "datasets").rglob("*") if p.is_file()}
    assert files <= {"namespace_metadata.json"}  # which belongs to no dataset
