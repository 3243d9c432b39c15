"""Which planner walks best? Networks, horizons, critics, values and ways to choose.

    diffuser-policy collect Walker2d-v5 --demonstrator walker2d-medium-expert
    python examples/experiments/locomotion.py Walker2d-v5 \
        diffuser/walker2d-medium-expert-v1 --out runs/locomotion

For each network of `NETWORKS`, a planner is trained, and for some a critic or a value
network; then every way of `WAYS` is tried on the same episodes. Their seeds are other
than those of benchmarks: what is best here is what is reported there. Every planner
plans anew in every env step. A result that is there already is not made again, so the
command resumes. The other datasets, such as halfcheetah-medium and
hopper-medium-replay, follow in the same way.

Every call writes all results of `--out`: as a table in `locomotion.md`, and as
`locomotion.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from diffuser_policy import Guide, Trajectory, register_guide
from diffuser_policy.cli import main as command
from diffuser_policy.errors import GuideError
from diffuser_policy.networks.critic import Critic

# Name → options of `train`; what is not said is chosen to suit the data.
NETWORKS = {
    "H 1": "--window.horizon 1",
    "H 1, all data": "--window.horizon 1 --window.best-share 1",
    "H 1, width 256": "--window.horizon 1 --network.dim 256",
    "H 4": "--window.horizon 4",
    "H 4, first action weighs 10": "--window.horizon 4 "
    "--network.first-action-weight 10",
    "H 4, states and inverse dynamics": "--window.horizon 4 --window.no-actions "
    "--execution.lookahead 8",
    "H 4, transformer": "--window.horizon 4 --network.architecture transformer",
    "H 4, U-Net": "--window.horizon 4 --network.architecture unet "
    "--network.dim 16 --network.multipliers 1 2 4",
    "H 16": "--window.horizon 16 --execution.replan-interval 1",
    "H 16, transformer": "--window.horizon 16 --execution.replan-interval 1 "
    "--network.architecture transformer",
    "H 16, U-Net": "--window.horizon 16 --execution.replan-interval 1 "
    "--network.architecture unet --network.dim 16 --network.multipliers 1 2 4",
}
# Word of a way → the companion that it needs, and the networks that are tried with it.
NEEDS = {
    "critic": ("critic", {"H 1", "H 1, all data", "H 4"}),
    "value": ("value", {"H 4"}),
    "end-value": ("critic", {"H 4"}),  # plans of one step end where they begin
}
# Name → options of `evaluate`.
WAYS = {
    "temperature 1": "--sampler ddpm --temperature 1",
    "temperature 0.5": "--sampler ddpm --temperature 0.5",
    "temperature 0": "--sampler ddpm --temperature 0",
    "10 steps of DDIM": "--sampler ddim --num-sampling-steps 10 --temperature 0",
    "one step": "--sampler ddim --num-sampling-steps 1 --temperature 0",
    "critic of 8": "--sampler ddpm --temperature 1 --ranking critic --num-candidates 8",
    "5 steps, temperature 1": "--sampler ddim --num-sampling-steps 5 --temperature 1",
    "critic of 8, 5 steps": "--sampler ddim --num-sampling-steps 5 --temperature 1 "
    "--ranking critic --num-candidates 8",
    "critic of 32, 5 steps": "--sampler ddim --num-sampling-steps 5 --temperature 1 "
    "--ranking critic --num-candidates 32",
    "value of 8": "--sampler ddpm --temperature 1 --guide value --guide-scale 0 "
    "--ranking guide --num-candidates 8",
    "gradient of the value, 0.1": "--sampler ddpm --temperature 0.5 --guide value "
    "--guide-placement noisy --guide-scale 0.1 --guide-steps 2",
    "value of the end, of 8": "--sampler ddpm --temperature 1 --guide end-value "
    "--guide-scale 0 --ranking guide --num-candidates 8",
}
SEED = 50_000  # of the first episode
NUM_STEPS = 8_000  # of gradient, that the published planners were trained for
TIMED = 100  # env steps in which decisions for a single environment are timed


@register_guide("end-value")
@dataclass(frozen=True, kw_only=True)
class EndValue(Guide):
    """Prefers plans that end in a state which the planner's critic values highly.

    Attributes:
        critic: A planner fills it in.
    """

    critic: Critic | None = field(default=None, compare=False, repr=False)

    def bind(self, networks: Any) -> EndValue:
        """Return the guide with the planner's critic.

        Raises:
            GuideError: The planner has none.
        """
        if networks.critic is None:
            raise GuideError("end-value needs a critic: train it with train-critic.")
        return dataclasses.replace(self, critic=networks.critic)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the values `[batch]` of the last planned states, in units of reward.

        Raises:
            GuideError: No planner has filled in a critic.
        """
        if self.critic is None:
            raise GuideError("end-value has no critic yet: bind it to a planner.")
        last = trajectory.normalized[:, -1, trajectory.layout.observations]
        return self.critic.of_states(last)


def run(*arguments: str) -> float:
    """Run a command; return its CPU seconds."""
    started = time.process_time()
    if status := command(list(arguments)):
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return time.process_time() - started


