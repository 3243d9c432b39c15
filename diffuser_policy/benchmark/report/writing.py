"""Reports as files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffuser_policy.benchmark.report.contents import document_of
from diffuser_policy.benchmark.report.document import Cell, Table
from diffuser_policy.benchmark.report.html import to_html
from diffuser_policy.benchmark.report.markdown import table_lines, to_markdown
from diffuser_policy.benchmark.report.published import AVERAGE, PUBLISHED
from diffuser_policy.benchmark.report.study import Study, load_study
from diffuser_policy.benchmark.report.tables import BlockGroup, groups_of, score_table
from diffuser_policy.files import replaced_file

FIGURES = "figures"
PAPER_TABLES = tuple(table for table in PUBLISHED if "Diffuser" in table.figures)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written.

    Attributes:
        markdown: The report as Markdown.
        html: The report as a page that needs no other file.
        study: What it is about.
    """

    markdown: Path
    html: Path
    study: Study


def write_report(
    folder: str | Path, output: str | Path | None = None, *, mixed: bool = False
) -> Report:
    """Write the report of a benchmark.

    Args:
        folder: Of the benchmark.
        output: Folder for the report; by default `report` in the benchmark's.
        mixed: Allow cells of different versions in one report; it says so.

    Raises:
        ConfigError: The folder holds no benchmark or no result yet, or results that do
            not belong together.
        CheckpointError: A result is damaged, or of another schema.
        MissingExtraError: Matplotlib is not installed.
        StorageError: A file could not be written.
    """
    study = load_study(folder, mixed=mixed)
    place = Path(folder) / "report" if output is None else Path(output)
    document = document_of(study, place / FIGURES)
    texts = {
        place / "report.md": to_markdown(document, place),
        place / "report.html": to_html(document),
    }
    for path, text in texts.items():
        with replaced_file(path) as partial:
            partial.write_text(text, encoding="utf-8")
    markdown, html = texts
    return Report(markdown=markdown, html=html, study=study)


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
    tables = [
        _with_published(score_table(known, group, details=False), group, published)
        for group, _ in groups_of(known)
    ]
    return "\n\n".join(table_lines(table, line_break=" ") for table in tables) + "\n"


def _with_published(table: Table, group: BlockGroup, methods: Sequence[str]) -> Table:
    """Add columns with the figures of the paper, as it printed them."""
    figures = {method: _published_rows(method) for method in methods}
    shown = [m for m in methods if any(r[0].text in figures[m] for r in table.rows)]
    rows = tuple(
        (*row, *(Cell(figures[m].get(row[0].text, "–"), italic=True) for m in shown))
        for row in table.rows
    )
    header = (*table.header, *(f"{method}, published, other data" for method in shown))
    return replace(table, header=header, rows=rows, title=group.title)


def _published_rows(method: str) -> dict[str, str]:
    """Return the paper's figures of a method by the titles of our rows."""
    found = {}
    for table in PAPER_TABLES:
        for name, text in table.figures.get(method, {}).items():
            block = table.problems[0].partition("-")[0]
            found[f"{block}, average" if name == AVERAGE else name] = text
    return found
