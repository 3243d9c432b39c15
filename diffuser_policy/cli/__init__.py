"""The command `diffuser-policy`: modules of subcommands, imported when they are used.

`train-value` is the function `train_value` of the module `diffuser_policy.cli.train`,
which the first word names. Its one argument is a frozen keyword-only dataclass: the
fields are the options, their docstrings the help. It returns the exit status. Where
options depend on one another, the dataclass parses them itself, in `parse(arguments)`.
Modules import torch and simulators inside of functions only, so that help answers at
once. A module with `COMMANDS` of its own has functions for subcommands of these names.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

from diffuser_policy.errors import DiffuserPolicyError, UnknownNameError

OVERVIEW = """\
Diffuser, planning with diffusion, as a policy for Gymnasium environments.

commands:
{commands}

  -h, --help     this page; after a command, its options
  -V, --version  the installed version

for example:
  diffuser-policy evaluate multi2d-large --episodes 10 --seed 0"""

COMMANDS = {
    "collect": "Record a dataset with an environment's demonstrator.",
    "train": "Train a planner on a dataset, or resume its training.",
    "train-value": "Train a planner's value network, for value guidance.",
    "train-critic": "Train a planner's critic, which chooses among candidates.",
    "train-classifier": "Train a planner's classifier of states, for guides.",
    "evaluate": "Run episodes with a planner; report scores and intervals.",
    "plan": "Draw a plan from above, the rollout, the denoising chain.",
    "benchmark": "Compare methods, on the same data and the same episodes.",
    "speed": "Measure how fast a planner plans, beside the paper's setting.",
    "guides": "List the guides that plans can be steered by, or explain one.",
    "info": "List planners, presets, environments and plug-ins.",
}

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE = 0, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, or those of the process.

    Returns:
        The exit status: 0 for success, 2 for an error that was explained on standard
        error, 130 after Ctrl-C, 141 when nobody reads standard output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except DiffuserPolicyError as error:
        _complain("error", str(error))
        return EXIT_ERROR
    except KeyboardInterrupt as stop:  # commands say how to resume
        _complain("interrupted", str(stop) or "stopped by Ctrl-C.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def _dispatch(arguments: list[str]) -> int:
    """Find the subcommand, parse its options, run it."""
    if arguments[:1] in (["-V"], ["--version"]):
        from importlib.metadata import version

        print(f"diffuser-policy {version('diffuser-policy')}")
        return EXIT_OK
    if _shows_overview("diffuser-policy", OVERVIEW, COMMANDS, arguments):
        return EXIT_OK if arguments else EXIT_ERROR
    name, *rest = arguments
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    module: Any = importlib.import_module(f"{__name__}.{name.partition('-')[0]}")
    program, commands = f"diffuser-policy {name}", getattr(module, "COMMANDS", None)
    if commands is not None:
        if _shows_overview(program, module.OVERVIEW, commands, rest):
            return EXIT_OK if rest else EXIT_ERROR
        group, (name, *rest) = name, rest
        if name not in commands:
            raise UnknownNameError(f"command of {group}", name, commands)
        program += f" {name}"
    function = getattr(module, name.replace("-", "_"))
    settings: Any = next(iter(get_type_hints(function).values()))
    import tyro

    parse = getattr(settings, "parse", None) or partial(
        tyro.cli, settings, prog=program, use_underscores=False
    )
    return int(function(parse(args=rest)))


def _shows_overview(
    program: str, text: str, commands: Mapping[str, str], arguments: list[str]
) -> bool:
    """Print the page about some commands if the arguments name none of them."""
    if arguments and arguments[0] not in {"-h", "--help", "help"}:
        return False
    listed = "\n".join(f"  {name:<17}{use}" for name, use in commands.items())
    print(f"usage: {program} COMMAND [OPTIONS]\n\n{text.format(commands=listed)}")
    return True


def _complain(label: str, message: str) -> None:
    """Write one message to standard error, without a traceback."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{label}: ", "bold red"), message)
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
