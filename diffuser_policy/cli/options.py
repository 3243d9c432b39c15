"""Options that subcommands share: how to plan, and with which environment.

Every planning and execution setting is an option, made from its field and docstring in
`diffuser_policy.config`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_args, get_type_hints

import docstring_parser
import tyro

from diffuser_policy.choices import Acceleration
from diffuser_policy.config import (
    PARTS,
    ClassifierConfig,
    CollectSettings,
    CriticConfig,
    ExecutionConfig,
    OptimizationConfig,
    PlannerConfig,
    ValueConfig,
    with_all_steps,
)
from diffuser_policy.errors import ConfigError, DiffuserPolicyError, shown
from diffuser_policy.settings import NAMED, json_data

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from diffuser_policy.policy import DiffuserPolicy

MOST_THREADS = 1024
# Wrappers that change nothing for a policy, and that which `make_env` itself adds.
UNNOTICED = ("OGBenchEnv", "RecordEpisodeStatistics", "RecordVideo")
BOUNDLESS = 100_000  # columns
Planner = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PLANNER")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def shown_as(metavar: str, **settings: Any) -> Any:
    """Name the values of an option in its help, and hide its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="", **settings)


GuideTexts = tyro.conf.UseAppendAction[
    Annotated[tuple[str, ...], shown_as("[W*]NAME:KEY=VALUE;…")]
]
Assignments = tyro.conf.UseAppendAction[
    Annotated[tuple[str, ...], shown_as("KEY=VALUE")]
]


def setting_options(*configs: Any, only: Collection[str] = (), **named: Any) -> Any:
    """Turn settings of dataclasses, or some of them, into options of a dictionary."""
    options = {}
    for config in configs:
        hints = get_type_hints(config)
        for parameter in docstring_parser.parse_from_object(config).params:
            text = " ".join((parameter.description or "").split())
            described = tyro.conf.arg(help=text, help_behavior_hint="")
            name = parameter.arg_name
            if not only or name in only:
                options[name] = Annotated[hints[name], described]
    return dictionary(options, **named)


def dictionary(options: dict[str, Any], **named: Any) -> Any:
    """Give a dictionary these options, by their types; it holds only what was given."""
    kind = TypedDict("Options", options, total=False)  # type: ignore[misc]
    return tyro.conf.arg(constructor=kind, **named)


# The settings of each command, and what its options put before their names.
PLANNING = (("", PlannerConfig), ("", ExecutionConfig))
NO_OPTIONS = frozenset({"env_id", "dataset_id", "demonstrator_options"})
"""Fields of `CollectSettings` that are positional, or options of another name."""
SETTINGS_OF: dict[str, tuple[tuple[str, Any], ...]] = {
    "collect": (("", CollectSettings),),
    "evaluate": PLANNING,
    "export": (("", PlannerConfig),),
    "plan": PLANNING,
    "play": PLANNING,
    "speed": PLANNING,
    "train": tuple(
        ("" if part == "optimization" else f"{part.replace('_', '-')}.", config)
        for part, config in PARTS.items()
    ),
    "train-value": (("", OptimizationConfig), ("", ValueConfig)),
    "train-critic": (("", OptimizationConfig), ("", CriticConfig)),
    "train-classifier": (("", OptimizationConfig), ("", ClassifierConfig)),
}


