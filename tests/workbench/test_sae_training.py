"""An SAE is trained with SAELens on the model's own activations, and stops and goes on without a trace."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_session import small_session

from sparselens.workbench import sae as sae_module
from sparselens.workbench import sae_training
from sparselens.workbench.activations import Stream
from sparselens.workbench.sae import described, keep_card, load_sae, shipped_for
from sparselens.workbench.sae_training import ARCHITECTURES, RECORD, Recipe, train
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site

WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "Rain",
    "in",
    "Paris",
    "while",
    "old",
    "trains",
    "ran",
)
TEXTS = [" ".join(random.Random(text).choices(WORDS, k=400)) for text in range(20)]


@pytest.fixture(scope="module")
def session() -> Session:
    return small_session()


def recipe(session: Session, **changed: Any) -> Recipe:
    site = Site.of(session, changed.pop("hook", "blocks.1.attn.hook_z"))
    stream = Stream(site, text=TEXTS, context=32, block=20, batch=128, seed=changed.pop("seed", 0))
    return Recipe(stream, **{"features": 64, "k": 8, "tokens": 3000, "every": 2, "sparsity": 0.01} | changed)


@pytest.mark.parametrize(
    "hook",
    ["blocks.1.attn.hook_z", "blocks.0.hook_attn_out", "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post"],
)
def test_a_site_is_transformer_lens_hook_of_that_name(session: Session, hook: str) -> None:
    ids = [list(range(5, 25))]
    stream = Stream(Site.of(session, hook), skip=0)
    found = stream.vectors(session, ids)
    _, cache = session.bridge.run_with_cache(torch.tensor(ids), names_filter=hook)
    expected = cache[hook].flatten(2)[0] if cache[hook].ndim == 4 else cache[hook][0]
    assert found.shape == (20, stream.site.width(session))
    assert torch.allclose(found, expected, atol=1e-5)


def test_batches_depend_on_seed_and_block_alone(session: Session) -> None:
    stream = recipe(session).stream
    first = stream.batches(session)
    whole = [next(first) for _ in range(3 * stream.batches_a_block)]
    later = stream.batches(session, start=2)
    for batch in whole[2 * stream.batches_a_block :]:
        assert torch.equal(next(later), batch)
    other = next(recipe(session, seed=1).stream.batches(session))
    assert not torch.equal(other, whole[0])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_loaded_by_sae_lens(
    session: Session, architecture: str, tmp_path: Path
) -> None:
    from sae_lens import SAE

    made = train(session, recipe(session, architecture=architecture, tokens=1000), tmp_path / "sae")
    sae = SAE.load_from_disk(str(made))
    record = json.loads((made / sae_training.RECORD).read_text())
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (32, 64)
    assert sae.cfg.metadata.hook_name == record["recipe"]["stream"]["site"] == "blocks.1.attn.hook_z"
    assert record["weight_hash"] == session.provenance.weight_hash
    assert record["tokens"] == 1024
    assert not (made / sae_training.CHECKPOINT).exists()


def test_training_explains_more_than_no_training(session: Session, tmp_path: Path) -> None:
    from sae_lens import SAE

    chosen = recipe(session, tokens=40_000, learning_rate=3e-3)
    vectors = next(recipe(session, seed=7).stream.batches(session))
    unexplained = []
    for tokens in (128, 40_000):
        sae = SAE.load_from_disk(
            str(train(session, recipe(session, tokens=tokens, learning_rate=3e-3), tmp_path / str(tokens)))
        )
        sae.turn_off_forward_pass_hook_z_reshaping()
        unexplained.append(
            float((vectors - sae(vectors)).pow(2).sum() / (vectors - vectors.mean(0)).pow(2).sum())
        )
    assert chosen.tokens == 40_000
    assert unexplained[1] < 0.5 < unexplained[0]


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(session)
    straight = train(session, chosen, tmp_path / "straight")
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if len(said) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(session, chosen, tmp_path / "broken", say=stop)
    assert not (tmp_path / "broken" / "cfg.json").exists()
    with pytest.raises(ValueError, match="go on with --resume"):
        train(session, chosen, tmp_path / "broken")
    with pytest.raises(ValueError, match=r"trained otherwise \(k\)"):
        train(session, recipe(session, k=4), tmp_path / "broken", resume=True)
    torch.manual_seed(123)
    resumed = train(session, chosen, tmp_path / "broken", resume=True, say=said.append)
    assert any(line.startswith("going on at 1,024") for line in said)
    one, two = (load_file(folder / "sae_weights.safetensors") for folder in (straight, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "dense"}, "an SAE is one of topk"),
        ({"features": 0}, "1 or more"),
        ({"tokens": 5}, "at least one batch of 128"),
    ],
)
def test_a_wrong_recipe_says_what_would_do(session: Session, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe(session, **change)


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("blocks.0.mlp.hook_post", "an SAE sits on blocks.L.attn.hook_z"),
        ("blocks.9.attn.hook_z", "this model has 2 layers"),
    ],
)
def test_a_wrong_hook_says_what_would_do(session: Session, hook: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Site.of(session, hook)


def test_half_the_size_reads_the_same_up_to_float16(session: Session, tmp_path: Path) -> None:
    chosen = recipe(session)
    whole = train(session, chosen, tmp_path / "whole")
    half = train(session, chosen, tmp_path / "half", half=True)
    sizes = [(folder / "sae_weights.safetensors").stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    assert json.loads((half / RECORD).read_text())["stored"] == "float16"
    one, two = (load_sae(folder, session).inner for folder in (whole, half))
    assert two.W_dec.dtype == torch.float32
    torch.testing.assert_close(one.W_dec, two.W_dec, rtol=2**-11, atol=1e-7)


def test_a_card_is_kept_beside_the_weights_and_listed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sae_module, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match="no SAE comes with"):
        shipped_for(session)
    train(session, recipe(session), tmp_path / "small")
    measured = {"policy": "dense", "l0": "8", "explained": "0.5", "dead": 0.1, "n": 2, "tokens": 62}
    measured |= {"recovered_zero": "0.7 [0.6, 0.8]", "recovered_mean": "0.6"}
    keep_card("small", [measured], {"text": "words"})
    (row,) = described()
    assert (row["name"], row["recovered_zero"], row["measured on"]) == ("small", "0.7 [0.6, 0.8]", 62)
    assert row["tokens"] >= 3000
    assert row["sha256"] == load_sae("small", session).weight_hash
    assert shipped_for(session) == "small"
    with pytest.raises(ValueError, match="no local folder"):
        keep_card("elsewhere:nothing", [measured], {})
