"""Patched passes the slow way: every receiver adds up its own stream, sender by sender, and runs its layer on it.

Small random models of two families in float64, and a walk over their modules that uses nothing of `analyses/circuit`
but the names of nodes.
"""

from __future__ import annotations

from typing import Any

import torch
from small_tokenizer import small_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sparselens.analyses.circuit.graph import Graph
from sparselens.kernels.call import Allowed, AttentionCall
from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import Memory, parse
from sparselens.workbench.models import wrap

MODELS = ("llama", "gpt2")


def circuit_session(family: str, *, double: bool = True, size: float = 0.3) -> Any:
    """A random model of two layers and four heads (two key-value heads in the Llama), with biases where it has them."""
    torch.manual_seed(0)
    if family == "llama":
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=3000, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=256, initializer_range=size, attention_bias=True,
            )
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=3000, n_embd=32, n_layer=2, n_head=4, n_positions=256, initializer_range=size,
                attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
            )
        )  # fmt: skip
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith("bias"):
                weights.normal_(0, size)
    if double:
        _without_rounding(model.double())
    session = wrap(model.eval(), small_tokenizer())
    if double:
        session.__dict__["readout"] = _Readout(model)
    return session


def _without_rounding(model: Any) -> None:
    """Replace the Llama's norms, which round to float32 whatever the model's type, by torch's."""
    for holder in model.modules():
        for name, norm in list(holder.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                exact = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon, dtype=torch.float64)
                exact.weight = norm.weight
                setattr(holder, name, exact)


class _Readout:
    """The output head without rounding to float32, so that small effects can be compared."""

    def __init__(self, model: Any) -> None:
        self.head = model.get_output_embeddings()

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[rows, vocabulary]`."""
        found: Tensor = self.head(hidden)
        return found


class SlowCircuit:
    """Walks a session's model under a policy, receiver by receiver."""

    def __init__(self, session: Any, policy: str) -> None:
        self.model, self.policy, self.graph = session.model, parse(policy), Graph.of(session)
        self.llama = hasattr(self.model, "lm_head") and hasattr(self.model.get_decoder(), "layers")
        self.head_dim = session.head_dim
        decoder = self.model.get_decoder()
        self.layers = list(decoder.layers if self.llama else decoder.h)
        self.last = decoder.norm if self.llama else decoder.ln_f

    @torch.no_grad()
    def ablated(self, references: list[list[int]]) -> list[Tensor]:
        """The mean writes of every sender over texts."""
        runs = [self.walk(ids, None, None)[0] for ids in references]
        return [torch.stack(each).mean(0) for each in zip(*runs, strict=True)]

    @torch.no_grad()
    def walk(
        self, ids: list[int], edges: Tensor | None, ablated: list[Tensor] | None
    ) -> tuple[list[Tensor], Tensor]:
        """What every sender writes `[tokens, d_model]`, and the logits `[tokens, vocabulary]`."""
        writes = [self._embedded(ids)]
        added: list[Tensor] = []

        def stream(receiver: int) -> Tensor:
            total = sum(added, torch.zeros_like(writes[0]))
            for sender, current in enumerate(writes):
                kept = edges is None or bool(edges[sender, receiver])
                total = total + (current if kept or ablated is None else ablated[sender])
            return total

        graph = self.graph
        for number, layer in enumerate(self.layers):
            norm, mlp_norm = (
                (layer.input_layernorm, layer.post_attention_layernorm)
                if self.llama
                else (layer.ln_1, layer.ln_2)
            )
            at = graph.receivers.index(f"L{number}H0.q")
            slots = [
                self._projected(layer, norm(stream(at + slot)))[slot]
                for slot in range(graph.heads + 2 * graph.kv_heads)
            ]
            z = self._attended(number, slots)
            projection = layer.self_attn.o_proj if self.llama else layer.attn.c_proj
            matrix = projection.weight.T if self.llama else projection.weight
            writes += [
                z[head] @ matrix[head * self.head_dim : (head + 1) * self.head_dim]
                for head in range(graph.heads)
            ]
            added.append(projection.bias)
            writes.append(layer.mlp(mlp_norm(stream(graph.receivers.index(f"M{number}.in")))[None])[0])
        final = self.last(stream(len(graph.receivers) - 1))
        return writes, self.model.get_output_embeddings()(final)

    def _embedded(self, ids: list[int]) -> Tensor:
        tokens = self.model.get_input_embeddings()(torch.tensor(ids))
        return tokens if self.llama else tokens + self.model.get_decoder().wpe.weight[: len(ids)]

    def _projected(self, layer: Any, normed: Tensor) -> list[Tensor]:
        """Queries of every head, then keys and values of every key-value head: `[tokens, head_dim]` each."""
        if self.llama:
            parts = [getattr(layer.self_attn, f"{kind}_proj")(normed) for kind in "qkv"]
        else:
            parts = list(layer.attn.c_attn(normed[None])[0].split(normed.shape[-1], dim=-1))
        return [slot for part in parts for slot in part.split(self.head_dim, dim=-1)]

    def _attended(self, layer: int, slots: list[Tensor]) -> Tensor:
        """The heads' outputs `[heads, tokens, head_dim]` under the policy, which selects on these very tensors."""
        graph = self.graph
        query, key, value = (
            torch.stack(part)[None]
            for part in (
                slots[: graph.heads],
                slots[graph.heads : graph.heads + graph.kv_heads],
                slots[graph.heads + graph.kv_heads :],
            )
        )
        index = torch.arange(query.shape[2])
        if self.llama:
            cos, sin = self.model.get_decoder().rotary_emb(query, index[None])
            query, key = apply_rotary_pos_emb(query, key, cos, sin)
        call = AttentionCall(
            query,
            key,
            value,
            index[None],
            index[None],
            Allowed(index, index),
            self.head_dim**-0.5,
            layer=layer,
        )
        selection = self.policy.selection_for(call, Memory())
        return kernel("reference").attend(call, selection).output[0]
