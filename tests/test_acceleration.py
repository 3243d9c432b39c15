"""Acceleration: other ways to the network's own numbers, and what if there is none."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuser_policy.diffusion.conditions import Inpainting
from diffuser_policy.diffusion.denoiser import Denoiser
from diffuser_policy.diffusion.schedule import NoiseSchedule
from diffuser_policy.errors import UnknownNameError
from diffuser_policy.networks import runtime
from diffuser_policy.networks.runtime import (
    RUNNERS,
    AccelerationWarning,
    CompiledRunner,
    FusedRunner,
    FusedUNet,
    GraphRunner,
    accelerate,
)
from diffuser_policy.networks.unet import TemporalUNet
from tests.network_helpers import random_network

EXACT: Any = {"rtol": 1e-9, "atol": 1e-9}  # float64: the sums in another order
ARCHITECTURES: tuple[dict[str, Any], ...] = (
    {"multipliers": (1,)},
    {"multipliers": (1, 2)},
    {"multipliers": (1, 2, 4), "kernel_size": 3},
    {"multipliers": (1, 4, 8), "dim": 16},
    {"multipliers": (1, 2), "attention": True, "transition_dim": 7},
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def plain(network: nn.Module, noisy: Tensor, i: int) -> Tensor:
    output: Tensor = network(noisy, torch.full((len(noisy),), i))
    return output


@pytest.fixture
def network() -> TemporalUNet:
    return random_network(dim=16, multipliers=(1, 2, 4)).double()


@pytest.mark.parametrize("settings", ARCHITECTURES)
@pytest.mark.parametrize("max_gathered", [0, 2**30])
@torch.no_grad()
def test_the_fused_form_gives_the_networks_numbers(
    settings: dict[str, Any], max_gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "MAX_GATHERED", max_gathered)
    network = random_network(**settings).double()
    fused = FusedUNet(network)
    for horizon in (2 * network.horizon_multiple, 5 * network.horizon_multiple):
        for size in (1, 3):
            noisy = randn(size, horizon, network.transition_dim, seed=size)
            for i in (0, 17):
                expected = plain(network, noisy, i)
                torch.testing.assert_close(fused(noisy, i), expected, **EXACT)


@pytest.mark.parametrize(
    ("dim", "multipliers", "horizon", "as_written"),
    [
        (16, (1,), 1, True),
        (24, (1,), 1, True),
        (16, (1,), 2, False),
        (16, (1, 2), 2, True),
        (16, (1, 1, 8, 8), 8, False),
        (8, (1,), 64, True),
        (8, (1, 1, 8, 8), 8, True),
    ],
)
@torch.no_grad()
def test_norms_of_few_numbers_or_one_channel_run_as_they_are_written(
    dim: int, multipliers: tuple[int, ...], horizon: int, as_written: bool
) -> None:
    network = random_network(dim=dim, multipliers=multipliers)
    runner, noisy = FusedRunner(network), randn(64, horizon, 4).float()
    given = runner(noisy, 3)
    assert torch.equal(given, plain(network, noisy, 3)) == as_written


@pytest.mark.parametrize("dim", [8, 16, 32])
@torch.no_grad()
def test_plans_whose_steps_nearly_agree_keep_their_digits(dim: int) -> None:
    network = random_network(dim=dim, kernel_size=1)
    noisy = (randn(4, 1, 4, seed=1) + 1e-3 * randn(4, 8, 4)).float()
    expected = plain(copy.deepcopy(network).double(), noisy.double(), 3)

    def off(output: Tensor) -> float:
        return float((output - expected).abs().max())

    assert off(FusedRunner(network)(noisy, 3)) < 5 * off(plain(network, noisy, 3))


def test_mish_is_mish_up_to_its_limits() -> None:
    """Up to half of float32's largest number, far beyond what exponentials hold."""
    x = torch.cat([torch.linspace(-120, 120, 2001), torch.tensor([-1.7e38, 1.7e38])])
    expected = nn.functional.mish(x.double()).float()
    torch.testing.assert_close(
        runtime.mish_of_negative(-x), expected, rtol=1e-6, atol=2e-6
    )


