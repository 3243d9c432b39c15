"""What a report says first: who leads where, and whether that is beyond doubt."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from diffuser_policy.benchmark.report.critics import critic_of
from diffuser_policy.benchmark.report.curves import constant_score, curve_of
from diffuser_policy.benchmark.report.document import Block, Bullets, Paragraph, Remark
from diffuser_policy.benchmark.report.estimates import disjoint
from diffuser_policy.benchmark.report.study import (
    NOT_BEGUN,
    PLANNER,
    REFERENCES,
    Entry,
    Row,
    Study,
    entries_of,
    is_loaded,
)
from diffuser_policy.benchmark.report.tables import interval_notes
from diffuser_policy.benchmark.report.wording import estimate, listed, number
from diffuser_policy.benchmark.results import CellResult, rise_of
from diffuser_policy.plotting.drawing import counted

PAPER = ("bcq", "cql", "iql")  # what the paper compares with
ACTING = {  # executors that do more than the planned actions
    "pursuit": "a controller that pursues the planned path",
    "path": "a controller that keeps to the planned path",
    "features": "the inverse of the features that it plans in (for arms: kinematics)",
}


def summary(study: Study) -> list[Block]:
    """Return the blocks of a report's beginning."""
    blocks: list[Block] = [Paragraph(_scope(study)), *remarks(study)]
    told = (_paper, _leaders, _peaks, _curve_ends, _critics)
    sentences = [sentence for tell in told for sentence in tell(study)]
    blocks.append(Bullets(tuple(sentences)))
    notes = interval_notes(study, entries_of(study, study.rows))
    return [*blocks, *map(Paragraph, notes)]


def remarks(study: Study) -> list[Remark]:
    """Return what must not be overlooked: gaps, failures, mixed versions."""
    found = []
    failed = [cell for cell in study.open_cells if cell.failed]
    if study.open_cells:
        idle = sum(cell.state == NOT_BEGUN for cell in study.open_cells)
        others = len(study.open_cells) - len(failed) - idle
        counts = [
            f"{counted(number, 'cell')} {state}"
            for number, state in (
                (len(failed), "failed"),
                (others, "not finished"),
                (idle, "of the suite not begun"),
            )
            if number
        ]
        found.append(Remark(f'Not complete: {", ".join(counts)}; see "Gaps".'))
    if study.mixed:
        found.append(
            Remark(
                f"Mixed versions: {'; '.join(study.mixed)}. Scores may differ by it."
            )
        )
    for row in study.rows:
        seeds = {
            frozenset(run)
            for method in study.methods_of([row])
            for run in _entry(study, row, method).by_seed(row.measure)
        }
        if len(seeds) > 1:
            found.append(
                Remark(
                    f"Not all cells of {row.title} ran the same episodes; differences "
                    "between methods are of those that both ran."
                )
            )
    return found


def leader(study: Study, row: Row) -> Entry | None:
    """Return the entry with the highest mean score that is no mere reference."""
    found = [
        _entry(study, row, method)
        for method in study.methods_of([row])
        if method not in REFERENCES
    ]
    return max(found, key=lambda entry: entry.score.mean, default=None)


def _scope(study: Study) -> str:
    results = study.results
    episodes = sum(len(result.episodes) for result in results)
    suites = f" of the suite {listed(study.suites)}" if study.suites else ""
    methods = listed([*map(study.label, study.methods)])
    return (
        f"{counted(len(results), 'finished cell')}{suites}: "
        f"{counted(len(study.rows), 'problem')}, "
        f"{counted(len(study.methods), 'method')} ({methods}), "
        f"{episodes:,} episodes in all. A cell is a method on a problem, trained with "
        f"one seed. {' '.join(_origins(study))} All are evaluated in the same loop, on "
        f"the same episodes of a problem. {_acting(study)}{study.note}".rstrip()
    )


