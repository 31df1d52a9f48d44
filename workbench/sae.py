"""SAEs of SAELens on a session's model: loaded, checked against the model, and as plain matrices.

An SAE is named by a folder in SAELens' format, by `RELEASE:SAE_ID` of SAELens' directory, or by the name of one that
is shipped with SparseLens (`shipped_saes`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sparselens.workbench.provenance import files_hash
from sparselens.workbench.sae_training import RECORD
from sparselens.workbench.session import Session
from sparselens.workbench.site import Site

if TYPE_CHECKING:
    from sae_lens import SAE

SHIPPED = Path(__file__).parent / "saes"
WEIGHTS = "sae_weights.safetensors"
CARD = "card.json"


def shipped_saes() -> tuple[str, ...]:
    """Return the names of the SAEs that come with SparseLens."""
    return tuple(sorted(path.parent.name for path in SHIPPED.glob("*/cfg.json")))


def folder_of(source: str | Path) -> Path:
    """Return the folder of a shipped name, or the path that was given."""
    return SHIPPED / str(source) if str(source) in shipped_saes() else Path(source).expanduser()


def shipped_for(session: Session) -> str:
    """Return the name of the SAE that comes with a session's weights; `ValueError` where none does."""
    for name in shipped_saes():
        if _record_of(SHIPPED / name).get("weight_hash") == session.provenance.weight_hash:
            return name
    raise ValueError(
        f"no SAE comes with {session.provenance.name}: give sae=FOLDER or sae=RELEASE:SAE_ID;"
        " `sparselens sae train` makes one"
    )


