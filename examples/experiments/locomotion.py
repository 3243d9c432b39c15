"""Which planner walks best? Networks, horizons, critics, values and ways to choose.

    diffuser-policy collect Walker2d-v5 --demonstrator walker2d-medium-expert
    python examples/experiments/locomotion.py Walker2d-v5 \
        diffuser/walker2d-medium-expert-v1 --out runs/locomotion

For each network of `NETWORKS`, a planner is trained, and for some a critic or a value
network; then every way of `WAYS` is tried on the same episodes. Their seeds are other
than those of benchmarks: what is best here is what is reported there. A result that is
there already is not made again, so the command resumes. The other
datasets, such as halfcheetah-medium and hopper-medium-replay, follow in the same way.

Every call writes a table of all results in `--out`, `locomotion.md` there.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import product
from pathlib import Path
from typing import Any

from diffuser_policy.cli import main as command

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
    "H 16": "--window.horizon 16",
    "H 16, transformer": "--window.horizon 16 --network.architecture transformer",
    "H 16, U-Net": "--window.horizon 16 --network.architecture unet "
    "--network.dim 16 --network.multipliers 1 2 4",
}
# Networks that are tried with one as well.
COMPANIONS = {"critic": {"H 1", "H 1, all data"}, "value": {"H 4"}}
# Name → options of `evaluate`.
WAYS = {
    "temperature 1": "--sampler ddpm --temperature 1",
    "temperature 0.5": "--sampler ddpm --temperature 0.5",
    "temperature 0": "--sampler ddpm --temperature 0",
    "10 steps of DDIM": "--sampler ddim --num-sampling-steps 10 --temperature 0",
    "one step": "--sampler ddim --num-sampling-steps 1 --temperature 0",
    "critic of 8": "--sampler ddpm --temperature 1 --ranking critic --num-candidates 8",
    "critic of 8, temperature 0.5": "--sampler ddpm --temperature 0.5 "
    "--ranking critic --num-candidates 8",
    "critic of 32, 5 steps": "--sampler ddim --num-sampling-steps 5 --temperature 1 "
    "--ranking critic --num-candidates 32",
    "value of 8": "--sampler ddpm --temperature 1 --guide value --guide-scale 0 "
    "--ranking guide --num-candidates 8",
    "gradient of the value, 0.1": "--sampler ddpm --temperature 0.5 --guide value "
    "--guide-placement noisy --guide-scale 0.1 --guide-steps 2",
    "gradient of the value, 0.01": "--sampler ddpm --temperature 0.5 --guide value "
    "--guide-placement noisy --guide-scale 0.01 --guide-steps 2",
}
SEED = 50_000  # of the first episode
NUM_STEPS = 8_000  # of gradient, that the published planners were trained for


def run(*arguments: str) -> float:
    """Run a command; return its CPU seconds."""
    started = time.process_time()
    if status := command(list(arguments)):
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return time.process_time() - started


def companion_of(way: str) -> str | None:
    """Return the network that a way needs beside the planner's."""
    words = WAYS[way].split()
    return next((name for name in COMPANIONS if name in words), None)


def as_markdown(out: Path, num_steps: int) -> str:
    """Return a table of all results in a folder: a row for each network and way.

    Args:
        out: The folder.
        num_steps: Gradient steps of the planners.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    datasets = sorted(path.name for path in out.iterdir() if path.is_dir())
    for network, way, dataset in product(NETWORKS, WAYS, datasets):
        file = out / dataset / f"{network}, {way}.json"
        if file.exists():
            data = json.loads(file.read_text(encoding="utf-8"))
            found.setdefault((network, way), {})[dataset] = data
    names = [name.rpartition("-v")[0] for name in datasets]
    lines = [f"| network | way | {' | '.join(names)} | ms a plan |"]
    lines += ["|---" * (len(names) + 3) + "|"]
    for (network, way), results in found.items():
        cells = []
        for dataset in datasets:
            score = results.get(dataset, {}).get("summary", {}).get("score")
            cells.append(
                "–"
                if score is None
                else f"{score['mean']:.1f} [{score['low']:.1f}, {score['high']:.1f}]"
            )
        times = [each["summary"]["plan_ms"]["mean"] for each in results.values()]
        cells.append(f"{min(times):.1f}")
        lines.append(f"| {network} | {way} | {' | '.join(cells)} |")
    counts = {
        data["settings"]["episodes"] for r in found.values() for data in r.values()
    }
    episodes = " or ".join(map(str, sorted(counts)))
    about = (
        f"D4RL's scores of planners trained for {num_steps:,} gradient steps: "
        f"{episodes} episodes from seed {SEED}, with 95 % intervals. Time is that of "
        f"one of 16 plans made together, on one core, the least of all datasets. Made "
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
        for way in given.ways:
            name = companion_of(way)
            if name is not None and network not in COMPANIONS[name]:
                continue
            if name not in sources:
                sources[name] = folder / f"{network}-{name}"
                num_steps = getattr(given, f"{name}_steps")
                options = ["--num-steps", str(num_steps)]
                options += ["--output", str(sources[name])]
                seconds = run(f"train-{name}", str(planner), *common, *options)
                print(network, name, f"{seconds:.0f} s", flush=True)
            source = sources[name]
            file = folder / f"{network}, {way}.json"
            if not file.exists():
                options = ["--env", given.env, "--seed", str(SEED), "--json", str(file)]
                options += ["--episodes", str(given.episodes), *WAYS[way].split()]
                run("evaluate", str(source), *options)
            summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
            earned = {k: round(summary[k]["mean"], 1) for k in ("return", "score")}
            print(network, way, earned, flush=True)
    page = as_markdown(given.out, given.steps)
    (given.out / "locomotion.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