def _origins(study: Study) -> list[str]:
    """Say which methods learned from the problems' data, and what others come from."""
    loaded = [result for result in study.results if is_loaded(result)]
    before = {result.cell.method for result in loaded}
    learned = {r.cell.method for r in study.results if r.dataset is not None} - before
    sentences = []
    if learned:
        sentences.append(
            f"{_methods(study, learned)} learned from the dataset of the problem, the "
            "same for all."
        )
    if loaded:
        known = sorted({str(r.policy.get("dataset") or "") for r in loaded} - {""})
        other = sorted({r.cell.id for r in loaded if _is_of_other_data(r)})
        data = listed(known) if known else "data that it does not name"
        sentences.append(
            f"{_methods(study, before)} loaded planners that had been trained before, "
            f"on {data}"
            + (f": other data than the problem's in {listed(other)}." if other else ".")
        )
    rest = set(study.methods) - before - learned
    if rest:
        sentences.append(f"{_methods(study, rest)} learned from no dataset.")
    return sentences


def _acting(study: Study) -> str:
    """Say what stands between some methods' networks and their actions."""
    found: dict[str, set[str]] = {}
    for result in study.results:
        name = result.policy.get("execution", {}).get("executor")
        if name in ACTING:
            found.setdefault(result.cell.method, set()).add(ACTING[name])
    said = [
        f"{study.label(method)} plans states, which {listed(sorted(ways))} "
        f"{'turn' if len(ways) > 1 else 'turns'} into actions"
        for method, ways in found.items()
    ]
    guided = {r.cell.method for r in study.results if r.policy.get("guide")}
    if guided:
        said.append(f"{_methods(study, guided)} is guided by costs")
    return f"{'; '.join(said)}; all others act directly. " if said else ""


def _is_of_other_data(result: CellResult) -> bool:
    known = result.policy.get("dataset")
    return known is not None and known != result.cell.problem.dataset


def _methods(study: Study, names: Collection[str]) -> str:
    return listed([study.label(name) for name in study.methods if name in names])


def _paper(study: Study) -> list[str]:
    """Say whether Diffuser is ahead of the paper's baselines, problem by problem."""
    rows = [row for row in study.rows if study.entry(row, PLANNER)]
    ahead, not_ahead, undecided, names = [], [], [], set()
    for row in rows:
        ours = _entry(study, row, PLANNER)
        others = [m for m in PAPER if study.entry(row, m)]
        names.update(others)
        block = study.methods_of(study.block(row.block))
        absent = [m for m in PAPER if m in block and m not in others]
        behind = [
            m for m in others if disjoint(ours.score, _entry(study, row, m).score) < 1
        ]
        if behind:
            against = listed([*map(study.label, behind)])
            not_ahead.append(f"{row.title} ({against})")
        elif absent:
            missing = listed([*map(study.label, absent)])
            undecided.append(f"{row.title} ({missing})")
        elif others:
            ahead.append(row.title)
    if not names:
        return []
    ordered = listed([study.label(m) for m in PAPER if m in names])
    planner = study.label(PLANNER)
    total = len(ahead) + len(not_ahead) + len(undecided)
    text = (
        f"Against the paper's baselines that were run ({ordered}): {planner} is ahead "
        f"of all of them, with disjoint 95 % intervals, on {len(ahead)} of {total} "
        f"problems{f' ({listed(ahead)})' if ahead and len(ahead) < total else ''}."
    )
    if undecided:
        text += f" Undecided, as results are missing, on {listed(undecided)}."
    if not_ahead:
        text += f" Not so on {listed(not_ahead)}."
    return [text]


