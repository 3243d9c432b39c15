"""What is set up by hand, as Python and as a command line that make it again."""

from __future__ import annotations

import json
import shlex
from typing import Any

from diffuser_policy.guides.registry import part_text
from diffuser_policy.play.session import Setup


def as_python(setup: Setup) -> str:
    """Return a program that plans for a setup, follows the plan, and prints both.

    Args:
        setup: What was set up by hand.
    """
    module = setup.env_id.partition("/")[0]
    env_id = setup.env_id
    if module.isidentifier() and "/" in env_id and ":" not in env_id:
        env_id = f"{module}:{env_id}"  # imports what registers it
    guides = [  # others do not steer
        part
        for number, part in enumerate(setup.guides)
        if part.weight and number not in setup.left_out
    ]
    names = "DiffuserPolicy, make_guide" if guides else "DiffuserPolicy"
    source = repr(setup.planner) + (f", seed={setup.seed}" if setup.seed else "")
    lines = [
        "from diffuser_policy import " + names,
        "from diffuser_policy.envs import make_env",
        "",
        f"env = make_env({env_id!r})",
        f"policy = DiffuserPolicy.from_pretrained({source}).for_env(env)",
    ]
    settings = "".join(f", {name}={value!r}" for name, value in setup.settings.items())
    if guides:
        lines.append("guide = (")
        for index, part in enumerate(guides):
            given = "".join(
                f", {name}={_literal(value)}" for name, value in part.parameters.items()
            )
            factor = "" if part.weight == 1.0 else f"{part.weight!r} * "
            plus = "" if index == 0 else "+ "
            lines.append(f"    {plus}{factor}make_guide({part.guide!r}{given})")
        lines += [")", f"policy = policy.with_guide(guide{settings})"]
    elif setup.guides or setup.unguided:
        lines.append(f"policy = policy.with_guide(None{settings})")
    elif settings:
        lines.append(f"policy = policy.with_settings({settings[2:]})")
    options = f", options={dict(setup.options)!r}" if setup.options else ""
    lines += [
        f"observation, info = env.reset(seed={setup.seed}{options})",
        "plan = policy.plan(observation)",
        "print(plan)",
        "",
        "state, total, terminated, truncated = None, 0.0, False, False",
        "while not (terminated or truncated):",
        "    action, state = policy.predict(observation, state, deterministic=True)",
        "    observation, reward, terminated, truncated, info = env.step(action)",
        "    total += float(reward)",
        "print(f'return {total:.1f}, and in the end {info}')",
        "",
    ]
    return "\n".join(lines)


def as_command(setup: Setup) -> str:
    """Return the command line that opens the page as it is set up.

    Args:
        setup: What was set up by hand.
    """
    words = ["diffuser-policy", "play", setup.planner, "--env", setup.env_id]
    if setup.seed:
        words += ["--seed", str(setup.seed)]
    for name, value in setup.options.items():
        words += ["--reset", f"{name}={json.dumps(value)}"]
    for part in setup.guides:
        words += ["--guide", part_text(part)]
    if setup.unguided:
        words += ["--guide", "none"]
    for name, value in setup.settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


def _literal(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)