@torch.no_grad()
def test_changed_weights_are_seen(network: TemporalUNet) -> None:
    runner, noisy = FusedRunner(network), randn(2, 8, 4)
    before = runner(noisy, 3)
    weight = network.mid.first.conv_in.conv.weight

    def in_place() -> None:
        weight.mul_(1.5)

    def by_assignment() -> None:
        weight.data = weight * 1.5

    def from_a_file() -> None:
        doubled = {name: 2 * value for name, value in network.state_dict().items()}
        network.load_state_dict(doubled)

    def as_new_parameters() -> None:
        halved = {name: value / 2 for name, value in network.state_dict().items()}
        network.load_state_dict(halved, assign=True)

    def of_the_time_embedding() -> None:
        next(network.time_embedding.parameters()).add_(1.0)

    for change in (
        in_place,
        by_assignment,
        from_a_file,
        as_new_parameters,
        of_the_time_embedding,
    ):
        change()
        after = runner(noisy, 3)
        assert (after - before).abs().max() > 1e-6, change.__name__
        torch.testing.assert_close(after, plain(network, noisy, 3), **EXACT)
        before = after


@torch.no_grad()
def test_unchanged_weights_are_laid_out_once(
    network: TemporalUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Counted(FusedUNet):
        def __init__(self, network: TemporalUNet) -> None:
            made.append(network)
            super().__init__(network)

    monkeypatch.setattr("diffuser_policy.networks.runtime.FusedUNet", Counted)
    runner = FusedRunner(network)
    for i in range(4):
        runner(randn(2, 8, 4), i)
    assert len(made) == 1


def test_what_inference_mode_keeps_serves_outside_of_it(network: TemporalUNet) -> None:
    runner, noisy = FusedRunner(network), randn(2, 8, 4)
    with torch.inference_mode():
        inside = runner(noisy, 3)
    with torch.no_grad():
        torch.testing.assert_close(runner(noisy, 3), inside, rtol=0, atol=0)


@torch.inference_mode()
def test_weights_whose_changes_cannot_be_seen_are_not_kept() -> None:
    network = random_network(dim=16).double()  # made here, they count no versions
    runner, noisy = FusedRunner(network), randn(2, 8, 4)
    before = runner(noisy, 3)
    network.mid.first.conv_in.conv.weight.mul_(1.5)
    assert not torch.equal(runner(noisy, 3), before)


@pytest.mark.parametrize("acceleration", ["auto", "off", "fused"])
@torch.no_grad()
def test_any_module_can_be_run(acceleration: Any) -> None:
    class Doubling(nn.Module):
        def forward(self, noisy: Tensor, steps: Tensor) -> Tensor:
            return 2 * noisy + steps[:, None, None]

    noisy = randn(2, 8, 4)
    output = accelerate(Doubling(), acceleration)(noisy, 3)
    torch.testing.assert_close(output, 2 * noisy + 3)


@pytest.mark.parametrize("acceleration", ["auto", "fused"])
@torch.no_grad()
def test_a_network_with_a_forward_of_its_own_is_run_by_it(
    acceleration: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Doubled(TemporalUNet):
        def forward(self, trajectories: Tensor, i: Tensor) -> Tensor:
            return 2 * super().forward(trajectories, i)

    own, noisy = Doubled(4, dim=16, multipliers=(1, 2)).double(), randn(2, 8, 4)
    output = accelerate(own, acceleration)(noisy, 3)
    torch.testing.assert_close(output, plain(own, noisy, 3), rtol=0, atol=0)
    patched = random_network(dim=16).double()
    expected = 2 * plain(patched, noisy, 3)
    usual = patched.forward
    monkeypatch.setattr(patched, "forward", lambda noisy, i: 2 * usual(noisy, i))
    torch.testing.assert_close(accelerate(patched, acceleration)(noisy, 3), expected)


def test_an_unknown_acceleration_is_refused_by_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'compile'"):
        accelerate(random_network(dim=16), "compiled")  # type: ignore[arg-type]


@torch.no_grad()
def test_a_compiled_network_gives_the_networks_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quickly = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", quickly)
    network = random_network(multipliers=(1,)).double()
    runner = CompiledRunner(network)
    for size, horizon, i in ((2, 8, 3), (3, 4, 5)):
        noisy = randn(size, horizon, 4)
        expected = plain(network, noisy, i)
        torch.testing.assert_close(runner(noisy, i), expected, **EXACT)


@torch.no_grad()
def test_a_compiler_that_fails_is_named_once_and_planning_goes_on(
    network: TemporalUNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        def run(*_: Any) -> Any:
            raise RuntimeError("No working C++ compiler.\nA long story")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    runner, noisy = accelerate(network, "compile"), randn(2, 8, 4)
    with pytest.warns(AccelerationWarning, match=r"No working C\+\+ compiler\. Run"):
        first = runner(noisy, 3)
    torch.testing.assert_close(first, plain(network, noisy, 3), **EXACT)
    torch.testing.assert_close(runner(noisy, 3), first)  # and no second warning


@torch.no_grad()
def test_cuda_graphs_without_a_gpu_say_so(network: TemporalUNet) -> None:
    runner, noisy = accelerate(network, "cuda-graphs"), randn(2, 8, 4)
    with pytest.warns(AccelerationWarning, match="need a GPU, and .* on cpu"):
        output = runner(noisy, 3)
    torch.testing.assert_close(output, plain(network, noisy, 3), **EXACT)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.no_grad()
def test_recorded_kernels_give_the_networks_numbers(network: TemporalUNet) -> None:
    network = network.cuda()
    runner = GraphRunner(network)
    for size, i in ((2, 3), (3, 5), (2, 7)):
        noisy = randn(size, 8, 4).cuda()
        expected = plain(network, noisy, i)
        torch.testing.assert_close(runner(noisy, i), expected, **EXACT)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second GPU")
@torch.no_grad()
def test_kernels_are_recorded_on_a_gpu_that_is_not_the_current_one(
    network: TemporalUNet,
) -> None:
    network = network.to("cuda:1")
    runner = GraphRunner(network)
    for seed in (0, 1):
        noisy = randn(2, 8, 4, seed=seed).to("cuda:1")
        torch.testing.assert_close(runner(noisy, 3), plain(network, noisy, 3), **EXACT)


class TestDenoiser:
    """Where the acceleration is used, and where it must not be."""

    def denoiser(self, **settings: Any) -> Denoiser:
        network = random_network(dim=16).double().requires_grad_(False)
        return Denoiser(network, NoiseSchedule(20), clip=False, **settings)

    @pytest.mark.parametrize("acceleration", ["auto", "fused"])
    def test_it_gives_the_same_plans(self, acceleration: Any) -> None:
        denoiser, noisy = self.denoiser(), randn(2, 8, 4)
        with torch.inference_mode():
            expected = denoiser.accelerated("off")(noisy, 3)
            found = denoiser.accelerated(acceleration)(noisy, 3)
        assert not torch.equal(found, expected)  # it did run something else
        torch.testing.assert_close(found, expected, **EXACT)

    def test_gradients_flow_through_the_network_itself(self) -> None:
        denoiser = self.denoiser()
        noisy = randn(1, 4, 4).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: denoiser(x, 3), [noisy])

    def test_gradients_reach_the_weights(self) -> None:
        denoiser, noisy = self.denoiser(), randn(2, 8, 4)
        weights = list(denoiser.requires_grad_().parameters())
        output = denoiser(noisy, 3)
        found = torch.autograd.grad(output.square().sum(), weights)
        assert all(gradient.abs().max() > 0 for gradient in found)

    @pytest.mark.parametrize("acceleration", ["fused", "compile"])
    def test_copies_see_their_own_weights(
        self, acceleration: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def closure(network: nn.Module, **_: Any) -> Any:
            def run(noisy: Tensor, steps: Tensor) -> Any:
                return network(noisy, steps)  # copies of functions keep the network

            return run

        monkeypatch.setattr(torch, "compile", closure)
        denoiser, noisy = self.denoiser(acceleration=acceleration), randn(2, 8, 4)
        with torch.no_grad():
            before = denoiser(noisy, 3)
            twin = copy.deepcopy(denoiser)
            for parameter in denoiser.parameters():
                parameter.mul_(1.5)
            torch.testing.assert_close(twin(noisy, 3), before)
            assert (denoiser(noisy, 3) - before).abs().max() > 1e-6

    @pytest.mark.parametrize("own", ["loss", "output"])
    def test_steps_of_a_fused_optimizer_are_seen(self, own: str) -> None:
        """Such a step, which `Trainer` takes, changes weights and no version."""
        denoiser, noisy = self.denoiser().requires_grad_(), randn(2, 8, 4)
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=0.1, fused=True)
        given = Inpainting(torch.zeros(1, 8, 4, dtype=torch.bool), noisy)
        with torch.no_grad():
            before = denoiser(noisy, 3)
        for _ in range(2):
            if own == "loss":
                loss = denoiser.loss(noisy, given, torch.Generator().manual_seed(0))
            else:
                loss = denoiser(noisy, 3).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                after = denoiser(noisy, 3)
                expected = denoiser.accelerated("off")(noisy, 3)
            assert (after - before).abs().max() > 1e-3
            torch.testing.assert_close(after, expected, **EXACT)
            before = after

    @pytest.mark.parametrize("acceleration", ["compile", "cuda-graphs"])
    def test_what_has_no_effect_on_residual_networks_says_so(
        self, acceleration: Any
    ) -> None:
        denoiser = self.denoiser(residual=True)  # without a warning, as by default
        with pytest.warns(AccelerationWarning, match="no effect on a residual network"):
            assert denoiser.accelerated(acceleration).residual
        for quiet in ("auto", "off", "fused"):
            denoiser.accelerated(quiet)

    def test_a_training_in_another_thread_does_not_stop_a_plan(self) -> None:
        denoiser, noisy = self.denoiser(), randn(2, 8, 4)
        usual = accelerate(denoiser.network, "auto")

        class Interrupted:
            @property
            def network(self) -> nn.Module:
                denoiser._forget()
                return denoiser.network

            def __call__(self, noisy: Tensor, i: int) -> Tensor:
                return usual(noisy, i)

        denoiser._runner = Interrupted()  # type: ignore[assignment]
        with torch.no_grad():
            expected = denoiser.accelerated("off")(noisy, 3)
            torch.testing.assert_close(denoiser(noisy, 3), expected, **EXACT)

    def test_another_network_is_seen(self) -> None:
        denoiser, noisy = self.denoiser(), randn(2, 8, 4)
        with torch.no_grad():
            denoiser(noisy, 3)
            denoiser.network = random_network(dim=16, seed=1).double()
            expected = denoiser.accelerated("off")(noisy, 3)
            torch.testing.assert_close(denoiser(noisy, 3), expected, **EXACT)

    def test_it_holds_no_further_weights(self) -> None:
        denoiser = self.denoiser()
        names = set(denoiser.state_dict())
        with torch.no_grad():
            denoiser(randn(2, 8, 4), 3)
        assert set(denoiser.state_dict()) == names

    def test_accelerations_are_what_the_denoiser_takes(self) -> None:
        for acceleration in RUNNERS:
            assert self.denoiser(acceleration=acceleration)
        with pytest.raises(UnknownNameError, match="'fused'"):
            self.denoiser(acceleration="fuse")
