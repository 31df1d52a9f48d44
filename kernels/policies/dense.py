"""Every key the model allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.policy_type import Memory, Policy
from sparselens.kernels.selection import Everything, Selection


@dataclass(frozen=True)
class Dense(Policy):
    """Keeps everything: the base that sparse runs are compared with."""

    name: ClassVar[str] = "dense"
    source: ClassVar[str] = "full attention"
    evidence: ClassVar[str] = "reference"
    card: ClassVar[str] = "Keeps every key the model allows. The base of paired captures."

    @property
    def reads_tensors(self) -> bool:
        """Positions alone decide."""
        return False

    def select(self, call: AttentionCall, memory: Memory) -> Selection:
        """Return `Everything`."""
        del call, memory
        return Everything()


POLICY = Dense
