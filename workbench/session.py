"""A model ready to run under a policy: `under` for any HF model or bridge, `Session` for a loaded one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.kernels.kernel import Kernel
from sparselens.kernels.kernel import kernel as kernel_named
from sparselens.kernels.policy import Policy, parse
from sparselens.workbench.attention import IMPLEMENTATION
from sparselens.workbench.bridge import attention_bridges, bridge_of, steered
from sparselens.workbench.execution import ACTIVE, Editor, Execution, Observer
from sparselens.workbench.rotation import listening

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.provenance import Provenance
    from sparselens.workbench.readout import Readout
    from sparselens.workbench.run import RunHandle


@contextmanager
def under(
    model: Any,
    policy: Policy | str,
    *,
    kernel: Kernel | str = "blocked",
    observers: Sequence[Observer] = (),
    editors: Sequence[Editor] = (),
    decode: int | None = None,
) -> Iterator[Execution]:
    """Run everything `model` does inside the block under `policy`, computed by `kernel`.

    `model` is an HF causal language model, a `TransformerBridge`, or a `Session`. Yields the `Execution`, which counts
    what ran. `editors` intervene on heads (see `workbench.intervention`). With `decode` the policy is asked as if the
    last so many tokens of a text came one at a time after a prefill of the others; the forward pass stays one. On
    leaving, by success or exception, the model is exactly as before. Blocks nest; the innermost wins.

    Raises `NotImplementedError` where the model's attention cannot be replaced, `ValueError` where the policy's plan
    was made on another model or `decode` is less than 1, and `RuntimeError` on leaving if the model ran but did not
    call the kernel once in every layer: nothing is captured that did not execute.
    """
    if decode is not None and decode < 1:
        raise ValueError(f"decode is how many of the last tokens come one at a time, 1 or more, not {decode}")
    hf_model = _hf_model(model)
    layers = attention_layers(hf_model)
    policy = parse(policy) if isinstance(policy, str) else policy
    _check_plans(policy, model, hf_model, len(layers))
    with ExitStack() as stack:
        hooks = stack.enter_context(steered(hf_model))
        execution = Execution(
            policy=policy,
            kernel=kernel_named(kernel) if isinstance(kernel, str) else kernel,
            modules=frozenset(id(module) for module in layers),
            n_layers=len(layers),
            observers=tuple(observers),
            editors=tuple(editors),
            hooks=dict(hooks),
            decode=decode,
        )
        execution.ropes = stack.enter_context(listening(layers))
        stack.enter_context(implementation(hf_model, IMPLEMENTATION))
        handle = hf_model.get_decoder().register_forward_pre_hook(_counter(execution))
        stack.callback(handle.remove)
        token = ACTIVE.set((*ACTIVE.get(), execution))
        stack.callback(ACTIVE.reset, token)
        yield execution
    expected = execution.forwards * execution.n_layers - execution.skipped
    if execution.calls != expected:
        raise RuntimeError(
            f"{type(hf_model).__name__} made {execution.calls} kernel calls in {execution.forwards} forward passes of"
            f" {execution.n_layers} layers (expected {expected}): its attention does not go through the policy"
        )


def _check_plans(policy: Policy, model: Any, hf_model: Any, n_layers: int) -> None:
    """Raise `ValueError` where the policy holds a plan that was made on another model.

    Weights are compared where a session knows their hash, else the model's sizes alone.
    """
    config = hf_model.config.get_text_config()
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    weights = model.provenance.weight_hash if isinstance(model, Session) else None
    for plan in policy.plans:
        plan.check_model(weights, n_layers, heads, kv_heads)


def _hf_model(model: Any) -> Any:
    """Return the HF model inside a session, a bridge, or itself."""
    if isinstance(model, Session):
        return model.model
    inner = getattr(model, "original_model", None)
    found = inner if isinstance(inner, torch.nn.Module) else model
    if not isinstance(found, torch.nn.Module) or not hasattr(found, "config"):
        raise TypeError(
            f"under() takes an HF model, a TransformerBridge or a Session; got {type(model).__name__}"
        )
    return found


def attention_layers(model: Any) -> list[Any]:
    """Return the HF attention modules: those that know their layer and take part in the attention interface."""
    if not getattr(model, "_supports_attention_backend", False):
        raise NotImplementedError(
            f"{type(model).__name__} does not use transformers' AttentionInterface: its attention cannot be replaced"
        )
    found = [
        module
        for module in model.modules()
        if hasattr(module, "layer_idx")
        and (hasattr(module, "scaling") or hasattr(module, "num_key_value_groups"))
        and not isinstance(module, _bridge_types())
    ]
    layers = {int(module.layer_idx): module for module in found}
    if len(layers) != len(found) or not layers:
        raise NotImplementedError(
            f"{type(model).__name__} has {len(found)} attention modules in {len(layers)} layers; one a layer is taken"
        )
    return [layers[index] for index in sorted(layers)]


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """Return the decoder layers of an HF model, bridged or not, in order."""
    decoder = model.get_decoder()
    for name in ("layers", "h", "blocks"):
        layers = getattr(decoder, name, None)
        if layers is not None:
            return list(layers)
    raise NotImplementedError(f"{type(decoder).__name__} keeps its layers under a name we do not know")


def _bridge_types() -> tuple[type, ...]:
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    return (GeneralizedComponent,)


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """Point every config in `model` at the attention registered as `name` while the block lasts."""
    configs: dict[int, Any] = {
        id(module.config): module.config
        for module in model.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
    }
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    try:
        for config in configs.values():
            config._attn_implementation_internal = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]


def _counter(execution: Execution) -> Any:
    def count(*_: Any) -> None:
        inner = next(active for active in reversed(ACTIVE.get()) if active.modules & execution.modules)
        execution.forwards += inner is execution

    return count


@dataclass(eq=False)
class Session:
    """A model, its tokenizer and where they came from, ready to run under any policy.

    `model` is the HF model, `bridge` TransformerLens' view of the same weights (built on first use, around the same
    modules). Token ids are the truth: `encode` tokenises once, everything else takes ids.
    """

    model: Any
    tokenizer: Any
    provenance: Provenance

    @cached_property
    def bridge(self) -> TransformerBridge:
        """The model as a `TransformerBridge` (automatic BOS is off: SparseLens passes ids).

        Raises `RuntimeError` inside a block of `under`: the layers that it would put into the model would not be
        those that the policy steers.
        """
        self._outside("bridge")
        return bridge_of(self.model, self.tokenizer)

    @cached_property
    def readout(self) -> Readout:
        """The output head, checked once against the model's own logits.

        Raises `RuntimeError` inside a block of `under`: the check would run under the policy and its observers.
        """
        from sparselens.workbench.readout import Readout

        self._outside("readout")
        return Readout(self.model)

    def _outside(self, what: str) -> None:
        """Raise `RuntimeError` inside a block of `under` over this model."""
        if any(
            id(layer) in active.modules for active in ACTIVE.get() for layer in attention_layers(self.model)
        ):
            raise RuntimeError(
                f"build session.{what} before entering `under(...)`: touch it once outside the block"
            )

    @property
    def bridged(self) -> bool:
        """Whether the bridge has been built around the model."""
        return bool(attention_bridges(self.model))

    @property
    def n_layers(self) -> int:
        """Number of attention layers."""
        return int(self.text_config.num_hidden_layers)

    @property
    def n_heads(self) -> int:
        """Number of query heads a layer."""
        return int(self.text_config.num_attention_heads)

    @property
    def head_dim(self) -> int:
        """Width of a query and a key."""
        config = self.text_config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads a layer."""
        return int(getattr(self.text_config, "num_key_value_heads", None) or self.n_heads)

    @property
    def text_config(self) -> Any:
        """The HF config of the text model."""
        return self.model.config.get_text_config()

    @property
    def max_tokens(self) -> int:
        """The longest context that the model was made for."""
        return int(self.text_config.max_position_embeddings)

    @property
    def device(self) -> torch.device:
        """Where the first weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def under(
        self,
        policy: Policy | str,
        *,
        kernel: Kernel | str = "blocked",
        observers: Sequence[Observer] = (),
        editors: Sequence[Editor] = (),
        decode: int | None = None,
    ) -> Any:
        """Run this session's model under a policy while the block lasts (see `under`)."""
        return under(self, policy, kernel=kernel, observers=observers, editors=editors, decode=decode)

    def encode(self, text: str, *, bos: bool | None = None) -> Tensor:
        """Return `[1, tokens]` ids of `text`; `bos` None leaves special tokens to the tokenizer's own default."""
        from sparselens.workbench.encoder import Encoder

        ids, _ = Encoder(self.tokenizer, bos=bos).encode(text)
        return torch.tensor([ids], device=self.device)

    @torch.no_grad()
    def logits(
        self,
        ids: Tensor,
        *,
        policy: Policy | str = "dense",
        kernel: Kernel | str = "blocked",
        decode: int | None = None,
    ) -> Tensor:
        """Return `[batch, tokens, vocabulary]` logits of `ids [batch, tokens]` under a policy (see `under`)."""
        with self.under(policy, kernel=kernel, decode=decode):
            result: Tensor = self.model(input_ids=ids.to(self.device), use_cache=False).logits
        return result

    @torch.no_grad()
    def generate(
        self,
        ids: Tensor,
        *,
        max_new_tokens: int = 20,
        policy: Policy | str = "dense",
        kernel: Kernel | str = "blocked",
        stop: Sequence[int] = (),
    ) -> list[int]:
        """Return the greedy continuation of `ids [1, tokens]`, token by token with a KV cache.

        The prompt runs as one prefill, each new token as one decode call; a policy's `phase` says which it shapes.
        """
        if ids.shape[0] != 1:
            raise ValueError(f"generate() takes one prompt at a time; got a batch of {ids.shape[0]}")
        from sparselens.workbench.generation import walked

        with self.under(policy, kernel=kernel):
            return walked(self, ids, max_new_tokens=max_new_tokens, stop=stop)

    def prompts(self, source: Any, *, bos: bool | None = None) -> list[Prompt]:
        """Return the prompts of any source, or of a built-in set's call (see `workbench.prompt.read_prompts`)."""
        from sparselens.workbench.prompt import read_prompts

        return read_prompts(source, self.tokenizer, bos=bos, max_tokens=self.max_tokens)

    def capture(
        self, prompts: Any, policies: Any = (), trace: str | Path = "trace", **options: Any
    ) -> list[RunHandle]:
        """Capture prompts under a base and policies (`policies`, or one `policy=`) into `trace`; the base's run first.

        Options are those of `sparselens.workbench.capture.capture`.
        """
        from sparselens.workbench.capture import capture

        if "policy" in options:
            policies = options.pop("policy")
        return capture(self, prompts, policies, trace, **options)
