"""What stands at the sink: massive activations of the residual stream, its peak, and values that write little.

Sun et al. (arXiv 2402.17762) call an activation massive where |x| > 100 and |x| is about 1,000 times the median or
more. Guo et al. (arXiv 2410.13835): sinks, drained values and residual peaks come together.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparselens.analyses.measured import Measured, measured
from sparselens.analyses.roles.ground import Ground
from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended
from sparselens.kernels.selection import Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.workbench.projection import OutputProjection, residual_norm
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import attention_layers, decoder_layers

DEFINITIONS = {
    "massive": "largest |activation| of the residual stream before the layer, over positions and dimensions; mean over "
    "windows",
    "massive_ratio": "that ÷ the median |activation| of the same window and layer",
    "massive_first": "share of windows in which it stands at the first token",
    "massive_dimension": "the dimension in which it stands in most windows",
    "residual_peak": "norm of the residual stream before the layer at the first token ÷ its mean over the others",
    "value_drain": "‖W_O^h v‖ at the first token ÷ its mean over the other tokens",
}
OF_HEADS = ("value_drain",)
"""Those that are of heads; the others are of layers."""


@dataclass(eq=False)
class ValueWatch:
    """An observer that keeps, by layer, how much the first value writes against the others: `[heads]`."""

    projections: dict[int, OutputProjection]
    layers: dict[int, Tensor] = field(default_factory=dict)

    def want(self, call: AttentionCall) -> Want:
        """Ask for no statistics."""
        del call
        return NOTHING

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Compare the first value with the rest."""
        del selection, attended
        written = self.projections[call.layer].norm(call.value[0].repeat_interleave(call.group, dim=0))
        self.layers[call.layer] = (written[:, 0] / written[:, 1:].mean(-1)).cpu()


def on_states(ground: Ground) -> list[Measured]:
    """Return what the windows of prose leave in the residual stream and in the values."""
    material = ground.plan.windows
    ground.bar.says(f"states of {material.call}")
    modules = attention_layers(ground.session.model)
    projections = {at: OutputProjection.of(each, ground.session.n_heads) for at, each in enumerate(modules)}
    numbers = []
    for prompt in material.prompts:
        found = ground.once("states", prompt, lambda prompt=prompt: _states(ground, prompt, projections))  # type: ignore[misc]
        ground.counted(found)
        numbers.append(found)
    made = []
    for metric, definition in DEFINITIONS.items():
        if metric == "massive_dimension":
            continue
        made.append(
            measured(
                metric,
                np.stack([each[metric] for each in numbers]),
                [prompt.id for prompt in material.prompts],
                prompt_set=material.call,
                rows="all",
                definition=definition,
                params=ground.conventions,
                of_layers=metric not in OF_HEADS,
            )
        )
    dimensions = np.stack([each["massive_dimension"] for each in numbers])
    often = np.array([np.bincount(column).argmax() for column in dimensions.T], float)
    unknown = np.full_like(often, np.nan)
    return [
        *made,
        Measured(
            "massive_dimension",
            often,
            unknown,
            unknown,
            len(numbers),
            len(numbers),
            material.call,
            "all",
            DEFINITIONS["massive_dimension"],
            ground.conventions,
            of_layers=True,
        ),
    ]


@torch.no_grad()
def _states(ground: Ground, prompt: Prompt, projections: dict[int, OutputProjection]) -> dict[str, Any]:
    """Return the numbers of one window: of layers `[layers]`, of heads `[layers · heads]`."""
    session = ground.session
    watch = ValueWatch(projections)
    before: list[Tensor] = []

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before.append((args[0] if args else kwargs["hidden_states"])[0].float())

    decoder: Any = session.model.get_decoder()
    with ExitStack() as stack:
        for layer in decoder_layers(session.model):
            stack.callback(layer.register_forward_pre_hook(look, with_kwargs=True).remove)
        execution = stack.enter_context(
            session.under(ground.chosen.policy, kernel=ground.kernel, observers=[watch])
        )
        decoder(input_ids=torch.tensor([prompt.token_ids], device=session.device), use_cache=False)
    sizes = [hidden.abs() for hidden in before]
    largest = [size.max() for size in sizes]
    at = [np.unravel_index(int(size.argmax()), size.shape) for size in sizes]
    norms = [residual_norm(hidden) for hidden in before]
    return {
        "massive": np.array([float(value) for value in largest]),
        "massive_ratio": np.array(
            [float(value / size.median()) for value, size in zip(largest, sizes, strict=True)]
        ),
        "massive_first": np.array([float(position == 0) for position, _ in at]),
        "massive_dimension": np.array([dimension for _, dimension in at]),
        "residual_peak": np.array([float(norm[0] / norm[1:].mean()) for norm in norms]),
        "value_drain": torch.stack([watch.layers[layer] for layer in sorted(watch.layers)]).flatten().numpy(),
        **ground.count(execution),
    }
