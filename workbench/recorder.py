"""Watches one forward pass and turns every layer into rows, while its tensors are in memory and only then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparselens.kernels.call import AttentionCall
from sparselens.kernels.kernel import Attended, Kernel
from sparselens.kernels.policy import Memory, Policy
from sparselens.kernels.selection import Everything, Selection
from sparselens.kernels.statistics import NOTHING, Want
from sparselens.kernels.walk import chosen
from sparselens.workbench.heap import give_back
from sparselens.workbench.probe import LayerRecord, Probe, Write
from sparselens.workbench.probes.edges import TOP
from sparselens.workbench.probes.pooled_maps import CELLS
from sparselens.workbench.projection import OutputProjection, output_linear, residual_norm
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.spool import BaseLayer, Spool

_COUNTERFACTUAL = frozenset({"entropy", "sink_mass", "previous_mass", "local_mass", "distance"})
TIDY_ROWS = 4096


@dataclass(eq=False)
class Recorder:
    """Records the prefill of one prompt under one policy, as an `Observer` of the execution.

    `spool` receives the base's layers while `is_base`, and gives them to a policy's run afterwards. `write` takes the
    column blocks of every layer as they are made, so that no layer's rows wait for the others; None where nothing is
    to be recorded (a base that is in the trace already). The last `decoded` tokens came one at a time; generated
    tokens (decode calls) are not recorded.
    """

    reads_bias: ClassVar[bool] = True

    prompt: Prompt
    policy: Policy
    kernel: Kernel
    probes: Sequence[Probe]
    projections: dict[int, OutputProjection]
    spool: Spool | None
    write: Write | None
    is_base: bool
    run_name: str
    base_name: str
    heads: dict[int, tuple[int, ...]] | None = None
    decoded: int = 0
    reuse: dict[str, Any] = field(default_factory=dict)
    resid_norms: dict[int, Tensor] = field(default_factory=dict)
    affected: Tensor | None = None
    _base: BaseLayer | None = None
    _pending: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    _rows: int = 0
    _local_memory: Memory = field(default_factory=Memory)

    def want(self, call: AttentionCall) -> Want:
        """Return the statistics that the probes need of this call."""
        if call.phase == "decode":
            return NOTHING
        names: frozenset[str] = frozenset()
        if self.write is not None:
            names = names.union(*(probe.statistics for probe in self.probes))
        self._base = None
        if self.spool is not None and not self.is_base:
            self._base = self.spool.get(call.layer)
            return Want(names | {"gathered"}, top=TOP, cells=CELLS, gather=self._base.top_index[None])
        if self.spool is not None:
            names |= {"entropy", "sink_mass", "top"}
        return Want(names, top=TOP, cells=CELLS)

    def saw(self, call: AttentionCall, selection: Selection, attended: Attended) -> None:
        """Turn one layer into rows."""
        if call.phase == "decode":
            return
        if self.spool is not None and self.is_base:
            if selection.biased:
                raise ValueError(
                    f"{self.policy.name} changes scores: it cannot be a base; compare it with another"
                )
            self._pending[call.layer] = _left_behind(call, attended)
        if self.write is None:
            return
        heads = None if self.heads is None else self.heads.get(call.layer, ())
        if heads == ():
            self._ask_locally(call)
            return
        record = LayerRecord(
            call=call,
            selection=selection,
            executed=attended,
            dense=self._counterfactual(call, selection, attended),
            projection=self.projections[call.layer],
            prompt=self.prompt,
            kernel=self.kernel,
            base=self._base,
            run_name=self.run_name,
            base_name=self.base_name,
            heads=heads,
            decoded=self.decoded,
            reuse={"policy": self.policy, "local_memory": self._local_memory, **self.reuse},
        )
        if call.layer in self.resid_norms:
            record.reuse["resid_norm"] = self.resid_norms.pop(call.layer).numpy()
        if record.sparse:
            dropped = record.affected.any(0)
            self.affected = dropped if self.affected is None else self.affected | dropped
        else:
            self._ask_locally(call)
        for probe in self.probes:
            columns = probe.rows(record)
            if columns is not None:
                self.write(probe.table, columns)

    def _ask_locally(self, call: AttentionCall) -> None:
        """Ask a policy whose layers read each other about the base's tensors of a layer where no probe asks it."""
        if self._base is None or not self.policy.reads_layers:
            return
        tensors = (self._base.query, self._base.key, self._base.value)
        base_call = call.with_tensors(*(tensor[None] for tensor in tensors))
        chosen(self.policy, base_call, self._local_memory, self.decoded or None)

    def affected_rows(self) -> Any:
        """Return for each row whether some recorded head dropped a key there: numpy bool `[tokens]`."""
        tokens = len(self.prompt.token_ids)
        return (torch.zeros(tokens, dtype=torch.bool) if self.affected is None else self.affected).numpy()

    def _counterfactual(self, call: AttentionCall, selection: Selection, attended: Attended) -> Attended:
        """Return the dense attention on the same queries and keys; the executed one where that was dense."""
        if isinstance(selection, Everything):
            return attended
        dense = self.kernel.attend(call, Everything(), Want(_COUNTERFACTUAL))
        dense.output = dense.output[:, :, :0].clone()  # nobody asks what it would have written
        self._tidy()
        return dense

    def attention_written(self, layer: int, output: Tensor) -> None:
        """Receive the attention output `[1, tokens, d_model]` of a layer: ends the layer.

        Completes what the base leaves behind, and lets go of everything that belongs to the layer.
        """
        pending = self._pending.pop(layer, None)
        if pending is not None and self.spool is not None:
            self.spool.put(layer, BaseLayer(**pending, output_norm=residual_norm(output).mean()))
        self._base = None
        self._tidy()

    def _tidy(self) -> None:
        """Give unused heap back once for every `TIDY_ROWS` rows attended to: short prompts leave little behind."""
        self._rows += len(self.prompt.token_ids)
        if self._rows >= TIDY_ROWS:
            self._rows = 0
            give_back()


