"""The training loop: draw windows, descend, average, save, resume.

Output folder of a run:

    config.json, model.safetensors, README.md   the planner so far (averaged weights)
    training/step-00012000/                     resumable checkpoints
    training/settings.json                      settings, data, number of processes;
                                                a resumed run must agree
    training/lock                               held while a process trains
    training/metrics.jsonl                      losses by gradient step

Planning uses an exponential moving average of the weights: after every `ema_interval`
gradient steps, average ← decay · average + (1 - decay) · weights. Up to step
`ema_start`, the average is a plain copy.

A run that is killed at any moment and started again with the same settings ends with
the same weights, bit for bit on a CPU: a checkpoint holds weights, averages and the
optimizer's moments, and each step draws its batch from its own generator.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from diffuser_policy.checkpoint import CONFIG, settle
from diffuser_policy.config import OptimizationConfig
from diffuser_policy.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    NotFiniteError,
)
from diffuser_policy.files import (
    alone_in,
    storage_error,
    tidy,
    usable_folder,
    write_json,
    write_text,
)
from diffuser_policy.interrupts import held_interrupt
from diffuser_policy.networks.critic import Values
from diffuser_policy.numerics import (
    plain_arithmetic,
    stream_generator,
    unusable,
    within_memory,
)
from diffuser_policy.settings import converted, differences
from diffuser_policy.training.processes import Processes
from diffuser_policy.training.state import (
    Parts,
    checkpoints,
    load_state,
    save_state,
    step_of,
)

Metrics = dict[str, float]
Networks = TypeVar("Networks", bound=nn.Module)


class Loss(nn.Module):
    """What is descended: one forward call draws a batch and returns the losses.

    Wrapped for several processes, this is the call that synchronizes gradients.
    """

    def __init__(
        self,
        networks: nn.Module,
        losses: Callable[[int, Generator], dict[str, Tensor]],
        seed: int,
    ) -> None:
        """Hold the networks; `losses` is `TrainingRun.losses`."""
        super().__init__()
        self.networks, self.losses, self.seed = networks, losses, seed

    def forward(self, step: int, process: int, accumulation: int) -> dict[str, Tensor]:
        """Return the scalar loss of every network, by name.

        Args:
            step: Gradient step.
            process: Rank of this process.
            accumulation: Which of the batches that make up one gradient step.
        """
        generator = stream_generator(self.seed, step, 1 + process, accumulation)
        return self.losses(step, generator)


class TrainingRun(Generic[Networks]):
    """Descends a loss, averages the weights, saves, resumes.

    Subclasses build the networks, draw batches (`losses`), and write the planner that
    contains the networks. All randomness of step s on process r comes from a generator
    seeded by (seed, s, r), so a step can be repeated exactly without saving any random
    state.

    Attributes:
        networks: The networks being trained.
        average: A copy of them with averaged weights.
        settings: JSON data that a resumed run has to agree with.
        step: Gradient steps done.
    """

    unimportant: tuple[str, ...] = ()  # settings that don't change the weights

    def __init__(
        self,
        networks: Networks,
        *,
        seed: int,
        optimization: OptimizationConfig,
        settings: dict[str, Any],
        output: str | Path,
        processes: Processes,
    ) -> None:
        """Restore the latest checkpoint if there is one.

        Args:
            networks: Initial weights, on the device of the processes.
            seed: Fixes batches and noise.
            optimization: Optimizer and averaging.
            settings: Everything that determines the weights, as JSON data.
            output: Folder of the run, created on the first save.
            processes: How several processes share the work.

        Raises:
            ConfigError: The folder holds a run with other settings or other data, or
                another process is training in it.
            CheckpointError: A checkpoint, settings or metrics there are damaged.
            StorageError: The folder cannot be read or written.
        """
        self.networks, self.optimization = networks, optimization
        self.loss = Loss(networks, self.losses, seed)
        self.output, self.processes = usable_folder(output), processes
        self.settings = {**settings, "num_processes": processes.num_processes}
        self.average = copy.deepcopy(networks).requires_grad_(False)
        self.optimizer = torch.optim.Adam(  # fused: a quarter of the time of a loop
            networks.parameters(), lr=optimization.learning_rate, fused=True
        )
        self.step = 0
        self._saved_step: int | None = None
        self._resume()
        self._totals: Metrics = {}  # of the losses of steps that are not logged yet
        self._logged_step = self.step
        self.prepared = processes.prepare(self.loss)

    @property
    def scaling(self) -> str:
        """End of the advice in an error: how to scale the data down."""
        return ""

    def losses(self, step: int, generator: Generator) -> dict[str, Tensor]:
        """Return the scalar loss of every network, by name, on a fresh batch.

        Args:
            step: Gradient step.
            generator: Source of all randomness, advanced by the call.
        """
        raise NotImplementedError

    def write_planner(self) -> None:
        """Write the planner so far, with averaged weights, into the output folder."""
        raise NotImplementedError

    def clipped(self) -> list[nn.Module]:
        """Return the networks whose gradients are clipped, each by itself."""
        return [self.networks]

    def run(
        self,
        *,
        save_interval: int = 1000,
        progress: bool | None = None,
        on_metrics: Callable[[int, Metrics], None] | None = None,
    ) -> None:
        """Train to the last step; save at intervals, at the end and when interrupted.

        Args:
            save_interval: Gradient steps between checkpoints.
            progress: Show a progress bar; not given: only on a terminal.
            on_metrics: Called with the gradient step and the mean losses since the
                last call, at every checkpoint, also one that Ctrl-C asked for.

        Raises:
            ConfigError: No interval between checkpoints, or another process is, or has
                been, at work in the folder.
            NotFiniteError: A loss, a gradient or a weight became NaN or infinite. The
                last checkpoint is kept.
            DivergedError: A critic's values left what rewards allow, or they are the
                same everywhere; likewise.
            MemoryLimitError: A batch does not fit into memory.
            StorageError: A checkpoint could not be written; earlier ones are intact.
            KeyboardInterrupt: Ctrl-C was pressed; the finished step has been saved.
        """
        check_interval(save_interval)
        hidden = None if progress is None else not progress
        bar = tqdm(
            total=self.optimization.num_steps,
            initial=self.step,
            desc="train",
            unit="step",
            disable=hidden if self.processes.is_main else True,
            smoothing=0.05,
        )
        memory = within_memory("A training step", "Lower batch_size (--batch-size).")
        with (
            self._at_work(),
            memory,
            plain_arithmetic(gradients=True),
            held_interrupt() as interrupted,
            bar,
        ):
            while self.step < self.optimization.num_steps:
                for name, value in self._descend().items():
                    self._totals[name] = self._totals.get(name, 0.0) + value
                bar.update()
                last = self.step == self.optimization.num_steps
                if last or self.step % save_interval == 0:
                    means = self._means()
                    bar.set_postfix({k: f"{v:.5f}" for k, v in means.items()})
                    self.save()
                    self._log(on_metrics)
                if interrupted():
                    self.save()
                    self._log(on_metrics)
                    raise KeyboardInterrupt
            # A kill or a full disk may have come within the last save.
            self.save()
            self._log(on_metrics)

    def save(self) -> None:
        """Write a checkpoint and the planner so far, unless this step is saved already.

        Each is written atomically, by the main process.
        """
        if self._saved_step == self.step:
            return
        for network in (self.networks, self.average):
            name = unusable(network.state_dict().items(), limit=math.inf)
            if name is not None:
                what = f"The weights {name} are NaN or infinite"
                raise self._diverged(what, self.step)
        self.check()
        if self.processes.is_main:
            self._write_settings()
            save_state(self.output / "training", self.step, self._parts())
            self.write_planner()
        self._saved_step = self.step

    def critic_values(self) -> Values | None:
        """Return what the averaged critic says of the data; None without a critic."""
        return None

    def critic_is_dead(self) -> bool:
        """Return whether a critic says the same of everything."""
        return False

    def check(self) -> None:
        """Refuse weights that are not to be saved; called before they are.

        Raises:
            DivergedError: A critic's values left what rewards allow, or they are the
                same everywhere.
        """
        if self.critic_is_dead():
            what = (
                "The critic is dead: one of its networks gives nearly all of the data "
                "the same value, because gradient steps were too large"
            )
            raise DivergedError(self._stopped(what, self.step))
        values = self.critic_values()
        if values is None or not values.diverged:
            return
        lowest, highest = values.possible
        what = (
            f"The critic diverged: it values half of the data's own actions beyond "
            f"{values.median:.4g}, and rewards and discount allow {lowest:.4g} to "
            f"{highest:.4g}"
        )
        raise DivergedError(self._stopped(what, self.step))

    def _parts(self) -> Parts:
        """Return the parts of a checkpoint, by the names in its tensors."""
        return {
            "network": self.networks,
            "average": self.average,
            "optimizer": self.optimizer,
        }

    def _descend(self) -> Metrics:
        """Take one gradient step; return the losses, averaged over accumulations.

        Raises:
            NotFiniteError: A loss or a gradient is not finite; no weight was changed.
        """
        settings = self.optimization
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        metrics: Metrics = {}
        for accumulation in range(settings.num_accumulations):
            losses: dict[str, Tensor] = self.prepared(
                self.step, self.processes.rank, accumulation
            )
            total = torch.stack(list(losses.values())).sum()
            self.processes.backward(total / settings.num_accumulations)
            for name, value in losses.items():
                share = value.item() / settings.num_accumulations
                metrics[name] = metrics.get(name, 0.0) + share
        for name, mean in metrics.items():
            if not math.isfinite(mean):
                raise self._diverged(f"The loss of {name} is {mean}", self.step + 1)
        if settings.max_gradient_norm is not None:
            for part in self.clipped():
                norm = nn.utils.clip_grad_norm_(
                    part.parameters(), settings.max_gradient_norm
                )
                if not bool(torch.isfinite(norm)):
                    what = "The gradient is NaN or infinite"
                    raise self._diverged(what, self.step + 1)
        self.optimizer.step()
        self.step += 1
        update_average(self.average, self.networks, self.step, settings)
        return metrics

    def _diverged(self, what: str, step: int) -> NotFiniteError:
        """Return the error of a training whose numbers are no longer finite."""
        return NotFiniteError(self._stopped(what, step))

    def _stopped(self, what: str, step: int) -> str:
        """Return the message of a training that cannot go on.

        Args:
            what: What went wrong, a sentence without its end.
            step: In which gradient step.
        """
        kept = "Nothing had been saved"
        if saved := checkpoints(self.output / "training"):
            kept = (
                f"The planner and the checkpoint of gradient step "
                f"{step_of(saved[-1]):,} are kept"
            )
        rate = self.optimization.learning_rate
        return (
            f"{what} at gradient step {step:,}: the training stopped. {kept} in "
            f"{self.output}. Train anew, into another folder, with a smaller "
            f"learning_rate (--learning-rate, now {rate:g}) or max_gradient_norm "
            f"(--max-gradient-norm){self.scaling}."
        )

    def _resume(self) -> None:
        """Restore the latest checkpoint, and drop losses of steps to take again."""
        folder = self.output / "training"
        if not folder.is_dir():
            return
        with self._lock():
            self._check_settings()
            if self.processes.is_main:
                settle(self.output)
                tidy(self.output)
                tidy(folder)
            found = checkpoints(folder)
            if found:
                self.step = load_state(found[-1], self._parts())
            path = folder / "metrics.jsonl"
            if not self.processes.is_main or not path.exists():
                return
            try:
                lines = path.read_bytes().splitlines(keepends=True)
            except OSError as error:
                raise CheckpointError(
                    f"{path} cannot be read ({error}). Move it away: it holds nothing "
                    f"but losses, and the training resumes without it."
                ) from error
            kept = [line.decode() for line in lines if _is_until(self.step, line)]
            write_text(path, "".join(kept))

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that keeps other processes from training in the folder.

        It raises a ConfigError if one is at work there, and a StorageError if the
        folder cannot be written to.
        """
        if not self.processes.is_main:
            return contextlib.nullcontext()
        folder = self.output / "training"
        refusal = (
            f"Another process is training in {self.output}. Wait for it, end it, or "
            f"choose another output folder (--output); nothing was changed."
        )
        return alone_in(folder, refusal)

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the folder, and write the settings before the first step.

        Raises:
            ConfigError: Another process is at work there, or has been meanwhile.
            StorageError: The folder cannot be written to.
        """
        with self._lock():
            found = checkpoints(self.output / "training")
            if found and step_of(found[-1]) > self.step:
                raise ConfigError(
                    f"{self.output} has been trained to step {step_of(found[-1])} "
                    f"since this trainer was made, at step {self.step}. Make a new "
                    "trainer."
                )
            if self.processes.is_main:
                self._write_settings()
            yield

    def _write_settings(self) -> None:
        """Write the settings, unless a run of the same settings has written them."""
        settings = self.output / "training" / "settings.json"
        if not settings.exists() or not self._holds_work():
            write_json(settings, self.settings)

    def _holds_work(self) -> bool:
        """Return whether the folder holds a checkpoint or a planner."""
        saved = checkpoints(self.output / "training")
        return bool(saved) or (self.output / CONFIG).exists()

    def _check_settings(self) -> None:
        """Refuse a folder whose weights came from something else."""
        settings = self.output / "training" / "settings.json"
        if not settings.exists() or not self._holds_work():
            return
        try:
            saved = dict(json.loads(settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(
                f"{settings} cannot be read ({error}). Choose another output folder, "
                f"or delete the file if you know that the run has the same settings."
            ) from error
        current = json.loads(json.dumps(self.settings))
        for tree in (saved, current):
            for name in self.unimportant:
                tree.pop(name, None)
        # A setting newer than the run that is None keeps what the run has done.
        different = differences(saved, current, missing=None)
        if different:
            raise ConfigError(
                f"{self.output} holds a run with other settings: "
                f"{'; '.join(different)}. Use another output folder, or the same "
                f"settings, data and number of processes to resume."
            )

    def _means(self) -> Metrics:
        """Return the mean losses of the steps that are not logged yet."""
        num_steps = self.step - self._logged_step
        return {name: total / num_steps for name, total in self._totals.items()}

    def _log(self, on_metrics: Callable[[int, Metrics], None] | None) -> None:
        """Append the mean losses to the run's metrics, and pass them on.

        Nothing happens if no step was taken since the last call. If it fails, or the
        checkpoint before it did, the next call tells of these steps as well.
        """
        if self.step == self._logged_step:
            return
        means = self._means()
        if self.processes.is_main:
            path = self.output / "training" / "metrics.jsonl"
            size = path.stat().st_size if path.is_file() else 0
            try:
                with path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(json.dumps({"step": self.step, **means}) + "\n")
            except OSError as error:
                with contextlib.suppress(OSError):  # the next line begins a new one
                    os.truncate(path, size)
                raise storage_error(path, error) from error
        self._totals, self._logged_step = {}, self.step
        if self.processes.is_main and on_metrics is not None:
            on_metrics(self.step, means)


def _is_until(step: int, line: bytes) -> bool:
    """Return whether a line of the metrics can be read and is of no later step.

    A kill cuts the last line, and a power cut leaves others damaged. Nothing but a
    picture of the losses needs them.
    """
    try:
        return line.endswith(b"\n") and bool(json.loads(line.decode())["step"] <= step)
    except (ValueError, LookupError, TypeError, RecursionError):
        return False


def check_interval(save_interval: Any) -> None:
    """Refuse what is no number of gradient steps between two checkpoints.

    Raises:
        ConfigError: Not a whole number from 1.
    """
    if converted(save_interval, int, "save_interval (--save-interval)") < 1:
        raise ConfigError(
            f"save_interval (--save-interval) must be at least 1, got {save_interval}."
        )


def learning_rate(settings: OptimizationConfig, step: int) -> float:
    """Return Adam's step size at a gradient step (0 is the first)."""
    if settings.learning_rate_schedule == "constant":
        return settings.learning_rate
    decay = 1 + math.cos(math.pi * step / settings.num_steps)
    return settings.learning_rate * 0.5 * decay


@torch.no_grad()
def update_average(
    average: nn.Module, network: nn.Module, step: int, settings: OptimizationConfig
) -> None:
    """Move averaged weights, in place, after a gradient step.

    Args:
        average: A copy of the network.
        network: Its weights after the step.
        step: Number of the step; 1 is the first.
        settings: Decay, interval and start of the average.
    """
    means, weights = list(average.parameters()), list(network.parameters())
    if step <= settings.ema_start:
        for mean, weight in zip(means, weights, strict=True):
            mean.copy_(weight)
    elif step % settings.ema_interval == 0:
        blend = get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        blend(means, weights, 0)
