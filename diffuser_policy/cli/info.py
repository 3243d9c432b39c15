"""`diffuser-policy info`: what is installed, or what one planner is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from diffuser_policy.cli.options import print_table, shown_as, table
from diffuser_policy.training.presets import PRESETS, preset
from diffuser_policy.words import counted, every

if TYPE_CHECKING:
    from rich.table import Table

    from diffuser_policy.config import PlannerConfig
    from diffuser_policy.guides.guide import Guide


@dataclass(frozen=True, kw_only=True)
class InfoSettings:
    """List planners, presets, environments and plug-ins, or describe one planner."""

    planner: Annotated[tyro.conf.Positional[str | None], shown_as("[PLANNER]")] = None
    """Name of a shipped planner, folder, or hub id."""


def info(settings: InfoSettings) -> int:
    """Print the lists, or the description; return the exit status."""
    if settings.planner is None:
        for part in (_planners(), _presets(), _environments(), _plugins()):
            print_table(part)
    else:
        print_table(_describe(settings.planner))
    return 0


def _planners() -> Table:
    """Return the shipped planners."""
    from diffuser_policy.checkpoint import CONFIG, SHIPPED, shipped_planners

    rows = []
    for name in shipped_planners():
        config = json.loads((SHIPPED / name / CONFIG).read_text(encoding="utf-8"))
        env_id = config["provenance"].get("dataset", {}).get("env_id")
        size = sum(file.stat().st_size for file in (SHIPPED / name).iterdir())
        horizon = config["window"]["horizon"]
        rows.append((name, env_id or "–", horizon, f"{size / 1e6:.1f} MB"))
    headers = "name", "environment", "horizon", "size"
    return table(*headers, rows=rows, title="Shipped planners")


def _presets() -> Table:
    """Return the training presets."""
    rows = (
        (name, c.dataset, c.window.horizon, f"{c.optimization.num_steps:,}")
        for name, c in ((name, preset(name)) for name in PRESETS)
    )
    headers = "name", "dataset", "horizon", "steps"
    return table(*headers, rows=rows, title="Training presets")


def _environments() -> Table:
    """Return the environments of every package that offers demonstrators."""
    import gymnasium

    from diffuser_policy.data.demonstrators import import_environments

    rows = []
    for package, error in import_environments().items():
        if error is not None:
            rows.append((package, f"cannot be imported: {type(error).__name__}"))
        for env_id, spec in gymnasium.registry.items():
            if spec.namespace == package:
                rows.append((env_id, str(spec.max_episode_steps or "unlimited")))
    return table("id", "env steps", rows=rows, title="Environments")


def _plugins() -> Table:
    """Return all plug-ins, and the packages that offer them."""
    from diffuser_policy.benchmark.methods import METHODS
    from diffuser_policy.columns.features import FEATURIZERS
    from diffuser_policy.columns.labels import LABELS
    from diffuser_policy.data.demonstrators import DEMONSTRATORS
    from diffuser_policy.guides.registry import GUIDES

    rows = []
    for kind in (GUIDES, FEATURIZERS, LABELS, METHODS, DEMONSTRATORS):
        names: dict[str, list[str]] = {}
        for plugin in kind.offers():
            names.setdefault(plugin.origin, []).append(plugin.name)
        for origin, offered in names.items():
            rows.append((kind.name, origin, ", ".join(sorted(offered))))
    listed = table("kind", "offered by", "names", rows=rows, title="Plug-ins")
    offered_by = listed.columns[1]  # all the rest of the width is for names
    offered_by.no_wrap, offered_by.min_width = True, max(len(row[1]) for row in rows)
    return listed


def _describe(planner: str) -> Table:
    """Return what a planner is, where it comes from and how it plans."""
    from diffuser_policy.build import num_parameters
    from diffuser_policy.checkpoint import locate, read_planner
    from diffuser_policy.guides.guide import described

    config, networks = read_planner(planner)
    provenance = config.provenance
    dataset = provenance.get("dataset", {})
    training, steps = provenance.get("training", {}), provenance.get("steps")
    window, plans, guide = config.window, config.planner, config.guide
    network, execution = config.network, config.execution
    kind = {
        "unet": "temporal U-Net",
        "mlp": "residual MLP",
        "transformer": "temporal transformer",
        "objects": "transformer over objects",
    }
    pursues = config.layout.goal_conditioned
    whens = ["on a new goal" if pursues else "when the plan has run out"]
    if execution.replan_interval is not None:
        whens.append(every(execution.replan_interval, "env step"))
    if execution.replan_deviation is not None:
        whens.append(f"{execution.replan_deviation} m off the plan")
    count = num_parameters(networks)
    rows: dict[str, Any] = {
        "folder": locate(planner),
        "environment": dataset.get("env_id"),
        "dataset": dataset.get("dataset_id"),
        "trained": f"{counted(steps, 'gradient step')}, seed {training.get('seed')}"
        if isinstance(steps, int)
        else None,
        "weights": f"{count:,} numbers",
        "trajectory": f"{config.layout.action_dim} action and "
        f"{config.layout.observation_dim} "
        f"{'observation' if window.features is None else window.features} columns",
        "network": f"{kind[network.architecture]}, width {network.dim}"
        + ", residual" * network.residual,
        "horizon": f"{plans.horizon}, at most {counted(window.horizon, 'env step')}, "
        f"stride {window.stride}",
        **(
            {"subgoals": f"{plans.subgoal:g} env steps ahead, over landmarks"}
            if plans.subgoal
            else {}
        ),
        "sampler": f"{plans.sampler}, {plans.num_sampling_steps or 'all'} of "
        f"{network.num_denoising_steps} denoising steps, "
        f"temperature {plans.temperature:g}",
        "candidates": f"{plans.num_candidates}, ranked by {plans.ranking}",
        "classifier": "none"
        if config.classifier is None
        else f"of {len(config.classifier.classes)} labels: "
        f"{', '.join(config.classifier.classes)}",
        "guide": "none" if guide is None else described(guide),
        **({} if guide is None else {"guidance": _guidance(plans, guide)}),
        "executor": execution.executor,
        "replanning": ", ".join(whens),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in provenance.get("versions", {}).items()
        ),
    }
    known = ((name, value or "–") for name, value in rows.items())
    return table("", "", rows=known, title=planner)


def _guidance(plans: PlannerConfig, guide: Guide) -> str:
    """Return how hard a guide steers plans, and where its gradient is taken."""
    if plans.guide_scale == 0:
        return "off (scale 0)"
    placement = plans.guide_placement or guide.suited_placement
    return f"scale {plans.guide_scale:g}, placement {placement}"
