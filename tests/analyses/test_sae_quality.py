"""An SAE is checked against the model, its encoder is plain linear algebra, and its quality is what it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from small_session import small_session

from sparselens.analyses.features.sae_quality import quality
from sparselens.workbench.activations import Stream
from sparselens.workbench.sae import Sae, load_sae
from sparselens.workbench.sae_training import RECORD, Recipe, train
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site

HOOK = "blocks.1.attn.hook_z"
WINDOWS = [
    torch.randint(5, 2900, (40,), generator=torch.Generator().manual_seed(row)).tolist() for row in range(4)
]
TEXTS = [" ".join(f"word{(7 * text + place) % 31}" for place in range(300)) for text in range(20)]


@pytest.fixture(scope="module")
def session() -> Session:
    return small_session()


def mirror(session: Session, scale: float = 1.0) -> Sae:
    """An SAE with one feature for each direction of each axis: it writes down `scale` times what it reads."""
    inner = StandardSAE(
        StandardSAEConfig(d_in=32, d_sae=64, apply_b_dec_to_input=False, metadata=SAEMetadata(hook_name=HOOK))
    )
    axes = torch.cat([torch.eye(32), -torch.eye(32)])
    with torch.no_grad():
        inner.W_enc.copy_(axes.T)
        inner.W_dec.copy_(scale * axes)
        inner.b_enc.zero_()
        inner.b_dec.zero_()
    inner.turn_off_forward_pass_hook_z_reshaping()
    return Sae(inner, Site.of(session, HOOK), "mirror")


@pytest.mark.parametrize("policy", ["dense", "a_shape(sink=1,window=6)"])
def test_an_sae_that_writes_what_it_reads_recovers_everything(session: Session, policy: str) -> None:
    found = quality(session, mirror(session), WINDOWS, policy)
    assert found.recovered_zero.mean == pytest.approx(1, abs=1e-4)
    assert found.recovered_mean.mean == pytest.approx(1, abs=1e-3)
    assert found.explained.mean == pytest.approx(1, abs=1e-6)
    assert found.l0.mean == pytest.approx(32, abs=0.1)
    assert (found.n, found.tokens) == (4, 4 * 39)


def test_an_sae_that_writes_nothing_recovers_nothing(session: Session) -> None:
    found = quality(session, mirror(session, 0.0), WINDOWS)
    assert found.recovered_zero.mean == pytest.approx(0, abs=1e-6)
    assert found.loss_sae.mean == pytest.approx(found.loss_zero.mean, abs=1e-6)


def test_losses_are_those_of_the_model_with_the_site_replaced(session: Session) -> None:
    found = quality(session, mirror(session, 0.5), WINDOWS)

    def halved(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value[:, 1:] *= 0.5
        return value

    losses = []
    for window in WINDOWS:
        ids = torch.tensor([window])
        logits = session.bridge.run_with_hooks(ids, fwd_hooks=[(HOOK, halved)])
        losses.append(torch.nn.functional.cross_entropy(logits[0, 1:-1], ids[0, 2:]).detach())
    assert found.loss_sae.mean == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)


def trained(session: Session, folder: Path, architecture: str = "topk", hook: str = HOOK) -> Path:
    stream = Stream(Site.of(session, hook), text=TEXTS, context=32, block=20, batch=128)
    return train(session, Recipe(stream, architecture, features=64, k=8, tokens=2000, sparsity=0.01), folder)


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu", "standard"])
def test_the_pre_activation_is_linear_and_active_features_hold_it(
    session: Session, tmp_path: Path, architecture: str
) -> None:
    sae = load_sae(trained(session, tmp_path / "sae", architecture), session)
    vectors = Stream(sae.site, skip=1).vectors(session, WINDOWS)
    weights, bias = sae.encoder
    before, after = vectors @ weights + bias, sae.encode(vectors)
    active = after > 0
    assert active.any()
    assert torch.allclose(after[active], before[active], atol=1e-5)
    assert torch.equal(sae.reconstructed(vectors), sae.decode(after))


def test_matching_pursuit_has_no_linear_pre_activation(session: Session, tmp_path: Path) -> None:
    sae = load_sae(trained(session, tmp_path / "sae", "matching_pursuit"), session)
    with pytest.raises(ValueError, match="not linear"):
        _ = sae.encoder


def test_a_feature_s_decoder_norm_is_shared_out_among_heads(session: Session) -> None:
    shares = mirror(session).head_shares(4)
    assert torch.allclose(shares.sum(1), torch.ones(64))
    assert torch.equal(shares[9], torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_an_sae_of_other_weights_is_refused(session: Session, tmp_path: Path) -> None:
    folder = trained(session, tmp_path / "sae")
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"weight_hash": "0" * 64}))
    with pytest.raises(ValueError, match=r"trained on .* with weights 000000000000"):
        load_sae(folder, session)


def test_an_sae_of_another_width_or_hook_is_refused(session: Session, tmp_path: Path) -> None:
    inner = StandardSAE(StandardSAEConfig(d_in=48, d_sae=64, metadata=SAEMetadata(hook_name=HOOK)))
    inner.save_model(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"reads vectors of 48; blocks.1.attn.hook_z of this model has 32"):
        load_sae(tmp_path / "wide", session)
    nameless = StandardSAE(StandardSAEConfig(d_in=32, d_sae=64))
    nameless.save_model(tmp_path / "nameless")
    with pytest.raises(ValueError, match="does not say which hook"):
        load_sae(tmp_path / "nameless", session)
    assert load_sae(tmp_path / "nameless", session, hook=HOOK).site.layer == 1
    with pytest.raises(
        ValueError, match=r"was trained on blocks\.1\.attn\.hook_z, not on blocks\.0\.attn\.hook_z"
    ):
        load_sae(trained(session, tmp_path / "own"), session, hook="blocks.0.attn.hook_z")


def test_what_is_no_sae_says_what_would_do(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"give a folder with cfg.json"):
        load_sae(tmp_path, session)


def test_one_window_has_no_interval(session: Session) -> None:
    with pytest.raises(ValueError, match="2 windows or more"):
        quality(session, mirror(session), WINDOWS[:1])
