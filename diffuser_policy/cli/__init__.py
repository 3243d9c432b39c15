"""The command `diffuser-policy`: modules of subcommands, imported when they are used.

`train-value` is the function `train_value` of the module
`diffuser_policy.cli.train_value`. Its one argument is a frozen keyword-only dataclass:
the fields are the options, their docstrings the help. It returns the exit status. Where
options depend on one another, the dataclass parses them itself, in `parse(arguments)`.
Modules import torch and simulators inside of functions only, so that help answers at
once. A module with `COMMANDS` of its own has functions for subcommands of these names.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import keyword
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, get_type_hints

from diffuser_policy.errors import (
    CheckpointNotFoundError,
    DiffuserPolicyError,
    UnknownNameError,
)

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
    "import": "Make a dataset from D4RL, OGBench or similar array files.",
    "train": "Train a planner on a dataset, or resume its training.",
    "train-value": "Train a planner's value network, for value guidance.",
    "train-critic": "Train a planner's critic, which chooses among candidates.",
    "train-classifier": "Train a planner's classifier of states, for guides.",
    "evaluate": "Run episodes with a planner; report scores and intervals.",
    "plan": "Draw a plan from above, the rollout, the denoising chain.",
    "play": "Open a page to drag the goal: plan and robot follow.",
    "benchmark": "Compare methods, on the same data and the same episodes.",
    "speed": "Measure how fast a planner plans, beside the paper's setting.",
    "export": "Write a planner as ONNX files, which plan without PyTorch.",
    "guides": "List the guides that plans can be steered by, or explain one.",
    "info": "List planners, presets, environments and plug-ins.",
}

LESS = "Ask for less at a time: fewer environments, candidates or workers."
SHORTAGES = {
    errno.EMFILE: "Raise the limit (`ulimit -n 4096`), or use fewer processes.",
    errno.ENFILE: "Close other programs, or use fewer processes.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ENOMEM: LESS,
    errno.ENOSPC: "Free some space, or choose another place.",
    errno.EACCES: "You may not use that file: choose another one.",
}

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_PIPE = 0, 2, 130, 141
LOST = {errno.ENOSPC, errno.EDQUOT, errno.EIO}  # what a full disk says of the output


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments, or those of the process.

    Returns:
        The exit status: 0 for success, 2 for an error that was explained on standard
        error, 130 after Ctrl-C, 141 when nobody reads standard output any more.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A program may call this: its threads, and its random numbers, of which importing
    # `rich` takes some, stay as they are.
    drawn, torch = random.getstate(), sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        with _any_encoding():
            status = _dispatch(arguments)
            if sys.stdout is not None:  # closed before we began
                sys.stdout.flush()  # its failure is told here, not when Python ends
        return status
    except DiffuserPolicyError as error:
        _complain("error", _with_options(_with_preset(error), arguments))
        return EXIT_ERROR
    except KeyboardInterrupt as stop:  # commands say how to resume
        _complain("interrupted", str(stop) or "stopped by Ctrl-C.")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `… | head` has read enough
        _close_output()
        return EXIT_PIPE
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # so rich ends the process
            return EXIT_PIPE
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in LOST and not error.filename:
            _close_output()
            reason = f"standard output cannot be written: {error.strerror}."
            reason += " Files that the command writes are complete."
        else:
            reason = _shortage(error) or ""
        if not reason:  # a fault of ours, or of other people's code: show where
            raise
        _complain("error", reason)
        return EXIT_ERROR
    finally:
        random.setstate(drawn)
        if torch:
            torch.set_num_threads(threads)


@contextlib.contextmanager
def _any_encoding() -> Iterator[None]:
    """Print characters that the terminal's encoding lacks as question marks."""
    streams = [s for s in (sys.stdout, sys.stderr) if hasattr(s, "reconfigure")]
    before = [stream.errors for stream in streams]
    for stream, errors in zip(streams, before, strict=True):
        stream.reconfigure(errors="replace" if errors == "strict" else errors)
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(OSError, ValueError):  # closed, or cannot flush
                stream.reconfigure(errors=errors)


def _close_output() -> None:
    """Discard unprinted output: Python would fail to flush it."""
    with contextlib.suppress(OSError, ValueError):  # no real file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _shortage(error: Exception) -> str | None:
    """Return advice if an error means that the machine lacks something."""
    if isinstance(error, OSError) and error.errno in SHORTAGES:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}. {SHORTAGES[error.errno]}"
    if isinstance(error, MemoryError):
        return f"Out of memory. {LESS}"
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from diffuser_policy.numerics import out_of_memory

        if out_of_memory(error):
            return f"Out of memory: {str(error).partition(chr(10))[0]} {LESS}"
    return None


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
    module: Any = importlib.import_module(f"{__name__}.{_word(name)}")
    program, commands = f"diffuser-policy {name}", getattr(module, "COMMANDS", None)
    if commands is not None:
        if _shows_overview(program, module.OVERVIEW, commands, rest):
            return EXIT_OK if rest else EXIT_ERROR
        group, (name, *rest) = name, rest
        if name not in commands:
            raise UnknownNameError(f"command of {group}", name, commands)
        program += f" {name}"
    function = getattr(module, _word(name))
    settings: Any = next(iter(get_type_hints(function).values()))
    import tyro

    parse = getattr(settings, "parse", None) or partial(
        tyro.cli, settings, prog=program, use_underscores=False
    )
    return int(function(parse(args=rest)))


def _word(name: str) -> str:
    """Return the name that Python allows for a command: `import_` for `import`."""
    word = name.replace("-", "_")
    return f"{word}_" if keyword.iskeyword(word) else word


def _with_preset(error: DiffuserPolicyError) -> str:
    """Return the message of an error, and more if a preset was taken for a planner."""
    from diffuser_policy.training.presets import PRESETS

    name = error.planner if isinstance(error, CheckpointNotFoundError) else None
    if name not in PRESETS:
        return str(error)
    return (
        f"{error} {name!r} is a preset: `diffuser-policy train {name}` trains a "
        f"planner with it, in the folder runs/{name}, and `diffuser-policy train "
        f"{name} --help` shows its settings."
    )


def _with_options(message: str, arguments: Sequence[str]) -> str:
    """Add the options of the settings that a message names as in Python."""
    from diffuser_policy.cli.options import options_in

    options = options_in(message, next(iter(arguments), ""), arguments)
    return f"{message} ({', '.join(options)})" if options else message


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
