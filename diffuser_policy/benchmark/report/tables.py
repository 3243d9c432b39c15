"""The tables of scores: the paper's shape, our figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffuser_policy.benchmark.report.document import MISSING, Cell, Table
from diffuser_policy.benchmark.report.estimates import (
    Comparison,
    average_interval,
    compare,
    disjoint,
    iqm_run_interval,
)
from diffuser_policy.benchmark.report.published import AVERAGE, Published
from diffuser_policy.benchmark.report.study import (
    OTHER,
    PLANNER,
    REFERENCES,
    Entry,
    Row,
    Study,
    entries_of,
)
from diffuser_policy.benchmark.report.wording import (
    UNKNOWN,
    ends,
    estimate,
    listed,
    number,
    run_command,
    signed,
)

ONE_RUN = (
    "Every method has one training seed per problem: intervals are over episodes only "
    "and say nothing of what another training seed would give, or another last step "
    "(how much evaluations differ from step to step is with the learning curves)."
)
SEVERAL_RUNS = (
    "Bootstrap draws are of training seeds and, as all of them have the same episodes, "
    "of episodes once for all seeds; both with replacement. Where a method has one "
    "training seed, and where a few seeds are all there is to draw from, intervals are "
    "too narrow."
)
LATCHED = "latched_score"


@dataclass(frozen=True)
class BlockGroup:
    """Blocks of problems that share a table.

    Attributes:
        title: Of the table.
        subject: Of the figures.
        blocks: Their names.
    """

    title: str
    subject: str
    blocks: tuple[str, ...]


GROUPS = (
    BlockGroup("Table 1: mazes", "Mazes", ("Maze2D", "Multi2D")),
    BlockGroup("Table 3: block stacking", "Block stacking", ("KukaStack",)),
    BlockGroup("Other environments", "Other environments", (OTHER,)),
)


def interval_notes(study: Study, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Return what has to be known of intervals: which trainings they are of."""
    several = any(len(entry.results) > 1 for entry in entries)
    return (SEVERAL_RUNS if several else ONE_RUN, *planner_notes(study, entries))


