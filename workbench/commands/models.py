"""`sparselens models`: which models work without a hub."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False) -> None:
    """List the models that need no hub; any Hugging Face id, local folder or GGUF file works too."""
    from sparselens.workbench.listing import show
    from sparselens.workbench.models import MODELS

    show(
        [
            {
                "name": model.name,
                "megabytes": round(model.size / 1e6, 1),
                "from": model.revision,
                "card": model.card,
            }
            for model in MODELS.values()
        ],
        as_json=as_json,
    )


COMMAND = models
