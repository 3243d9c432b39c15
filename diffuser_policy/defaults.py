r"""Settings that suit a dataset: what `diffuser-policy train --dataset ID` starts from.

A dataset, given settings → TrainConfig, and a reason for each choice

- Data with goals: plans of states, as long as a network predicts that the way takes.
  They are pursued, or followed by learned inverse dynamics.
- Data without goals: plans of one action, by a residual MLP, made anew in every env
  step: the most likely one. If rewards differ, the best episodes alone are learned from
  (`examples/experiments/locomotion.py` compares other ways).

Given settings are kept, and the others are chosen to fit them. The rules are made of
the data alone: how long episodes are and how long they chase one goal, how far columns
reach, whether rewards differ, and whether an action accelerates a position along one
axis. `docs/data.md` lists the rules.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffuser_policy.columns.features import make_featurizer
from diffuser_policy.columns.layout import named_columns
from diffuser_policy.config import (
    COMPANIONS,
    PARTS,
    PlannerConfig,
    TrainConfig,
    with_all_steps,
)
from diffuser_policy.data.flat import FlatDataset, pieces, release, run_returns
from diffuser_policy.errors import ConfigError, UnknownNameError, shown
from diffuser_policy.observations import Part
from diffuser_policy.settings import checked, from_json, parameters_of
from diffuser_policy.words import counted, every

PLANNING_STEPS = 64  # of the longest plan to a goal
PLACE_COLUMNS = 3  # of goals that are places, rather than states of all joints
FROM_PLACE = 160  # env steps of the longest plan from one landmark to others
NARROW = 24  # width of a U-Net for those: short plans need fewer weights
SINGLE = 16  # least width of a U-Net whose coarsest stage sees one planning step
GOALS_AHEAD = 2.5  # longest plan, in units of the median time that a goal is chased
SHORT = 4  # env steps of a plan of states without a goal
SMALL_NETWORKS = {"mlp": "residual MLP", "transformer": "temporal transformer"}
SMALL: Mapping[str, Any] = {  # their settings
    "dim": 128,
    "depth": 3,
    "num_denoising_steps": 20,
    "loss_floor": 0.1,
}
BEST_SHARE = 0.1  # of the episodes, if some are better than others,
ENOUGH = 20_000  # and have as many env steps as this
AVERAGED = 20  # how many times the memory of the average fits into a training
TAIL = 4.0  # half a column's range, in standard deviations, that limits can map
ROWS_TO_FIT = 100_000
LONGEST_MLP = 16  # env steps that a network without any sense of time plans well


@dataclass(frozen=True)
class Choice:
    """Settings for a dataset.

    Attributes:
        config: The settings.
        reasons: What was chosen, and why, in a few lines.
    """

    config: TrainConfig
    reasons: tuple[str, ...]


def choose(flat: FlatDataset, given: Mapping[str, Any]) -> Choice:
    """Return settings that suit a dataset.

    Args:
        flat: The dataset.
        given: Fields of `TrainConfig`. Those of a part may be given as a mapping with
            some of its settings, a companion network as True or False.

    Raises:
        UnknownNameError: A setting that `TrainConfig` does not have.
        ConfigError: A given setting that is of another type or cannot work.
    """
    return _Chooser(flat, given).choice()


class _Chooser:
    """Fills in one part after another; each may look at those before."""

    def __init__(self, flat: FlatDataset, given: Mapping[str, Any]) -> None:
        known = [item.name for item in dataclasses.fields(TrainConfig)]
        for name in given:
            if name not in known:
                raise UnknownNameError("setting of training", name, known)
        self.flat, self.reasons = flat, list[str]()
        self.given: dict[str, dict[str, Any]] = {}
        self.wanted: dict[str, bool] = {}  # companions, if the user decides
        self.rest: dict[str, Any] = {}
        for name, value in given.items():
            if name not in PARTS:
                self.rest[name] = value
                continue
            if name in COMPANIONS:
                self.wanted[name] = value is not None and value is not False
            if name not in COMPANIONS or not isinstance(value, bool | None):
                self.given[name] = _checked(name, value)
        self.chosen: dict[str, dict[str, Any]] = {name: {} for name in PARTS}

    def choice(self) -> Choice:
        """Choose all parts, in the order in which they depend on each other."""
        self.columns()
        self.executor()
        self.network()
        self.windows()
        self.best_runs()
        self.normalizer()
        self.companions()
        self.plans()
        self.following()
        parts: dict[str, Any] = {}
        for name, cls in PARTS.items():
            if name in COMPANIONS and not self.wanted[name]:
                parts[name] = None
            else:
                parts[name] = from_json(cls, self.chosen[name] | self.taken(name))
        origin = str(self.flat.metadata.get("dataset_id", "unnamed"))
        rest = {"dataset": origin, **self.rest}
        return Choice(TrainConfig(**rest, **parts), tuple(self.reasons))

    def taken(self, part: str) -> dict[str, Any]:
        """Return the given settings of a part."""
        return self.given.get(part, {})

    def set(self, part: str, **settings: Any) -> None:
        """Choose settings of a part."""
        self.chosen[part] |= settings

    def get(self, part: str, name: str) -> Any:
        """Return a setting: given, or else chosen, or else the default."""
        settings = self.chosen[part] | self.taken(part)
        return settings[name] if name in settings else getattr(PARTS[part](), name)

    def say(self, subject: str, text: str) -> None:
        """Add a line to the reasons."""
        self.reasons.append(f"{subject:<11} {text}")

    # --- what the columns mean --------------------------------------------------------

    def columns(self) -> None:
        """Find the goal, position and velocity of the planned columns."""
        flat, features = self.flat, self.get("window", "features")
        named = named_columns(flat.metadata)
        self.goals, self.acts = flat.has_goals, False
        if features is not None:
            featurizer = make_featurizer(features)
            named = dict(featurizer.columns)
            self.goals = flat.has_goals and "goal" in named
            self.acts = callable(getattr(featurizer, "act", None))
        self.named = {
            name: tuple(self.get("window", name) or named.get(name, ()))
            for name in ("position", "velocity")
        }
        if not flat.has_goals:
            self.hint_at_goals()
        self.pinned = self.get("window", "hindsight_goal") if self.goals else "none"
        self.set("window", hindsight_goal=self.pinned)
        self.seen_goals, self.goals = self.goals, self.goals and self.pinned != "none"
        size = flat.observation_size + flat.goal_size  # it may be appended
        if features is not None:
            size = featurizer.num_columns
        for name, columns in {**named, **self.named}.items():
            if not all(0 <= column < size for column in columns):
                option = f" (--window.{name})" if name in self.named else ""
                raise ConfigError(
                    f"{name}{option} names columns {columns}, and those of the data "
                    f"are 0..{size - 1}."
                )

    def hint_at_goals(self) -> None:
        """Explain where goals might be: in two parts of observations, or flattened."""
        known = self.flat.metadata.get("columns") or {}
        parts = [from_json(Part, part) for part in known.get("observation", ())]
        sizes = [part.size for part in parts]
        if len(set(sizes)) < len(sizes):
            self.say(
                "goals",
                f"none: no achieved_goal and desired_goal. If two of "
                f"{', '.join(part.name for part in parts)} are, name them "
                f"(--goal-keys ACHIEVED DESIRED, load_flat(…, goal_keys=…))",
            )
        if "FlattenObservation" in str(self.flat.metadata.get("env_spec")):
            self.say(
                "goals",
                "none: a flat array does not say which columns are goals. If there are "
                "any, record the environment without FlattenObservation",
            )

    def pushes(self) -> tuple[float, float] | None:
        """Return how much an action accelerates, and a velocity moves, in an env step.

        None unless every action pushes one column of the position along its own axis,
        and the observation has the velocity as well: what a tracking controller needs.
        """
        position, velocity = (list(self.named[n]) for n in ("position", "velocity"))
        actions = self.flat.fields["action"]
        if not len(position) == len(velocity) == actions.shape[1]:
            return None
        bounded = self.flat.has_action_bounds
        if self.get("window", "features") is not None or not bounded:
            return None
        seen = self.flat.fields["observation"]
        if max((*position, *velocity), default=0) >= seen.shape[1]:
            return None
        ends = self.flat.run_starts[1:] - 1
        rows = np.setdiff1d(np.arange(min(len(actions), ROWS_TO_FIT)), ends)
        rows = rows[rows + 1 < len(actions)]
        if len(rows) < 2:
            return None
        acted = actions[rows].astype(np.float64)
        looked = seen[: rows[-1] + 2, [*position, *velocity]].astype(np.float64)
        release(actions, seen)
        changed, half = looked[rows + 1] - looked[rows], len(position)
        force = _slopes(acted, changed[:, half:])
        speed = _slopes(looked[rows + 1, half:], changed[:, :half])
        return None if force is None or speed is None else (force, speed)

    # --- how plans are followed -------------------------------------------------------

    def executor(self) -> None:
        """Choose what turns plans into actions, and with it what plans are made of."""
        taken = self.taken("window")
        self.pushed = self.pushes() if self.goals else None
        stride = taken.get("stride", 1)
        if self.get("window", "features") is not None:
            name = "features" if self.acts else "inverse-dynamics"
            why = "the featurizer has a way back to actions" if self.acts else ""
        elif self.goals and self.pushed is not None:
            name, why = "pursuit", "actions accelerate the position, axis by axis"
        elif self.goals:
            name = "inverse-dynamics"
            why = "no columns of position and velocity that actions push, axis by axis"
            if taken.get("actions") and stride == 1:
                name, why = "actions", "plans have actions"
        elif taken.get("actions", True) and stride == 1:
            name, why = "actions", "there are no goals to stay at"
        else:
            name, why = "inverse-dynamics", "plans have no action for every env step"
        asked = self.taken("execution").get("executor")
        if asked is not None:
            name, why = asked, ""
        self.set("execution", executor=name)
        self.followed, self.why_followed = name, why
        self.set("window", actions=name == "actions")

    # --- network and windows ----------------------------------------------------------

    def network(self) -> None:
        """Choose the kind of network, unless the given settings are of one kind."""
        taken, window = self.taken("network"), self.taken("window")
        horizon = window.get("horizon") or window.get("min_horizon") or SHORT
        of_unet = {"multipliers", "kernel_size", "attention"} & {*taken}
        acted = not self.goals and self.followed == "actions"
        suited = acted and horizon <= LONGEST_MLP
        suited = suited and not of_unet and not taken.get("residual")
        self.set("network", architecture="mlp" if suited else "unet")
        kind = SMALL_NETWORKS.get(self.get("network", "architecture"))
        if kind is not None:
            self.set("network", **SMALL)
            why = "" if "architecture" in taken else ": plans are short"
            self.say("network", f"a {kind}{why}")

    def windows(self) -> None:
        """Choose horizon, stride and padding from the lengths of the episodes."""
        lengths, taken = self.flat.run_lengths, self.taken("window")
        multiple = self.multiple()
        longest = int(lengths.max())
        if self.goals:
            chased = float(np.median(_chases(self.flat)))
            wanted = min(GOALS_AHEAD * chased, float(np.median(lengths)))
            steps = counted(round(chased), "step")
            why = f"a goal is chased for {steps} in the median"
            size = self.flat.goal_size
            led = self.led_by_landmarks()
            far = wanted > FROM_PLACE and size <= PLACE_COLUMNS and led
            far = far and self.followed == "inverse-dynamics"
            if self.wanted.setdefault("landmarks", far) and led:
                why += f", so goals may be {wanted:.0f} away; landmarks lead on"
                wanted = min(wanted, FROM_PLACE)
                if self.get("network", "architecture") == "unet":
                    self.set("network", dim=NARROW)
        else:
            # Whoever asks for values of plans, follows planned states, or plans to a
            # goal, though none was pinned in training, needs some.
            acted = self.one_length() and self.get("window", "actions")
            acted = acted and not (self.wanted.get("value") or self.seen_goals)
            short = 1 if acted else SHORT
            wanted, why = float(min(short, longest)), "no goal to reach: act and replan"
        stride = taken.get("stride")
        horizon, shortest = taken.get("horizon"), taken.get("min_horizon")
        wanted = max(wanted, shortest or 0)
        if stride is None:
            stride = 1
            if self.followed != "actions" and self.goals:
                led = bool(self.wanted.get("landmarks")) and self.led_by_landmarks()
                most = PLANNING_STEPS // (2 if led else 1)
                stride = max(1, math.ceil((horizon or wanted) / most))
                while stride > 1 and (
                    (horizon or 0) % (stride * multiple) or (shortest or 0) % stride
                ):
                    stride -= 1
        unit = stride * multiple
        least = self.least(multiple)
        if horizon is None:
            least = max(least, math.ceil((shortest or 0) / unit))
            horizon = max(least, int(wanted // unit)) * unit
        if "min_horizon" not in taken and self.goals and not self.one_length():
            shortest = max(least, horizon // 8 // unit) * unit
            shortest = None if shortest >= horizon else shortest
        self.set("window", horizon=horizon, stride=stride, min_horizon=shortest)
        needed = horizon - stride + 1
        short = int((lengths < needed).sum())
        padding = "repeat" if short else "none"
        self.set("window", padding=padding)
        planned = "actions and states" if self.get("window", "actions") else "states"
        if horizon == 1:
            self.say("plans", f"the next action: {why}")
            return
        span = f"{shortest} to {horizon}" if shortest else f"{horizon}"
        self.say(
            "plans", f"{planned} {every(stride, 'env step')}, {span} env steps: {why}"
        )
        if short:
            self.say(
                "padding",
                f"{self.get('window', 'padding')}: {short:,} of {len(lengths):,} "
                f"episodes are shorter than a window",
            )

    def led_by_landmarks(self) -> bool:
        """Return whether plans lead to subgoals, if there are landmarks."""
        taken = self.taken("planner")
        predicted = taken.get("horizon", "predicted") == "predicted"
        timed = not self.one_length() and self.wanted.get("time_to_goal", True)
        return bool(predicted and timed and taken.get("subgoal", 1.0) is not None)

    def best_runs(self) -> None:
        """Choose which episodes to learn from, unless goals or a critic tell them."""
        if self.goals:
            return
        if self.wanted.get("critic") or self.wanted.get("value"):
            if self.get("window", "best_share") == 1:
                self.say("episodes", "all: a critic or a value learns from poor ones")
            return
        returns = run_returns(self.flat.fields["reward"], self.flat.run_starts)
        if not np.ptp(returns):
            return
        from_best = np.argsort(returns)[::-1]
        steps = np.cumsum(self.flat.run_lengths[from_best])
        needed = int(np.searchsorted(steps, ENOUGH)) + 1
        share = round(min(1.0, max(BEST_SHARE, needed / len(returns))), 3)
        self.set("window", best_share=share)
        used = self.get("window", "best_share")
        best = returns[self.flat.best_runs(used)]
        chosen = (
            f"the best {len(best):,} of {len(returns):,}, which earned "
            f"{best.mean():,.5g} (all: {returns.mean():,.5g})"
        )
        if share == used == 1:
            chosen = f"all {len(best):,}: too few env steps to choose from"
        self.say("episodes", chosen)

    def multiple(self) -> int:
        """Return the planning steps of which plans are made."""
        if self.get("network", "architecture") == "objects":
            return int(self.get("network", "patch"))
        if self.get("network", "architecture") in SMALL_NETWORKS:
            return 1
        return int(2 ** (len(self.get("network", "multipliers")) - 1))

    def least(self, multiple: int) -> int:
        """Return the planning steps of the shortest plan, in units of `multiple`."""
        narrowest = min(self.get("network", "multipliers")[-2:])
        narrowest *= self.get("network", "dim")
        if self.get("network", "architecture") == "unet" and narrowest < SINGLE:
            return 2
        # A plan to a goal begins and ends with a planning step of its own.
        return math.ceil(2 / multiple) if self.seen_goals else 1

    def one_length(self) -> bool:
        """Return whether the network makes plans of a single length."""
        return bool(self.get("network", "architecture") == "mlp")

    def normalizer(self) -> None:
        """Choose how columns are scaled: by their range, or by their spread."""
        flat = self.flat
        arrays = [flat.fields["observation"]]
        if self.get("window", "actions"):
            arrays.append(flat.fields["action"])
        reach = max(_reach(array) for array in arrays)
        name = "limits" if self.goals and reach <= TAIL else "gaussian"
        self.set("window", normalizer=name)
        most = f"columns reach up to {reach:.1f} standard deviations"
        most += "" if self.goals else ", and there are no goals"
        why = "" if "normalizer" in self.taken("window") else f": {most}"
        self.say("normalizer", f"{self.get('window', 'normalizer')}{why}")

    # --- networks beside the denoiser -------------------------------------------------

    def companions(self) -> None:
        """Choose which networks are trained beside the denoiser."""
        usual = {
            "time_to_goal": self.goals,
            "inverse_dynamics": self.followed == "inverse-dynamics",
            "landmarks": False,
            "value": False,
            "critic": False,
        }
        self.wanted = usual | self.wanted
        horizon = self.get("window", "horizon")
        self.set("time_to_goal", max_steps=horizon)
        stride = self.get("window", "stride")
        # Beyond half of a plan, it would steer past every bend, straight to the end.
        self.ahead = max(2 * stride, min(8, horizon // 2))
        lookahead = self.taken("execution").get("lookahead", self.ahead)
        self.set("inverse_dynamics", max_steps=math.ceil(lookahead) + stride - 1)
        steps = self.get("optimization", "num_steps")
        usual_decay = PARTS["optimization"]().ema_decay
        # In a short training, a slow average would still hold its random beginning.
        decay = min(usual_decay, max(0.0, 1 - AVERAGED / steps))
        size = 64 if self.goals else 256
        self.set("optimization", batch_size=size, ema_decay=round(decay, 5))
        used = self.get("optimization", "batch_size")
        self.say("training", f"{counted(steps, 'gradient step')} of {used} windows")

    # --- how to plan ------------------------------------------------------------------

    def plans(self) -> None:
        """Choose denoising steps, horizon and ranking."""
        likely = (
            not self.goals and self.get("network", "architecture") in SMALL_NETWORKS
        )
        likely = likely and not (self.wanted["critic"] or self.wanted["value"])
        likely = likely and self.taken("planner").get("num_candidates", 1) == 1
        if likely:
            self.set("planner", sampler="ddpm", temperature=0.0)
        steps = self.get("network", "num_denoising_steps")
        usual = PlannerConfig().num_sampling_steps or steps
        self.set("planner", num_sampling_steps=min(usual, steps))
        sampler = self.get("planner", "sampler")
        self.set("planner", **with_all_steps({"sampler": sampler}))
        valued = self.wanted["value"] and not self.rest.get("guide")
        if self.goals:
            timed = self.wanted["time_to_goal"]
            horizon = "predicted" if timed else "shrinking"
            self.set(
                "planner",
                horizon="fixed" if self.one_length() else horizon,
                ranking="time_to_goal" if timed else "smoothness",
            )
            predicted = self.get("planner", "horizon") == "predicted"
            if self.wanted["landmarks"] and predicted:
                self.set("planner", subgoal=self.get("window", "horizon") / 5)
            why = "another network predicts the time to the goal" if timed else ""
        elif self.wanted["critic"]:
            self.set("planner", ranking="critic", num_candidates=32)
            why = "the candidate whose first action has the highest value"
        elif valued:
            self.set("planner", ranking="guide", num_candidates=16)
            why = "the candidate with the highest predicted return"
        else:
            self.set("planner", ranking="first", num_candidates=1)
            why = "the most likely plan" if likely else "any plan is as good as another"
        if valued and self.get("planner", "ranking") in ("guide", "sum"):
            # It compares; the scale of rewards should not steer.
            self.set("planner", guide_scale=0.0)
        elif valued and "guide_scale" not in self.taken("planner"):
            self.rest["guide"] = ("none",)  # it waits to be asked for
        if self.taken("planner").get("temperature") == 0:  # others would be the same
            self.set("planner", num_candidates=1)
        if "ranking" in self.taken("planner"):
            why = ""
        self.say("ranking", f"{self.get('planner', 'ranking')}: {why}".rstrip(": "))

    def following(self) -> None:
        """Choose gains, and when to plan anew."""
        if self.followed in ("tracking", "pursuit") and self.pushed is not None:
            position, velocity = self.gains(self.pushed)
            self.set("execution", position_gain=position, velocity_gain=velocity)
        if self.followed == "inverse-dynamics":
            self.set("execution", lookahead=float(self.ahead))
        ahead = self.get("planner", "subgoal")
        if self.wanted["landmarks"] and ahead is not None:
            # Rounded up, a plan may take its time at first: do not replace it too soon.
            self.set("execution", replan_interval=max(1, round(ahead)))
        elif not self.seen_goals:
            self.set(
                "execution", replan_interval=max(1, self.get("window", "horizon") // 4)
            )
        interval = self.get("execution", "replan_interval")
        when = f", a new plan {every(interval, 'env step')}" if interval else ""
        why = f": {self.why_followed}" if self.why_followed else ""
        self.say("executor", f"{self.get('execution', 'executor')}{when}{why}")

    def gains(self, pushed: tuple[float, float]) -> tuple[float, float]:
        """Return gains for position and velocity that are damped critically."""
        force, speed = pushed
        flat = self.flat
        seen = flat.fields["observation"][:ROWS_TO_FIT]
        velocity = seen[:, list(self.named["velocity"])]
        release(seen)
        typical = float(np.sqrt(np.square(velocity, dtype=np.float64).mean())) * speed
        low, high = flat.action_bounds
        half = float(np.mean(high - low)) / 2
        # A planning step of error asks for half of the largest action.
        position = half / (2 * typical * max(self.get("window", "stride"), 1))
        damping = 2 * math.sqrt(position * speed / force)
        return float(f"{position:.2g}"), float(f"{damping:.2g}")


def _slopes(causes: np.ndarray, effects: np.ndarray) -> float | None:
    """Return the mean slope of effects by causes, column by column, or none.

    None if a slope is not positive, or if the causes of other columns explain an effect
    as well: more than half of the effects would be left unexplained.
    """
    fitted, *_ = np.linalg.lstsq(causes, effects, rcond=None)
    slopes = np.diag(fitted)
    left = effects - causes * slopes
    if (slopes <= 0).any() or np.square(left).sum() > np.square(effects).sum() / 2:
        return None
    return float(slopes.mean())


def _checked(part: str, value: Any) -> dict[str, Any]:
    """Return the given settings of a part, each of its annotated type and in range.

    Raises:
        ConfigError: No settings, a setting that the part does not have, or a value
            that cannot work.
    """
    cls = PARTS[part]
    if isinstance(value, cls):
        return dict(vars(value))
    if not isinstance(value, Mapping):
        switch = "True, False, " if part in COMPANIONS else ""
        raise ConfigError(
            f"{part} must be {switch}a mapping of settings or a {cls.__name__}, got "
            f"{shown(value)}."
        )
    given = checked(cls.__name__, parameters_of(cls), value)
    others = dict[str, Any]()
    if part == "window":  # its horizon will be chosen to fit
        steps = given.get("stride", 1), given.get("min_horizon") or 1
        others["horizon"] = math.lcm(*steps) or 1
    if part == "planner" and given.get("temperature") == 0:  # one will be chosen
        others["num_candidates"] = 1
    made = cls(**(others | given))
    return {name: getattr(made, name) for name in given}


def _chases(flat: FlatDataset) -> np.ndarray:
    """Return the env steps for which each goal is chased."""
    goals, starts = flat.fields["desired_goal"], [flat.run_starts]
    row, last = 0, goals[:1].copy()
    for part in pieces(goals):
        changed = (part != np.concatenate([last, part[:-1]])).any(axis=1)
        starts.append(row + np.flatnonzero(changed))
        row, last = row + len(part), part[-1:].copy()
    return np.diff(np.unique(np.concatenate(starts)))


def _reach(array: np.ndarray) -> float:
    """Return half the range of the columns, in standard deviations, at most."""
    first = array[0].astype(np.float64)
    low = high = sums = squares = np.zeros_like(first)
    for part in pieces(array):
        off = part - first  # in float64
        low, high = np.minimum(low, off.min(axis=0)), np.maximum(high, off.max(axis=0))
        sums, squares = sums + off.sum(axis=0), squares + np.square(off).sum(axis=0)
    mean = sums / len(array)
    spread = np.sqrt(np.maximum(squares / len(array) - mean**2, 0.0))
    largest = np.maximum(np.abs(first + low), np.abs(first + high))
    varying = spread > 1e-6 * np.maximum(1.0, largest)
    half = (high - low)[varying] / 2
    return float((half / spread[varying]).max(initial=0.0))
