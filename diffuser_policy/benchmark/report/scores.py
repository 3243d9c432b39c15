"""The tables of scores: means with intervals, differences, and published figures."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffuser_policy.benchmark.report.study import (
    BLOCKS,
    OTHER,
    PLANNER,
    REFERENCES,
    Entry,
    Row,
    Study,
)
from diffuser_policy.benchmark.report.tables import (
    NO_RESULT,
    UNKNOWN,
    Cell,
    Table,
    ends,
    estimate,
    number,
    signed,
    table_of,
)
from diffuser_policy.evaluation.statistics import (
    Comparison,
    Interval,
    average_interval,
    compare,
    disjoint,
    iqm_run_interval,
    run_interval,
)

LATCHED = "latched_score"
PUBLISHED = tomllib.loads(
    Path(__file__).with_name("published.toml").read_text(encoding="utf-8")
)["tables"]


class Group(NamedTuple):
    """Blocks of problems that share a table.

    Attributes:
        title: Title of the table.
        subject: Title of the figures.
        blocks: Names of the blocks.
        pooled: Whether the problems of all blocks are averaged as well.
    """

    title: str
    subject: str
    blocks: tuple[str, ...]
    pooled: bool = False

    @property
    def average(self) -> str:
        """Title of the row that averages all blocks."""
        return f"{self.subject}, average"


GROUPS = (
    Group("Table 1: mazes", "Mazes", ("Maze2D", "Multi2D")),
    Group(
        "Table 2: locomotion",
        "Locomotion",
        ("HalfCheetah", "Hopper", "Walker2d"),
        pooled=True,
    ),
    Group("Table 3: block stacking", "Block stacking", ("KukaStack",)),
    Group("Table 4: OGBench", "OGBench", ("OGBench",)),
    Group("Other environments", "Other environments", (OTHER,)),
)


def _rows_of(study: Study, blocks: Sequence[str]) -> list[Row]:
    return [row for block in blocks for row in study.block(block)]


def groups_of(study: Study) -> list[tuple[Group, list[Row]]]:
    """Return the groups that have results, with their problems."""
    found = [(group, _rows_of(study, group.blocks)) for group in GROUPS]
    return [(group, rows) for group, rows in found if rows]


def score_table(study: Study, group: Group, *, details: bool = True) -> Table:
    """Return the scores of all methods on the problems of a group.

    With `details`, success rate and time to goal are below each score. Where it is
    known what the data's own episodes earned, that has columns of its own.
    """
    every = _rows_of(study, group.blocks)
    methods, rows, averages = study.methods_of(every), [], set()
    told = any(study.behavior(row) for row in every)

    def line(name: Cell, of: Sequence[Row], cells: Sequence[Cell]) -> tuple[Cell, ...]:
        return (name, *cells, *(_behavior_cells(study, of) if told else ()))

    for block in group.blocks:
        problems = study.block(block)
        for row in problems:
            unit = () if row.measure == "score" else (row.measure,)
            best = _best(study, row)
            cells = [
                _score_cell(study.entry(row, m), strong=m in best, details=details)
                for m in methods
            ]
            rows.append(line(Cell(row.title, unit), [row], cells))
        if block != OTHER and len(problems) > 1:
            averages.add(len(rows))
            means = _averages(study, problems, methods)
            rows.append(line(Cell(f"{block}, average"), problems, means))
    if group.pooled and len({row.block for row in every}) > 1:
        averages.add(len(rows))
        means = _averages(study, every, methods)
        rows.append(line(Cell(group.average), every, means))
    return Table(
        title=f"{group.title}, our figures",
        header=(
            *("problem", *map(study.label, methods)),
            *(("the data, mean", "the data, best") if told else ()),
        ),
        rows=tuple(rows),
        averages=frozenset(averages),
    )


def _best(study: Study, row: Row, *, without: str = "") -> dict[str, Entry]:
    """Return the entries with the highest mean, references and a method left out."""
    rated = {e.method: e for e in study.entries_of([row]) if e.method != without}
    best = _highest({method: entry.score for method, entry in rated.items()})
    return {method: rated[method] for method in best}


def _highest(means: Mapping[str, Interval]) -> list[str]:
    """Return the methods with the highest mean as printed; references do not count."""
    rated = {m: mean.mean for m, mean in means.items() if m not in REFERENCES}
    top = number(max(rated.values(), default=None))
    return [method for method, mean in rated.items() if number(mean) == top]


def _score_cell(entry: Entry | None, *, strong: bool, details: bool) -> Cell:
    if entry is None:
        return Cell(NO_RESULT)
    small = []
    success = entry.rate("success") if details else None
    if success is not None:
        rate, time = number(100 * success.mean, 0), entry.time_to_goal
        small.append(f"{rate} % {ends(success, digits=0, scale=100)}")
        if math.isfinite(time.mean):
            shown = number(time.mean, 0)
            small.append(f"in {shown} step{'s' * (shown != '1')}")
    latched = run_interval(entry.values(LATCHED))
    if details and math.isfinite(latched.mean):
        small.append(f"latched {estimate(latched)}")
    return _mean_cell(entry.score, *small, strong=strong)


def _mean_cell(interval: Interval, *small: str, strong: bool = False) -> Cell:
    lines = filter(None, (ends(interval), *small))
    return Cell(number(interval.mean), tuple(lines), strong)


def _behavior_cells(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """Return mean and best of the data's own episodes, averaged over problems."""
    found = [study.behavior(row) for row in rows]
    known = [each for each in found if each is not None]
    if len(known) < len(rows) or len({row.measure for row in rows}) > 1:
        return [Cell(UNKNOWN)] * 2
    return [Cell(number(float(np.mean(column)))) for column in zip(*known, strict=True)]


