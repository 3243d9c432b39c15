"""The command `diffuser-policy`: one module per subcommand, imported when it is used.

A subcommand `name` is the module `diffuser_policy.cli.name` (`_` for `-`) with a
function `run` of one argument, a frozen keyword-only dataclass: its fields are the
options, their docstrings the help. `run` returns the exit status. A module whose
options depend on one another may parse them itself, in
`parse(arguments) -> settings`. Modules import torch and simulators inside `run` only,
so that help answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

from diffuser_policy.errors import DiffuserPolicyError, UnknownNameError

OVERVIEW = """\
usage: diffuser-policy COMMAND [OPTIONS]

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
    """Run the command line.

    Args:
        argv: Arguments after the program's name; those of the process if not given.

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
    except KeyboardInterrupt:
        _complain("interrupted", "stopped by Ctrl-C.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE


def _dispatch(arguments: list[str]) -> int:
    """Find the subcommand, parse its options, run it."""
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        _print_overview()
        return EXIT_OK if arguments else EXIT_ERROR
    name, *rest = arguments
    if name in {"-V", "--version"}:
        from importlib.metadata import version

        print(f"diffuser-policy {version('diffuser-policy')}")
        return EXIT_OK
    if name not in COMMANDS:
        raise UnknownNameError("command", name, COMMANDS)
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    run: Callable[[Any], int] = module.run
    parse: Callable[[list[str]], Any] | None = getattr(module, "parse", None)
    return run(_parse(name, run, rest) if parse is None else parse(rest))


def _parse(name: str, run: Callable[[Any], int], arguments: list[str]) -> Any:
    """Turn arguments into the settings that a subcommand's `run` asks for."""
    import tyro

    settings_type = next(iter(get_type_hints(run).values()))
    return tyro.cli(
        settings_type,
        prog=f"diffuser-policy {name}",
        args=arguments,
        use_underscores=False,
    )


def _print_overview() -> None:
    """Print what the program is for and its subcommands."""
    commands = "\n".join(f"  {name:<17}{COMMANDS[name]}" for name in COMMANDS)
    print(OVERVIEW.format(commands=commands))


def _complain(label: str, message: str) -> None:
    """Write one message to standard error, without a traceback."""
    from rich.console import Console
    from rich.text import Text

    text = Text.assemble((f"{label}: ", "bold red"), message)
    Console(stderr=True, highlight=False, soft_wrap=True).print(text)
