"""Settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Before anything is imported: child processes inherit these.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny networks; threads only get in the way
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "suite",
    deadline=None,  # no test depends on the clock
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    needing = [item for item in items if item.get_closest_marker("cuda")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the suite, child processes included, off the user's datasets and caches."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("DIFFUSER_POLICY_CACHE", "MINARI_DATASETS_PATH", "HF_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        patch.setattr(os, "fsync", lambda _: None)  # slow, and no test cuts the power
        yield


@pytest.fixture(autouse=True, scope="session")
def _plain_terminal() -> Iterator[None]:
    """Print the same in every terminal and on servers, child processes included."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "LINES"):
            patch.delenv(variable, raising=False)
        patch.setenv("COLUMNS", "80")
        yield


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the datasets of one test, which also has its own cache."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setenv("DIFFUSER_POLICY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "datasets"


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a planner of the test environment, with random weights."""
    from tests.point_env import save_planner

    return save_planner(tmp_path_factory.mktemp("planner"))