def _averages(study: Study, rows: Sequence[Row], methods: Sequence[str]) -> list[Cell]:
    """Return each method's mean over problems; the highest are strong."""
    means = {}
    for method in methods:
        entries = _on_all(study, rows, method)
        if entries is not None:
            means[method] = average_interval([e.values(e.row.measure) for e in entries])
    best = _highest(means)
    return [
        _mean_cell(means[m], strong=m in best) if m in means else Cell(UNKNOWN)
        for m in methods
    ]


def _on_all(study: Study, rows: Sequence[Row], method: str) -> list[Entry] | None:
    """Return a method's entries, if it solved all problems and they share a measure."""
    found = [entry for row in rows if (entry := study.entry(row, method)) is not None]
    if len(found) < len(rows) or len({row.measure for row in rows}) > 1:
        return None
    return found


def iqm_table(study: Study) -> Table | None:
    """Return the interquartile means over the problems of each block, if any."""
    blocks = [b for b in BLOCKS if len(study.block(b)) > 1]
    every = _rows_of(study, blocks)
    if not every:
        return None
    methods = study.methods_of(every)
    by_runs = all(len(entry.results) > 1 for entry in study.entries_of(every))
    rows = []
    for block in blocks:
        cells = [Cell(block)]
        for method in methods:
            entries = _on_all(study, study.block(block), method)
            if entries is None:
                cells.append(Cell(UNKNOWN))
                continue
            values = [entry.values(entry.row.measure) for entry in entries]
            cells.append(_mean_cell(iqm_run_interval(values, by_runs=by_runs)))
        rows.append(tuple(cells))
    pooled = "training runs' mean scores" if by_runs else "scores of episodes"
    return Table(
        title="Interquartile means over problems",
        header=("problems", *map(study.label, methods)),
        rows=tuple(rows),
        note=f"Pooled: {pooled}.",
    )


def published_tables(rows: Sequence[Row]) -> list[Table]:
    """Return the published tables that have figures for some of these problems."""
    titles = {row.title for row in rows}
    return [
        _published_table(published)
        for published in PUBLISHED
        if not titles.isdisjoint(published["problems"])
    ]


def _published_table(published: Mapping[str, Any]) -> Table:
    """Return the table of a paper; some print averages, others do not."""
    problems, figures = published["problems"], published["figures"]
    names = (*problems, "average, as printed")[: len(next(iter(figures.values())))]
    return Table(
        title=published["title"],
        header=("problem", *figures),
        rows=tuple(
            (Cell(name), *(Cell(text or UNKNOWN) for text in texts))
            for name, *texts in zip(names, *figures.values(), strict=True)
        ),
        note=f"Source: {published['source']}. {published['remark']}",
        published=True,
        averages=frozenset({len(problems)}),
    )


def compact_table(study: Study, group: Group, published: Sequence[str]) -> Table:
    """Return the scores for a README: means with intervals only.

    The paper's figures of `published` methods get columns of their own.
    """
    table = score_table(study, group, details=False)
    figures = {method: _papers_figures(method) for method in published}
    shown = [m for m in figures if any(r[0].text in figures[m] for r in table.rows)]
    rows = []
    for row in table.rows:
        texts = [figures[method].get(row[0].text) or UNKNOWN for method in shown]
        rows.append((*row, *(Cell(t, published=t != UNKNOWN) for t in texts)))
    header = (*table.header, *(f"{m}, published, other data" for m in shown))
    return replace(table, header=header, rows=tuple(rows), title=group.title)


