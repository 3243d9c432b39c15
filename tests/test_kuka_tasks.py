"""Pairs, towers and shares, against definitions written out block by block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diffuser_envs.errors import KukaArrangementError, KukaOptionError
from diffuser_envs.kuka.arrangements import order_of_pairs, random_stacks
from diffuser_envs.kuka.columns import (
    layer_height,
    observation_columns,
    ordered_pairs,
)
from diffuser_envs.kuka.events import EpisodeLog
from diffuser_envs.kuka.tasks import (
    built_share,
    latching_pairs,
    make_task,
    matched_share,
    met_pairs,
    num_blocks_of_pairs,
    on_pairs,
    pair_matrix,
    tower_goal,
    tower_height,
)

PAIRS = ordered_pairs()

COLUMNS = observation_columns()

FLAT = np.array([[0.5, y, 0.03] for y in (-0.3, -0.1, 0.1, 0.3)])


def tower(order: tuple[int, ...], num_blocks: int = 4) -> np.ndarray:
    """Return blocks of which `order` are stacked, bottom to top."""
    positions = FLAT[:num_blocks].copy()
    for layer, block in enumerate(order):
        positions[block] = (*FLAT[order[0], :2], layer_height(layer))
    return positions


# --- pairs ----------------------------------------------------------------------------


def test_pairs_are_listed_top_first() -> None:
    assert PAIRS[:4] == ((0, 1), (0, 2), (0, 3), (1, 0))
    assert len(PAIRS) == 12
    pairs = on_pairs(tower((2, 0)))
    assert [PAIRS[index] for index in np.flatnonzero(pairs)] == [(0, 2)]


@pytest.mark.parametrize(
    ("offset", "holds"),
    [
        ((0.049, 0.0, 0.0), True),
        ((0.051, 0.0, 0.0), False),
        ((0.036, 0.036, 0.0), False),  # 0.0509 m along the diagonal
        ((0.0, 0.0, 0.0119), True),
        ((0.0, 0.0, 0.0121), False),
        ((0.0, 0.0, -0.0121), False),
    ],
)
def test_on_has_the_limits_of_its_definition(
    offset: tuple[float, float, float], holds: bool
) -> None:
    positions = tower((2, 0))
    positions[0] += offset
    assert on_pairs(positions).any() == holds


def test_held_blocks_are_on_nothing_and_carry_nothing() -> None:
    positions = tower((0, 1, 2))
    for held, left in ((0, {(2, 1)}), (1, set()), (2, {(1, 0)}), (3, {(1, 0), (2, 1)})):
        pairs = on_pairs(positions, np.arange(4) == held)
        assert {PAIRS[index] for index in np.flatnonzero(pairs)} == left


def test_the_authors_rule_is_looser_and_forgets_the_lower_block() -> None:
    positions = tower((0, 1))
    positions[1] += (0.09, 0.0, 0.10)
    assert not on_pairs(positions).any()
    assert PAIRS[int(latching_pairs(positions).argmax())] == (1, 0)
    assert latching_pairs(positions, np.arange(4) == 0).any()
    assert not latching_pairs(positions, np.arange(4) == 1).any()
    positions[1, 0] += 0.02  # more than a block's width away
    assert not latching_pairs(positions).any()


def test_functions_take_leading_dimensions() -> None:
    rng = np.random.default_rng(0)
    batch = np.stack([random_stacks(4, rng) for _ in range(6)]).reshape(2, 3, 4, 3)
    pairs = on_pairs(batch)
    goal = tower_goal((0, 1, 2, 3))
    assert pairs.shape == (2, 3, 12)
    assert matched_share(pairs, goal).shape == (2, 3)
    for row, column in np.ndindex(2, 3):
        one = batch[row, column]
        assert (on_pairs(one) == pairs[row, column]).all()
        assert tower_height(on_pairs(one)) == tower_height(pairs)[row, column]
        assert latching_pairs(batch)[row, column] == pytest.approx(latching_pairs(one))
        assert matched_share(pairs, goal)[row, column] == matched_share(
            pairs[row, column], goal
        )


# --- towers ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [2, 3, 4, 5])
def test_tower_height_counts_the_longest_chain(num_blocks: int) -> None:
    rng = np.random.default_rng(num_blocks)
    names = ordered_pairs(num_blocks)
    assert num_blocks_of_pairs(len(names)) == num_blocks
    for _ in range(30):
        # Each block on a block of a smaller rank, so that there is no cycle.
        rank = rng.permutation(num_blocks)
        on = [(i, j) for i, j in names if rank[i] > rank[j] and rng.random() < 0.4]
        longest = 1
        for length in range(2, num_blocks + 1):
            for chain in itertools.permutations(range(num_blocks), length):
                if all(pair in on for pair in itertools.pairwise(chain)):
                    longest = length
        pairs = [float(pair in on) for pair in names]
        assert tower_height(pairs) == longest
        assert built_share(pairs) == pytest.approx((longest - 1) / (num_blocks - 1))
        assert {(int(i), int(j)) for i, j in np.argwhere(pair_matrix(pairs))} == set(on)


def test_cycle_of_pairs_counts_no_further_than_all_blocks() -> None:
    pairs = [float(pair in {(0, 1), (1, 0)}) for pair in PAIRS]
    assert tower_height(pairs) <= 4


def test_latched_tower_is_the_fullest_row() -> None:
    latched = [float(pair in {(3, 0), (3, 1), (2, 0)}) for pair in PAIRS]
    share = make_task("unconditional").latched_share(np.array(latched), np.zeros(0))
    assert share == pytest.approx(2 / 3)


# --- goals ----------------------------------------------------------------------------


def test_conditional_share_is_the_longest_correct_prefix() -> None:
    for order in itertools.permutations(range(4)):
        goal = tower_goal(order)
        wanted = list(zip(order[1:], order[:-1], strict=True))
        assert order_of_pairs(goal, 4) == order
        for mask in itertools.product((0, 1), repeat=3):
            have = {pair for pair, on in zip(wanted, mask, strict=True) if on}
            achieved = [float(pair in have) for pair in PAIRS]
            prefix = len(list(itertools.takewhile(bool, mask)))
            assert matched_share(achieved, goal) == pytest.approx(prefix / 3)
            met = {PAIRS[i] for i in np.flatnonzero(met_pairs(achieved, goal))}
            assert met == set(wanted[:prefix])


def test_other_pairs_do_not_count() -> None:
    goal = tower_goal((0, 1, 2, 3))
    assert matched_share(on_pairs(tower((3, 2, 1, 0))), goal) == 0.0
    assert matched_share(on_pairs(tower((0, 1, 2, 3))), goal) == 1.0


def test_goal_without_pairs_is_met_by_blocks_that_stand_apart() -> None:
    nothing = np.zeros(12)
    assert matched_share(on_pairs(FLAT), nothing) == 1.0
    assert matched_share(on_pairs(tower((0, 1))), nothing) == 0.0


def test_every_state_meets_what_it_achieves_itself() -> None:
    # Hindsight relabelling makes goals of achieved states, towers or not.
    rng = np.random.default_rng(1)
    pairs = on_pairs(np.stack([random_stacks(4, rng) for _ in range(50)]))
    assert (matched_share(pairs, pairs) == 1.0).all()


def test_places_match_within_thirty_millimeters() -> None:
    goal = FLAT.reshape(-1)
    moved = FLAT.copy()
    moved[0] += (0.0, 0.0299, 0.0)
    moved[1] += (0.0, 0.0301, 0.0)
    moved[2] += (0.02, 0.02, 0.02)  # 0.0346 m in space
    task = make_task("rearrangement")
    assert task.met(moved.reshape(-1), goal).tolist() == [1, 0, 0, 1]
    assert task.share(moved.reshape(-1), goal) == pytest.approx(0.5)
    assert task.share(np.stack([goal, moved.reshape(-1)]), goal).tolist() == [1, 0.5]


def test_rearrangements_latched_score_asks_for_pairs_alone() -> None:
    task = make_task("rearrangement")
    goal = tower((0, 1, 2)).reshape(-1)
    elsewhere = tower((0, 1, 2)) + np.array([0.1, 0.1, 0.0])
    latched = latching_pairs(elsewhere)
    assert task.latched_share(latched, goal) == 1.0
    assert task.share(elsewhere.reshape(-1), goal) == 0.0


# --- tasks ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unconditional", "conditional", "rearrangement"])
@pytest.mark.parametrize("num_blocks", [2, 4, 5])
def test_episodes_begin_with_nothing_met(name: str, num_blocks: int) -> None:
    task = make_task(name, num_blocks)
    rng = np.random.default_rng(7)
    for _ in range(20):
        start, goal = task.draw(rng)
        assert start.shape == (num_blocks, 3)
        assert goal.shape == (task.goal_size,)
        achieved = task.achieved(start, np.zeros(num_blocks, dtype=bool))
        assert task.share(achieved, goal) == 0.0
        assert not task.met(achieved, goal).any()
        if task.goal_size:
            assert (task.read_goal(goal) == goal).all()
            assert task.goal_bounds[0] <= goal.min()
            assert goal.max() <= task.goal_bounds[1]


def test_unknown_tasks_are_named_with_what_there_is() -> None:
    with pytest.raises(KukaOptionError, match="did you mean 'conditional'"):
        make_task("conditionel")


@pytest.mark.parametrize("order", [(0, 1, 1, 2), (0, 1, 2, 4), (0, 1, 3)])
def test_towers_name_every_block_once(order: tuple[int, ...]) -> None:
    with pytest.raises(KukaArrangementError, match="once"):
        tower_goal(order)


@pytest.mark.parametrize("num_blocks", [None, 4])
@pytest.mark.parametrize("order", [(), (0,)])
def test_a_tower_has_two_blocks_or_more(
    order: tuple[int, ...], num_blocks: int | None
) -> None:
    with pytest.raises(KukaArrangementError, match="A tower names two or more"):
        tower_goal(order, num_blocks)


@pytest.mark.parametrize("num_blocks", [None, 4])
def test_towers_name_blocks_by_whole_numbers(num_blocks: int | None) -> None:
    with pytest.raises(KukaArrangementError, match="whole numbers"):
        tower_goal((0.5, 1), num_blocks)  # type: ignore[arg-type]


def test_columns_are_those_of_the_paper() -> None:
    assert COLUMNS["joints"] == tuple(range(7))
    assert [COLUMNS[f"flag_{block}"] for block in range(4)] == [
        (14 + 8 * block,) for block in range(4)
    ]
    for num_blocks in (2, 4, 5):
        columns = observation_columns(num_blocks)
        named = [column for group in columns.values() for column in group]
        assert sorted(named) == list(range(7 + 8 * num_blocks))


# --- reasons --------------------------------------------------------------------------


def log_of(*events: tuple[str, np.ndarray]) -> EpisodeLog:
    """Replay events: ("ask" | "take" | "drop" | "off", positions then)."""
    log = EpisodeLog()
    for step, (event, positions) in enumerate(events):
        if event == "lose":
            log.let_go(positions, lost=True)
            continue
        if event == "off":
            log.let_go(positions)
        log.ask(step, event != "off", positions)
        if event != "off":
            log.near(0.01 if event == "take" else 0.05)
        if event == "take":
            log.take(0)
    return log


def at(*block_0: float) -> np.ndarray:
    """Return the blocks with block 0 somewhere."""
    positions = FLAT.copy()
    positions[0] = block_0
    return positions


ON_1 = at(0.5, -0.1, 0.09)
CASES = {
    "placed": ([("take", FLAT), ("off", ON_1)], ON_1, "out of time"),
    "put_down": (
        [("take", FLAT), ("off", at(0.5, -0.5, 0.031))],
        at(0.5, -0.5, 0.03),
        "out of time",
    ),
    "missed": ([("ask", FLAT), ("off", FLAT)], FLAT, "missed grasp"),
    "off_centre": (
        [("take", FLAT), ("off", at(0.56, -0.1, 0.1))],
        at(0.6, -0.1, 0.03),
        "off-centre",
    ),
    "dropped": (
        [("take", FLAT), ("off", at(0.5, -0.5, 0.2))],
        at(0.5, -0.5, 0.03),
        "dropped",
    ),
}


@pytest.mark.parametrize("outcome", CASES)
def test_attempts_come_to_what_is_defined(outcome: str) -> None:
    events, settled, reason = CASES[outcome]
    log = log_of(*events)
    log.judge(settled)
    assert log.counts() == {name: int(name == outcome) for name in log.counts()}
    assert log.failure(0.5, holding=False) == reason
    assert log.failure(1.0, holding=False) is None


def test_block_that_comes_off_by_itself_is_dropped() -> None:
    log = log_of(("take", FLAT), ("lose", at(0.5, -0.5, 0.035)))
    log.judge(at(0.5, -0.5, 0.03))
    assert log.failure(0.0, holding=False) == "dropped"


def test_a_block_that_is_taken_again_after_it_came_off_was_dropped_once() -> None:
    low = at(0.5, -0.5, 0.035)
    log = log_of(("take", FLAT), ("lose", low), ("take", low), ("off", ON_1))
    log.judge(ON_1)
    assert log.counts() == dict.fromkeys(log.counts(), 0) | {"dropped": 1, "placed": 1}


def test_a_block_beside_another_is_put_down_and_not_off_centre() -> None:
    log = log_of(("take", FLAT), ("off", at(0.59, -0.1, 0.035)))
    log.judge(at(0.59, -0.1, 0.03))
    assert log.counts()["put_down"] == 1


def test_reasons_come_in_their_order() -> None:
    far = EpisodeLog()
    assert far.failure(0.0, holding=False) == "never reached"
    far.ask(0, True, FLAT)
    far.near(0.11)
    far.judge(FLAT)
    assert far.failure(0.0, holding=False) == "never reached"

    carrying = log_of(("ask", FLAT), ("off", FLAT), ("take", FLAT))
    carrying.judge(FLAT)
    assert carrying.failure(0.0, holding=True) == "out of time"

    built = log_of(("take", FLAT), ("off", ON_1))
    built.best_share = 2 / 3
    built.judge(ON_1)
    assert built.failure(1 / 3, holding=False) == "knocked over"
    assert built.failure(2 / 3, holding=False) == "out of time"

    # A miss that was made good is the reason if nothing else is.
    late = log_of(("ask", FLAT), ("off", FLAT), ("take", FLAT), ("off", ON_1))
    late.judge(ON_1)
    assert late.counts()["missed"] == 1
    assert late.failure(1 / 3, holding=False) == "missed grasp"
