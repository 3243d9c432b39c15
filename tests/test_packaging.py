"""What is shipped, and that the configuration tells the truth about the repository."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import diffuser_envs
import diffuser_policy

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = {
    "PIL",
    "accelerate",
    "d3rlpy",
    "diffusers",
    "gym",
    "gymnasium_robotics",
    "h5py",
    "huggingface_hub",
    "matplotlib",
    "minari",
    "mujoco",
    "onnx",
    "onnxruntime",
    "pandas",
    "pybullet",
    "pybullet_data",
    "pytorch_mppi",
    "ray",
    "sklearn",
    "stable_baselines3",
    "submitit",
    "tensorboard",
}


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    """The project's configuration."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the top-level modules it has loaded."""
    report = (
        "import sys, json; print(json.dumps([m.split('.')[0] for m in sys.modules]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_wheel_holds_exactly_the_two_packages(tmp_path: Path) -> None:
    """The wheel installs diffuser_policy and diffuser_envs and no other name."""
    code = f"from hatchling.build import build_wheel; build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert {n for n in top if not n.endswith(".dist-info")} == {
        "diffuser_envs",
        "diffuser_policy",
    }
    assert "diffuser_policy/py.typed" in names
    assert "diffuser_envs/py.typed" in names
    assert "diffuser_policy/benchmark/report/templates/report.html.j2" in names
    assert not [name for name in names if "__pycache__" in name]


