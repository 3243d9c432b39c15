"""The pair classifier: one law for all pairs, and gradients that lead somewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffuser_policy.errors import ConfigError
from diffuser_policy.networks.classifiers import PairClassifier

OBJECTS = [(3, 4, 5, 6), (7, 8, 9, 10), (11, 12, 13, 14)]
LABELS = [f"on_{a}_{b}" for a in range(3) for b in range(3) if a != b]
ON = torch.tensor([0.0, 0.0, 0.5])


def classifier() -> PairClassifier:
    torch.manual_seed(0)
    return PairClassifier(15, LABELS, objects=OBJECTS, place=3)


def scenes(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return states `[batch, 1, 15]`, half of them with one object on another."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.rand(batch, 1, 15, generator=generator) * 2 - 1
    targets = torch.zeros(batch, 1, 6)
    for row in range(0, batch, 2):
        label = int(torch.randint(6, (1,), generator=generator))
        a, b = (int(k) for k in LABELS[label].split("_")[1:])
        noise = 0.02 * torch.randn(3, generator=generator)
        states[row, 0, list(OBJECTS[a][:3])] = (
            states[row, 0, list(OBJECTS[b][:3])] + ON + noise
        )
        targets[row, 0, label] = 1.0
    return states, targets


@pytest.fixture(scope="module")
def taught() -> PairClassifier:
    made = classifier()
    made.set_balance(torch.full((6,), 1 / 12))
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 300)  # settles
        states, targets = scenes(128, step)
        optimizer.zero_grad()
        loss = made.loss(states, torch.zeros(128, dtype=torch.long), targets)
        torch.autograd.backward(loss)
        optimizer.step()
    return made


def test_it_learns_the_relation(taught: PairClassifier) -> None:
    states, targets = scenes(512, 10_000)
    logits = taught(states, torch.zeros(512, dtype=torch.long))
    right = (logits > 0) == (targets > 0.5)
    assert right[targets > 0.5].float().mean() > 0.95
    assert right.float().mean() > 0.95


def test_its_gradient_leads_to_the_relation_from_anywhere(
    taught: PairClassifier,
) -> None:
    """The gradient of log p(0 on 1) by object 0 points to where it would be on 1."""
    states, _ = scenes(256, 20_000)
    states.requires_grad_(True)
    logits = taught(states, torch.zeros(256, dtype=torch.long))[..., 0]
    log_p = torch.nn.functional.logsigmoid(logits).sum()
    (gradient,) = torch.autograd.grad(log_p, states)
    place, other = list(OBJECTS[0][:3]), list(OBJECTS[1][:3])
    way = states[..., other] + ON - states[..., place]
    far = way.norm(dim=-1) > 0.2
    assert ((gradient[..., place] * way).sum(dim=-1)[far] > 0).all()


def test_pairs_share_their_weights() -> None:
    """Exchanging two objects exchanges the logits of their pairs."""
    made = classifier()
    states = torch.randn(5, 2, 15)
    columns = [0, 1, 2, *OBJECTS[1], *OBJECTS[0], *OBJECTS[2]]
    i = torch.arange(5)
    order = [
        LABELS.index(name)
        for name in ("on_1_0", "on_1_2", "on_0_1", "on_0_2", "on_2_1", "on_2_0")
    ]
    torch.testing.assert_close(
        made(states[..., columns], i), made(states, i)[..., order]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": LABELS[:5]},
        {"objects": OBJECTS[:1]},
        {"place": 0},
        {"place": 5},  # a position of more columns than an object has
    ],
)
def test_what_has_no_pairs_is_refused(changes: dict[str, object]) -> None:
    settings = {"labels": LABELS, "objects": OBJECTS, "place": 3, **changes}
    labels = settings.pop("labels")
    with pytest.raises(ConfigError, match="classifier of pairs"):
        PairClassifier(15, labels, **settings)  # type: ignore[arg-type]