@dataclass(frozen=True, kw_only=True)
class PlanningOptions:
    """How to plan and execute; settings left out are those saved with the planner."""

    guide: GuideTexts = ()
    """Steer plans by a guide; several add up. `diffuser-policy guides` lists them.
    For example --guide 'keep-out:center=3,4;radius=0.6'. The quotes are needed: a shell
    ends the command at a semicolon. --guide none drops the planner's own guide."""
    settings: Annotated[
        tyro.conf.OmitArgPrefixes[dict[str, Any]],
        setting_options(
            PlannerConfig,
            ExecutionConfig,
            name="planning and execution",
            prefix_name=False,
        ),
    ] = field(default_factory=dict)
    acceleration: Acceleration = "auto"
    """How the network is run; plans stay the same up to rounding. Residual networks,
    such as that of kuka-stack, run the same with any choice."""
    threads: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """CPU threads of PyTorch. The shipped planners are small: one is fastest, and two
    on a busy machine are many times slower."""

    def full_settings(self) -> dict[str, Any]:
        """Return the settings that were given, and those that follow from them."""
        return with_all_steps(self.settings)


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """A planner, where it acts, and how it plans."""

    planner: Planner
    """Name of a shipped planner, folder, or hub id (NAME/REPOSITORY@REVISION)."""
    env: Annotated[str | None, shown_as("ID")] = None
    """Environment (default: that of the planner's data)."""
    seed: int = 0
    """Fixes everything random."""
    planning: tyro.conf.OmitArgPrefixes[PlanningOptions] = field(
        default_factory=PlanningOptions
    )

    def load(
        self, env_options: Mapping[str, Any] | None = None
    ) -> tuple[DiffuserPolicy, str]:
        """Return the policy and the id of its environment.

        Args:
            env_options: Settings of the environment that were given; None if the
                command takes none.

        Raises:
            ConfigError: No environment was given, and the planner doesn't know its own,
                or knows one that has to be imported.
            DiffuserPolicyError: As `load_policy`.
        """
        policy = load_policy(self.planner, self.planning, seed=self.seed)
        recorded = policy.config.provenance.get("dataset", {}).get("env_id")
        env_id = recorded if self.env is None else self.env
        if env_id is None:
            raise ConfigError(
                "The planner's data does not name its environment. Name one: --env ID."
            )
        if self.env is None:
            from diffuser_policy.envs import check_recorded

            check_recorded(str(recorded), f"The planner {self.planner!r}")
        else:
            self._note_differences(policy, self.env, recorded)
        if str(env_id).rpartition(":")[2] == recorded:
            self._note_recording(policy, str(env_id), env_options)
        return policy, str(env_id)

    def _note_recording(
        self,
        policy: DiffuserPolicy,
        env_id: str,
        env_options: Mapping[str, Any] | None,
    ) -> None:
        """Note on standard error how the data was recorded in another environment."""
        recorded = policy.config.provenance["dataset"]
        settings, wrappers = unregistered(recorded.get("env_spec"), env_id)
        given = env_options or {}
        settings = {k: v for k, v in settings.items() if k not in given}
        if not settings and not wrappers:
            return
        had = [f"{name}={shown(value)}" for name, value in settings.items()]
        had += [f"the wrapper {name}" for name in wrappers]
        advice = "name a function that makes it: --env MODULE:FUNCTION."
        if env_options is not None and not wrappers:
            texts = (f"{name}={json.dumps(v)}" for name, v in settings.items())
            options = " ".join(f"--env-option {shlex.quote(text)}" for text in texts)
            advice = f"give {options}."
        print(
            f"note: the data of {self.planner} was recorded in "
            f"{recorded['env_id']} with {' and '.join(had)}, which the environment "
            f"made here lacks. To make the same one, {advice}",
            file=sys.stderr,
        )

    def _note_differences(
        self, policy: DiffuserPolicy, env_id: str, recorded: str | None
    ) -> None:
        """Note on standard error how an environment differs from the planner's own."""
        from diffuser_policy.envs import is_other_version, split_version

        if recorded is None:
            return
        if is_other_version(env_id, recorded):
            print(
                f"note: {self.planner} was trained on data of {recorded}. In {env_id}, "
                f"another version of the environment, observations and rewards may "
                f"mean something else.",
                file=sys.stderr,
            )
        if policy.planner.routes and split_version(env_id) != split_version(recorded):
            print(
                f"note: the landmarks of {self.planner} are places in {recorded}. If "
                f"{env_id} has other walls, they lead astray.",
                file=sys.stderr,
            )


def unregistered(recorded: Any, env_id: str) -> tuple[dict[str, Any], list[str]]:
    """Return how data was recorded in another environment than the id makes.

    Settings and wrappers that planners do not notice are left out, and so are limits
    of recordings that are longer than any episode (Minari's point mazes: a million).

    Args:
        recorded: The registration that the data name, as JSON; anything else tells
            nothing.
        env_id: Of the same environment.

    Returns:
        Settings, as `gymnasium.make` takes them, and wrappers that the data had, and
        the registration here has not. None if the environment is not known here.
    """
    from diffuser_policy.envs import MOST_STEPS, env_spec

    settings: dict[str, Any] = {}
    wrappers: list[str] = []
    with contextlib.suppress(DiffuserPolicyError, ImportError):  # `make_env` says it
        own = env_spec(env_id)
        usual = {**own.kwargs, "max_episode_steps": own.max_episode_steps}
        added = {wrapper.entry_point for wrapper in own.additional_wrappers}
        with contextlib.suppress(TypeError, ValueError, LookupError, AttributeError):
            spec = json.loads(recorded)
            found = {**spec["kwargs"], "max_episode_steps": spec["max_episode_steps"]}
            if not 0 < (found["max_episode_steps"] or 0) <= MOST_STEPS:
                del found["max_episode_steps"]
            settings = {
                name: value
                for name, value in found.items()
                if name != "render_mode" and value != json_data(usual.get(name))
            }
            wrappers = [
                f"{wrapper['name']}({_arguments(wrapper['kwargs'] or {})})"
                for wrapper in spec["additional_wrappers"]
                if wrapper["entry_point"] not in added
                and wrapper["name"] not in UNNOTICED
            ]
    return settings, wrappers


def _arguments(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in settings.items())


