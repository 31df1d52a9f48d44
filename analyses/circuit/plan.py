"""What `analyse circuit` runs: its parameters."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sparselens.analyses.circuit.task import TASKS, Task, prompt_set
from sparselens.kernels.policy import parse as parse_policy
from sparselens.workbench.encoder import BOS


@dataclass(frozen=True)
class Circuit:
    """A circuit of `task` (a name, or a call such as `copying(words=20)`) under `policy`, and `base`'s beside it.

    `n` prompts of the task, `filler` tokens of prose inside, `references` prompts that ablated values are means over.
    Edges are scored on one half of the clusters in `steps` steps and taken by |score|, `sizes` of them in turn; the
    other half tests. The circuit is the smallest that is `faithful`. On the test half also single heads are ablated
    (the `heads` that write most into the logit difference, and the `heads` of largest |score|), and `knockouts` heads
    taken out of the circuit. The `edges` of largest |score| are stored.
    """

    task: str = "ioi"
    policy: str = "dense"
    base: str = "dense"
    kernel: str = "blocked"
    n: int = 16
    filler: int = 0
    references: int = 3
    steps: int = 5
    sizes: tuple[int, ...] = (100, 500, 1000, 2000, 5000, 10000, 20000)
    faithful: float = 0.8
    heads: int = 8
    knockouts: int = 12
    edges: int = 20000
    bos: str = "default"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", str(prompt_set(self.task)))
        for name in ("policy", "base"):
            object.__setattr__(self, name, str(parse_policy(getattr(self, name))))
        object.__setattr__(self, "sizes", tuple(sorted(set(self.sizes))))
        if self.bos not in BOS:
            raise ValueError(f"bos is one of {', '.join(BOS)}, not {self.bos!r}")
        for name in ("n", "references", "steps", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"circuit: {name} is 1 or more, not {getattr(self, name)}")
        if self.filler < 0 or self.knockouts < 0 or self.sizes[0] < 1:
            raise ValueError("circuit: filler and knockouts are not negative, sizes 1 or more")
        if self.edges < self.sizes[-1]:
            raise ValueError(
                f"circuit: edges, which are stored, are at least the largest of sizes, {self.sizes[-1]}"
            )
        if not 0 < self.faithful <= 1:
            raise ValueError(f"circuit: faithful is above 0 and at most 1, not {self.faithful}")

    @property
    def about(self) -> Task:
        """What the task measures."""
        return TASKS[self.task.partition("(")[0]]

    @property
    def prompts(self) -> str:
        """The task's prompts as a call of their set."""
        given = {"n": self.n, "filler": self.filler, "references": self.references, "seed": self.seed}
        return str(prompt_set(self.task, **given))

    @property
    def sparse(self) -> bool:
        """Whether there are two policies to compare."""
        return self.policy != self.base

    def of_base(self) -> Circuit:
        """Return the same question of the base alone."""
        return replace(self, policy=self.base)

    def circuit(self, model: Mapping[str, Any]) -> str:
        """Return how rows name the circuit that is found under `policy`; `model` has weights, tokenizer and dtype."""
        about = {name: value for name, value in asdict(self).items() if name != "base"}
        about["policy_source"] = parse_policy(self.policy).hash  # a file may change under the same call
        about |= {name: model[name] for name in ("weight_hash", "tokenizer_hash", "dtype")}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
