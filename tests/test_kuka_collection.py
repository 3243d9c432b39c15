"""`diffuser-policy collect` on block stacking, from command to planning data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffuser_envs.kuka.arm import JOINT_HIGH, JOINT_LOW
from diffuser_policy.config import CollectSettings
from diffuser_policy.data import demonstrators
from diffuser_policy.data.collection import collect, protocol_of
from diffuser_policy.data.minari import load_flat, recorded_facts
from diffuser_policy.envs import make_env
from diffuser_policy.errors import ConfigError
from tests.data_helpers import assert_same, record

pybullet = pytest.importorskip("pybullet", reason="needs the extra 'kuka'")
minari = pytest.importorskip("minari")

pytestmark = pytest.mark.usefixtures("datasets")

DATASET = "diffuser/kuka-stack-v1"
TOWERS = CollectSettings(
    env_id="diffuser_envs/KukaStack-Unconditional-v1",
    demonstrator="diffuser_envs.kuka.demonstrator:StackDemonstrator",
    num_episodes=12,
    num_workers=1,
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrators, "VERIFIED_EPISODES", 2)


def test_towers_become_a_dataset_that_names_its_columns() -> None:
    folder = collect(TOWERS, progress=False)
    facts = recorded_facts(folder)["collection"]
    assert facts["generator"] == "kinematic"
    assert facts["verified"] == {"episodes": 2, "confirmed": 2}
    assert facts["failures"] == 0
    flat = load_flat(DATASET)
    assert len(flat.run_starts) == 13
    assert flat.fields["observation"].shape[1] == 39
    columns = flat.metadata["observation_columns"]
    assert columns["joints"] == list(range(7))
    assert columns["block_3"] == [31, 32, 33]
    assert columns["flag_0"] == [14]
    np.testing.assert_allclose(flat.metadata["action_low"][:7], JOINT_LOW, rtol=1e-6)
    np.testing.assert_allclose(flat.metadata["action_high"][:7], JOINT_HIGH, rtol=1e-6)
    ends = flat.run_starts[1:] - 1
    assert (flat.fields["reward"][ends] == 1.0).all()
    np.testing.assert_array_equal(
        flat.fields["action"][: ends[0], :7],
        flat.fields["observation"][1 : ends[0] + 1, :7],
    )


def test_as_many_towers_are_usual_as_the_documentation_says() -> None:
    page = Path(__file__).parents[1] / "docs" / "block_stacking.md"
    assert f"collect {TOWERS.env_id}     # 10,000 towers" in page.read_text("utf-8")
    settings, env = replace(TOWERS, num_episodes=None), make_env(TOWERS.env_id)
    protocol = protocol_of(settings, str(TOWERS.demonstrator), env)
    assert (protocol.total, protocol.unit) == (10_000, "episode")
    env.close()


def test_the_number_of_workers_changes_nothing() -> None:
    alone = record(TOWERS)
    assert_same(record(replace(TOWERS, num_workers=2, dataset_id="test/two-v0")), alone)


def test_towers_are_recorded_in_physics_too() -> None:
    settings = replace(
        TOWERS,
        num_episodes=2,
        generator="physics",
        demonstrator_options={"rebuild_share": 0.0, "hold_steps": 5},
    )
    facts = recorded_facts(collect(settings, progress=False))["collection"]
    assert facts["generator"] == "physics"
    assert facts["options"]["hold_steps"] == 5
    assert facts["verified"] is None
    rows = load_flat(DATASET).fields["observation"]
    resting = rows[:, 9::8]  # blocks sag a little in physics: nothing is exact there
    assert np.abs(resting.min() - 0.03) > 1e-6


def test_unknown_options_are_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no option 'clearence'.*clearance_low"):
        collect(replace(TOWERS, demonstrator_options={"clearence": 0.1}))
