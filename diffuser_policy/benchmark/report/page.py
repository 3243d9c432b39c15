"""Reports as files, from templates: Markdown with pictures beside it, one HTML page.

All facts are plain text. The templates escape them, so that nothing in a result file
can become markup. The page contains its pictures and needs no other file and no script.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffuser_policy.benchmark.cells import Cell
from diffuser_policy.benchmark.report import figures, scores, tables
from diffuser_policy.benchmark.report.figures import Picture
from diffuser_policy.benchmark.report.study import Study, load_study
from diffuser_policy.benchmark.report.tables import Table
from diffuser_policy.benchmark.suites import SUITES, load_suite
from diffuser_policy.errors import DiffuserPolicyError
from diffuser_policy.files import write_text

# What Markdown would take as markup. An underscore within a word is none.
MARKUP = re.compile(r"[\\`*<>|~#$&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])")
SIZE_AT = (16, 20)  # width and height in a PNG file, four bytes each


class Report(NamedTuple):
    """What was written.

    Attributes:
        markdown: The report as Markdown.
        html: The report as a page that needs no other file.
        study: The benchmark.
    """

    markdown: Path
    html: Path
    study: Study


def write_report(
    folder: str | Path, output: str | Path | None = None, *, mixed: bool = False
) -> Report:
    """Write the report of a benchmark.

    Args:
        folder: The benchmark's folder.
        output: Folder of the report; by default `report` in the benchmark's folder.
        mixed: Accept cells that different versions made; the report names them.

    Raises:
        ConfigError: The folder holds no benchmark or no result yet, or results that do
            not belong together.
        CheckpointError: A result is damaged, or has another schema.
        MissingExtraError: Matplotlib is not installed.
        StorageError: A file could not be written.
    """
    study = load_study(folder, mixed=mixed)
    place = Path(folder) / "report" if output is None else Path(output)
    context = {
        "title": ": ".join(filter(None, ["Benchmark", ", ".join(study.suites)])),
        "sections": sections_of(study, place),
        "commands": run_commands(study),
        "report_command": report_command(shown_path(study.folder)),
    }
    report = Report(place / "report.md", place / "report.html", study)
    for path in (report.markdown, report.html):
        template = environment(place).get_template(f"{path.name}.j2")
        write_text(path, template.render(context) + "\n")
    return report


def compact_tables(
    study: Study | str | Path, *, published: Sequence[str] = ("Diffuser",)
) -> str:
    """Return the tables of scores for a README: means with intervals only.

    Args:
        study: The benchmark, or its folder.
        published: Methods of the paper whose published figures get columns of their
            own, in italics and named as published.
    """
    known = study if isinstance(study, Study) else load_study(study)
    rows: Any = environment(Path()).get_template("table.md.j2").module
    texts = [
        rows.rows(scores.compact_table(known, group, published), " ")
        for group, _ in scores.groups_of(known)
    ]
    return "\n".join(texts)


def sections_of(study: Study, place: Path) -> dict[str, list[Table | Picture]]:
    """Return the report's tables and pictures by section; draw the pictures.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        StorageError: A picture could not be written.
    """
    groups, folder = scores.groups_of(study), place / "figures"

    def drawn(*kinds: figures.Kind) -> list[Picture | None]:
        return [
            figures.picture(kind, study, group, rows, folder)
            for group, rows in groups
            for kind in kinds
        ]

    measured: list[Table | Picture | None] = []
    outcomes: list[Table | Picture | None] = []
    for group, rows in groups:
        measured += [scores.score_table(study, group), *scores.published_tables(rows)]
        outcomes += [
            table(study, rows) for table in (tables.outcome_table, tables.failure_table)
        ]
    sections: dict[str, list[Table | Picture | None]] = {
        "Overview": [tables.scope_table(study), tables.method_table(study)],
        "Warnings": [tables.warning_table(study), tables.open_table(study)],
        "Scores": [*measured, scores.iqm_table(study)],
        "Differences": [
            scores.gap_table(study),
            *(scores.difference_table(study, rows) for _, rows in groups),
            *drawn(figures.DIFFERENCES),
        ],
        "Figures": [*drawn(figures.SCORES, figures.CURVES, figures.EPISODES)],
        "Plans": list(figures.plan_pictures(study, place, folder)),
        "Trainings": [tables.curve_table(study), tables.critic_table(study)],
        "Outcomes and failures": outcomes,
        "Budgets and time": [
            *(tables.budget_table(study, rows) for _, rows in groups),
            tables.compute_table(study),
            tables.cell_table(study),
        ],
        "Settings, data, versions": [
            tables.settings_table(study),
            tables.dataset_table(study),
            tables.version_table(study),
        ],
    }
    found = [
        (name, [b for b in every if b is not None]) for name, every in sections.items()
    ]
    return {name: blocks for name, blocks in found if blocks}


def environment(place: Path) -> Environment:
    """Return the templates' environment; `place` is the folder of the report."""
    made = Environment(
        loader=PackageLoader("diffuser_policy.benchmark.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "md": escaped,
        "anchor": lambda title: "-".join(re.findall(r"\w+", title.lower())),
        "image_attributes": _image_attributes,
        "link": lambda path: quote(Path(os.path.relpath(path, place)).as_posix()),
    }
    return made


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return MARKUP.sub(lambda found: "\\" + found[0], " ".join(text.split()))


def _image_attributes(path: Path) -> Markup:
    """Return a picture's bytes and size, so that the page does not jump."""
    data = path.read_bytes()
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in SIZE_AT)
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return Markup('src="{}" width="{}" height="{}"').format(source, width, height)


