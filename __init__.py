"""SparseLens: what is preserved and what is dropped when attention is made sparse.

The public surface, loaded lazily so that `import sparselens` and `sparselens --help` do not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparselens.analyses.answer import analyse
    from sparselens.analyses.compare import compare
    from sparselens.analyses.diff import diff
    from sparselens.analyses.runs import open_run
    from sparselens.dashboards.notebook import pair_grid, run_heads, show_head
    from sparselens.kernels.policy import parse as parse_policy
    from sparselens.kernels.policy import policies, policy
    from sparselens.storage.reader import connect
    from sparselens.workbench.models import load, wrap
    from sparselens.workbench.session import under

__version__ = "0.1.0"

_HOME = {
    "analyse": "sparselens.analyses.answer:analyse",
    "compare": "sparselens.analyses.compare:compare",
    "connect": "sparselens.storage.reader:connect",
    "diff": "sparselens.analyses.diff:diff",
    "load": "sparselens.workbench.models:load",
    "open_run": "sparselens.analyses.runs:open_run",
    "pair_grid": "sparselens.dashboards.notebook:pair_grid",
    "parse_policy": "sparselens.kernels.policy:parse",
    "policies": "sparselens.kernels.policy:policies",
    "policy": "sparselens.kernels.policy:policy",
    "run_heads": "sparselens.dashboards.notebook:run_heads",
    "show_head": "sparselens.dashboards.notebook:show_head",
    "under": "sparselens.workbench.session:under",
    "wrap": "sparselens.workbench.models:wrap",
}

__all__ = [
    "__version__",
    "analyse",
    "compare",
    "connect",
    "diff",
    "load",
    "open_run",
    "pair_grid",
    "parse_policy",
    "policies",
    "policy",
    "run_heads",
    "show_head",
    "under",
    "wrap",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use; an unknown name lists what there is."""
    if name not in _HOME:
        raise AttributeError(f"sparselens has no {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOME[name].split(":")
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return list(__all__)
