"""A planner whose samples are noise, in a world of six columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffuser_policy.columns.layout import TrajectoryLayout
from diffuser_policy.columns.normalizers import LimitsNormalizer
from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.sampler import Sampler, Samples, WarmStart
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.networks.time_to_goal import TimeToGoal
from diffuser_policy.planning.horizons import Horizons
from diffuser_policy.planning.planner import Planner

LAYOUT = TrajectoryLayout(
    action_dim=2,
    observation_dim=4,
    aliases={"position": (0, 1), "velocity": (2, 3), "goal": (0, 1)},
)
NORMALIZER = LimitsNormalizer(
    torch.tensor([0.0, 0, 5, 5, 0, 0]), torch.tensor([1.0, 1, 10, 10, 2, 2])
)


class WhiteNoise(Sampler):
    """Returns its noise with the conditions applied, and counts its calls."""

    def __init__(self) -> None:
        self.denoiser = Denoiser(nn.Identity(), NoiseSchedule(1))
        self.batches: list[tuple[int, int]] = []

    def sample(
        self,
        inpainting: Inpainting,
        generators: Any,
        *,
        num_candidates: int = 1,
        steering: Any = None,
        warm_start: WarmStart | None = None,
        step_noise: bool = True,
        keep_chain: bool = False,
    ) -> Samples:
        self.steering, self.warm_start = steering, warm_start
        rows, *shape = inpainting.values.shape
        self.batches.append((rows, shape[0]))
        self.step_noise = step_noise
        noise = [torch.randn(num_candidates, *shape, generator=g) for g in generators]
        chosen = inpainting.repeat(num_candidates).apply(torch.cat(noise))
        chosen = chosen.reshape(rows, num_candidates, *shape)
        return Samples(chosen, chosen[None] if keep_chain else None)


class Distance(TimeToGoal):
    """Ten env steps per normalized unit of distance."""

    def __init__(self) -> None:
        super().__init__(4, 2, width=1, max_steps=1)

    def forward(self, observations: Tensor, goals: Tensor) -> Tensor:
        off: Tensor = torch.linalg.vector_norm(observations[..., :2] - goals, dim=-1)
        return 10 * off


def make_horizons(**settings: Any) -> Horizons:
    """Return horizons of 12 to 48 env steps, in steps of 6."""
    defaults: dict[str, Any] = {
        "layout": LAYOUT,
        "shortest": 12,
        "stride": 3,
        "multiple": 2,
        "time_to_goal": Distance(),
    }
    longest = settings.pop("longest", 48)
    return Horizons(longest, normalizer=NORMALIZER, **{**defaults, **settings})


def make_planner(
    sampler: Sampler | None = None,
    *,
    horizon: dict[str, Any] | None = None,
    **settings: Any,
) -> Planner:
    """Return a planner; `horizon` has the settings of `make_horizons`."""
    layout = settings.setdefault("layout", LAYOUT)
    return Planner(
        WhiteNoise() if sampler is None else sampler,
        normalizer=NORMALIZER,
        horizons=make_horizons(layout=layout, **(horizon or {})),
        **settings,
    )


def observations(*positions: tuple[float, float]) -> np.ndarray:
    return np.array([[*position, 0.5, -0.5] for position in positions], np.float32)


def generators(num_rows: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + row) for row in range(num_rows)]


START = observations((0, 0), (1, 2), (3, 3))
GOALS = np.array([[10, 0], [1, 2], [300, 3]], np.float32)
