r"""Guides for block stacking: which block to take, and where to leave it.

Each guide names its block, or takes it from the current stage: the next pick-and-place
towards the environment's goal, or towards a `tower` that you name
(`diffuser_envs.kuka.stages`). Each works alone, and they add up:

    StackMatch() + Contact()                        KukaStack-Conditional
    Place() + Contact()                             KukaStack-Rearrangement
    Place(tower=(2, 0, 1)) + Contact(tower=(2, 0, 1))   block 1 on 0 on 2, on any goal

Penalties are halves of squares in environment units: on clean trajectories, a gradient
step of scale 1 moves a position, or a contact flag, by its whole error. Only
`StackMatch` needs a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuser_envs.errors import KukaArrangementError
from diffuser_envs.kuka.columns import BLOCK_HEIGHT, BLOCK_WIDTH, ordered_pairs
from diffuser_envs.kuka.stages import count_blocks, next_stages
from diffuser_envs.kuka.tasks import tower_goal
from diffuser_policy.errors import GuideError
from diffuser_policy.guides.builtin import checked_number, checked_point, lengths
from diffuser_policy.guides.guide import Guide, Mark, WeightedSum
from diffuser_policy.guides.trajectory import CLEAN, Trajectory
from diffuser_policy.settings import MisfitError, converted

Tower = tuple[int, ...] | None
SHARPNESS = 0.1  # of a flag: width of the soft maximum over the steps of a contact
FUNNEL = 0.03  # m off a block's axis at which the full clearance above it is due
SOFTENING = 1e-3  # m; on a block's very axis, distances stay differentiable
JUDGED = 4  # planning steps that the classifier judges


@dataclass(frozen=True)
class PickAndPlace:
    """The pick-and-place that each trajectory should make.

    Attributes:
        block: `[batch]` the block to move; -1 if nothing is left to do.
        support: `[batch]` the block on which to put it; -1 for the table.
        target: `[batch, 1, 3]` where to put its center, m.
    """

    block: Tensor
    support: Tensor
    target: Tensor

    @property
    def some(self) -> Tensor:
        """Whether each trajectory has something to do, `[batch]`, 0 or 1."""
        return (self.block >= 0).to(self.target.dtype)


def check_blocks(guide: Guide, *blocks: int | None) -> None:
    """Refuse what cannot be the number of a block.

    Raises:
        GuideError: A negative number, or no whole one.
    """
    for block in blocks:
        whole = isinstance(block, Integral) and not isinstance(block, bool)
        if block is not None and not (whole and block >= 0):
            raise GuideError(
                f"{guide.name}: a block is a whole number from 0 on; got {block!r}."
            )


def check_tower(guide: Guide, tower: Tower) -> None:
    """Refuse what is no tower of any number of blocks.

    Raises:
        GuideError: Fewer than two blocks, a block twice, or no block number.
    """
    if tower is None:
        return
    if not isinstance(tower, Sequence) or len(tower) < 2:
        raise GuideError(
            f"{guide.name}.tower names two or more blocks from the bottom to the top, "
            f"as (2, 0, 1); got {tower!r}."
        )
    check_blocks(guide, *tower)
    if len(set(tower)) < len(tower):
        raise GuideError(f"{guide.name}.tower names a block twice: {tuple(tower)}.")


def checked_count(trajectory: Trajectory, *named: int) -> int:
    """Return the number of blocks in the planner's trajectories.

    Raises:
        MissingColumnsError: The trajectory has no columns of blocks.
        GuideError: A named block is not among them.
    """
    count = count_blocks(trajectory)
    if count == 0:
        trajectory["block_0"], trajectory["flag_0"]
    if max(named, default=0) >= count:
        raise GuideError(
            f"The planner plans for blocks 0..{count - 1}; got block {max(named)}."
        )
    return count


def fixed_pick(
    trajectory: Trajectory,
    block: int,
    *,
    support: int = -1,
    target: tuple[float, ...] = (0.0, 0.0, 0.0),
) -> PickAndPlace:
    """Return the same pick-and-place for every trajectory."""
    checked_count(trajectory, block, support)
    values = trajectory.normalized
    size = (len(trajectory),)
    return PickAndPlace(
        block=torch.full(size, block, device=values.device),
        support=torch.full(size, support, device=values.device),
        target=values.new_tensor(target).expand(len(trajectory), 1, -1),
    )


def current_pick(guide: Guide, trajectory: Trajectory, tower: Tower) -> PickAndPlace:
    """Return the next pick-and-place from the first state of each trajectory.

    Raises:
        GuideError: The environment has no goal, and the guide no tower.
    """
    count = checked_count(trajectory)
    if tower is not None:
        try:
            goals = np.tile(tower_goal(tower, count), (len(trajectory), 1))
        except KukaArrangementError as error:
            raise GuideError(f"{guide.name}: {error}") from error
    elif trajectory.desired_goal is not None:
        goals = _array(trajectory.desired_goal[:, 0])
    else:
        raise GuideError(
            f"{guide.name} takes its block from the goal, but this environment has "
            f"none. Name blocks, or a tower from the bottom to the top: "
            f"{guide.name}(tower=(2, 0, 1))."
        )
    first = replace(trajectory, normalized=trajectory.normalized[:, :1].detach())
    places, flags = block_positions(first)[:, 0], block_flags(first)[:, 0]
    try:
        stages = next_stages(_array(places), _array(flags), goals)
    except KukaArrangementError as error:
        raise GuideError(f"{guide.name}: {error}") from error
    values = trajectory.normalized
    return PickAndPlace(
        block=torch.from_numpy(stages.block).to(values.device),
        support=torch.from_numpy(stages.support).to(values.device),
        target=torch.from_numpy(stages.target).to(values)[:, None],
    )


def _array(values: Tensor) -> np.ndarray:
    array: np.ndarray = values.detach().cpu().numpy()
    return array


def block_positions(trajectory: Trajectory) -> Tensor:
    """Return the positions of the blocks, `[batch, steps, blocks, 3]`, m."""
    blocks = range(checked_count(trajectory))
    return torch.stack([trajectory[f"block_{k}"] for k in blocks], dim=2)


def block_flags(trajectory: Trajectory) -> Tensor:
    """Return the flags of the blocks, `[batch, steps, blocks]`; 1 where it is held."""
    blocks = range(checked_count(trajectory))
    return torch.cat([trajectory[f"flag_{k}"] for k in blocks], dim=2)


def settling_steps(
    trajectory: Trajectory, block: Tensor, window: float
) -> tuple[Tensor, Tensor]:
    """Return the steps at which plans release their block, and those after.

    Both are constants: no gradient flows through them.

    Args:
        trajectory: The trajectories.
        block: `[batch]` the block of each.
        window: Env steps at the end that always count as after.

    Returns:
        Two masks `[batch, steps]`, bool. The first marks the last step of the first
        hold and the step after it, if there are such. The second marks all steps after
        that hold, and those of the window.
    """
    flags = block_flags(trajectory)
    rows = torch.arange(len(trajectory), device=block.device)
    held = flags[rows, :, block] > 0.5
    lets_go = held[:, :-1] & ~held[:, 1:]
    first = lets_go & (lets_go.cumsum(dim=1) == 1)
    release = F.pad(first, (0, 1)) | F.pad(first, (1, 0))
    settled = F.pad(first, (1, 0)).cumsum(dim=1) > 0
    settled[:, -1 - int(window // trajectory.stride) :] = True
    return release, settled


@dataclass(frozen=True, kw_only=True)
class Contact(Guide):
    r"""Makes a plan take one block, and no other.

    $$J = -\tfrac12 \Bigl[ (1 - \max_{t \in W} f_t)^2
    + \sum_{t \in W} \sum_{\mathrm{others}} f_t'^2 \Bigr]$$

    with the planned contact flags f, 0 to 1, of the block and f' of the others, within
    a window W of the plan. The maximum is a soft one: the guide raises the flags at the
    steps where a contact is likeliest already, so that the plan keeps its own timing.
    With `throughout`, the first term is a sum over all steps of W instead: the plan
    holds the block during the whole window (Janner et al. 2022, Appendix B: the first
    half of the plan).

        make_guide("contact")
        make_guide("contact", block=2, window=(30.0, 60.0), throughout=True)

    Attributes:
        block: The block; None for that of the current stage. If nothing is left to do,
            the plan should take no block.
        window: First and last env step since the plan began.
        throughout: Hold the block in the whole window, not at some time within.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    block: int | None = None
    window: tuple[float, float] = (0.0, 64.0)
    throughout: bool = False
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check blocks and window."""
        check_blocks(self, self.block)
        check_tower(self, self.tower)
        checked_point(self, "window")
        if len(self.window) != 2 or not 0 <= self.window[0] <= self.window[1]:
            raise GuideError(
                f"Contact.window must be two env steps since the plan began, the first "
                f"not after the last, as (0.0, 64.0); got {self.window!r}."
            )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared shortfalls and excesses of contact."""
        if self.block is not None:
            block = fixed_pick(trajectory, self.block).block
        else:
            block = current_pick(self, trajectory, self.tower).block
        times = trajectory.times
        start, end = self.window
        inside = torch.nonzero((times >= start) & (times <= end))[:, 0]
        flags = block_flags(trajectory)[:, inside]
        if not len(inside):  # between two planning steps, or past the end
            return 0.0 * trajectory.normalized.sum(dim=(1, 2))
        wanted = F.one_hot(block.clamp(min=0), flags.shape[2]).to(flags.dtype)
        wanted = wanted * (block >= 0)[:, None].to(flags.dtype)
        excess = (flags * (1 - wanted[:, None])).square().sum(dim=(1, 2))
        own = (flags * wanted[:, None]).sum(dim=2)
        if self.throughout:
            lack = (1 - own).square().sum(dim=1)
        else:
            weights = torch.softmax(own / SHARPNESS, dim=1)
            lack = (weights * (1 - own).square()).sum(dim=1)
        return -0.5 * (wanted.amax(dim=1) * lack + excess)


@dataclass(frozen=True, kw_only=True)
class Place(Guide):
    r"""Makes a plan leave a block at a position.

    $$J = -\tfrac12 \sum_{t \in W} |p_t - p^*|^2
    - \tfrac12 \sum_{t \in R} |q_t - q^*|^2$$

    over the planning steps W from the release of the block to the end. At the release,
    R, the tool's tip q should be on the block's top as well, because a block does not
    move alone. A plan that releases late, or never, is judged by its end.

        make_guide("place")
        make_guide("place", block=1, position=(0.5, 0.2, 0.03))

    Attributes:
        block: The block; None, together with `position`, for that of the current stage.
        position: Position of its center, m.
        window: Number of env steps at the plan's end that always count.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    block: int | None = None
    position: tuple[float, float, float] | None = None
    window: float = 20.0
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the parameters; block and position belong together."""
        check_blocks(self, self.block)
        check_tower(self, self.tower)
        checked_number(self, "window")
        if (self.block is None) != (self.position is None):
            raise GuideError(
                f"Place needs a block and its position, or neither (those of the "
                f"current stage); got block={self.block}, position={self.position}."
            )
        if self.position is not None:
            checked_point(self, "position")
            if len(self.position) != 3:
                raise GuideError(
                    f"Place.position must be three coordinates, got {self.position}."
                )

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances at the end."""
        if self.block is not None and self.position is not None:
            pick = fixed_pick(trajectory, self.block, target=self.position)
        else:
            pick = current_pick(self, trajectory, self.tower)
        rows = torch.arange(len(trajectory), device=pick.block.device)
        block = pick.block.clamp(min=0)
        release, after = settling_steps(trajectory, block, self.window)
        off = (block_positions(trajectory)[rows, :, block] - pick.target).square()
        value = (off.sum(dim=2) * (release | after)).sum(dim=1)
        if "tool" in trajectory:
            top = pick.target + pick.target.new_tensor((0.0, 0.0, BLOCK_HEIGHT / 2))
            apart = (trajectory["tool"] - top).square().sum(dim=2)
            value = value + (apart * release).sum(dim=1)
        return -0.5 * pick.some * value

    def marks(self) -> list[Mark]:
        """Return the position, if it is given."""
        if self.position is None:
            return []
        columns = f"block_{self.block}"
        return [
            Mark(kind="pass by", columns=columns, low=self.position, high=self.position)
        ]


@dataclass(frozen=True, kw_only=True)
class AvoidBlocks(Guide):
    r"""Keeps the tool, and what it carries, away from the other blocks.

    $$J = -\tfrac12 \sum_t \sum_{\mathrm{blocks}}
    \max\bigl(\min(r + c - d_{xy},\ h + c\,u(d_{xy}) - d_z), 0\bigr)^2$$

    with the distances d of the tool's tip to a block, and of a carried block to each
    other one. Sideways they would touch at r, upwards at h. Right above a block the
    clearance c u narrows to nothing, so that plans may descend onto it, to grasp it or
    to leave another one there.

        make_guide("avoid-blocks", clearance=0.03)

    Attributes:
        clearance: c, in meters.
    """

    clearance: float = 0.02

    def __post_init__(self) -> None:
        """Check the clearance."""
        checked_number(self, "clearance")

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared shortfalls of distance."""
        blocks = block_positions(trajectory)
        held = block_flags(trajectory).clamp(0.0, 1.0)
        tool = self._lacks(
            trajectory["tool"][:, :, None] - blocks, BLOCK_WIDTH / 2, BLOCK_HEIGHT / 2
        )
        between = blocks[:, :, :, None] - blocks[:, :, None]  # carried, other
        others = 1 - torch.eye(held.shape[2], device=held.device, dtype=held.dtype)
        carried = (
            self._lacks(between, BLOCK_WIDTH, BLOCK_HEIGHT) * others * held[..., None]
        )
        free = 1 - held
        squares = (free * tool.square()).sum(dim=(1, 2))
        return -0.5 * (squares + carried.square().sum(dim=(1, 2, 3)))

    def _lacks(self, offsets: Tensor, radius: float, height: float) -> Tensor:
        """Return the shortfalls of distance, by the shorter way out."""
        aside = lengths(offsets[..., :2], SOFTENING)
        due = self.clearance * (aside / FUNNEL).clamp(max=1.0)
        sideways = radius + self.clearance - aside
        upwards = height + due - offsets[..., 2]
        return torch.relu(torch.minimum(sideways, upwards))


@dataclass(frozen=True, kw_only=True)
class Rest(Guide):
    r"""Keeps the tool in place once nothing is left to do.

    $$J = -\tfrac12 \sum_t |x_t - x_0|^2$$

    with the tool's planned positions x; 0 until the goal is reached. A planner trained
    on towers being built would otherwise go on, and touch the finished one.

        make_guide("rest")

    Attributes:
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the tower."""
        check_tower(self, self.tower)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return minus half the squared distances from the tool's present position."""
        done = 1 - current_pick(self, trajectory, self.tower).some
        tool = trajectory["tool"]
        moved = (tool - tool[:, :1].detach()).square().sum(dim=(1, 2))
        return -0.5 * done * moved


@dataclass(frozen=True, kw_only=True)
class StackMatch(Guide):
    r"""Makes a plan end with one block on another, by a learned classifier.

    $$J = \frac{\sigma^2}{|W|} \sum_{t \in W} \log p(\mathrm{top\ on\ bottom} | s_t)$$

    over some planning steps W, from the release of the block to the plan's end, with
    the planner's classifier of single noisy states (Janner et al. 2022, Appendix B).
    For a block that should stand on the table, p is the probability that it is on no
    other. The classifier judges clean plans with all other blocks at their present
    positions, so that moving the bottom block under the top one does not count.

        make_guide("stack-match", top=1, bottom=0)
        make_guide("stack-match")

    The planner needs a classifier, which `diffuser-policy train-classifier` trains.

    Attributes:
        top: The block to move; None, together with `bottom`, for that of the current
            stage.
        bottom: The block on which to put it.
        window: Number of env steps at the plan's end that always count.
        softness: σ, in meters: roughly the distance by which a gradient step of scale 1
            moves a block.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
        network: The classifier; planners fill it in.
    """

    top: int | None = None
    bottom: int | None = None
    window: float = 20.0
    softness: float = 0.05
    tower: Tower = None
    network: nn.Module | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check ranges, blocks and tower."""
        checked_number(self, "window")
        checked_number(self, "softness", above_zero=True)
        if (self.top is None) != (self.bottom is None) or (
            self.top is not None and self.top == self.bottom
        ):
            raise GuideError(
                f"StackMatch needs two different blocks, or neither (those of the "
                f"current stage); got top={self.top} and bottom={self.bottom}."
            )
        check_blocks(self, self.top, self.bottom)
        check_tower(self, self.tower)

    def bind(self, networks: Any) -> StackMatch:
        """Return the guide with the planner's classifier.

        Raises:
            GuideError: The planner has none.
        """
        network = getattr(networks, "classifier", None)
        if network is None:
            raise GuideError(
                "The guide StackMatch needs a classifier, but this planner has none. "
                "Train one with: diffuser-policy train-classifier PLANNER --labels "
                "kuka-pairs --architecture pairs. The guide 'place' asks for the same "
                "position without one."
            )
        return replace(self, network=network)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the mean log-probabilities at the end.

        Raises:
            GuideError: The guide is not bound to a classifier, or the classifier has
                other labels.
        """
        if self.network is None:
            raise GuideError(
                "The guide StackMatch has no classifier yet. Pass it to "
                "policy.with_guide(…), or call its bind(policy.networks)."
            )
        if self.top is not None and self.bottom is not None:
            pick = fixed_pick(trajectory, self.top, support=self.bottom)
        else:
            pick = current_pick(self, trajectory, self.tower)
        index = self._labels(count_blocks(trajectory), pick.block.device)
        tops = pick.block.clamp(min=0)
        _, settled = settling_steps(trajectory, tops, self.window)
        logits = self._logits(trajectory, pick.block, _spread(settled))
        pair = index[tops, pick.support.clamp(min=0)]
        on_it = F.logsigmoid(_picked(logits, pair[:, None]))
        others = (
            tops[:, None] + torch.arange(1, len(index), device=tops.device)
        ) % len(index)
        on_none = F.logsigmoid(-_picked(logits, index[tops[:, None], others]))
        wanted = torch.where(
            (pick.support >= 0)[:, None], on_it.sum(dim=2), on_none.sum(dim=2)
        )
        return self.softness**2 * pick.some * wanted.mean(dim=1)

    def _logits(self, trajectory: Trajectory, block: Tensor, judged: Tensor) -> Tensor:
        """Return the logits `[batch, judged, labels]` of some planning steps."""
        network: Any = self.network
        every = trajectory.normalized
        rows = torch.arange(len(every), device=every.device)[:, None]
        states = every[rows, judged]
        if trajectory.denoising_step == CLEAN:
            own = _columns_free(trajectory)[block.clamp(min=0)][:, None]
            states = torch.where(own, states, every[:, :1])
        step = max(trajectory.denoising_step, 0)
        steps = torch.full((len(states),), step, device=states.device)
        logits: Tensor = network(states, steps)
        return logits

    def _labels(self, count: int, device: torch.device) -> Tensor:
        """Return the number of the logit of each pair, `[top, bottom]`.

        Raises:
            GuideError: The classifier has other labels.
        """
        names: dict[str, int] = {
            name: k for k, name in enumerate(getattr(self.network, "labels", ()))
        }
        index = torch.zeros(count, count, dtype=torch.long, device=device)
        for top, bottom in ordered_pairs(count):
            name = f"on_{top}_{bottom}"
            if name not in names:
                raise GuideError(
                    f"StackMatch needs a classifier with the label {name!r}, but this "
                    f"planner's has {', '.join(names) or 'none'}. Train one "
                    f"with: diffuser-policy train-classifier PLANNER --labels "
                    f"kuka-pairs --architecture pairs"
                )
            index[top, bottom] = names[name]
        return index


def _spread(settled: Tensor) -> Tensor:
    """Return some true steps `[batch, JUDGED]` of a mask `[batch, steps]`.

    The mask is true from some step on. The result holds the first true step, the last,
    and evenly spaced ones between.
    """
    last = settled.shape[1] - 1
    first = settled.to(torch.int8).argmax(dim=1)
    shares = torch.linspace(0.0, 1.0, JUDGED, device=settled.device)
    return (first[:, None] + (last - first)[:, None] * shares).round().long()


def _columns_free(trajectory: Trajectory) -> Tensor:
    """Return the columns `[blocks, transition]` that belong to no other block, bool."""
    layout, count = trajectory.layout, checked_count(trajectory)
    free = torch.ones(count, layout.transition_dim, dtype=torch.bool)
    for block in range(count):
        for name in ("block", "quaternion", "flag"):
            if f"{name}_{block}" in layout.aliases:
                free[:, list(layout.columns(f"{name}_{block}"))] = False
                free[block, list(layout.columns(f"{name}_{block}"))] = True
    return free.to(trajectory.normalized.device)


def _picked(logits: Tensor, labels: Tensor) -> Tensor:
    """Return some logits of each trajectory, `[batch, steps, picked]`.

    Args:
        logits: `[batch, steps, labels]`.
        labels: `[batch, picked]`, their numbers.
    """
    index = labels[:, None].expand(-1, logits.shape[1], -1)
    return torch.gather(logits, 2, index)


@dataclass(frozen=True, kw_only=True)
class StackTask(Guide):
    """The weighted sum of Place, StackMatch, Contact, AvoidBlocks and Rest for a task.

    A weight of 0 leaves a part out. In an environment without a goal the sum is 0, so
    that one policy serves the Unconditional task as well.

        make_guide("stack-task", match=1.0, place=0.0)

    Attributes:
        match: Weight of `StackMatch`, which needs the planner's classifier.
        place: Weight of `Place`.
        contact: Weight of `Contact`.
        avoid: Weight of `AvoidBlocks`.
        rest: Weight of `Rest`.
        tower: Blocks from the bottom to the top, instead of the environment's goal.
    """

    match: float = 0.0
    place: float = 1.0
    contact: float = 1.0
    avoid: float = 0.0
    rest: float = 1.0
    tower: Tower = None

    def __post_init__(self) -> None:
        """Check the weights and the tower.

        Raises:
            GuideError: A weight that is no finite number, or an impossible tower.
        """
        for name in ("match", "place", "contact", "avoid", "rest"):
            weight = getattr(self, name)
            try:
                object.__setattr__(self, name, converted(weight, float))
            except MisfitError:
                raise GuideError(
                    f"{self.name}.{name} must be a finite number, got {weight!r}."
                ) from None
        check_tower(self, self.tower)

    def _terms(self) -> list[tuple[float, Guide]]:
        """Return the guides that are added."""
        every: list[tuple[float, Guide]] = [
            (self.match, StackMatch(tower=self.tower)),
            (self.place, Place(tower=self.tower)),
            (self.contact, Contact(tower=self.tower)),
            (self.avoid, AvoidBlocks()),
            (self.rest, Rest(tower=self.tower)),
        ]
        return [(weight, guide) for weight, guide in every if weight != 0.0]

    def bind(self, networks: Any) -> Guide:
        """Return the sum of the bound guides."""
        bound = tuple((weight, part.bind(networks)) for weight, part in self._terms())
        return _TaskSum(bound, goal_needed=self.tower is None)

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values; zero if the sum asks for nothing."""
        terms = tuple(self._terms())
        return _TaskSum(terms, goal_needed=self.tower is None)(trajectory)


@dataclass(frozen=True)
class _TaskSum(WeightedSum):
    """A sum that is zero if its parts need a goal and the environment has none."""

    goal_needed: bool = True

    def __call__(self, trajectory: Trajectory) -> Tensor:
        """Return the weighted sum of the values, or zeros."""
        goalless = self.goal_needed and trajectory.desired_goal is None
        if goalless or not self.terms:
            return 0.0 * trajectory.normalized.sum(dim=(1, 2))
        return super().__call__(trajectory)
