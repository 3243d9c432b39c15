r"""Landmarks: places that the data visits, and how long it took from one to another.

A plan is as long as the windows that its network learned from, and a way through a
large maze is longer. Landmarks are a coarse map for such ways, made of data alone:

1. places $c_1, …, c_n$: visited goal columns that are far from each other (k-center;
   Gonzalez 1985), moved into the middle of those around them (Lloyd 1982), since what
   is furthest lies along the walls,
2. a time $t_{ij}$ from place i to place j wherever a run came from i to j with no other
   place between: the mean over all runs, in env steps,
3. the times $T_{ij}$ of the shortest ways over these (Floyd 1962).

A time is only between places that a run did connect, so no way leads through a wall
that is thicker than the distance between places. Runs that share a place are joined
there. Searching a graph over recorded states for subgoals is from Eysenbach et al. 2019
("Search on the replay buffer"); there, a learned distance says which states are
neighbors, and it may be wrong about walls.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

CORE = 0.5  # of the usual distance between places: who is nearer is at a place
CANDIDATES = 30_000  # rows from which places are chosen
EXACT = "donot_use_mm_for_euclid_dist"  # near distances suffer from the other way
AROUND = 5  # places near the start, from one of which a way leads on
ROUNDS = 3  # of moving places into the middle
SAME = 1e-6  # times that differ by this share are equal
BLOCK = 50_000  # rows whose distances fit into memory at a time


class Landmarks(nn.Module):
    """Places, and times between neighbors; nothing is learned by gradients."""

    places: Tensor
    times: Tensor

    def __init__(self, num: int, size: int) -> None:
        """Make room for places that are read from a file, or found by `fit`.

        Args:
            num: Number of places.
            size: Columns of a place.
        """
        super().__init__()
        self.register_buffer("places", torch.zeros(num, size))
        self.register_buffer("times", torch.zeros(num, num))
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _forget_ways
        )

    @classmethod
    def fit(
        cls, rows: np.ndarray, run_starts: np.ndarray, num: int, seed: int = 0
    ) -> Self:
        """Find places in the data, and the times between them.

        Args:
            rows: `[N, size]` the columns that a goal pins, normalized; an env step lies
                between two rows.
            run_starts: `[runs + 1]` first row of each run, and the number of rows.
            num: Number of places.
            seed: Fixes the choice among the rows.
        """
        made = cls(num, rows.shape[1])
        every = np.random.default_rng(seed).permutation(len(rows))[:CANDIDATES]
        places = _spread(rows[np.sort(every)], num)
        made.places.copy_(torch.from_numpy(places))
        which, far = _nearest(rows, places)
        at = np.where(far <= made.radius, which, -1)
        total, count = np.zeros((num, num)), np.zeros((num, num))
        for begin, end in pairwise(run_starts.tolist()):
            when = np.flatnonzero(at[begin:end] >= 0)
            where = at[begin:end][when]
            new = np.flatnonzero(np.diff(where, prepend=-1))
            where, when = where[new], when[new]
            np.add.at(total, (where[:-1], where[1:]), np.diff(when))
            np.add.at(count, (where[:-1], where[1:]), 1)
        with np.errstate(invalid="ignore"):
            mean = np.where(count > 0, total / count, 0.0)
        made.times.copy_(torch.from_numpy(mean))
        return made

    @property
    def radius(self) -> float:
        """Distance from a place, normalized, within which one is there."""
        places = torch.unique(self.places, dim=0)
        apart = torch.cdist(places, places, compute_mode=EXACT)
        apart.fill_diagonal_(torch.inf)
        return CORE * float(apart.amin(dim=1).median())

    @cached_property
    def ways(self) -> np.ndarray:
        """Times `[num, num]` of the shortest ways, in env steps; inf without one."""
        times = self.times.cpu().numpy().astype(np.float64)
        times[times == 0.0] = np.inf
        np.fill_diagonal(times, 0.0)
        for middle in range(len(times)):
            np.minimum(times, times[:, middle, None] + times[middle], out=times)
        return times

    def _distances(self, points: np.ndarray) -> np.ndarray:
        """Return distances `[rows, num]` to all places, normalized."""
        some = torch.from_numpy(np.ascontiguousarray(points)).float()
        apart = torch.cdist(some, self.places.cpu(), compute_mode=EXACT)
        distances: np.ndarray = apart.numpy()
        return distances

    def subgoals(
        self, start: np.ndarray, goal: np.ndarray, ahead: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the last place on the way to each goal that is not too far ahead.

        Args:
            start: `[rows, size]`, normalized.
            goal: `[rows, size]`, normalized.
            ahead: Env steps to the subgoal, at most, unless the next place is further.

        Returns:
            Subgoals `[rows, size]`, normalized, and for which rows `[rows]` it is the
            goal itself: it is near enough, or no way leads there.
        """
        out, later, whole = self._ahead(start, goal)
        direct = (whole <= ahead) | ~np.isfinite(whole)
        near = later & (out <= ahead)
        furthest = np.where(near, out, -1.0).argmax(axis=1)
        following = np.where(later, out, np.inf).argmin(axis=1)
        chosen = np.where(near.any(axis=1), furthest, following)
        places = self.places.cpu().numpy()[chosen]
        return np.where(direct[:, None], goal, places), direct

    def way(
        self, start: np.ndarray, goal: np.ndarray, ahead: float = 0.0
    ) -> list[np.ndarray]:
        """Return the places on the way to each goal, `[places, size]`, normalized.

        There are none where no way leads to the goal, or where it is near enough.

        Args:
            start: `[rows, size]`, normalized.
            goal: `[rows, size]`, normalized.
            ahead: Env steps within which a goal is near enough.
        """
        out, later, whole = self._ahead(start, goal)
        later &= (whole > ahead)[:, None]
        places = self.places.cpu().numpy()
        return [places[self._one_way(*row)] for row in zip(out, later, strict=True)]

    def _one_way(self, out: np.ndarray, on_way: np.ndarray) -> list[int]:
        """Return the places of a single shortest way, in their order.

        Args:
            out: `[num]` env steps to each place from the one at the start.
            on_way: `[num]` the later places of all ways that take equally long.
        """
        at, chosen = int(out.argmin()), list[int]()
        for place in np.flatnonzero(on_way)[out[on_way].argsort()].tolist():
            if out[at] + self.ways[at, place] - out[place] <= SAME * (1 + out[place]):
                chosen.append(place)
                at = place
        return chosen

    def _ahead(
        self, start: np.ndarray, goal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times and places of the shortest ways from the places at the start.

        The ways are between the places nearest to the start and to the goal. Runs may
        only end or only begin at a place; then the nearest places that a way connects
        are used instead. Copies of a place, of which there may be any number, have no
        ways at all, so they are not among the next ones.

        Returns:
            Env steps `[rows, num]` to each place, which `[rows, num]` of them lie on
            a shortest way to the goal and not at the start, and env steps `[rows]` to
            the place at the goal.
        """
        ways = self.ways
        here, there = self._distances(start), self._distances(goal)
        linked = np.isfinite(ways).sum(axis=0) + np.isfinite(ways).sum(axis=1) > 2
        around = np.where(linked, here, np.inf).argsort(axis=1)[:, :AROUND]
        rows, nearest = np.arange(len(here)), np.full(len(here), np.inf)
        begin, end = np.zeros((2, len(here)), int)
        for place in (here.argmin(axis=1), *around.T):
            reached = np.where(np.isfinite(ways[place]), there, np.inf)
            last = reached.argmin(axis=1)
            off = here[rows, place] + reached[rows, last]
            better = off < nearest
            begin, end = np.where(better, place, begin), np.where(better, last, end)
            nearest = np.minimum(off, nearest)
        out, rest, whole = ways[begin], ways[:, end].T, ways[begin, end]
        with np.errstate(invalid="ignore"):
            on_way = np.abs(out + rest - whole[:, None]) <= SAME * (1 + whole[:, None])
        return out, on_way & (out > 0), whole


def _forget_ways(marks: nn.Module, _: object) -> None:
    """Drop the ways over places that others have replaced, by `load_state_dict`."""
    vars(marks).pop("ways", None)


def _spread(rows: np.ndarray, num: int) -> np.ndarray:
    """Return rows that are far from each other, each in the middle of those around it.

    Some come more than once if there are too few.
    """
    chosen = [0]
    apart = np.linalg.norm(rows - rows[0], axis=1)
    while len(chosen) < num:
        chosen.append(int(apart.argmax()))
        apart = np.minimum(apart, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    middles = rows[chosen].astype(np.float32)
    for _ in range(ROUNDS):
        which, _ = _nearest(rows, middles)
        count = np.bincount(which, minlength=num)[:, None]
        total = np.stack([np.bincount(which, column, num) for column in rows.T], axis=1)
        middles = np.where(count > 0, total / np.maximum(count, 1), middles)
        middles = middles.astype(np.float32)
    # Rows themselves: the mean of several may lie where no run was.
    nearest, _ = _nearest(middles, rows.astype(np.float32))
    return np.asarray(rows[nearest], np.float32)


def _nearest(points: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which place is nearest to each point, and how far it is."""
    near, far = [], []
    for begin in range(0, max(len(points), 1), BLOCK):
        some = torch.from_numpy(np.ascontiguousarray(points[begin : begin + BLOCK]))
        apart = torch.cdist(some.float(), torch.from_numpy(places), compute_mode=EXACT)
        least, which = apart.min(dim=1)
        near.append(which.numpy())
        far.append(least.numpy())
    return np.concatenate(near), np.concatenate(far)
