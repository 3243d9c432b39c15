"""What benchmark reports refuse: results that are damaged or do not belong together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from diffuser_policy.benchmark.report import load_study
from diffuser_policy.benchmark.report.study import mixed_versions
from diffuser_policy.errors import CheckpointError, ConfigError
from tests.benchmark_report_helpers import (
    MAZES,
    VERSIONS,
    cell_of,
    result_of,
    warnings_of,
    write_cell,
    write_result,
)

UMAZE = MAZES[0]
TEXT_AS_SCORE = {"return": 1.0, "score": "high"}


def test_versions_have_to_agree_unless_allowed(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql"))
    other = VERSIONS | {"torch": "2.6.0", "numpy": "2.0.0"}
    write_result(tmp_path, result_of(UMAZE, "bc", versions=other))
    with pytest.raises(
        ConfigError, match=r"torch 2\.6\.0 \(1 cell,.*torch 2\.9\.0.*--mixed-versions"
    ):
        load_study(tmp_path)
    study = load_study(tmp_path, mixed=True)
    where = warnings_of(study)["package in several versions"]
    assert where == "torch 2.6.0 (1 cell), 2.9.0 (1 cell)"


def test_a_package_that_one_cell_lacks_is_no_difference(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql"))
    fewer = {name: VERSIONS[name] for name in VERSIONS if name != "d3rlpy"}
    write_result(tmp_path, result_of(UMAZE, "diffuser", versions=fewer))
    assert mixed_versions(load_study(tmp_path).versions) == {}


@pytest.mark.parametrize("package", ["numpy", "pytorch-mppi", "stable-baselines3"])
def test_all_recorded_versions_have_to_agree(tmp_path: Path, package: str) -> None:
    for method, version in (("iql", "1.0"), ("bc", "2.0")):
        versions = VERSIONS | {package: version}
        write_result(tmp_path, result_of(UMAZE, method, episodes=2, versions=versions))
    with pytest.raises(ConfigError, match=rf"{package} 1\.0"):
        load_study(tmp_path)


def test_seeds_of_other_episodes_are_not_averaged(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql", 0, episodes=2))
    other = result_of(UMAZE, "iql", 1, episodes=2)
    del other["evaluations"][2]
    write_result(tmp_path, other)
    with pytest.raises(ConfigError, match="have different episodes"):
        load_study(tmp_path)


def test_seeds_of_other_settings_are_not_averaged(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql", 0))
    other = result_of(UMAZE, "iql", 1)
    other["cell"]["num_steps"] = 100
    write_result(tmp_path, other)
    with pytest.raises(ConfigError, match="num_steps: 50000 → 100"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("training", {"settings": {"width": 128}}, "width: 64 → 128"),
        ("training", {"num_parameters": 99}, "num_parameters: 12345 → 99"),
        ("dataset", {"checksum": 8}, "data: 7 → 8"),
    ],
)
def test_seeds_have_to_share_what_was_chosen_and_the_data(
    tmp_path: Path, part: str, changed: dict[str, Any], told: str
) -> None:
    first, other = (result_of(UMAZE, "iql", seed) for seed in (0, 1))
    for result in (first, other):
        result["dataset"]["checksum"] = 7
        write_result(tmp_path, result)
    load_study(tmp_path)
    other[part] |= changed
    write_result(tmp_path, other)
    with pytest.raises(ConfigError, match=told):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"planner": "b"}, "planner: a → b"),
        ({"policy": {"trained_steps": 200}}, "trained_steps: 100 → 200"),
        ({"policy": {"execution": {"interval": 8}}}, "execution.interval: 4 → 8"),
    ],
)
def test_seeds_have_to_share_the_planner_that_they_load(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    first, other = (result_of(UMAZE, "diffuser", seed) for seed in (0, 1))
    for result in (first, other):
        made = {"trained_steps": 100, "execution": {"interval": 4}}
        result |= {"planner": "a", "policy": made | {"seed": result["cell"]["seed"]}}
    first["policy"]["execution"]["guided"] = True  # an earlier version had no guides
    first["policy"]["class"], other["policy"]["class"] = "Policy", "RenamedPolicy"
    for result in (first, other):
        write_result(tmp_path, result)
    load_study(tmp_path)
    write_result(tmp_path, other | changed)
    with pytest.raises(ConfigError, match=told):
        load_study(tmp_path)
    del first["planner"]
    write_result(tmp_path, first)
    write_result(tmp_path, other)
    load_study(tmp_path)


def test_seeds_have_to_share_the_code_of_their_method(tmp_path: Path) -> None:
    first, other = (result_of(UMAZE, "mine.py:north", seed) for seed in (0, 1))
    write_result(tmp_path, first | {"code": "a"})
    write_result(tmp_path, other)  # of an earlier version
    load_study(tmp_path)
    write_result(tmp_path, other | {"code": "b"})
    with pytest.raises(ConfigError, match=r"\(code: a → b\)"):
        load_study(tmp_path)


def test_seeds_may_differ_by_what_an_earlier_version_did_not_record(
    tmp_path: Path,
) -> None:
    first, other = (result_of(UMAZE, "iql", seed) for seed in (0, 1))
    other["training"]["settings"]["return_range"] = None
    other["dataset"]["checksum"] = 7
    del first["training"]["num_parameters"]
    for result in (first, other):
        write_result(tmp_path, result)
    assert len(load_study(tmp_path).results) == 2


def test_problems_of_one_name_have_to_be_one(tmp_path: Path) -> None:
    write_result(tmp_path, result_of(UMAZE, "iql"))
    other = result_of(UMAZE, "bc")
    other["cell"]["problem"]["dataset"] = "somebody/else-v0"
    write_result(tmp_path, other)
    with pytest.raises(ConfigError, match=r"different problems.*somebody/else-v0"):
        load_study(tmp_path)


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match=f"holds no benchmark.*--output {folder}"):
            load_study(folder)
    (tmp_path / "notes.txt").touch()  # a benchmark is not begun among other files
    with pytest.raises(ConfigError, match=r"Name the folder of a benchmark\.$"):
        load_study(tmp_path)
    (tmp_path / "suite.json").touch()  # it ended before its first cell
    with pytest.raises(ConfigError, match=f"--output {tmp_path}"):
        load_study(tmp_path)
    (tmp_path / "suite.json").unlink()
    write_cell(tmp_path, cell_of(UMAZE, "iql", 0, suite="maze"))
    with pytest.raises(ConfigError, match=r"No cell of .* is finished"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"schema": 99}, "schema 99"),
        ({"evaluations": []}, "damaged: it has no episodes"),
        ({"evaluations": [{"episodes": [{"seed": 1}]}]}, "lacks its seed or return"),
        (
            {"evaluations": [{"seed": 1, "episodes": 2, "columns": {"return": [1.0]}}]},
            "columns are not of 2 episodes",
        ),
        (
            {"evaluations": [{"seed": 1, "episodes": 2, "columns": {"score": 1.0}}]},
            "lacks its seed or return",
        ),
        (
            {"evaluations": [{"seed": 1, "episodes": [1]}]},
            "lacks its seed or return",
        ),
        (
            {"evaluations": [{"episodes": [{"seed": 1, "return": float("nan")}]}]},
            "returns or scores that are not numbers",
        ),
        (
            {"evaluations": [{"seed": 1, "episodes": 1, "columns": TEXT_AS_SCORE}]},
            "returns or scores that are not numbers",
        ),
    ],
)
def test_damaged_results_are_named(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    place = write_result(tmp_path, result_of(UMAZE, "iql", episodes=2) | change)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_study(tmp_path)
    assert str(place / "result.json") in str(caught.value)


def test_a_copy_of_a_cell_is_no_second_training_seed(tmp_path: Path) -> None:
    place = write_result(tmp_path, result_of(UMAZE, "iql", episodes=2))
    copy = place.with_name("copy")
    shutil.copytree(place, copy)
    told = r"copy.result\.json is a result of maze2d-umaze--iql--seed-0.*delete it"
    with pytest.raises(CheckpointError, match=told):
        load_study(tmp_path)


def test_a_truncated_result_is_named(tmp_path: Path) -> None:
    place = write_result(tmp_path, result_of(UMAZE, "iql", episodes=2))
    path = place / "result.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_study(tmp_path)
