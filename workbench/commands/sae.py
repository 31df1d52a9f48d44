"""`sparselens sae`: train an SAE with SAELens, measure one, read the card of a feature."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sparselens.analyses.features.card import Card

COMMAND = typer.Typer(
    no_args_is_help=True, help="Sparse autoencoders on attention outputs and the residual stream."
)


@COMMAND.command()
def train(
    out: Annotated[Path, typer.Argument(help="The folder that the SAE is written to.")],
    hook: Annotated[
        str,
        typer.Option(help="blocks.L.attn.hook_z, blocks.L.hook_attn_out, blocks.L.hook_resid_pre or _post."),
    ],
    model: Annotated[str, typer.Option(help="A name of `models`, a hub id, a folder.")] = "smollm2-135m",
    architecture: Annotated[
        str, typer.Option(help="topk, batchtopk, jumprelu, matching_pursuit or standard.")
    ] = "topk",
    features: Annotated[int, typer.Option(help="Width of the dictionary.")] = 2304,
    k: Annotated[
        int, typer.Option(help="Active features a token (topk, batchtopk; at most in matching_pursuit).")
    ] = 32,
    sparsity: Annotated[
        float, typer.Option(help="Coefficient of the penalty (standard: L1, jumprelu: L0).")
    ] = 1.0,
    tokens: Annotated[int, typer.Option(help="Vectors to train on.")] = 1_000_000,
    text: Annotated[
        str, typer.Option(help="A file or folder of text; 'python': the standard library and its manual.")
    ] = "python",
    context: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    batch: Annotated[int, typer.Option(help="Vectors of a step.")] = 512,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate of Adam.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights and order of the text.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a training that was interrupted.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights as float16.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Train an SAE; Ctrl-C loses no more than the blocks since the last checkpoint (--resume goes on)."""
    from sparselens.workbench.activations import Stream
    from sparselens.workbench.models import load
    from sparselens.workbench.sae_training import Recipe
    from sparselens.workbench.sae_training import train as run
    from sparselens.workbench.site import Site

    session = load(model, device=device)
    stream = Stream(
        Site.of(session, hook), text, context=context, batch=batch, seed=seed, block=_windows(context, batch)
    )
    recipe = Recipe(stream, architecture, features, k, sparsity, tokens, learning_rate)
    run(session, recipe, out, resume=resume, half=half, say=lambda line: print(line, file=sys.stderr))
    print(out)


def _windows(context: int, batch: int) -> int:
    """Return how many windows are shuffled together: those of 16,384 vectors, or of four batches."""
    return -(-max(16_384, 4 * batch) // (context - 1))


@COMMAND.command()
def ls(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """List the SAEs that come with SparseLens, with what was measured of them."""
    from sparselens.workbench.listing import show
    from sparselens.workbench.sae import described

    show(described(), as_json=as_json, empty="none is shipped")


@COMMAND.command()
def card(
    source: Annotated[str, typer.Argument(help="A folder, RELEASE:SAE_ID of SAELens, or a shipped name.")],
    model: Annotated[str, typer.Option(help="A name of `models`, a hub id, a folder.")] = "smollm2-135m",
    policy: Annotated[list[str] | None, typer.Option(help="Also under these policies.")] = None,
    hook: Annotated[str | None, typer.Option(help="The hook, where the SAE does not say it.")] = None,
    text: Annotated[
        str, typer.Option(help="Its held-out part is measured: a file, a folder, or 'python'.")
    ] = "python",
    windows: Annotated[int, typer.Option(min=2, help="Windows of text.")] = 16,
    context: Annotated[int, typer.Option(min=8, help="Tokens of a window.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    keep: Annotated[bool, typer.Option("--keep", help="Write the numbers into the SAE's folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list of objects.")] = False,
) -> None:
    """Measure an SAE on text that it was not trained on: sparsity, reconstruction, loss recovered."""
    from itertools import islice

    from sparselens.analyses.features.sae_quality import quality
    from sparselens.workbench.corpus import documents
    from sparselens.workbench.corpus import windows as cut
    from sparselens.workbench.listing import show
    from sparselens.workbench.models import load
    from sparselens.workbench.sae import keep_card, load_sae

    session = load(model, device=device)
    sae = load_sae(source, session, hook=hook)
    chosen = list(islice(cut(documents(text, held_out=True), session.tokenizer, context), windows))
    rows = [quality(session, sae, chosen, each).row() for each in ("dense", *(policy or ()))]
    show(rows, as_json=as_json)
    if keep:
        note = keep_card(source, rows, {"text": text, "windows": windows, "context": context})
        print(f"kept in {note}", file=sys.stderr)
    trained = sae.record.get("tokens")
    about = f"{sae.name} on {sae.site.name}: {sae.architecture}, {sae.features} features"
    print(f"{about}, trained on {trained:,} tokens" if trained else about, file=sys.stderr)


@COMMAND.command()
def feature(
    number: Annotated[int, typer.Argument(help="The feature, from 0.")],
    trace: Annotated[
        Path, typer.Option(help="The trace folder, in which `analyse features` has stored rows.")
    ],
    sae: Annotated[str, typer.Option(help="The SAE's hash or its beginning. [the only one]")] = "",
    run: Annotated[str, typer.Option(help="The run that is looked at. [the base]")] = "",
    top: Annotated[int, typer.Option(min=1, help="Examples and token texts.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Show the card of a feature: top examples, tokens, the heads that write it, what runs change."""
    import json
    from dataclasses import asdict

    from sparselens.analyses.features.card import card as read
    from sparselens.storage.reader import connect
    from sparselens.workbench.listing import show

    with connect(trace) as connection:
        found = read(connection, number, sae=sae, run=run, top=top, tokens=top)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
        return
    print(f"feature {found.feature} of {found.name} on {found.hook}, in {found.run} ({found.policy})")
    print(
        f"active on {found.n_active:,} of {found.n_tokens:,} tokens, mean {found.mean:.3g}, largest {found.largest:.3g}"
        + (f"; {found.unstored:.1%} of all activation is not stored" if found.unstored else "")
    )
    for title, rows in _tables(found):
        print(f"\n{title}")
        show(rows, empty="none")


def _tables(found: Card) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the tables of a card with their titles."""
    examples = [
        {
            "activation": each.activation,
            "prompt": each.prompt,
            "pos": each.pos,
            "text": f"{each.before}⟦{each.token}⟧{each.after}".replace("\n", "⏎"),
            "written by": "; ".join(
                f"H{part['head']} ← {part['text']!r} {part['value']:.2g}{' (dropped)' if part['dropped'] else ''}"
                for part in each.sources[:2]
            ),
        }
        for each in found.examples
    ]
    heads = [{**row, "head": f"L{found.layer}H{row['head']}"} for row in found.heads]
    told = (
        f"heads, over the {found.n_told} tokens whose parts are stored (pre-activations sum to {found.pre:.3g},"
        f" {found.untold:.3g} of it not stored)"
    )
    tokens = [{**row, "token": repr(row["token"])} for row in found.tokens]
    return [("strongest", examples), ("on tokens", tokens), (told, heads), ("changes", list(found.changes))]
