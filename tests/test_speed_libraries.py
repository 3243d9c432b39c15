"""Other libraries beside this package: what is timed makes the same plans."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffuser_policy.config import NetworkConfig
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.sampler import Sampler
from diffuser_policy.speed import libraries
from diffuser_policy.speed.libraries import by_library
from diffuser_policy.testing import toy_config, toy_policy


def sampled(sampler: Sampler, columns: int) -> torch.Tensor:
    """Return two plans from known noise, with a first step that is given."""
    mask = torch.zeros(1, 16, columns, dtype=torch.bool)
    mask[:, 0] = True
    given = Inpainting(mask, torch.full((1, 16, columns), 0.25))
    source = [torch.Generator().manual_seed(0)]
    samples = sampler.sample(given, source, num_candidates=2)
    return samples.trajectories


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim", "num_sampling_steps": 3},
        {"sampler": "dpm", "num_sampling_steps": 4, "temperature": 0.5},
        {"sampler": "ddpm", "num_sampling_steps": None},
        {"sampler": "ddpm", "num_sampling_steps": 3},
        {
            "sampler": "ddpm",
            "num_sampling_steps": None,
            "temperature": 0.0,
            "num_candidates": 1,
        },
    ],
)
def test_every_library_makes_the_same_plans(settings: dict[str, Any]) -> None:
    network = NetworkConfig(
        dim=32,
        multipliers=(1, 2),
        num_denoising_steps=8,
        prediction_target="velocity",
    )
    policy = toy_policy(toy_config(network=network), **settings)
    columns = policy.planner.layout.transition_dim
    found = dict(by_library(policy.planner.sampler, columns, 16))
    if len(found) == 1:
        pytest.skip("needs diffusers, or the extra export")
    right, before = sampled(found.pop("this package"), columns), torch.get_rng_state()
    for name, sampler in found.items():
        error = (sampled(sampler, columns) - right).abs().max()
        assert error < 1e-4 * right.abs().max(), name
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda _: None)
    sampler = toy_policy().planner.sampler
    assert list(by_library(sampler, 6, 16)) == [("this package", sampler)]
