"""What a policy leaves between the layers and steps of one forward pass or generation, and what left its cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Removal(NamedTuple):
    """Keys that left the cache of one key-value head: `positions` int64, ascending, after step `step`.

    Step 0 is the prefill, step n the n-th decoded token. What has left is read by no later query.
    """

    layer: int
    kv_head: int
    step: int
    positions: Tensor


class Walk(NamedTuple):
    """Where one pass that decodes many tokens stands: `layer`, `step`, and whether steps are kept for later layers."""

    layer: int
    step: int
    keeps_steps: bool


@dataclass(eq=False)
class Memory:
    """What a policy leaves between the layers and steps of one forward pass or generation.

    `calls` and `dense_calls` count the selections asked for and those that kept everything. `removals` is the log of
    a policy that evicts: what left the cache, and when. `walk` says which layer and step is asked for while many
    tokens are decoded in one pass (`kernels/walk.py`): there a layer goes through all steps before the next layer
    begins, so what another layer left is looked up by step, if the policy says that it `reads_layers`.
    """

    calls: int = 0
    dense_calls: int = 0
    removals: list[Removal] = field(default_factory=list)
    walk: Walk | None = None
    _layers: dict[tuple[int, str], Any] = field(default_factory=dict)
    _steps: dict[tuple[int, str], list[tuple[int, Any]]] = field(default_factory=dict)

    def get(self, layer: int, key: str, default: Any = None) -> Any:
        """Return what was left under `key` for `layer`, or `default`.

        Raises `RuntimeError` where tokens are decoded in one pass and the value of this step cannot be known.
        """
        if self.walk is None or layer == self.walk.layer:
            return self._layers.get((layer, key), default)
        return self._left_by(layer, key, default, self.walk)

    def remove(self, layer: int, kv_head: int, step: int, positions: Tensor) -> None:
        """Log that the keys at `positions` left the cache of a key-value head after `step`."""
        if len(positions):
            self.removals.append(Removal(layer, kv_head, step, positions))

    def set(self, layer: int, key: str, value: Any) -> None:
        """Leave `value` under `key` for `layer`; leave a new value rather than change one in place.

        Raises `RuntimeError` where tokens are decoded in one pass and `layer` is not the one being asked.
        """
        if self.walk is not None:
            if layer != self.walk.layer:
                raise RuntimeError(
                    f"the policy leaves {key!r} for layer {layer} from layer {self.walk.layer}: where tokens are"
                    " decoded in one pass a layer leaves things under its own number"
                )
            if self.walk.keeps_steps:
                self._steps.setdefault((layer, key), []).append((self.walk.step, value))
        self._layers[layer, key] = value

    def _left_by(self, layer: int, key: str, default: Any, walk: Walk) -> Any:
        """Return what an earlier layer had left at the step of the walk."""
        if not walk.keeps_steps:
            raise RuntimeError(
                f"layer {walk.layer} reads what layer {layer} left ({key!r}) while tokens are decoded in one pass:"
                " the policy must say so (`reads_layers`), so that steps are kept"
            )
        if layer > walk.layer:
            raise RuntimeError(
                f"layer {walk.layer} reads what layer {layer} left ({key!r}) one token ago: where tokens are decoded"
                " in one pass, later layers have not run yet; generate token by token instead"
            )
        past = [value for step, value in self._steps.get((layer, key), ()) if step <= walk.step]
        return past[-1] if past else default

    def __bool__(self) -> bool:
        """Tell whether a policy has left something here."""
        return bool(self._layers)

    def reset(self) -> None:
        """Forget everything, counts included."""
        self.calls = self.dense_calls = 0
        self.removals.clear()
        self._layers.clear()
        self._steps.clear()