def _papers_figures(method: str) -> dict[str, str]:
    """Return the Diffuser paper's figures of a method by the titles of our rows."""
    found: dict[str, str] = {}
    for table in PUBLISHED:
        figures, problems = table["figures"], table["problems"]
        if "Diffuser" in figures:  # CORL's table is not the paper's
            average = table.get("average", problems[0].partition("-")[0]) + ", average"
            found |= zip((*problems, average), figures.get(method, ()), strict=False)
    return found


def compared(ours: Entry, theirs: Entry) -> Comparison | None:
    """Compare two methods on the episodes of a problem that both ran, if any.

    The first keeps what is found: tables and figures ask for the same comparisons.
    """
    if theirs not in ours.comparisons:
        ours.comparisons[theirs] = _compared(ours, theirs)
    return ours.comparisons[theirs]


def _compared(ours: Entry, theirs: Entry) -> Comparison | None:
    runs, others = (entry.by_seed(ours.row.measure) for entry in (ours, theirs))
    shared = sorted(set.intersection(*map(set, [*runs, *others])))
    if not shared:
        return None
    return compare(
        np.array([[run[seed] for seed in shared] for run in runs]),
        np.array([[run[seed] for seed in shared] for run in others]),
    )


def comparisons(study: Study, row: Row) -> dict[str, Comparison]:
    """Compare Diffuser with each other method on one problem."""
    ours = study.entry(row, PLANNER)
    others = [] if ours is None else [e for e in study.entries_of([row]) if e != ours]
    return {e.method: c for e in others if ours and (c := compared(ours, e))}


def gap_table(study: Study) -> Table | None:
    """Return how far Diffuser is from the best baseline on each problem, if any.

    Where Diffuser took no part, the best method is compared with the second best. Each
    of several baselines that tie has a row.
    """
    rows = []
    for row in study.rows:
        best = list(_best(study, row).values())
        ours = study.entry(row, PLANNER) or (best[0] if best else None)
        if ours is None:
            continue
        for theirs in _best(study, row, without=ours.method).values():
            difference, found = UNKNOWN, compared(ours, theirs)
            if found is not None:
                difference = f"{signed(found.difference.mean)} {ends(found.difference)}"
            line = {
                "problem": row.title,
                "method": study.label(ours.method),
                "score": estimate(ours.score),
                "best baseline": study.label(theirs.method),
                "its score": estimate(theirs.score),
                "difference": difference.rstrip(),
                "intervals": _verdict(ours, theirs) or UNKNOWN,
            }
            rows.append(line)
    return table_of("Gap to the best baseline", rows)


def _verdict(ours: Entry, theirs: Entry) -> str:
    """Return how the intervals lie; nothing where a single episode has none."""
    words = {1: "ahead, disjoint", -1: "behind, disjoint", 0: "overlapping", None: ""}
    return words[disjoint(ours.score, theirs.score)]


def difference_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return Diffuser minus each other method; None where it takes no part."""
    found = [(row, comparisons(study, row)) for row in rows]
    methods = [m for m in study.methods if any(m in known for _, known in found)]
    if not methods:
        return None
    planner = study.label(PLANNER)
    return Table(
        title=f"{planner} minus each other method, on the same episodes",
        header=("problem", *(f"{planner} − {study.label(m)}" for m in methods)),
        rows=tuple(
            (
                Cell(row.title),
                *(_difference_cell(study, row, m, known) for m in methods),
            )
            for row, known in found
        ),
    )


def _difference_cell(
    study: Study, row: Row, method: str, found: Mapping[str, Comparison]
) -> Cell:
    ours, theirs = study.entry(row, PLANNER), study.entry(row, method)
    if ours is None or theirs is None:
        return Cell(NO_RESULT)
    if method not in found:
        return Cell(UNKNOWN)
    difference, win = found[method].difference, found[method].win
    better = f"better {estimate(win, digits=0, scale=100)} %"
    lines = (ends(difference), better, _verdict(ours, theirs))
    ahead = disjoint(ours.score, theirs.score) == 1
    return Cell(signed(difference.mean), tuple(filter(None, lines)), ahead)
