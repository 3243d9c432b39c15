"""A study as a document: the summary, the tables, the figures, and how they came."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from diffuser_policy.benchmark.report import facts, figures, trainings
from diffuser_policy.benchmark.report.document import (
    Block,
    Document,
    Paragraph,
    Picture,
    Section,
    Table,
)
from diffuser_policy.benchmark.report.plans import plan_pictures
from diffuser_policy.benchmark.report.published import published_for
from diffuser_policy.benchmark.report.study import Study
from diffuser_policy.benchmark.report.summary import summary
from diffuser_policy.benchmark.report.tables import (
    difference_table,
    groups_of,
    iqm_table,
    published_table,
    score_table,
)
from diffuser_policy.benchmark.report.wording import listed, report_command

Known = TypeVar("Known")


def document_of(study: Study, folder: Path) -> Document:
    """Return the report, its pictures drawn.

    Args:
        study: The benchmark.
        folder: For the pictures.

    Raises:
        MissingExtraError: Matplotlib is not installed.
        StorageError: A picture could not be written.
    """
    name = f": {listed(study.suites)}" if study.suites else ""
    sections = [
        Section(title="Scores", blocks=_scores(study)),
        Section(title="Differences", blocks=_differences(study, folder)),
        Section(title="Figures", blocks=_figures(study, folder)),
        Section(title="Plans", blocks=tuple(plan_pictures(study, folder))),
        Section(title="Outcomes and failures", blocks=_outcomes(study)),
        Section(title="Computing", blocks=_computing(study)),
        Section(title="Data, seeds, versions", blocks=_sources(study)),
        Section(
            title="Gaps",
            blocks=(facts.open_table(study),) if study.open_cells else (),
        ),
        Section(
            title="How to make this again",
            blocks=(
                Paragraph(
                    "Below every table and figure are the commands that run its cells "
                    "again, in another folder, and make their report. This page, of "
                    f"the results that are there: {report_command(study)}"
                ),
            ),
        ),
    ]
    return Document(
        title=f"Benchmark{name}",
        lead=tuple(summary(study)),
        sections=tuple(section for section in sections if section.blocks),
    )


def _scores(study: Study) -> tuple[Block, ...]:
    blocks: list[Block] = []
    for group, rows in groups_of(study):
        blocks.append(score_table(study, group))
        titles = [row.title for row in rows]
        blocks += [published_table(table) for table in published_for(titles)]
    return (*blocks, *_known([iqm_table(study)]))


def _differences(study: Study, folder: Path) -> tuple[Block, ...]:
    blocks: list[Table | Picture | None] = []
    for group, rows in groups_of(study):
        blocks.append(difference_table(study, rows))
        blocks.append(figures.picture(figures.DIFFERENCES, study, group, rows, folder))
    return tuple(_known(blocks))


def _figures(study: Study, folder: Path) -> tuple[Block, ...]:
    kinds = (figures.SCORES, figures.CURVES, figures.EPISODES)
    return tuple(
        _known(
            figures.picture(kind, study, group, rows, folder)
            for group, rows in groups_of(study)
            for kind in kinds
        )
    )


def _outcomes(study: Study) -> tuple[Block, ...]:
    blocks: list[Table | None] = []
    for _, rows in groups_of(study):
        blocks += [
            facts.outcome_table(study, rows),
            trainings.peak_table(study, rows),
            facts.failure_table(study, rows),
        ]
    return tuple(_known(blocks))


def _computing(study: Study) -> tuple[Block, ...]:
    tables = (
        trainings.compute_table,
        trainings.cell_table,
        trainings.settings_table,
    )
    return tuple(table(study) for table in tables)


def _sources(study: Study) -> tuple[Block, ...]:
    tables = (facts.dataset_table, facts.seed_table, facts.version_table)
    return tuple(table(study) for table in tables)


def _known(blocks: Iterable[Known | None]) -> list[Known]:
    return [block for block in blocks if block is not None]