def described() -> list[dict[str, Any]]:
    """Return a row for each shipped SAE and policy it was measured under; `sha256` of its weights."""
    rows = []
    for name in shipped_saes():
        folder = SHIPPED / name
        record, config = _record_of(folder), json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
        kept = json.loads((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).exists() else {}
        about = {
            "name": name,
            "model": record["model"],
            "hook": config["metadata"]["hook_name"],
            "kind": config["architecture"],
            "features": config["d_sae"],
            "tokens": record["tokens"],
            "sha256": files_hash([folder / WEIGHTS]),
        }
        names = ("policy", "l0", "explained", "dead", "recovered_zero", "recovered_mean", "n", "tokens")
        measured = [{each: row[each] for each in names} for row in kept.get("rows", [])] or [{}]
        rows += [
            about | {"measured on" if key == "tokens" else key: row[key] for key in row} for row in measured
        ]
    return rows


def keep_card(source: str | Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> Path:
    """Write what was measured of an SAE, and the sha256 of its weights, into its folder; returns the file.

    Raises `ValueError` where it has no folder.
    """
    folder = folder_of(source)
    if not (folder / "cfg.json").exists():
        raise ValueError(f"{source} is no local folder: there is nowhere to keep its card")
    kept = {"sha256": files_hash([folder / WEIGHTS]), **about, "rows": rows}
    (folder / CARD).write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return folder / CARD


def _record_of(folder: Path) -> dict[str, Any]:
    """Return what is known of the training of the SAE in a folder; empty where nothing is."""
    file = folder / RECORD
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return record


@dataclass(eq=False)
class Sae:
    """An SAE on one site of a model. Vectors are `[n, width]`, features `[n, features]`, float32.

    `name` is what it was asked for, `weight_hash` the sha256 of its weights, `record` what is known of its training.
    """

    inner: SAE[Any]
    site: Site
    name: str
    weight_hash: str | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def features(self) -> int:
        """The width of the dictionary."""
        return int(self.inner.cfg.d_sae)

    @property
    def architecture(self) -> str:
        """SAELens' name of the kind."""
        return str(self.inner.cfg.architecture())

    @torch.no_grad()
    def encode(self, vectors: Tensor) -> Tensor:
        """Return the activations of all features."""
        found: Tensor = self.inner.encode(vectors.float().to(self.inner.device))
        return found.to_dense() if found.is_sparse else found

    @torch.no_grad()
    def decode(self, activations: Tensor) -> Tensor:
        """Return the reconstruction of some activations."""
        found: Tensor = self.inner.decode(activations)
        return found

    def reconstructed(self, vectors: Tensor) -> Tensor:
        """Return the reconstruction of vectors `[…, width]`, in their type and shape."""
        flat = vectors.reshape(-1, vectors.shape[-1])
        return self.decode(self.encode(flat)).to(vectors.dtype).view(vectors.shape)

    @cached_property
    def encoder(self) -> tuple[Tensor, Tensor]:
        """Weights `[width, features]` and bias `[features]` of the pre-activation `vectors @ weights + bias`.

        Raises `ValueError` for a kind whose pre-activation is not linear in the vector (matching pursuit, gated, or
        one that normalises each vector).
        """
        if self.architecture not in ("standard", "topk", "jumprelu"):
            raise ValueError(
                f"the pre-activation of a {self.architecture} SAE is not linear in what it reads"
            )
        if self.inner.cfg.normalize_activations in ("layer_norm", "constant_norm_rescale"):
            raise ValueError(f"{self.name} normalises each vector: its pre-activation is not linear in it")
        weights = self.inner.W_enc.detach().float()
        bias = self.inner.b_enc.detach().float()
        if self.inner.cfg.apply_b_dec_to_input:
            bias = bias - self.inner.b_dec.detach().float() @ weights
        if getattr(self.inner.cfg, "rescale_acts_by_decoder_norm", False):
            norm = self.inner.W_dec.detach().float().norm(dim=-1)
            return weights * norm, bias * norm
        return weights, bias

    @cached_property
    def decoder(self) -> Tensor:
        """What each feature writes: `[features, width]`."""
        weights: Tensor = self.inner.W_dec.detach().float()
        return weights

    def head_shares(self, heads: int) -> Tensor:
        """Return each head's share of a feature's decoder norm `[features, heads]`; rows sum to 1.

        ‖W_dec[f, head]‖ ÷ Σ over heads (Kissane et al., arXiv 2406.17759); `hook_z` alone.
        """
        if self.site.kind != "hook_z":
            raise ValueError(f"heads are told apart on hook_z, not on {self.site.name}")
        norms = self.decoder.view(self.features, heads, -1).norm(dim=-1)
        shares: Tensor = norms / norms.sum(1, keepdim=True).clamp(min=torch.finfo(norms.dtype).tiny)
        return shares


def load_sae(source: str | Path, session: Session, *, hook: str | None = None) -> Sae:
    """Return the SAE `source` for a session: a folder, `RELEASE:SAE_ID`, or a shipped name.

    `hook` names the site where the SAE's own record does not. Raises `ValueError` where there is no such SAE, where it
    sits on another kind of hook or on another one than `hook`, has another width than the model's site, or was trained
    on other weights.
    """
    inner, folder = _read(source, session)
    site = Site.of(session, _hook(inner, str(source), hook))
    width = site.width(session)
    if int(inner.cfg.d_in) != width:
        raise ValueError(
            f"the SAE {source} reads vectors of {inner.cfg.d_in}; {site.name} of this model has {width}"
        )
    record, digest = {}, None
    if folder is not None:
        digest, record = files_hash([folder / WEIGHTS]), _record_of(folder)
    trained_on = record.get("weight_hash")
    if trained_on is not None and trained_on != session.provenance.weight_hash:
        raise ValueError(
            f"the SAE {source} was trained on {record.get('model')} with weights {trained_on[:12]};"
            f" this model's are {session.provenance.weight_hash[:12]}"
        )
    if getattr(inner, "hook_z_reshaping_mode", False):
        inner.turn_off_forward_pass_hook_z_reshaping()  # vectors come with their heads concatenated
    return Sae(inner.eval(), site, str(source), digest, record)


def _read(source: str | Path, session: Session) -> tuple[SAE[Any], Path | None]:
    """Return SAELens' object and the folder it came from (None from the hub)."""
    import sae_lens

    folder = folder_of(source)
    if (folder / "cfg.json").exists():
        return sae_lens.SAE.load_from_disk(str(folder), device=str(session.device), dtype="float32"), folder
    release, colon, sae_id = str(source).partition(":")
    if not colon or folder.exists():
        raise ValueError(
            f"no SAE in {str(source)!r}: give a folder with cfg.json, RELEASE:SAE_ID of SAELens,"
            f" or one of {', '.join(shipped_saes()) or '(none is shipped)'}"
        )
    return sae_lens.SAE.from_pretrained(release, sae_id, device=str(session.device)), None


def _hook(inner: SAE[Any], source: str, asked: str | None) -> str:
    """Return the hook that an SAE was trained on, or the one that is asked for where it does not say."""
    own = inner.cfg.metadata.hook_name
    if own and asked and asked != own:
        raise ValueError(f"the SAE {source} was trained on {own}, not on {asked}: leave the hook out")
    if not own and not asked:
        raise ValueError(f"the SAE {source} does not say which hook it was trained on: give one")
    return str(own or asked)
