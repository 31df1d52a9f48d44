"""On the real default model the policy's kernel is what runs: against the bare model, TransformerLens, float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sparselens.storage.reader import connect
from sparselens.workbench.capture import capture
from sparselens.workbench.models import load

pytestmark = pytest.mark.model

SINK, WINDOW = 4, 64
POLICY = f"a_shape(sink={SINK},window={WINDOW})"
NEAR = 1e-3


def a_shape_mask(tokens: int, sink: int = SINK, window: int = WINDOW) -> Tensor:
    """The policy's mask written out: bool `[1, 1, tokens, tokens]`, as the bare model takes it."""
    query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
    return ((key <= query) & ((key < sink) | (query - key < window)))[None, None]


@torch.no_grad()
def bare(model: Any, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits `[batch, tokens, vocabulary]` of the model as transformers runs it."""
    logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits


def losses(logits: Tensor, ids: Tensor) -> Tensor:
    """NLL of every token but the first."""
    return cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")


@pytest.fixture(scope="module")
def bridged() -> Any:
    """A session of its own: building the bridge puts its components inside the model."""
    session = load("smollm2-135m", progress=False)
    assert session.bridge is not None
    return session


@pytest.fixture(scope="module")
def repeated(smollm2: Any) -> Any:
    """Repeated random tokens, the repetition farther back than the window."""
    return smollm2.prompts("repeats(length=256,n=1)")


@pytest.fixture(scope="module")
def near(smollm2: Any) -> Tensor:
    """Repeated random tokens, the repetition inside the window: `[1, 96]`."""
    return torch.tensor([smollm2.prompts("repeats(length=96,n=1)")[0].token_ids])


def test_the_session_is_the_bare_model_under_the_same_mask_and_far_from_dense(
    smollm2: Any, repeated: Any
) -> None:
    ids = torch.tensor([repeated[0].token_ids])
    expected = losses(bare(smollm2.model, ids, a_shape_mask(ids.shape[1])), ids)
    dense = losses(bare(smollm2.model, ids), ids)
    with smollm2.under(POLICY) as execution:
        ours = losses(bare(smollm2.model, ids), ids)
        again = losses(bare(smollm2.model, ids), ids)
    assert (ours - expected).abs().max() < NEAR
    assert torch.equal(ours, again)
    assert (execution.calls, execution.forwards, execution.dense_calls) == (60, 2, 0)
    second = slice(repeated[0].spans["second"][0], None)
    assert ours[second].mean() > dense[second].mean() + 2  # the window cannot see the first half
    assert torch.equal(losses(bare(smollm2.model, ids), ids), dense)  # nothing is left behind


def test_a_capture_stores_those_losses_and_is_verified_in_three_ways(
    smollm2: Any, repeated: Any, tmp_path: Path
) -> None:
    base, run = capture(smollm2, repeated, [POLICY], tmp_path / "trace", verify=True, progress=False)
    ids = torch.tensor([repeated[0].token_ids])
    for handle, mask in ((base, None), (run, a_shape_mask(ids.shape[1]))):
        assert str(handle.verdict) == "verified 3/3", handle.verdict.detail
        expected = losses(bare(smollm2.model, ids, mask), ids)
        ours = handle.sql(f"SELECT nll FROM predictions WHERE run_id = '{handle.run_id}' ORDER BY pos").df()[
            "nll"
        ]
        assert np.abs(ours.to_numpy() - expected.numpy()).max() < NEAR
    seen = run.sql("SELECT run_id, verify_kernel, verify_logits, verify_calls FROM runs").rows
    assert {row[1:] for row in seen} == {(True, True, True)}


def test_transformer_lens_calls_run_the_policy(smollm2: Any, bridged: Any, near: Tensor) -> None:
    mask = a_shape_mask(near.shape[1])
    expected = bare(smollm2.model, near, mask)
    reference = pytest.warns(UserWarning, match="reference path")
    with bridged.under(POLICY) as execution, torch.no_grad(), reference:
        plain = bridged.bridge(near)
        cached, cache = bridged.bridge.run_with_cache(
            near, names_filter=lambda name: name in {"blocks.18.attn.hook_z", "blocks.18.attn.hook_pattern"}
        )
    for logits in (plain, cached):
        assert (losses(logits, near) - losses(expected, near)).abs().max() < NEAR
    assert (execution.calls, execution.forwards) == (60, 2)
    assert execution.reference_layers == {18}
    pattern = cache["blocks.18.attn.hook_pattern"]
    assert (pattern * ~mask == 0).all()
    assert torch.allclose(pattern.sum(-1), torch.ones(()), atol=1e-5)
    assert cache["blocks.18.attn.hook_z"].shape == (1, near.shape[1], 9, 64)


def test_ablating_induction_heads_through_transformer_lens_changes_the_loss_as_on_the_bare_model(
    smollm2: Any, bridged: Any, near: Tensor
) -> None:
    """Heads of layers 17 and 18 silenced by `hook_z`, and on the bare model before its output projection."""
    layers = (17, 18)

    def silence(z: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(z)

    with bridged.under(POLICY), torch.no_grad():
        plain = losses(bridged.bridge(near), near)
        hooks = [(f"blocks.{layer}.attn.hook_z", silence) for layer in layers]
        ours = losses(bridged.bridge.run_with_hooks(near, fwd_hooks=hooks), near)
        after = losses(bridged.bridge(near), near)
    handles = [
        smollm2.model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda _, args: (torch.zeros_like(args[0]),)
        )
        for layer in layers
    ]
    expected = losses(bare(smollm2.model, near, a_shape_mask(near.shape[1])), near)
    for handle in handles:
        handle.remove()
    assert (ours - expected).abs().max() < NEAR
    assert ours[48:].mean() > plain[48:].mean() + 0.2
    assert torch.equal(plain, after)


# ---- against float64 ----


@torch.no_grad()
def stepwise(model: Any, ids: Tensor, first: int) -> Tensor:
    """Logits of `ids [1, tokens]`: a prefill of `first` tokens, then token by token with a cache."""
    state = model(input_ids=ids[:, :first], use_cache=True)
    parts = [state.logits]
    for at in range(first, ids.shape[1]):
        state = model(input_ids=ids[:, at : at + 1], past_key_values=state.past_key_values, use_cache=True)
        parts.append(state.logits)
    return torch.cat(parts, 1)


def against_float64(name: str, text: str) -> None:
    """Our largest logit error, prefill and token by token, is at most twice that of transformers' SDPA."""
    session, exact = load(name, progress=False), load(name, dtype="float64", progress=False)
    ids = torch.tensor([session.prompts(text)[0].token_ids])
    truth = bare(exact.model, ids)
    del exact
    first = ids.shape[1] - 16
    ways: list[Callable[[], Tensor]] = [
        lambda: bare(session.model, ids),
        lambda: stepwise(session.model, ids, first),
    ]
    assert session.model.config._attn_implementation == "sdpa"
    for way in ways:
        theirs = (way().double() - truth).abs().max()
        with session.under("dense") as execution:
            ours = (way().double() - truth).abs().max()
        assert execution.calls == execution.n_layers * execution.forwards
        assert ours <= 2 * theirs, (float(ours), float(theirs))


def test_dense_logits_are_as_near_to_float64_as_those_of_transformers() -> None:
    against_float64("smollm2-135m", "prose(length=192,n=1)")


@pytest.mark.slow
def test_dense_logits_of_gemma_are_as_near_to_float64_as_those_of_transformers() -> None:
    """More tokens than the native window of 512, so that both kinds of layer drop what they must."""
    against_float64("gemma3-270m", "prose(length=600,n=1)")


# ---- batches, generation, what is kept ----


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_prompts_one_by_one(smollm2: Any, side: str) -> None:
    lengths = (90, 37, 72)
    texts = smollm2.prompts("prose(length=90,n=3)")
    prompts = [torch.tensor(text.token_ids[:n]) for text, n in zip(texts, lengths, strict=True)]
    ids, valid = torch.zeros(3, 90, dtype=torch.long), torch.zeros(3, 90, dtype=torch.long)
    places = [slice(90 - n, 90) if side == "left" else slice(0, n) for n in lengths]
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        ids[row, place], valid[row, place] = prompt, 1
    positions = (valid.cumsum(-1) - 1).clamp(min=0)
    policy = "a_shape(sink=4,window=20)"
    with smollm2.under(policy), torch.no_grad():
        together = smollm2.model(
            input_ids=ids, attention_mask=valid, position_ids=positions, use_cache=False
        ).logits
    for row, (prompt, place) in enumerate(zip(prompts, places, strict=True)):
        alone = bare(smollm2.model, prompt[None], a_shape_mask(len(prompt), 4, 20))[0]
        assert (together[row, place] - alone).abs().max() < NEAR


def test_generation_equals_the_bare_models_under_the_equivalent_mask(smollm2: Any) -> None:
    ids = torch.tensor([smollm2.prompts("prose(length=100,n=1)")[0].token_ids])
    policy = "a_shape(sink=4,window=16)"
    ours = smollm2.generate(ids, max_new_tokens=8, policy=policy)
    now = ids
    for token in ours:  # without a cache: every step is a prefill of its own
        logits = bare(smollm2.model, now, a_shape_mask(now.shape[1], 4, 16))
        assert int(logits[0, -1].argmax()) == token
        now = torch.cat([now, torch.tensor([[token]])], 1)
    assert ours != smollm2.generate(ids, max_new_tokens=8)


def test_a_transformer_lens_hook_is_kept_by_name(smollm2: Any, bridged: Any, tmp_path: Path) -> None:
    prompts = bridged.prompts("repeats(length=64,n=1)")
    names = ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_v"]
    (run,) = capture(
        bridged, prompts, ["a_shape(sink=4,window=16)"], tmp_path / "t", base=None, keep=names, progress=False
    )
    layer, seen = smollm2.model.model.layers[3], {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output[0]))
        for name, module in zip(names, (layer.mlp, layer.self_attn.v_proj), strict=True)
    ]
    bare(smollm2.model, torch.tensor([prompts[0].token_ids]), a_shape_mask(64, 4, 16))
    for handle in handles:
        handle.remove()
    connection = connect(run.trace)
    for name, width in zip(names, (576, 64), strict=True):
        stored = connection.sql(
            f"SELECT vector FROM activations WHERE hook = '{name}' ORDER BY head, pos"
        ).df()
        vectors = np.stack(stored["vector"].to_list())
        expected = seen[name].view(64, -1, width).transpose(0, 1).reshape(-1, width).numpy()
        np.testing.assert_allclose(vectors, expected, rtol=2e-3, atol=2e-3)