def _leaders(study: Study) -> list[str]:
    """Say who has the highest score, problems with the same answer together."""
    clear: dict[str, list[str]] = {}
    close = []
    for row in study.rows:
        first = leader(study, row)
        if first is None or not {*study.methods_of([row])} - {
            first.method,
            *REFERENCES,
        }:
            continue  # there is nobody to lead
        rivals = _rivals(study, row, first)
        if not rivals:
            clear.setdefault(first.method, []).append(row.title)
            continue
        named = [f"{study.label(e.method)} {estimate(e.score)}" for e in rivals]
        close.append(
            f"{row.title}: {study.label(first.method)} has the highest mean, "
            f"{estimate(first.score)}, but its interval overlaps with {listed(named)}."
        )
    sentences = [
        f"{study.label(method)} leads on "
        f"{'every problem' if len(titles) == len(study.rows) else listed(titles)}: its "
        "interval lies above that of every other method but the references."
        for method, titles in clear.items()
    ]
    return [*sentences, *close]


def _peaks(study: Study) -> list[str]:
    """Say whether any learning curve was ever above Diffuser's score."""
    above, below = [], 0
    for row in study.rows:
        ours = study.entry(row, PLANNER)
        for method in study.methods_of([row]):
            curve = curve_of(_entry(study, row, method))
            if ours is None or curve is None or method == PLANNER:
                continue
            highest = float(curve.mean.max())
            if highest < ours.score.mean:
                below += 1
            else:
                named = f"{study.label(method)} on {row.title}, {number(highest)}"
                above.append(named)
    if not above and not below:
        return []
    planner = study.label(PLANNER)
    text = (
        "The highest evaluation during training, which flatters and is of other "
        f"episodes, is below {planner}'s score in {below} of "
        f"{counted(below + len(above), 'learning curve')}"
    )
    return [f"{text}; not so: {'; '.join(above)}." if above else f"{text}."]


def _curve_ends(study: Study) -> list[str]:
    """Say which learning curves still rose, fell or told nothing in the end."""
    rises = {result.cell.id: rise_of(result.curve) for result in study.results}
    known = {name: rise for name, rise in rises.items() if rise is not None}
    rising, falling = (
        [name for name, rise in known.items() if rise.kind == kind]
        for kind in ("rising", "falling")
    )
    silent = [
        result.cell.id
        for result in study.results
        if result.cell.id in known and constant_score(result) is not None
    ]
    if not known:
        return []
    number_of = counted(len(known), "learning curve")
    first = f"{len(rising)} of {number_of}" if rising else f"No curve (of {len(known)})"
    text = (
        f"{first} still rose when the training ended, "
        "by more than twice the standard error"
    )
    sentences = [f"{text}: {listed(rising)}." if rising else f"{text}."]
    if falling:
        sentences.append(
            f"{len(falling)} of {number_of} fell by as much, so that an earlier step "
            f"would have been better: {listed(falling)}."
        )
    if silent:
        sentences.append(
            f"{len(silent)} of {number_of} had the same score from beginning to end, "
            "which does not tell whether anything was being learned: "
            f"{listed(silent)}."
        )
    return sentences


def _critics(study: Study) -> list[str]:
    """Say which critics give values that cannot be true."""
    found = [(result.cell.id, critic_of(result)) for result in study.results]
    known = [(name, critic) for name, critic in found if critic is not None]
    wrong = [
        f"{name} ({critic})" for name, critic in known if critic.kind != "possible"
    ]
    if not wrong:
        return []
    text = (
        f"The values of {len(wrong)} of {counted(len(known), 'critic')} are outside of "
        "what rewards and discount allow: too high, they diverged; too low, they are "
        "more pessimistic than any policy deserves. These scores may not be the best "
        f"that their methods can do: {listed(wrong)}."
    )
    return [text]


def _rivals(study: Study, row: Row, first: Entry) -> Sequence[Entry]:
    """Return the methods whose intervals do not lie below the leader's."""
    others = [
        _entry(study, row, method)
        for method in study.methods_of([row])
        if method not in REFERENCES and method != first.method
    ]
    return [entry for entry in others if disjoint(first.score, entry.score) < 1]


def _entry(study: Study, row: Row, method: str) -> Entry:
    return study.entries[row.name, method]