def planner_notes(study: Study, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Say which methods' training seeds are no trainings of their own, if any."""
    repeated = {entry.method for entry in entries if entry.repeats_planner}
    if not repeated:
        return ()
    names = listed([study.label(m) for m in study.methods if m in repeated])
    text = (
        f"{names}: several training seeds loaded the same planner. They are not "
        "independent trainings but differ only in what is drawn while it plans, and "
        "intervals say nothing of what another training would give."
    )
    return (text,)


def groups_of(study: Study) -> list[tuple[BlockGroup, list[Row]]]:
    """Return the groups that have results, with their rows."""
    found = [
        (group, [row for block in group.blocks for row in study.block(block)])
        for group in GROUPS
    ]
    return [(group, rows) for group, rows in found if rows]


def score_table(study: Study, group: BlockGroup, *, details: bool = True) -> Table:
    """Return the scores of all methods on the problems of a group.

    Args:
        study: The benchmark.
        group: Which problems.
        details: Put success rate and time to goal below each score.
    """
    every = [row for block in group.blocks for row in study.block(block)]
    methods = study.methods_of(every)
    rows, averages = [], set()
    for block in group.blocks:
        problems = study.block(block)
        best = {row.name: _best(study, row, methods) for row in problems}
        for row in problems:
            unit = () if row.measure == "score" else (row.measure,)
            cells = [
                _score_cell(study.entry(row, m), m == best[row.name], details)
                for m in methods
            ]
            rows.append((Cell(row.title, unit), *cells))
        if block != OTHER and len(problems) > 1:
            averages.add(len(rows))
            rows.append(
                (Cell(f"{block}, average"), *_averages(study, problems, methods))
            )
    return Table(
        title=f"{group.title}, our figures",
        header=("problem", *map(study.label, methods)),
        rows=tuple(rows),
        notes=_score_notes(study, every, details=details),
        command=run_command(study, every, methods),
        summary_rows=frozenset(averages),
    )


def published_table(published: Published) -> Table:
    """Return a published table."""
    header = ("problem", *published.figures)
    names = (*published.problems, AVERAGE)
    rows = [
        (
            Cell("average, as printed" if name == AVERAGE else name),
            *(_printed(published.figures[method][name]) for method in header[1:]),
        )
        for name in names
    ]
    return Table(
        title=published.title,
        header=header,
        rows=tuple(rows),
        notes=(f"Source: {published.source}.", published.remark),
        kind="published",
        summary_rows=frozenset({len(rows) - 1}),
    )


def iqm_table(study: Study) -> Table | None:
    """Return interquartile means over the problems of each block; none without any."""
    blocks = [
        name for name in study.blocks() if name != OTHER and len(study.block(name)) > 1
    ]
    every = [row for name in blocks for row in study.block(name)]
    methods = study.methods_of(every)
    if not blocks:
        return None
    by_runs = _several_runs_everywhere(study, every)
    rows = [
        (
            Cell(name),
            *(_iqm_cell(study, study.block(name), m, by_runs) for m in methods),
        )
        for name in blocks
    ]
    pooled = (
        "the mean scores of training runs"
        if by_runs
        else "the scores of episodes, as not every method has several training seeds"
    )
    return Table(
        title="Interquartile means over problems",
        header=("problems", *map(study.label, methods)),
        rows=tuple(rows),
        notes=(
            (
                f"Mean of the middle half of {pooled} (stratified bootstrap, 95 %; "
                "Agarwal et al. 2021). Training seeds, and episodes once for all of "
                "them, are drawn within each problem. A method that lacks a problem "
                "has none."
            ),
            *planner_notes(study, entries_of(study, every)),
        ),
        command=run_command(study, every, methods),
    )


def comparisons(study: Study, row: Row) -> dict[str, Comparison]:
    """Return Diffuser against each other method on one problem."""
    ours = study.entry(row, PLANNER)
    found = {}
    for method in study.methods:
        theirs = study.entry(row, method)
        if ours is None or theirs is None or method == PLANNER:
            continue
        first, second = ours.by_seed(row.measure), theirs.by_seed(row.measure)
        shared = sorted(set.intersection(*map(set, [*first, *second])))
        if shared:
            found[method] = compare(
                np.array([[run[seed] for seed in shared] for run in first]),
                np.array([[run[seed] for seed in shared] for run in second]),
            )
    return found


def difference_table(study: Study, rows: Sequence[Row]) -> Table | None:
    """Return Diffuser minus each other method; none where it takes no part.

    Args:
        study: The benchmark.
        rows: Problems.
    """
    found = {row.name: comparisons(study, row) for row in rows}
    methods = [m for m in study.methods if any(m in found[row.name] for row in rows)]
    if not methods:
        return None
    body = [
        (
            Cell(row.title),
            *(
                _difference_cell(study, row, method, found[row.name].get(method))
                for method in methods
            ),
        )
        for row in rows
    ]
    planner = study.label(PLANNER)
    return Table(
        title=f"{planner} minus each other method, on the same episodes",
        header=("problem", *(f"{planner} − {study.label(m)}" for m in methods)),
        rows=tuple(body),
        notes=(
            (
                "Mean difference of the scores of episodes with the same seed, thus "
                "the same start and goal, and its 95 % interval; training seeds of "
                "both, and episodes once for all of them, are drawn. Better: the "
                f"probability that {planner} scores higher in an episode, ties "
                "counting half. Disjoint: "
                "the 95 % intervals of the two means, in the table of scores, do not "
                "overlap, which asks for more than a difference that excludes 0."
            ),
            *planner_notes(study, entries_of(study, rows)),
        ),
        command=run_command(study, rows, [PLANNER, *methods]),
    )


def _best(study: Study, row: Row, methods: Sequence[str]) -> str | None:
    """Return the method with the highest score that is no mere reference."""
    entries = [study.entry(row, m) for m in methods if m not in REFERENCES]
    known = [entry for entry in entries if entry is not None]
    return max(known, key=lambda entry: entry.score.mean).method if known else None


def _score_cell(entry: Entry | None, strong: bool, details: bool) -> Cell:
    if entry is None:
        return Cell("missing")
    small = [ends(entry.score)]
    success = entry.rate("success") if details else None
    if success is not None:
        rate, time = number(100 * success.mean, 0), entry.time_to_goal
        small.append(f"{rate} % {ends(success, digits=0, scale=100)}")
        if math.isfinite(time.mean):
            small.append(f"in {number(time.mean, 0)} steps")
    if details and entry.has(LATCHED):
        latched = replace(entry.row, measure=LATCHED)
        small.append(f"latched {estimate(replace(entry, row=latched).score)}")
    return Cell(number(entry.score.mean), tuple(filter(None, small)), strong)


def _averages(study: Study, rows: Sequence[Row], methods: Sequence[str]) -> list[Cell]:
    """Return each method's mean over problems, the highest one strong."""
    means = {}
    for method in methods:
        entries = complete_entries(study, rows, method)
        if entries is not None:
            means[method] = average_interval([e.values(e.row.measure) for e in entries])
    rated = [method for method in means if method not in REFERENCES]
    best = max(rated, key=lambda method: means[method].mean, default=None)
    return [
        Cell(number(means[m].mean), (ends(means[m]),), m == best)
        if m in means
        else MISSING
        for m in methods
    ]


def complete_entries(
    study: Study, rows: Sequence[Row], method: str
) -> list[Entry] | None:
    """Return a method's results on all problems; none where they cannot be averaged."""
    entries = [study.entry(row, method) for row in rows]
    known = [entry for entry in entries if entry is not None]
    if len(known) < len(rows) or len({row.measure for row in rows}) > 1:
        return None
    return known


def _score_notes(
    study: Study, rows: Sequence[Row], *, details: bool
) -> tuple[str, ...]:
    """Return what the figures of a table of scores are."""
    entries = [entry for entry in study.entries.values() if entry.row in rows]
    several = max(len(entry.results) for entry in entries) > 1
    counts = sorted({entry.num_episodes for entry in entries})
    notes = [
        (
            "Mean over all episodes of all evaluation seeds and training seeds "
            f"({' or '.join(map(str, counts))} episodes) with its 95 % bootstrap "
            "interval; where all episodes have the same score, there is nothing to "
            "draw from, and it has no width. The highest mean of a row is bold; "
            "references take no part in that: the demonstrator, and what practises or "
            "searches in the environment itself."
        ),
        *interval_notes(study, entries),
    ]
    if details:
        notes.append(
            "Below: success, the share of the episodes that reached the goal at least "
            "once, with Wilson's interval of as many trials as there are different "
            "episodes"
            + (", widened by what drawn training seeds add" if several else "")
            + "; mean env steps until then, of the episodes that did (their interval "
            'is under "Outcomes").'
        )
    if details and any(entry.has(LATCHED) for entry in entries):
        notes.append(
            "The score is of the settled final state; latched: of what ever held, by "
            "the rule of the paper's authors."
        )
    notes.append('An average needs every problem of its block; "missing": no result.')
    return tuple(notes)


def _printed(text: str) -> Cell:
    return Cell(text) if text.strip() else MISSING


def _several_runs_everywhere(study: Study, rows: Sequence[Row]) -> bool:
    return all(len(entry.results) > 1 for entry in entries_of(study, rows))


def _iqm_cell(study: Study, rows: Sequence[Row], method: str, by_runs: bool) -> Cell:
    known = complete_entries(study, rows, method)
    if known is None:
        return MISSING
    values = [entry.values(entry.row.measure) for entry in known]
    interval = iqm_run_interval(values, by_runs=by_runs)
    return Cell(number(interval.mean), tuple(filter(None, [ends(interval)])))


def _difference_cell(
    study: Study, row: Row, method: str, found: Comparison | None
) -> Cell:
    ours, theirs = study.entry(row, PLANNER), study.entry(row, method)
    if found is None or ours is None or theirs is None:
        return Cell(UNKNOWN if theirs is not None and ours is not None else "missing")
    side = disjoint(ours.score, theirs.score)
    verdict = {1: "ahead, disjoint", -1: "behind, disjoint", 0: "overlapping"}[side]
    win = estimate(found.win, digits=0, scale=100)
    interval = ends(found.difference)
    lines = (interval, f"better {win} %", verdict)
    return Cell(signed(found.difference.mean), tuple(filter(None, lines)), side == 1)
