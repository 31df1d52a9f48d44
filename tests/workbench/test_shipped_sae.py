"""The SAE that comes with SparseLens belongs to the default model, is what its card says, and is of use."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from sparselens.analyses.features.sae_quality import quality
from sparselens.workbench.corpus import documents, windows
from sparselens.workbench.models import load
from sparselens.workbench.sae import CARD, SHIPPED, described, load_sae, shipped_for, shipped_saes
from sparselens.workbench.session import Session


@pytest.fixture(scope="module")
def session() -> Session:
    return load("smollm2-135m")


def test_every_shipped_sae_has_a_card_of_its_own_weights() -> None:
    assert shipped_saes()
    for row in described():
        kept = json.loads((SHIPPED / row["name"] / CARD).read_text(encoding="utf-8"))
        assert kept["sha256"] == row["sha256"]
        assert {each["policy"] for each in kept["rows"]} > {"dense"}
        assert row["measured on"] >= 1000


def test_the_default_model_has_one(session: Session) -> None:
    name = shipped_for(session)
    sae = load_sae(name, session)
    assert sae.weight_hash == next(row["sha256"] for row in described() if row["name"] == name)
    assert sae.record["weight_hash"] == session.provenance.weight_hash


def test_it_describes_text_that_it_was_not_trained_on(session: Session) -> None:
    sae = load_sae(shipped_for(session), session)
    chosen = list(islice(windows(documents("python", held_out=True), session.tokenizer, 128), 8))
    found = quality(session, sae, chosen)
    assert found.l0.mean <= 32
    assert found.explained.low > 0.5
    assert found.recovered_mean.low > 0.5
