"""What the tests of cause run: which prompts, which halves of them rank and are tested, which heads are tried.

Prompts are split by group (needle family) into two halves. The heads that are tried on one half were ranked on the
other, so no family is tested with a ranking that saw it. Heads that are given by name need no ranking: all prompts
are tested with them at once.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sparselens.analyses.cause.ranking import ORDERS
from sparselens.kernels.head import Head, by_layer, head_name, parse_head
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import BOS
from sparselens.workbench.intervention import PHASES
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session

GIVEN = "given"
"""The order of heads that are named rather than ranked."""


@dataclass(frozen=True)
class Cause:
    """Heads ranked by `orders` under `policy` against `base` on `ranked_on`, tried in sets of `counts` on `prompts`.

    `prompts`, `ranked_on`: prompt sets with answers, as calls or files. `draws` random sets match, layer by layer, the
    sets of `random_at` heads of each order in `matched`. `phase`: rows that are intervened on (both, prefill, decode:
    up to and from the answer's first token). `check`: prompts on which the one-pass estimate is compared with exact
    single-head restores (0: not at all). `heads`: names of heads, which the order `given` tries all together. `bos`:
    how raw text begins (default, added, left out).
    """

    policy: str = "a_shape(sink=4,window=64)"
    base: str = "dense"
    kernel: str = "blocked"
    kind: str = ""
    phase: str = "both"
    prompts: str = "needles(length=256,n=48,seed=1)"
    ranked_on: str = "needles(length=256,n=32,seed=2)"
    orders: tuple[str, ...] = ("write_error", "retrieval", "kept_mass")
    counts: tuple[int, ...] = (4, 8, 17)
    draws: int = 20
    random_at: tuple[int, ...] = (17,)
    matched: tuple[str, ...] = ("write_error", "retrieval")
    check: int = 0
    seed: int = 0
    heads: tuple[str, ...] = ()
    bos: str = "default"

    kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name in ("policy", "base"):
            object.__setattr__(self, name, str(parse_policy(getattr(self, name))))
        self._settle_heads()
        for name in ("counts", "random_at"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if self.kind not in self.kinds:
            raise ValueError(f"kind is one of {', '.join(self.kinds)}, not {self.kind!r}")
        if self.bos not in BOS:
            raise ValueError(f"bos is one of {', '.join(BOS)}, not {self.bos!r}")
        if self.phase not in PHASES:
            raise ValueError(f"phase is one of {', '.join(PHASES)}, not {self.phase!r}")
        for order in (*self.orders, *self.matched):
            if order not in (*ORDERS, GIVEN):
                raise ValueError(f"orders are {', '.join((*ORDERS, GIVEN))}, not {order!r}")
        strange = set(self.matched) - set(self.orders)
        if strange or not set(self.random_at) <= set(self.counts):
            raise ValueError(
                "random heads match a set that is tried: matched is among orders, random_at among counts"
            )
        if self.counts[0] < 1 or min(self.draws, self.check) < 0:
            raise ValueError("counts are at least 1, draws and check at least 0")

    def _settle_heads(self) -> None:
        """Check the given heads; where nothing is ranked, their number is the only count."""
        if bool(self.heads) != (GIVEN in self.orders):
            raise ValueError(
                f"heads and the order {GIVEN} go together: heads=[L18H6,L20H1],orders=[{GIVEN}],matched=[{GIVEN}]"
            )
        heads = sorted({parse_head(name) for name in self.heads})
        object.__setattr__(self, "heads", tuple(map(head_name, heads)))
        if heads and not self.ranks:
            object.__setattr__(self, "counts", (len(heads),))
            object.__setattr__(self, "random_at", (len(heads),))

    @property
    def ranks(self) -> tuple[str, ...]:
        """The orders that are measured on ranking prompts."""
        return tuple(order for order in self.orders if order != GIVEN)

    def sizes(self, order: str, *, at_random: bool = False) -> tuple[int, ...]:
        """Return how many heads of an order are tried, or how many random heads match it."""
        return (len(self.heads),) if order == GIVEN else self.random_at if at_random else self.counts


@dataclass(frozen=True)
class Fold:
    """One half of the groups: the prompts that are tested, and those of the other half that rank the heads."""

    number: int
    tested: tuple[Prompt, ...]
    ranking: tuple[Prompt, ...]


def folds(session: Session, chosen: Cause) -> list[Fold]:
    """Return the two folds, or one of all prompts where nothing is ranked.

    Raises `ValueError` where the model lacks a given head, prompts lack an answer or there are fewer than two groups.
    """
    given(session, chosen)
    bos = BOS[chosen.bos]
    tested = session.prompts(chosen.prompts, bos=bos)
    ranking = session.prompts(chosen.ranked_on, bos=bos) if chosen.ranks or chosen.kind == "mean" else []
    for prompt in (*tested, *ranking):
        if not prompt.answer_ids:
            raise ValueError(f"{prompt.name} has no answer: what a head is worth is measured on answers")
        if prompt.group is None and chosen.ranks:
            raise ValueError(
                f"{prompt.name} has no group: groups (families, templates) tell ranking and test apart"
            )
    if not chosen.ranks:
        return [Fold(0, tuple(tested), tuple(ranking))]
    groups = list(dict.fromkeys(str(prompt.group) for prompt in tested))
    if len(groups) < 2:
        raise ValueError(f"all prompts are of the group {groups[0]!r}: give two groups or more")
    made = []
    for number in range(2):
        mine = set(groups[number::2])
        others = tuple(prompt for prompt in ranking if prompt.group not in mine)
        if not others:
            raise ValueError(
                f"no prompt of {chosen.ranked_on} is of another group than {', '.join(sorted(mine))}"
            )
        made.append(Fold(number, tuple(prompt for prompt in tested if prompt.group in mine), others))
    return made


def given(session: Session, chosen: Cause) -> list[Head]:
    """Return the heads that are given by name; `ValueError` on one that the model does not have."""
    heads = [parse_head(name) for name in chosen.heads]
    for layer, head in heads:
        if layer >= session.n_layers or head >= session.n_heads:
            raise ValueError(
                f"{head_name((layer, head))} is no head of {session.provenance.name}: it has {session.n_layers} layers"
                f" of {session.n_heads} heads, counted from 0"
            )
    return heads


def cluster(prompt: Prompt) -> str:
    """Return what is drawn together in intervals: the prompt's group, or the prompt alone where it has none."""
    return prompt.id if prompt.group is None else str(prompt.group)


@dataclass(frozen=True)
class Trial:
    """One thing that is tried, in every fold with that fold's heads."""

    kind: str
    n_heads: int = 0
    order_by: str | None = None
    matched: str | None = None
    draw: int | None = None


def planned(chosen: Cause) -> list[Trial]:
    """Return all trials in order: the run itself, its base, ranked sets, random sets, and wider budgets."""
    made = [Trial("none"), Trial("base")]
    made += [Trial(chosen.kind, count, order) for order in chosen.orders for count in chosen.sizes(order)]
    made += [
        Trial(chosen.kind, count, "random", order, draw)
        for order in chosen.matched
        for count in chosen.sizes(order, at_random=True)
        for draw in range(chosen.draws)
    ]
    return made


def ranked(scores: Mapping[str, Any], heads: int) -> dict[str, list[Head]]:
    """Return all heads by each order's mean scores `[layers · heads]`, best first, ties by layer and head."""
    return {
        order: [divmod(int(at), heads) for at in np.argsort(-values, kind="stable")]
        for order, values in scores.items()
    }


def drawn(chosen: Sequence[Head], outside: Sequence[Head], size: tuple[int, int], seed: str) -> list[Head]:
    """Return random heads, none of `outside`: in every layer as many as `chosen` has. `size`: layers, heads a layer.

    Where a layer has too few others, the missing ones come from the nearest layers that have (`moved` counts them).
    Raises `ValueError` where the model has not enough heads.
    """
    layers, heads = size
    rng, taken = random.Random(seed), set(outside)
    free = {
        layer: [(layer, head) for head in range(heads) if (layer, head) not in taken]
        for layer in range(layers)
    }
    wanted = {layer: len(mine) for layer, mine in by_layer(chosen).items()}
    if sum(wanted.values()) > sum(map(len, free.values())):
        raise ValueError(
            f"{len(chosen)} random heads beside {len(taken)} ranked ones: too many for this model"
        )
    found: list[Head] = []
    for layer, number in wanted.items():
        some = rng.sample(free[layer], min(number, len(free[layer])))
        free[layer] = [head for head in free[layer] if head not in some]
        found += some
    for layer, number in wanted.items():
        for _ in range(number - sum(head[0] == layer for head in found)):
            nearest = min((each for each in free if free[each]), key=lambda each: (abs(each - layer), each))
            some = rng.sample(free[nearest], 1)
            free[nearest] = [head for head in free[nearest] if head not in some]
            found += some
    return found


def moved(chosen: Sequence[Head], random_heads: Sequence[Head]) -> int:
    """Return how many random heads stand in another layer than the ranked heads that they match."""
    mine, theirs = by_layer(chosen), by_layer(random_heads)
    return sum(max(len(theirs.get(layer, ())) - len(mine.get(layer, ())), 0) for layer in theirs)


def sets_of(
    trials: Sequence[Trial], order: Mapping[str, list[Head]], size: tuple[int, int], seed: int, fold: int
) -> dict[Trial, tuple[Head, ...]]:
    """Return the heads of every trial in a fold; drawn ones lie outside the sets of that size of all orders."""
    found: dict[Trial, tuple[Head, ...]] = {}
    for trial in trials:
        if trial.order_by is None:
            found[trial] = ()
        elif trial.order_by != "random":
            found[trial] = tuple(order[trial.order_by][: trial.n_heads])
        else:
            outside = {head for every in order.values() for head in every[: trial.n_heads]}
            mine = order[str(trial.matched)][: trial.n_heads]
            name = f"{seed} {fold} {trial.matched} {trial.n_heads} {trial.draw}"
            found[trial] = tuple(drawn(mine, sorted(outside), size, name))
    return found


def names_of(heads: Sequence[Head]) -> list[str]:
    """Return the heads' names."""
    return [head_name(head) for head in heads]
