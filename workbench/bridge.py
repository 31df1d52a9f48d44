"""TransformerLens' bridge under a policy: its hooks keep firing, the policy's kernel is what computes.

A `TransformerBridge` re-implements attention in Python, so an attention function registered with transformers is
ignored without a warning. While a policy is active, `steered` puts that right for two kinds of layer:

- separate q, k, v projections (Llama, Gemma, Qwen …): the bridge's layer delegates to the HF module, whose projections
  are the bridge's own components, so `hook_q`, `hook_k`, `hook_v`, `hook_z` still fire;
- joint projections (GPT-2): the bridge keeps its split and calls our attention where it would reconstruct its own.

`hook_rot_q`, `hook_rot_k`, `hook_attn_scores` and `hook_pattern` are fired by the execution.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.attention import AttentionBridge
from transformer_lens.model_bridge.generalized_components.joint_qkv_attention import JointQKVAttentionBridge
from transformer_lens.model_bridge.generalized_components.position_embeddings_attention import (
    PositionEmbeddingsAttentionBridge,
)
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

from sparselens.workbench.attention import sparselens_attention

_DELEGATING = (PositionEmbeddingsAttentionBridge,)
_JOINT = (JointQKVAttentionBridge,)
_FORKS = ("use_split_qkv_input", "use_attn_in", "use_attn_result")


def bridge_of(model: Any, tokenizer: Any) -> TransformerBridge:
    """Return a `TransformerBridge` around an HF model that is already loaded, leaving the model's own settings alone.

    Building the bridge puts its components inside `model`; the attention implementation that the model had is kept.
    """
    implementation = model.config._attn_implementation_internal
    bridge = build_bridge_from_module(
        model,
        type(model).__name__,
        hf_config=model.config,
        model_name=getattr(model.config, "_name_or_path", "") or type(model).__name__,
    )
    model.config._attn_implementation_internal = implementation
    if tokenizer is not None:
        # Given to the builder, the tokenizer would be loaded again by name with an automatic BOS.
        bridge.tokenizer = copy.deepcopy(tokenizer)
        bridge.cfg.default_prepend_bos = bridge.cfg.tokenizer_prepends_bos = False
    return bridge


def attention_bridges(model: torch.nn.Module) -> list[AttentionBridge]:
    """Return the bridge's attention layers inside `model`, in layer order; empty where there is no bridge."""
    found = [module for module in model.modules() if isinstance(module, AttentionBridge)]
    return sorted(found, key=lambda layer: int(layer._layer_idx or 0))


def joint(model: torch.nn.Module) -> bool:
    """Tell whether a bridge inside `model` splits joint projections and computes attention itself (GPT-2)."""
    return any(isinstance(layer, _JOINT) for layer in attention_bridges(model))


@dataclass(frozen=True, eq=False)
class BridgeHooks:
    """The hook points of one bridged layer that fire inside attention."""

    attention: AttentionBridge

    def rotate(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Fire `hook_rot_q` on the queries and `hook_rot_k` on the newest `q_len` keys `[batch, heads, pos, head_dim]`.

        Keys that came from the cache were hooked at their own step. Without gradients an edit is written into the
        tensor that the cache holds, so that later steps see it too.
        """
        if hasattr(self.attention, "hook_rot_q"):
            query = self.attention.hook_rot_q(query)
        hook_rot_k: HookPoint | None = getattr(self.attention, "hook_rot_k", None)
        if hook_rot_k is None:
            return query, key
        start = key.shape[2] - query.shape[2]
        fresh = key[:, :, start:]
        edited = hook_rot_k(fresh)
        if edited is fresh:
            return query, key
        if torch.is_grad_enabled():
            return query, torch.cat([key[:, :, :start], edited], dim=2)
        key[:, :, start:] = edited  # the cache holds this tensor: later steps see the edit
        return query, key

    @property
    def wants_pattern(self) -> bool:
        """Say whether somebody listens to `hook_attn_scores` or `hook_pattern`."""
        return _listened(self.attention.hook_attn_scores) or _listened(self.attention.hook_pattern)

    def scores(self, scores: Tensor) -> Tensor:
        """Fire `hook_attn_scores`."""
        hooked: Tensor = self.attention.hook_attn_scores(scores)
        return hooked

    def pattern(self, pattern: Tensor) -> Tensor:
        """Fire `hook_pattern`."""
        hooked: Tensor = self.attention.hook_pattern(pattern)
        return hooked


def _listened(point: HookPoint) -> bool:
    return bool(point._forward_hooks) or bool(point._backward_hooks)


@contextmanager
def steered(model: torch.nn.Module) -> Iterator[dict[int, BridgeHooks]]:
    """Make the bridged attention layers of `model` run ours while the block lasts; yields their hooks by layer.

    Raises `NotImplementedError` for a bridge component whose attention we do not know how to replace, and for the
    forks (`use_split_qkv_input`, `use_attn_in`, `use_attn_result`) that only the bridge's own attention serves.
    """
    layers = attention_bridges(model)
    hooks: dict[int, BridgeHooks] = {}
    try:
        for attention in layers:
            _steer(attention)
            hooks[int(attention._layer_idx or 0)] = BridgeHooks(attention)
        yield hooks
    finally:
        for attention in layers:
            attention.__dict__.pop("forward", None)
            attention.__dict__.pop("_reconstruct_attention", None)


def _steer(attention: AttentionBridge) -> None:
    for fork in _FORKS:
        if getattr(attention.config, fork, False):
            raise NotImplementedError(f"{fork} is not supported under a policy: switch it off first")
    if isinstance(attention, _DELEGATING):
        attention.__dict__["forward"] = MethodType(AttentionBridge.forward, attention)
    elif isinstance(attention, _JOINT):
        attention.__dict__["_reconstruct_attention"] = MethodType(_joint_attention, attention)
    elif type(attention).forward is not AttentionBridge.forward:
        raise NotImplementedError(
            f"{type(attention).__name__} computes attention in a way that a policy cannot replace;"
            " run the plain HF model under the policy instead"
        )


def _joint_attention(
    attention: JointQKVAttentionBridge, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Take the place of `JointQKVAttentionBridge._reconstruct_attention` (same arguments) with our attention."""
    config: Any = attention.config
    module: Any = attention.original_component
    heads = config.n_heads
    kv_heads = getattr(config, "n_key_value_heads", None) or heads
    query, key, value, batch, q_len, head_dim = attention._reshape_qkv_to_heads(
        query, key, value, heads, kv_heads
    )
    key, value = attention._update_kv_cache(key, value, **kwargs)
    output, _ = sparselens_attention(
        module,
        query,
        key,
        value,
        kwargs.get("attention_mask"),
        scaling=module.scaling,
    )
    flat = output.reshape(batch, q_len, heads * head_dim)
    return attention._apply_output_projection(flat), None
