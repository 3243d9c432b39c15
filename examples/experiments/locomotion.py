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
    "H 1": "--window.horizon 1",
    "H 1, all data": "--window.horizon 1 --window.best-share 1",
    "H 1, width 256": "--window.horizon 1 --network.dim 256",
    "H 4": "--window.horizon 4",
    "H 4, first action weighs 10": "--window.horizon 4 "
    "--network.first-action-weight 10",
    "H 4, states and inverse dynamics": "--window.horizon 4 --no-window.actions",
    "H 16, U-Net": "--window.horizon 16 --network.architecture unet "
    "--network.dim 16 --network.multipliers 1 2 4",
}
CRITICS = {"H 1", "H 1, all data"}  # networks that are tried with one as well
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
    parser.add_argument("--steps", type=int, default=8_000, help="of gradient")
    parser.add_argument("--critic-steps", type=int, default=15_000)
    parser.add_argument("--critic-options", default="")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/locomotion"))
    given = parser.parse_args()
    folder = given.out / given.dataset.rpartition("/")[2]
    folder.mkdir(parents=True, exist_ok=True)
    for network in given.networks:
        planner, judged = folder / network, folder / f"{network}-critic"
        common = ["--dataset", given.dataset]
        # What was trained already is resumed at its end, which takes a moment.
        steps = ["--num-steps", str(given.steps), "--output", str(planner)]
        options = ["--no-critic", *NETWORKS[network].split(), *steps]
        print(network, f"{run('train', *common, *options):.0f} s", flush=True)
        ways = [way for way in given.ways if "critic" not in way]
        if network in CRITICS:
            ways = given.ways
        if any("critic" in way for way in ways):
            steps = ["--num-steps", str(given.critic_steps), "--output", str(judged)]
            options = [str(planner), *given.critic_options.split(), *steps]
            seconds = run("train-critic", *common, *options)
            print(network, f"critic {seconds:.0f} s", flush=True)
        for way in ways:
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