def load_policy(planner: str, options: PlanningOptions, *, seed: int) -> DiffuserPolicy:
    """Load a planner with the options that were given.

    Raises:
        CheckpointError: No such planner, or a damaged, foreign or outdated one.
        UnknownNameError: No guide of a name; the nearest are named.
        GuideError: A guide that cannot be read.
        ConfigError: Options that contradict each other or the planner, or that have no
            effect.
    """
    import torch

    from diffuser_policy.policy import DiffuserPolicy

    if not 1 <= options.threads <= MOST_THREADS:
        raise ConfigError(
            f"--threads must be 1 to {MOST_THREADS}, got {shown(options.threads)}."
        )
    torch.set_num_threads(options.threads)
    from diffuser_policy.guides.registry import parse_guides

    guide, settings = parse_guides(options.guide), options.full_settings()
    # What changes together may need each other.
    alone = {} if options.guide else settings
    policy = DiffuserPolicy.from_pretrained(planner, seed=seed, **alone)
    note_unfinished(planner, policy.config.provenance)
    policy = policy.accelerated(options.acceleration)
    return policy.with_guide(guide, **settings) if options.guide else policy


def note_unfinished(planner: str, provenance: Mapping[str, Any]) -> None:
    """Note on standard error if a planner, or a part of it, is not fully trained."""
    for part in ("planner", "value", "critic", "classifier"):
        origin = provenance if part == "planner" else provenance.get(part, {})
        training: Any = origin.get("training")
        with contextlib.suppress(TypeError, LookupError):  # a file may say anything
            done, due = origin["steps"], training["optimization"]["num_steps"]
            if done < due:
                print(
                    f"note: the {part} of {planner} has been trained for {done:,} of "
                    f"{due:,} gradient steps. The command that began the training "
                    f"resumes it.",
                    file=sys.stderr,
                )


def writes_log() -> bool:
    """Return whether standard error is no terminal: lines take the place of a bar."""
    return sys.stderr is not None and not sys.stderr.isatty()


def changed(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return the names of settings that differ from the usual ones."""
    return [name for name, value in settings.items() if value != usual[name]]


def parse_assignments(texts: Iterable[str], *, option: str) -> dict[str, Any]:
    """Return the settings that `KEY=VALUE` texts name, as JSON values or plain text.

    The words true, false and none may be written in any case; in quotes, as JSON, they
    are texts.

    Raises:
        ConfigError: No `=`, no key, or a key that was given before.
    """
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"{option} takes KEY=VALUE, such as joint_noise=0.01; got {text!r}."
            )
        if key in settings:
            raise ConfigError(f"{option} {key} was given twice.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = NAMED.get(value.lower(), value)
    return settings


def options_in(message: str, command: str, given: Iterable[str] = ()) -> list[str]:
    """Return the options of the settings that a message names, except those it has.

    None where it is about a demonstrator's options or a guide's parameters: they may
    have the names of settings.

    Args:
        message: Of an error. It names settings as Python does: `horizon=64`.
        command: Whose options they are.
        given: The words of the command. Of several options for settings of one name,
            those among them are meant.
    """
    found: dict[str, dict[str, None]] = {}
    if re.search(r"\b(The|no) (option|parameter)\b|Its (option|parameter)s:", message):
        return []
    for prefix, config in SETTINGS_OF.get(command, ()):
        for name, hint in get_type_hints(config).items():
            if name in NO_OPTIONS:
                continue
            # A word such as "horizon" may mean no setting.
            plain = name if "_" in name else f"^{name}(?= )"
            value = re.search(rf"\b{name}(?:=| (?='))('?)|\b{plain}\b()", message)
            if value is None:
                continue
            # Where two settings have the name, the value tells which of them.
            quoted, bare = value[0].endswith("'"), "_" not in value[0]
            word = str in map(type, get_args(hint))
            if (quoted and not word) or (bare and word and not quoted):
                continue
            option = f"--{prefix}{name.replace('_', '-')}"
            found.setdefault(name, {})[option] = None
    words = {word.partition("=")[0].replace("_", "-") for word in given}
    named = list[str]()
    for options in found.values():
        if any(re.search(rf"{option}\b(?!-)", message) for option in options):
            continue
        named += [o for o in options if len(options) == 1 or o in words]
    return named


def table(
    *headers: str, rows: Iterable[Iterable[object]] = (), title: str | None = None
) -> Table:
    """Return a table of texts; headers that are all empty are not shown.

    Columns of names, which hold no spaces, are never wrapped: names are copied.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    made.show_header = any(headers)
    texts = [[str(cell) for cell in row] for row in rows]
    for number, header in enumerate(headers):
        names = number == 0 or not any(" " in row[number] for row in texts)
        made.add_column(header, overflow="fold", no_wrap=names)
    for row in texts:
        made.add_row(*map(Text, row))  # brackets are no markup
    return made


def print_table(made: RenderableType, *, highlight: bool = True) -> None:
    """Print a table, wider than the terminal where words would be broken otherwise."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=highlight)
    boundless = console.options.update(max_width=BOUNDLESS)
    needed = Measurement.get(console, boundless, made).minimum
    console.width = max(console.width, needed)
    console.print(made)