def test_the_source_distribution_holds_what_its_tests_read(
    pyproject: dict[str, Any],
) -> None:
    """Hatchling adds `pyproject.toml` by itself."""
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")]
    read = {*re.findall(r'ROOT / "([\w.-]+)', "".join(tests))} - {"pyproject.toml"}
    assert {"Makefile", ".ci", "examples"} <= read
    included = pyproject["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert {f"/{name}" for name in read} <= {*included}


@pytest.mark.parametrize("folder", ["envs", "tests", "examples"])
def test_source_roots_are_no_packages(folder: str) -> None:
    """A top-level module called envs, tests or examples would collide with others'."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", [diffuser_policy, diffuser_envs])
def test_public_names_resolve_and_are_documented(package: Any) -> None:
    """Each name of __all__ exists, once, in order, listed by dir, with a docstring."""
    if package is diffuser_envs:
        pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
    names = package.__all__
    assert len(set(names)) == len(names)
    assert set(names) <= set(dir(package))
    for name in names:
        value = getattr(package, name)
        assert not callable(value) or value.__doc__, name


def test_type_checkers_see_the_public_names() -> None:
    """The imports for type checkers and the lazy table name the same things."""
    text = Path(diffuser_policy.__file__).read_text(encoding="utf-8")
    assert set(re.findall(r"\b(\w+) as \1\b", text)) == set(diffuser_policy.__all__)
    for name, module in diffuser_policy._MODULES.items():
        source = importlib.import_module(f"diffuser_policy.{module}")
        assert getattr(source, name) is getattr(diffuser_policy, name)


def test_a_misspelt_public_name_is_an_attribute_error() -> None:
    """Laziness does not change what Python says about a missing name."""
    with pytest.raises(AttributeError, match="has no attribute 'Polcy'"):
        diffuser_policy.Polcy  # noqa: B018  # the access is the test


def test_importing_the_planner_loads_neither_torch_nor_extras() -> None:
    """`import diffuser_policy` answers at once."""
    loaded = modules_after("import diffuser_policy")
    assert not loaded & (EXTRAS | {"torch", "gymnasium", "numpy", "diffuser_envs"})


def test_reports_are_made_without_torch() -> None:
    assert "torch" not in modules_after("import diffuser_policy.benchmark.report")


def test_using_every_public_name_and_finding_every_method_loads_no_extra() -> None:
    """The core needs the core's dependencies only, and tables the methods' labels."""
    code = (
        "import sys\n"
        "from diffuser_policy import *\n"
        "assert 'diffuser_envs' not in sys.modules\n"
        "from diffuser_policy.benchmark.methods import METHODS, find_method\n"
        "assert {'diffuser', 'iql', 'mppi-learned', 'sac-her'} <= {*METHODS.names()}\n"
        "for name in METHODS.names(): find_method(name)"
    )
    loaded = modules_after(code)
    assert "torch" in loaded
    assert not loaded & EXTRAS


def test_importing_the_environments_loads_neither_torch_nor_a_simulator() -> None:
    """Registration is by name; the simulator comes with the first environment."""
    loaded = modules_after("import diffuser_envs")
    assert not loaded & (EXTRAS | {"torch", "diffuser_policy"})


def test_configured_paths_exist(pyproject: dict[str, Any]) -> None:
    """A path in the configuration that points nowhere checks nothing."""
    tool = pyproject["tool"]
    build = tool["hatch"]["build"]["targets"]
    paths = [
        *build["wheel"]["packages"],
        *(path.removeprefix("/") for path in build["sdist"]["include"]),
        *tool["ruff"]["src"],
        *tool["mypy"]["files"],
        *tool["pytest"]["ini_options"]["testpaths"],
        *tool["pytest"]["ini_options"]["pythonpath"],
    ]
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_layer_of_the_contract_exists(pyproject: dict[str, Any]) -> None:
    """Each module is in the layer contract, and each layer is a module."""
    (contract,) = (
        contract
        for contract in pyproject["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    layers = {name for line in contract["layers"] for name in re.findall(r"\w+", line)}
    package = ROOT / "diffuser_policy"
    modules = {path.stem for path in package.glob("*.py") if path.stem[0] != "_"}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert layers == modules


def test_lower_bounds_are_the_tested_ones(pyproject: dict[str, Any]) -> None:
    """The suite runs on exactly the oldest versions that pyproject.toml admits."""
    text = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", text, re.MULTILINE))
    extras = dict(pyproject["project"]["optional-dependencies"])
    del extras["all"], extras["dev"], extras["docs"]
    groups = [pyproject["project"]["dependencies"], *extras.values()]
    lines = [line for group in groups for line in group]
    requirements = [Requirement(line) for line in lines]
    bounds = {
        requirement.name: Version(specifier.version)
        for requirement in requirements
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    del bounds["torch"]  # its build is the user's choice: TORCH in the Makefile
    assert {name: Version(pinned[name]) for name in bounds} == bounds


def test_one_version_of_ruff() -> None:
    """The linter is pinned once, and that version is the one installed."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (pin,) = re.findall(r'"ruff==([\d.]+)"', text)
    assert version("ruff") == pin
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert "rev:" not in hooks
    assert "ruff==" not in hooks


def test_version_is_one_literal_and_in_the_changelog(pyproject: dict[str, Any]) -> None:
    """Metadata, `__version__` and the changelog agree."""
    literal = pyproject["project"]["version"]
    assert version("diffuser-policy") == literal == diffuser_policy.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{literal}]" in changelog


@pytest.mark.parametrize(
    ("group", "member"), [("demonstrators", "maze-waypoint"), ("methods", "td3-bc")]
)
def test_entry_points_load(pyproject: dict[str, Any], group: str, member: str) -> None:
    """Each demonstrator and method that we announce can be imported."""
    announced = pyproject["project"]["entry-points"][f"diffuser_policy.{group}"]
    points = entry_points(group=f"diffuser_policy.{group}")
    assert member in announced
    assert set(announced) <= points.names
    for point in points:
        assert callable(point.load())


def test_what_would_downgrade_everybody_is_asked_for_by_name(
    pyproject: dict[str, Any],
) -> None:
    """d3rlpy wants an old gymnasium, ray much space, ogbench an old Python."""
    extras = pyproject["project"]["optional-dependencies"]
    (everything,) = (Requirement(line) for line in extras["all"])
    assert everything.extras == extras.keys() - {
        "all",
        "dev",
        "docs",
        "baselines",
        "ogbench",
        "ray",
    }
    assert not {"d3rlpy", "ogbench", "ray"} & {
        Requirement(line).name for line in extras["dev"]
    }
