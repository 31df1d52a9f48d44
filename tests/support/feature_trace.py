"""A trace with features: of a real small model, a real SAE trained on it, a base and two windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from small_session import small_session

from sparselens.analyses.analysis import analyses
from sparselens.workbench.activations import Stream
from sparselens.workbench.sae_training import Recipe, train
from sparselens.workbench.site import Site

TEXTS = [" ".join(f"word{(7 * text + place) % 31}" for place in range(300)) for text in range(20)]
PROMPTS = [
    {
        "id": f"p{number}",
        "token_ids": np.random.default_rng(number).integers(5, 2900, 40).tolist(),
        "answer": " cat",
        "group": f"g{number}",
    }
    for number in range(2)
]


def write_features(path: Path) -> None:
    """Capture two prompts under a base and two windows, and compare the narrow one's features with the base's."""
    session = small_session()
    stream = Stream(Site.of(session, "blocks.1.attn.hook_z"), text=TEXTS, context=32, block=20, batch=128)
    recipe = Recipe(stream, features=64, k=8, tokens=4000, learning_rate=3e-3)
    sae = train(session, recipe, path.parent / f"{path.name}-sae")
    policies = ["a_shape(sink=1,window=4)", "a_shape(sink=1,window=8)"]
    runs = session.capture(PROMPTS, policies=policies, trace=path, progress=False)
    analyses()["features"].run(session, path, run=runs[1].run_id, sae=str(sae))