# --- the commands that make results and report again --------------------------------


def run_commands(study: Study) -> list[str]:
    """Return the commands that run all finished cells again, and report them.

    They make these cells and no others, with the settings that the suites have today.
    Cells of different suites, budgets or numbers of episodes cannot share a folder. It
    is never the folder of the results, where all is finished.
    """
    problems: dict[tuple[Any, ...], list[str]] = {}
    for entry in study.entries_of(study.rows):
        start, seeds = _asked_for(study, [result.cell for result in entry.results])
        problems.setdefault((start, seeds, entry.method), []).append(entry.row.name)
    methods: dict[tuple[Any, ...], list[str]] = {}
    for (start, seeds, method), names in problems.items():
        methods.setdefault((start, seeds, tuple(names)), []).append(method)
    folders: dict[tuple[str, ...], str] = {}
    for number, start in enumerate(sorted({start for start, _, _ in methods}), 1):
        suffix = "" if number == 1 else f"-{number}"
        folders[start] = f"runs/{study.folder.name}-again{suffix}"
    lines = []
    for start, folder in folders.items():
        for (its, seeds, names), asked in methods.items():
            if its == start:
                words = ["diffuser-policy", "benchmark", "run", *start, "--methods"]
                words += [*asked, "--problems", *names, *seeds, "--output", folder]
                lines.append(shlex.join(words))
    return [*lines, *map(report_command, folders.values())]


def _asked_for(
    study: Study, cells: Sequence[Cell]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options that select cells of one method on one problem.

    Returns:
        The suite, with options that a folder has for all of its cells; and the seeds,
        where they are not the suite's.
    """
    cell, seeds = cells[0], tuple(sorted(cell.seed for cell in cells))
    name = cell.suite or "SUITE"
    known_name = name if name in (*SUITES, "SUITE") else f"{name}.toml"
    source = study.sources.get(cell.suite, known_name)
    start = [shown_path(Path(source)) if Path(source).is_absolute() else source]
    trained: tuple[str, ...] = ("--seeds", *map(str, seeds))
    # Without the suite's file there is nothing to compare the cells with.
    with contextlib.suppress(DiffuserPolicyError):
        known = load_suite(study.sources.get(cell.suite, cell.suite))
        budget = (cell.num_steps, cell.max_steps)
        is_other = budget != known.budget_of(cell.method)
        if is_other and cell.num_steps is not None and cell.max_steps is None:
            start += ["--budget", str(cell.num_steps)]
        if cell.evaluation.episodes != known.evaluation.episodes:
            start += ["--episodes", str(cell.evaluation.episodes)]
        if seeds == tuple(sorted(known.trained_with(cell.method))):
            trained = ()
    return tuple(start), trained


def report_command(folder: str) -> str:
    """Return the command that makes the report of a folder."""
    return shlex.join(["diffuser-policy", "benchmark", "report", folder])


def shown_path(path: Path) -> str:
    """Return a path as commands name it: from here, and no path of this machine."""
    relative = Path(os.path.relpath(path)).as_posix()
    return path.name if relative.startswith("..") else relative