def _left_behind(call: AttentionCall, attended: Attended) -> dict[str, Tensor]:
    statistics = attended.statistics
    return {
        "query": call.query[0],
        "key": call.key[0],
        "value": call.value[0],
        "z": attended.output[0],
        "lse": attended.lse[0],
        "entropy": statistics["entropy"][0],
        "sink_mass": statistics["sink_mass"][0],
        "top_index": statistics["top_index"][0],
        "top_weight": statistics["top_weight"][0],
    }


@contextmanager
def watched(recorder: Recorder, layers: Sequence[Any], attentions: Sequence[Any]) -> Iterator[None]:
    """Feed `recorder` the residual norm before each layer and the attention output after each projection.

    `layers` are the decoder layers, `attentions` their HF attention modules, in order. Hooks are gone on leaving.
    """
    handles = []
    try:
        for index, (layer, attention) in enumerate(zip(layers, attentions, strict=True)):
            handles.append(layer.register_forward_pre_hook(_residual(recorder, index), with_kwargs=True))
            handles.append(output_linear(attention).register_forward_hook(_written(recorder, index)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _residual(recorder: Recorder, layer: int) -> Any:
    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] == len(recorder.prompt.token_ids):
            recorder.resid_norms[layer] = residual_norm(hidden[0])

    return look


def _written(recorder: Recorder, layer: int) -> Any:
    def look(_: Any, __: Any, output: Tensor) -> None:
        recorder.attention_written(layer, output)

    return look


@torch.no_grad()
def projections_of(attentions: Sequence[Any], heads: int) -> dict[int, OutputProjection]:
    """Return the output projection of every layer by index."""
    return {index: OutputProjection.of(module, heads) for index, module in enumerate(attentions)}
