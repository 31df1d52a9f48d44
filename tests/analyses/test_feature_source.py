"""Direct feature attribution sums to the pre-activation, by head and by source, and forgets what a policy dropped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from small_session import small_session

from sparselens.analyses.features.source import Attention, Reader, Watch
from sparselens.workbench.sae import Sae
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site

IDS = torch.randint(5, 2900, (1, 60), generator=torch.Generator().manual_seed(3))
POLICIES = [
    "dense",
    "a_shape(sink=2,window=9)",
    "oracle_topk(k=5)",
    "vertical_slash(vertical=8,slash=12,recent=4)",
]


@pytest.fixture(scope="module")
def session() -> Session:
    return small_session()


def random_sae(session: Session, hook: str, features: int = 40) -> Sae:
    torch.manual_seed(1)
    site = Site.of(session, hook)
    inner = TopKSAE(
        TopKSAEConfig(d_in=site.width(session), d_sae=features, k=6, metadata=SAEMetadata(hook_name=hook))
    )
    with torch.no_grad():
        inner.b_enc.normal_()
        inner.b_dec.normal_()
    inner.turn_off_forward_pass_hook_z_reshaping()
    return Sae(inner, site, "random")


@torch.no_grad()
def watched(session: Session, sae: Sae, policy: str) -> tuple[Attention, torch.Tensor]:
    """What the layer did, and the vectors that the SAE reads."""
    watch, found = Watch(sae.site.layer), []
    with (
        session.under(policy, observers=[watch]),
        sae.site.edited(session, lambda vectors: found.append(vectors[0])),
    ):
        session.model(input_ids=IDS)
    return watch.attention, found[0]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_z", "blocks.0.hook_attn_out"])
def test_the_parts_sum_to_the_pre_activation(session: Session, hook: str, policy: str) -> None:
    sae = random_sae(session, hook)
    attention, vectors = watched(session, sae, policy)
    reader = Reader.of(sae, session)
    weights, bias = sae.encoder
    rows = torch.arange(60).repeat_interleave(3)
    features = torch.randint(0, 40, (180,))
    before = (vectors @ weights + bias)[rows, features]
    by_head = reader.by_head(attention, rows, features)
    by_source = reader.by_source(attention, rows, features)
    assert torch.allclose(reader.total(by_head, features), before, atol=1e-4)
    assert torch.allclose(reader.total(by_source, features), before, atol=1e-4)
    assert torch.allclose(by_source.sum(-1), by_head, atol=1e-5)


def test_dropped_sources_have_no_part(session: Session) -> None:
    sae = random_sae(session, "blocks.1.attn.hook_z")
    attention, _ = watched(session, sae, "a_shape(sink=2,window=9)")
    rows, features = torch.tensor([5, 40]), torch.tensor([3, 3])
    parts = Reader.of(sae, session).by_source(attention, rows, features)
    dropped = attention.dropped(rows).transpose(0, 1)
    assert not dropped[0].any()
    assert torch.equal(dropped[1].nonzero()[:, 1].unique(), torch.arange(2, 32))
    assert parts[dropped].abs().max() == 0
    assert (parts[1, :, 32:41] != 0).all()


def test_taking_a_source_s_value_away_takes_its_part(session: Session) -> None:
    """The attribution predicts an intervention: the value of one token set to zero in one key-value head."""
    sae = random_sae(session, "blocks.1.attn.hook_z")
    attention, before = watched(session, sae, "dense")
    row, source, kv = 50, 17, 1
    features = torch.arange(40)
    parts = Reader.of(sae, session).by_source(attention, torch.full((40,), row), features)
    weights, _ = sae.encoder
    projection = session.model.model.layers[1].self_attn.v_proj

    def cut(_: Any, __: Any, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        width = session.head_dim
        value[0, source, kv * width : (kv + 1) * width] = 0
        return value

    handle = projection.register_forward_hook(cut)
    try:
        _, after = watched(session, sae, "dense")
    finally:
        handle.remove()
    change = (before - after)[row] @ weights
    group = session.n_heads // session.n_kv_heads
    expected = parts[:, kv * group : (kv + 1) * group, source].sum(1)
    assert torch.allclose(change, expected, atol=1e-4)
    assert expected.abs().max() > 1e-3


def test_an_sae_on_the_residual_stream_is_refused(session: Session) -> None:
    with pytest.raises(ValueError, match="not written by one attention layer"):
        Reader.of(random_sae(session, "blocks.1.hook_resid_pre"), session)