def ways_of(network: str) -> dict[str, str | None]:
    """Return the ways that a network is tried in, each with the companion it needs."""
    ways: dict[str, str | None] = {}
    for way, options in WAYS.items():
        needs = [NEEDS[word] for word in options.split() if word in NEEDS]
        if all(network in networks for _, networks in needs):
            ways[way] = needs[0][0] if needs else None
    return ways


def collected(out: Path) -> list[dict[str, Any]]:
    """Return all results in a folder, a dictionary for each."""
    found: list[dict[str, Any]] = []
    datasets = sorted(path.name for path in out.iterdir() if path.is_dir())
    for network, way, dataset in product(NETWORKS, WAYS, datasets):
        file = out / dataset / f"{network}, {way}.json"
        alone = out / dataset / f"{network}, {way}, alone.json"
        if file.exists() and alone.exists():
            data = json.loads(file.read_text(encoding="utf-8"))
            timed = json.loads(alone.read_text(encoding="utf-8"))
            found.append(
                {
                    "dataset": dataset.rpartition("-v")[0],
                    "network": network,
                    "way": way,
                    "episodes": data["settings"]["episodes"],
                    **{k: data["summary"][k] for k in ("score", "return", "plan_ms")},
                    "decision_ms": timed["summary"]["plan_ms"],
                    "versions": data["versions"],
                }
            )
    return found


def as_markdown(found: list[dict[str, Any]], num_steps: int) -> str:
    """Return a table of results: a row for each network and way.

    Args:
        found: The results.
        num_steps: Gradient steps of the planners.
    """
    names = sorted({result["dataset"] for result in found})
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for each in found:
        row = rows.setdefault((each["network"], each["way"]), {})
        row[each["dataset"]] = each
    lines = [f"| network | way | {' | '.join(names)} | ms, alone | ms, together |"]
    lines += ["|---" * (len(names) + 4) + "|"]
    for (network, way), results in rows.items():
        cells = []
        for name in names:
            score = results[name]["score"] if name in results else None
            cells.append(
                "–"
                if score is None
                else f"{score['mean']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"
            )
        for kind in ("decision_ms", "plan_ms"):
            times = [result[kind]["mean"] for result in results.values()]
            cells.append(f"{min(times):.1f}")
        lines.append(f"| {network} | {way} | {' | '.join(cells)} |")
    episodes = " or ".join(map(str, sorted({each["episodes"] for each in found})))
    about = (
        f"D4RL's scores of planners trained for {num_steps:,} gradient steps: "
        f"{episodes} episodes from seed {SEED}, with 95 % intervals. Times are "
        f"milliseconds a decision on one core, the least of all datasets: of one "
        f"environment alone, and of one of up to 16 that are decided together. Made "
        f"by `examples/experiments/locomotion.py`, whose `NETWORKS` and `WAYS` say "
        f"what the names mean."
    )
    return "\n".join(["# Planners of walking robots", "", about, "", *lines, ""])


def main() -> None:
    """Train what is asked for, and try all ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="environment id")
    parser.add_argument("dataset", help="Minari id")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="of gradient")
    parser.add_argument("--critic-steps", type=int, default=15_000)
    parser.add_argument("--value-steps", type=int, default=5_000)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/locomotion"))
    given = parser.parse_args()
    folder = given.out / given.dataset.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    for network in given.networks:
        planner = folder / network
        common = ["--dataset", given.dataset]
        # What was trained already is resumed at its end, which takes a moment.
        steps = ["--num-steps", str(given.steps), "--output", str(planner)]
        options = ["--no-critic", *NETWORKS[network].split(), *steps]
        print(network, f"{run('train', *common, *options):.0f} s", flush=True)
        sources = dict.fromkeys([None], planner)
        for way, name in ways_of(network).items():
            if way not in given.ways:
                continue
            if name is not None and name not in sources:
                sources[name] = folder / f"{network}-{name}"
                num_steps = getattr(given, f"{name}_steps")
                options = ["--num-steps", str(num_steps)]
                options += ["--output", str(sources[name])]
                seconds = run(f"train-{name}", str(planner), *common, *options)
                print(network, name, f"{seconds:.0f} s", flush=True)
            source = sources[name]
            file = folder / f"{network}, {way}.json"
            alone = folder / f"{network}, {way}, alone.json"
            asked = ["--env", given.env, "--seed", str(SEED), *WAYS[way].split()]
            if not file.exists():
                options = ["--episodes", str(given.episodes), "--json", str(file)]
                run("evaluate", str(source), *asked, *options)
            if not alone.exists():
                options = ["--episodes", "1", "--json", str(alone)]
                options += ["--env-option", f"max_episode_steps={TIMED}"]
                run("evaluate", str(source), *asked, *options)
            summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
            earned = {k: round(summary[k]["mean"], 1) for k in ("return", "score")}
            print(network, way, earned, flush=True)
    found = collected(given.out)
    page = as_markdown(found, given.steps)
    (given.out / "locomotion.md").write_text(page, encoding="utf-8")
    data = {"num_steps": given.steps, "results": found}
    text = json.dumps(data, indent=1) + "\n"
    (given.out / "locomotion.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
