"""The policy's kernel is the attention that runs: plain HF, bridge, cache, padding; and nothing is left behind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sparselens.workbench.bridge import bridge_of
from sparselens.workbench.execution import ACTIVE
from sparselens.workbench.session import under

A_SHAPE = "a_shape(sink=2,window=5)"
EXACT = 1e-5


def a_shape_mask(tokens: int, sink: int = 2, window: int = 5) -> Tensor:
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    return (key <= query) & ((key < sink) | (query - key < window))


def hf_logits(model: Any, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
    """The bare model; a mask is given as HF takes it, for each layer type where there are several."""
    tokens = ids.shape[1]
    if mask is None:
        given = None
    elif model.config.model_type == "gemma3_text":
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
        window = mask & (distance < model.config.sliding_window)
        given = {"full_attention": mask[None, None], "sliding_attention": window[None, None]}
    else:
        given = mask[None, None]
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=given, use_cache=False, **options).logits
    return logits


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_dense_equals_the_bare_model(tiny: Any, family: str, ids: Tensor, kernel: str) -> None:
    model = tiny(family)
    expected = hf_logits(model, ids)
    with under(model, "dense", kernel=kernel):
        ours = hf_logits(model, ids)
    assert (ours - expected).abs().max() < EXACT


@pytest.mark.parametrize("kernel", ["reference", "blocked"])
def test_a_shape_equals_the_bare_model_under_the_same_mask(
    tiny: Any, family: str, ids: Tensor, kernel: str
) -> None:
    model = tiny(family)
    expected = hf_logits(model, ids, a_shape_mask(ids.shape[1]))
    with under(model, A_SHAPE, kernel=kernel) as execution:
        ours = hf_logits(model, ids)
    assert (ours - expected).abs().max() < EXACT
    assert (ours - hf_logits(model, ids)).abs().max() > 100 * EXACT
    assert (execution.calls, execution.forwards) == (execution.n_layers, 1)


@pytest.mark.parametrize("policy", ["dense", A_SHAPE])
def test_token_by_token_equals_one_prefill(tiny: Any, family: str, ids: Tensor, policy: str) -> None:
    model = tiny(family)
    with under(model, policy), torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        state = model(input_ids=ids[:, :17], use_cache=True)
        steps = [state.logits]
        for position in range(17, ids.shape[1]):
            state = model(
                input_ids=ids[:, position : position + 1],
                past_key_values=state.past_key_values,
                use_cache=True,
            )
            steps.append(state.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() < EXACT


def test_dense_generation_equals_the_bare_model(tiny: Any, family: str, ids: Tensor) -> None:
    model = tiny(family)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    with under(model, "dense"):
        ours = model.generate(ids, **options)
    assert ours.tolist() == expected.tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("policy", ["dense", A_SHAPE])
def test_a_padded_batch_equals_its_prompts_one_by_one(tiny: Any, family: str, side: str, policy: str) -> None:
    model = tiny(family)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 97, (n,), generator=generator) for n in (31, 12, 23)]
    length = max(map(len, prompts))
    ids, valid = torch.zeros(3, length, dtype=torch.long), torch.zeros(3, length, dtype=torch.long)
    where = [slice(length - len(p), length) if side == "left" else slice(0, len(p)) for p in prompts]
    for row, (prompt, place) in enumerate(zip(prompts, where, strict=True)):
        ids[row, place], valid[row, place] = prompt, 1
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    with under(model, policy), torch.no_grad():
        together = model(input_ids=ids, attention_mask=valid, position_ids=positions, use_cache=False).logits
        alone = [model(input_ids=prompt[None], use_cache=False).logits[0] for prompt in prompts]
    for row, place in enumerate(where):
        assert (together[row, place] - alone[row]).abs().max() < EXACT


def test_padded_dense_generation_equals_the_bare_model(tiny: Any, family: str) -> None:
    model = tiny(family)
    ids = torch.randint(3, 97, (2, 20), generator=torch.Generator().manual_seed(4))
    valid = torch.ones_like(ids)
    valid[1, :9] = 0
    options = {"attention_mask": valid, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, **options)
    with under(model, "dense"):
        ours = model.generate(ids, **options)
    assert ours.tolist() == expected.tolist()


def settings(model: Any) -> dict[str, Any]:
    hooks = {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    }
    overrides = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    return {
        "implementation": model.config._attn_implementation,
        "hooks": hooks,
        "overrides": overrides,
        "active": ACTIVE.get(),
        "weights": {name: weight.data_ptr() for name, weight in model.named_parameters()},
    }


@pytest.mark.parametrize("bridged", [False, True])
def test_the_model_is_as_before_after_success_and_after_an_exception(
    tiny: Any, family: str, ids: Tensor, bridged: bool
) -> None:
    model = tiny(family)
    if bridged:
        bridge_of(model, None)
    logits = hf_logits(model, ids)
    before = settings(model)
    with under(model, A_SHAPE):
        hf_logits(model, ids)
    assert settings(model) == before
    with pytest.raises(KeyError, match="planted"), under(model, A_SHAPE):  # noqa: PT012
        hf_logits(model, ids)
        raise KeyError("planted")
    assert settings(model) == before
    assert torch.equal(hf_logits(model, ids), logits)


def test_blocks_nest_and_the_innermost_policy_runs(tiny: Any, ids: Tensor) -> None:
    model = tiny("llama")
    with under(model, "dense") as outer:
        with under(model, A_SHAPE) as inner:
            sparse = hf_logits(model, ids)
        dense = hf_logits(model, ids)
    assert (inner.forwards, outer.forwards) == (1, 1)
    assert (inner.calls, outer.calls) == (2, 2)
    assert (sparse - dense).abs().max() > 100 * EXACT


def test_two_models_run_under_two_policies_at_once(tiny: Any, ids: Tensor) -> None:
    first, second = tiny("llama"), tiny("llama", seed=5)
    expected = hf_logits(first, ids, a_shape_mask(ids.shape[1])), hf_logits(second, ids)
    with under(first, A_SHAPE), under(second, "dense"):
        ours = hf_logits(first, ids), hf_logits(second, ids)
    assert all((a - b).abs().max() < EXACT for a, b in zip(ours, expected, strict=True))


def test_unknown_policy_and_kernel_say_what_there_is(tiny: Any) -> None:
    model = tiny("llama")
    with pytest.raises(ValueError, match="a_shape"), under(model, "ashape"):
        pass
    with pytest.raises(ValueError, match="blocked"), under(model, "dense", kernel="fast"):
        pass


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(TypeError, match="takes an HF model"), under(object(), "dense"):
        pass


def test_training_dropout_is_refused(tiny: Any, ids: Tensor) -> None:
    model = tiny("gpt2").train()
    model.config.attn_pdrop = 0.1
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.1
    with pytest.raises(ValueError, match="dropout"), under(model, "dense"):
        model(input_ids=ids)


# ---- under TransformerLens' bridge ----


ATTENTION_HOOKS = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_attn_scores", "hook_pattern")


def hook_names(family: str) -> list[str]:
    return [*ATTENTION_HOOKS, *(() if family == "gpt2" else ("hook_rot_q", "hook_rot_k"))]


def test_every_named_hook_fires_once_a_layer_and_the_bridge_equals_the_masked_model(
    tiny: Any, family: str, ids: Tensor
) -> None:
    model = tiny(family)
    expected = hf_logits(model, ids, a_shape_mask(ids.shape[1]))
    bridge = bridge_of(model, None)
    fired: dict[str, int] = {}

    def count(tensor: Tensor, hook: Any) -> Tensor:
        fired[hook.name] = fired.get(hook.name, 0) + 1
        return tensor

    names = [
        f"blocks.{layer}.attn.{name}" for layer in range(len(bridge.blocks)) for name in hook_names(family)
    ]
    with under(bridge, A_SHAPE) as execution, pytest.warns(UserWarning, match="reference path"):
        logits = bridge.run_with_hooks(ids, fwd_hooks=[(name, count) for name in names])
    assert (logits - expected).abs().max() < EXACT
    assert len(fired) == len(names)
    assert set(fired.values()) == {1}
    assert execution.reference_layers == set(range(len(bridge.blocks)))


def test_cached_patterns_are_the_executed_ones(tiny: Any, family: str, ids: Tensor) -> None:
    bridge = bridge_of(tiny(family), None)
    with under(bridge, A_SHAPE):
        _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    mask = a_shape_mask(ids.shape[1])
    for pattern in cache.values():
        assert (pattern[..., ~mask] == 0).all()
        assert torch.allclose(pattern.sum(-1), torch.ones_like(pattern.sum(-1)), atol=1e-5)


def own_llama(model: Any, ids: Tensor, mask: Tensor, *, layer: int, name: str) -> Tensor:
    """A Llama written out by hand in float64, with one attention tensor of one layer set to zero."""
    weights = {key: value.double() for key, value in model.state_dict().items()}
    config = model.config
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    tokens = ids.shape[1]
    inverse = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, width, 2).double() / width)
    angles = torch.arange(tokens).double()[:, None] * inverse
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def rotate(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], -1)
        return x * cos[:, None] + half * sin[:, None]

    def zero(kind: str, at: int, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if (kind, at) == (name, layer) else x

    x = weights["model.embed_tokens.weight"][ids[0]]
    for at in range(config.num_hidden_layers):
        part = f"model.layers.{at}."
        normed = norm(x, weights[part + "input_layernorm.weight"])
        q, k, v = (
            (normed @ weights[f"{part}self_attn.{p}_proj.weight"].T).view(tokens, -1, width) for p in "qkv"
        )
        q, k, v = zero("hook_q", at, q), zero("hook_k", at, k), zero("hook_v", at, v)
        q, k = zero("hook_rot_q", at, rotate(q)), zero("hook_rot_k", at, rotate(k))
        k, v = (t.repeat_interleave(heads // kv_heads, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(width)
        scores = zero("hook_attn_scores", at, scores).masked_fill(~mask, -torch.inf)
        pattern = zero("hook_pattern", at, torch.softmax(scores, -1))
        z = zero("hook_z", at, torch.einsum("hqk,khd->qhd", pattern, v))
        x = x + z.reshape(tokens, -1) @ weights[part + "self_attn.o_proj.weight"].T
        normed = norm(x, weights[part + "post_attention_layernorm.weight"])
        gate, up = (normed @ weights[f"{part}mlp.{p}_proj.weight"].T for p in ("gate", "up"))
        x = x + (torch.nn.functional.silu(gate) * up) @ weights[part + "mlp.down_proj.weight"].T
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


@pytest.mark.parametrize("name", [*ATTENTION_HOOKS, "hook_rot_q", "hook_rot_k"])
def test_zeroing_a_hook_changes_the_logits_as_a_hand_written_model_predicts(
    tiny: Any, ids: Tensor, name: str
) -> None:
    model = tiny("llama")
    mask = a_shape_mask(ids.shape[1])
    predicted = own_llama(model, ids, mask, layer=1, name=name)
    untouched = own_llama(model, ids, mask, layer=-1, name="")
    bridge = bridge_of(model, None)
    with under(bridge, A_SHAPE):
        logits = bridge.run_with_hooks(
            ids, fwd_hooks=[(f"blocks.1.attn.{name}", lambda tensor, hook: torch.zeros_like(tensor))]
        )
    assert (logits[0].double() - predicted).abs().max() < EXACT
    assert (predicted - untouched).abs().max() > 100 * EXACT


@pytest.mark.parametrize("name", ["hook_q", "hook_v", "hook_z", "hook_pattern"])
def test_zeroing_a_hook_is_felt_in_every_family(tiny: Any, family: str, ids: Tensor, name: str) -> None:
    bridge = bridge_of(tiny(family), None)
    point = f"blocks.1.attn.{name}"
    with under(bridge, A_SHAPE):
        plain = bridge(ids)
        zeroed = bridge.run_with_hooks(
            ids, fwd_hooks=[(point, lambda tensor, hook: torch.zeros_like(tensor))]
        )
    assert (zeroed - plain).abs().max() > 100 * EXACT


@pytest.mark.parametrize("name", ["hook_v", "hook_z", "hook_pattern"])
def test_a_silenced_layer_is_the_same_through_v_z_and_pattern(
    tiny: Any, family: str, ids: Tensor, name: str
) -> None:
    """Zero values, zero outputs and a zero pattern all leave the layer writing only its output bias."""
    model = tiny(family)
    bridge = bridge_of(model, None)
    with under(bridge, A_SHAPE):
        hooks = [("blocks.1.attn.hook_z", lambda tensor, hook: torch.zeros_like(tensor))]
        expected = bridge.run_with_hooks(ids, fwd_hooks=hooks)
        hooks = [(f"blocks.1.attn.{name}", lambda tensor, hook: torch.zeros_like(tensor))]
        ours = bridge.run_with_hooks(ids, fwd_hooks=hooks)
    assert (ours - expected).abs().max() <= EXACT


def test_an_edit_of_the_pattern_cannot_revive_a_dropped_key(tiny: Any, ids: Tensor) -> None:
    bridge = bridge_of(tiny("llama"), None)
    seen: dict[str, Tensor] = {}

    def ones(tensor: Tensor, hook: Any) -> Tensor:
        return torch.ones_like(tensor)

    def keep(tensor: Tensor, hook: Any) -> None:
        seen["z"] = tensor

    def value(tensor: Tensor, hook: Any) -> None:
        seen["v"] = tensor

    with under(bridge, A_SHAPE):
        bridge.run_with_hooks(
            ids,
            fwd_hooks=[
                ("blocks.0.attn.hook_pattern", ones),
                ("blocks.0.attn.hook_v", value),
                ("blocks.0.attn.hook_z", keep),
            ],
        )
    mask = a_shape_mask(ids.shape[1]).float()
    values = seen["v"][0].repeat_interleave(2, 1)
    assert torch.allclose(seen["z"][0], torch.einsum("qk,khd->qhd", mask, values), atol=1e-4)


def test_a_hook_on_rotated_keys_reaches_later_tokens_through_the_cache(tiny: Any, ids: Tensor) -> None:
    bridge = bridge_of(tiny("llama"), None)

    def halve(tensor: Tensor, hook: Any) -> Tensor:
        return tensor / 2

    with (
        under(bridge, A_SHAPE),
        bridge.hooks(fwd_hooks=[("blocks.0.attn.hook_rot_k", halve)]),
        torch.no_grad(),
    ):
        model = bridge.original_model
        whole = model(input_ids=ids, use_cache=False).logits
        state = model(input_ids=ids[:, :20], use_cache=True)
        steps = [state.logits]
        for position in range(20, ids.shape[1]):
            state = model(
                input_ids=ids[:, position : position + 1],
                past_key_values=state.past_key_values,
                use_cache=True,
            )
            steps.append(state.logits)
    assert (torch.cat(steps, 1) - whole).abs().max() < EXACT


def test_forks_that_only_the_bridge_serves_are_refused(tiny: Any, ids: Tensor) -> None:
    bridge = bridge_of(tiny("llama"), None)
    bridge.set_use_attn_result(True)
    with pytest.raises(NotImplementedError, match="use_attn_result"), under(bridge, "dense"):
        bridge(ids)


def test_patching_between_prompts_works_under_a_policy(tiny: Any, family: str, ids: Tensor) -> None:
    """Patching every head's output of the last layer with another prompt's gives that prompt's attention output."""
    bridge = bridge_of(tiny(family), None)
    other = ids.flip(-1)
    last = f"blocks.{len(bridge.blocks) - 1}.attn.hook_z"
    with under(bridge, A_SHAPE):
        _, cache = bridge.run_with_cache(other, names_filter=[last])
        kept: dict[str, Tensor] = {}
        bridge.run_with_hooks(
            ids,
            fwd_hooks=[
                (last, lambda tensor, hook: cache[last]),
                (
                    f"blocks.{len(bridge.blocks) - 1}.hook_attn_out",
                    lambda t, hook: kept.__setitem__("patched", t),
                ),
            ],
        )
        bridge.run_with_hooks(
            other,
            fwd_hooks=[
                (
                    f"blocks.{len(bridge.blocks) - 1}.hook_attn_out",
                    lambda t, hook: kept.__setitem__("source", t),
                )
            ],
        )
    assert torch.equal(kept["patched"], kept["source"])


def test_a_bridge_is_not_built_inside_a_block(tiny: Any) -> None:
    from small_tokenizer import small_tokenizer

    from sparselens.workbench.models import wrap

    session = wrap(tiny("llama"), small_tokenizer())
    with session.under(A_SHAPE), pytest.raises(RuntimeError, match="before entering"):
        session.bridge  # noqa: B018
    assert not session.bridged
    session.bridge  # noqa: B018
    assert session.bridged
