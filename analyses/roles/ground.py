"""What the parts of `analyse roles` share: the session, the parameters, the prompts, where numbers are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sparselens.analyses.ledger import Ledger
from sparselens.analyses.roles.plan import Material, Plan, Roles
from sparselens.analyses.roles.watch import Watch, looked
from sparselens.kernels.kernel import Kernel
from sparselens.workbench.encoder import BOS, Encoder
from sparselens.workbench.execution import Execution
from sparselens.workbench.progress import Progress
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session


@dataclass(eq=False)
class Ground:
    """One roles analysis on its way.

    `calls` counts attention calls of the policy's forward passes, `dense_calls` those left dense; `notes` go into the
    run's record.
    """

    session: Session
    chosen: Roles
    plan: Plan
    kernel: Kernel | str
    bar: Progress
    ledger: Ledger = field(default_factory=Ledger)
    dense_calls: int = 0
    calls: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def conventions(self) -> dict[str, Any]:
        """What every score's params say: policy, pattern, how text begins, seed."""
        opening = Encoder(self.session.tokenizer, bos=BOS[self.chosen.bos]).opening()
        return {
            "policy": self.chosen.policy,
            "pattern": "executed",
            "bos": self.chosen.bos,
            "opening": list(opening),
            "seed": self.chosen.seed,
        }

    def once(self, key: str, prompt: Prompt, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the numbers of a prompt, computed or kept from before; counts them as progress."""
        found = self.ledger.once(f"{key} {prompt.id}", compute)
        self.bar.advance(len(prompt))
        self.bar.finished_prompt()
        return found

    def count(self, execution: Execution) -> dict[str, Any]:
        """Return an execution's calls as numbers for the ledger."""
        return {"calls": np.array([execution.dense_calls, execution.calls])}

    def counted(self, numbers: Mapping[str, Any]) -> None:
        """Add the calls behind some numbers."""
        dense, every = numbers["calls"].tolist()
        self.dense_calls += dense
        self.calls += every

    def watched(self, material: Material, watch: Watch, key: str) -> dict[str, Any]:
        """Return each of the watch's names over the prompts of a material: `[prompts, layers · heads]`."""
        self.bar.says(material.call)
        made = []
        for prompt in material.prompts:
            numbers = self.once(key, prompt, lambda prompt=prompt: self._looked(prompt, watch))  # type: ignore[misc]
            self.counted(numbers)
            made.append(numbers["values"])
        return dict(zip(watch.names, np.moveaxis(np.stack(made), -1, 0), strict=True))

    @torch.no_grad()
    def _looked(self, prompt: Prompt, watch: Watch) -> dict[str, Any]:
        values, execution = looked(self.session, self.chosen.policy, self.kernel, prompt, watch)
        return {"values": values.flatten(0, 1).numpy(), **self.count(execution)}


def families(prompts: Sequence[Prompt]) -> list[str]:
    """Return the cluster of each prompt: its group, else itself."""
    return [prompt.group or prompt.id for prompt in prompts]
