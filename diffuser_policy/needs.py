"""Needs: which settings have an effect only together with another one.

A setting without effect is probably a mistake, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from diffuser_policy.errors import ConfigError

Needs = Mapping[str, tuple[str, tuple[str, ...]]]

PLANNING_NEEDS: Needs = {
    "satisficing": ("ranking", ("time_to_goal", "feasibility", "sum")),
    "ranking_tolerance": ("ranking", ("guide",)),
    "ranking_weight": ("ranking", ("sum",)),
    "horizon": ("goals", ()),
    "horizon_scale": ("horizon", ("predicted",)),
    "subgoal": ("goals", ()),
    "goal_velocity": ("goals", ()),
    "guide_scale": ("guide", ()),
    "guide_placement": ("guide_scale", ()),
    "guide_steps": ("guide_scale", ()),
    "guide_cutoff": ("guide_scale", ()),
    "min_guided_steps": ("guide_scale", ()),
    "warm_start": ("replan_interval", ()),
    "warm_start_steps": ("warm_start", ()),
    "steadiness": ("replan_interval", ()),
    "position_gain": ("executor", ("tracking", "pursuit")),
    "velocity_gain": ("executor", ("tracking", "pursuit")),
    "lookahead": ("executor", ("pursuit", "inverse-dynamics")),
    "tempo": ("executor", ("path",)),
    "tolerance": ("executor", ("path",)),
    "seconds_per_step": ("executor", ("path",)),
}
"""What a setting needs to have an effect: another setting, and those of its values that
suffice (none listed: any but None and 0). A planner may also lack a guide, or goals."""

REST_NEEDS: Needs = dict.fromkeys(
    ("warm_start", "steadiness", "replan_interval", "replan_deviation"), ("rest", ())
)
"""A plan of one planning step is used up before the next env step."""

NETWORK_NEEDS: Needs = {
    "multipliers": ("architecture", ("unet",)),
    "kernel_size": ("architecture", ("unet",)),
    "attention": ("architecture", ("unet",)),
    "depth": ("architecture", ("mlp", "transformer", "objects")),
    "patch": ("architecture", ("objects",)),
}
CLASSIFIER_NEEDS: Needs = {
    "width": ("architecture", ("mlp",)),
    "depth": ("architecture", ("mlp",)),
}

LACKING = {
    "guide": "without a guide. Leave it out, or add a guide: policy.with_guide(…) in "
    "Python, --guide on the command line.",
    "goals": "on a planner without goals. Leave it out.",
    "rest": "where plans are a single action: a plan is used up before the next one is "
    "made. Leave it out.",
}


def refuse_idle(
    given: Iterable[str], settings: Mapping[str, Any], needs: Needs
) -> None:
    """Refuse settings that have no effect in this combination.

    Args:
        given: Names of the settings that the user asked for. Only these are refused:
            saved planners and presets also carry settings for other combinations,
            such as a warm start when plans are not replaced at intervals.
        settings: Values of all settings, and whether there are `guide` and `goals`.
            None, False and "fixed" switch something off, which needs nothing, and
            `replan_interval=1` asks for what plans of a single action do anyway.
        needs: What each setting needs to have an effect.

    Raises:
        ConfigError: Names the setting, what it would need, and what to do.
    """
    for asked in given:
        name = asked
        value = settings.get(name)
        if value is None or value is False or value == "fixed":
            continue
        if name == "replan_interval" and value == 1:
            continue
        while name in needs:  # the other setting may need a third one
            other, values = needs[name]
            actual = settings[other]
            if actual in values or (not values and actual):
                name = other
                continue
            wanted = " or ".join(f"{other}={value!r}" for value in values) or other
            wanted += " to another value" if actual == 0 and actual is not False else ""
            otherwise = f"with {other}={actual!r}. Leave it out, or set {wanted}."
            raise ConfigError(f"{asked} has no effect {LACKING.get(other, otherwise)}")
