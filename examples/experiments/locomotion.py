"""Which planner walks best? Networks, horizons, critics and ways to choose a plan.

    diffuser-policy collect Walker2d-v5 --demonstrator walker2d-medium-replay
    python examples/experiments/locomotion.py Walker2d-v5 \
        diffuser/walker2d-medium-replay-v1 --out runs/locomotion

For each network of `NETWORKS`, a planner and a critic are trained; then every way of
`WAYS` is tried on the same episodes. Their seeds are other than those of benchmarks:
what is best here is what is reported there. A result that is there already is not made
again, so the command resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from diffuser_policy.cli import main as command

# Name → options of `train`; what is not said is chosen to suit the data.
NETWORKS = {
    "mlp-1": "--no-critic --window.horizon 1",
    "mlp-4": "--no-critic --window.horizon 4",
    "mlp-8": "--no-critic --window.horizon 8",
}
# Name → options of `evaluate`.
WAYS = {
    "temperature 1": "--num-sampling-steps 20 --temperature 1",
    "temperature 0.5": "--num-sampling-steps 20 --temperature 0.5",
    "one step from zero": "--num-sampling-steps 1 --temperature 0",
    "critic of 32": "--num-sampling-steps 20 --temperature 1 "
    "--ranking critic --num-candidates 32",
    "critic of 32, temperature 0.5": "--num-sampling-steps 20 --temperature 0.5 "
    "--ranking critic --num-candidates 32",
    "critic of 32, 5 steps": "--num-sampling-steps 5 --temperature 1 "
    "--ranking critic --num-candidates 32",
    "critic of 8, 5 steps": "--num-sampling-steps 5 --temperature 1 "
    "--ranking critic --num-candidates 8",
}
SEED = 50_000  # of the first episode


def run(*arguments: str) -> float:
    """Run a command; return its CPU seconds."""
    started = time.process_time()
    if status := command(list(arguments)):
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return time.process_time() - started


def main() -> None:
    """Train what is asked for, and try all ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("env", help="environment id")
    parser.add_argument("dataset", help="Minari id")
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--steps", type=int, default=10_000, help="of gradient")
    parser.add_argument("--critic-steps", type=int, default=25_000)
    parser.add_argument("--critic-options", default="")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/locomotion"))
    given = parser.parse_args()
    folder = given.out / given.dataset.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    for network in given.networks:
        planner, judged = folder / network, folder / f"{network}-critic"
        common = ["--dataset", given.dataset]
        if not (planner / "model.safetensors").exists():
            steps = ["--num-steps", str(given.steps), "--output", str(planner)]
            options = [*NETWORKS[network].split(), *steps]
            print(network, f"{run('train', *common, *options):.0f} s", flush=True)
        if not (judged / "model.safetensors").exists():
            steps = ["--num-steps", str(given.critic_steps), "--output", str(judged)]
            options = [str(planner), *given.critic_options.split(), *steps]
            seconds = run("train-critic", *common, *options)
            print(network, f"critic {seconds:.0f} s", flush=True)
        for way in given.ways:
            source = judged if "critic" in WAYS[way] else planner
            file = folder / f"{network}, {way}.json"
            if not file.exists():
                options = ["--env", given.env, "--seed", str(SEED), "--json", str(file)]
                options += ["--episodes", str(given.episodes), *WAYS[way].split()]
                run("evaluate", str(source), *options)
            summary = json.loads(file.read_text(encoding="utf-8"))["summary"]
            earned = {k: round(summary[k]["mean"], 1) for k in ("return", "score")}
            print(network, way, earned, flush=True)


if __name__ == "__main__":
    main()
