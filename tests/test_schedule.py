"""NoiseSchedule: against published values, and by its own equations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import ConfigError

# Values of the released code (float32): first two betas, last alpha bar, and the
# posterior variances of steps 1, 2 and N - 1.
RELEASED = {
    20: (0.0079927, 0.020075, 6.06e-6, (0.00575, 0.0152, 0.993)),
    64: (0.0011995, 0.0023849, 5.93e-7, (0.00080, 0.0018, 0.998)),
    256: (1.8883e-4, 2.6294e-4, 3.7e-8, (1.1e-4, 1.9e-4, 0.999)),
}


@pytest.mark.parametrize("num_steps", RELEASED)
def test_values_are_those_of_the_released_code(num_steps: int) -> None:
    first, second, last, variances = RELEASED[num_steps]
    schedule = NoiseSchedule(num_steps)
    assert schedule.betas[0].item() == pytest.approx(first, rel=1e-4)
    assert schedule.betas[1].item() == pytest.approx(second, rel=1e-4)
    assert schedule.betas[-1].item() == 0.999
    assert schedule.alpha_bars[-1].item() == pytest.approx(last, rel=1e-2)
    assert schedule.posterior(0, -1)[2] == 0.0
    for step, variance in zip((1, 2, num_steps - 1), variances, strict=True):
        found = schedule.posterior(step, step - 1)[2]
        assert found == pytest.approx(variance, rel=0.05)


@given(num_steps=st.integers(1, 1000))
def test_signal_falls_and_noise_rises(num_steps: int) -> None:
    schedule = NoiseSchedule(num_steps)
    steps = torch.arange(num_steps)
    signal, noise = schedule.signal(steps), schedule.noise(steps)
    assert (signal.diff() <= 0).all()
    assert (noise.diff() >= 0).all()
    assert (signal > 0).all()
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(num_steps))


@given(num_steps=st.integers(2, 300), data=st.data())
def test_the_posterior_composes_with_the_forward_process(
    num_steps: int, data: st.DataObject
) -> None:
    """Averaged over x_i given x_0, the posterior has the moments of q(x_j | x_0)."""
    schedule = NoiseSchedule(num_steps)
    i = data.draw(st.integers(0, num_steps - 1))
    j = data.draw(st.integers(-1, i - 1))
    of_clean, of_noisy, variance = schedule.posterior(i, j)
    here, there = schedule.alpha_bar(i), schedule.alpha_bar(j)
    mean = of_clean + of_noisy * math.sqrt(here)
    assert mean == pytest.approx(math.sqrt(there), rel=1e-9)
    total = of_noisy**2 * (1 - here) + variance
    assert total == pytest.approx(1 - there, abs=1e-12, rel=1e-9)


def test_scales_are_float32_in_the_shape_of_the_steps() -> None:
    schedule = NoiseSchedule(8)
    steps = torch.tensor([[0, 7], [3, 3]])
    assert schedule.signal(steps).shape == (2, 2)
    assert schedule.signal(steps).dtype == torch.float32
    assert schedule.noise(steps)[1, 0] == schedule.noise(torch.tensor(3))


def test_a_schedule_needs_a_step() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        NoiseSchedule(0)
