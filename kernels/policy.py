"""Which keys: the public face of policies. The type, the registry, call strings, and the user's functions.

A policy is a frozen dataclass in a file of `kernels/policies/` whose constant `POLICY` names its class;
nothing else
lists it. `str(policy)` is the call that makes it and `parse` reads it back. A user's own policy is any
function under `@policy`, or an object in `path/file.py:NAME`.
"""

from sparselens.kernels.policy_function import policy
from sparselens.kernels.policy_registry import policies
from sparselens.kernels.policy_text import parse
from sparselens.kernels.policy_type import EVIDENCE, PHASES, Memory, Policy, Removal

__all__ = ["EVIDENCE", "PHASES", "Memory", "Policy", "Removal", "parse", "policies", "policy"]
