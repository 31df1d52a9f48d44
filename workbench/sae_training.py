"""Training an SAE with SAELens on activations of a session's model, so that it can stop and go on.

SAELens has the architectures, the loss, the optimiser and the trainer's state; what is here is where the activations
come from, when a checkpoint is written, and what is recorded about the result.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sparselens.workbench.activations import Stream
from sparselens.workbench.session import Session

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainingSAE
    from sae_lens.training.sae_trainer import SAETrainer

ARCHITECTURES = ("topk", "batchtopk", "jumprelu", "matching_pursuit", "standard")
RECORD = "sparselens.json"
CHECKPOINT = "checkpoint"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How an SAE is trained: on what, which kind, how long.

    `architecture` one of `ARCHITECTURES`, as SAELens has them; `features` is the width of the dictionary, `k` the
    active features a token (`topk`, `batchtopk`; the most in `matching_pursuit`), `sparsity` the coefficient of the
    penalty of `standard` (L1) and `jumprelu` (L0). `tokens` counts training vectors; `every` blocks a checkpoint is
    written. The learning rate warms up over the first 5 % and falls to zero over the last 20 %.
    """

    stream: Stream
    architecture: str = "topk"
    features: int = 2304
    k: int = 32
    sparsity: float = 1.0
    tokens: int = 1_000_000
    learning_rate: float = 1e-3
    every: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"an SAE is one of {', '.join(ARCHITECTURES)}, not {self.architecture!r}")
        if min(self.features, self.k, self.tokens) < 1:
            raise ValueError("features, k and tokens are 1 or more")
        if self.tokens < self.stream.batch:
            raise ValueError(f"tokens is at least one batch of {self.stream.batch}, not {self.tokens}")

    def to_json(self) -> dict[str, Any]:
        """Return the recipe in JSON's types; two recipes that differ train different SAEs."""
        record = asdict(self)
        record["stream"] = {**asdict(self.stream), "site": self.stream.site.name}
        if not isinstance(self.stream.text, str):
            record["stream"]["text"] = f"{len(self.stream.text)} texts"
        return record


def train(
    session: Session,
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    half: bool = False,
    say: Say = lambda _: None,
) -> Path:
    """Train an SAE and write it to `folder` as SAELens does (`cfg.json`, `sae_weights.safetensors`); returns it.

    With `resume` the last checkpoint in the folder is taken up; the result is the same as without a break. `half`: the
    weights are stored as float16, at half the size; they are float32 again wherever they are loaded. Raises
    `ValueError` on a folder that holds an SAE already, or another recipe's checkpoint.
    """
    _refuse(folder, recipe, session, resume=resume)
    torch.manual_seed(recipe.stream.seed)
    trainer = _trainer(session, recipe)
    block = 0
    checkpoint = folder / CHECKPOINT
    if resume and (checkpoint / "block.json").exists():
        block = _take_up(trainer, checkpoint)
        say(f"going on at {trainer.n_training_samples:,} of {recipe.tokens:,} tokens")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(_record(session, recipe), indent=1) + "\n")
    if block == 0:
        _start(trainer, session, recipe)
    batches = recipe.stream.batches(session, block)
    while trainer.n_training_samples < recipe.tokens:
        for _ in range(recipe.stream.batches_a_block):
            if trainer.n_training_samples >= recipe.tokens:
                break
            step = trainer.step(next(batches))
            trainer.n_training_steps += 1
        block += 1
        say(_progress(trainer, step, recipe))
        if block % recipe.every == 0:
            _keep(trainer, checkpoint, block)
    _finish(trainer, session, recipe, folder)
    if half:
        halve(folder)
    return folder


def _refuse(folder: Path, recipe: Recipe, session: Session, *, resume: bool) -> None:
    if (folder / "cfg.json").exists():
        raise ValueError(f"{folder} holds an SAE already: give another folder")
    if not (folder / RECORD).exists():
        return
    if not resume:
        raise ValueError(
            f"{folder} holds a training that was interrupted: go on with --resume, or give another folder"
        )
    before = json.loads((folder / RECORD).read_text())
    if before != _record(session, recipe):
        changed = [
            key
            for key, value in _record(session, recipe)["recipe"].items()
            if before["recipe"].get(key) != value
        ]
        raise ValueError(
            f"{folder} was trained otherwise ({', '.join(changed) or 'another model'}): give another folder"
        )


def _record(session: Session, recipe: Recipe) -> dict[str, Any]:
    """Return what is known before training: the recipe and the model."""
    provenance = session.provenance
    return {
        "recipe": json.loads(json.dumps(recipe.to_json())),
        "model": provenance.name,
        "weight_hash": provenance.weight_hash,
        "tokenizer_hash": provenance.tokenizer_hash,
    }


def _trainer(session: Session, recipe: Recipe) -> SAETrainer[Any, Any]:
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps = recipe.tokens // recipe.stream.batch
    config = SAETrainerConfig(
        total_training_samples=recipe.tokens,
        train_batch_size_samples=recipe.stream.batch,
        lr=recipe.learning_rate,
        lr_end=recipe.learning_rate / 10,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        device="cpu" if session.device.type == "cpu" else str(session.device),
        dead_feature_window=max(1, steps // 8),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(config, _untrained(session, recipe), iter(()))


def _untrained(session: Session, recipe: Recipe) -> TrainingSAE[Any]:
    """Return SAELens' training SAE of a recipe, named after the site and the model."""
    from sae_lens.registry import get_sae_training_class
    from sae_lens.saes.sae import SAEMetadata

    made, config = get_sae_training_class(recipe.architecture)
    kinds: dict[str, dict[str, Any]] = {
        "topk": {"k": recipe.k},
        "batchtopk": {"k": float(recipe.k)},
        "jumprelu": {
            "l0_coefficient": recipe.sparsity,
            "l0_warm_up_steps": recipe.tokens // recipe.stream.batch // 4,
        },
        "standard": {
            "l1_coefficient": recipe.sparsity,
            "l1_warm_up_steps": recipe.tokens // recipe.stream.batch // 20,
        },
        "matching_pursuit": {"max_iterations": recipe.k, "decoder_init_norm": 1.0},
    }
    chosen = kinds[recipe.architecture]
    site = recipe.stream.site
    metadata = SAEMetadata(
        model_name=session.provenance.name, hook_name=site.name, context_size=recipe.stream.context
    )
    reshape = "hook_z" if site.kind == "hook_z" else "none"
    settings = config(
        d_in=site.width(session), d_sae=recipe.features, reshape_activations=reshape, metadata=metadata,
        **chosen, **recipe.options,
    )  # fmt: skip
    sae: TrainingSAE[Any] = made(settings)
    sae.turn_off_forward_pass_hook_z_reshaping()  # vectors come with their heads concatenated
    return sae


@torch.no_grad()
def _start(trainer: SAETrainer[Any, Any], session: Session, recipe: Recipe) -> None:
    """Find the factor that gives the site's vectors the norm that SAELens trains at, and begin where the vectors lie.

    The factor is folded in at the end; matching pursuit, whose one dictionary has unit norm, takes vectors as they are.
    The bias begins at the mean of the first block, the dictionary at some of its vectors: from a random one most
    features never win a place among the active ones.
    """
    blocks = islice(recipe.stream.batches(session), recipe.stream.batches_a_block)
    vectors = torch.cat(list(blocks)).to(trainer.sae.device)
    if recipe.architecture != "matching_pursuit":
        factor = vectors.shape[1] ** 0.5 / float(vectors.norm(dim=-1).mean())
        trainer.activation_scaler.scaling_factor = factor
        vectors = vectors * factor
    sae: Any = trainer.sae
    sae.b_dec.copy_(vectors.mean(0))
    found = torch.nn.functional.normalize(vectors[: recipe.features] - sae.b_dec, dim=-1)
    sae.W_dec[: len(found)] = found * sae.W_dec.norm(dim=-1).mean()
    if hasattr(sae, "W_enc"):
        sae.W_enc.copy_(sae.W_dec.T)


def _keep(trainer: SAETrainer[Any, Any], checkpoint: Path, block: int) -> None:
    """Write the trainer's state beside the last one, then put it in its place."""
    fresh = checkpoint.with_name(checkpoint.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    trainer.sae.save_model(fresh)
    trainer.save_trainer_state(fresh)
    (fresh / "block.json").write_text(json.dumps({"block": block}))
    shutil.rmtree(checkpoint, ignore_errors=True)
    fresh.rename(checkpoint)


def _take_up(trainer: SAETrainer[Any, Any], checkpoint: Path) -> int:
    """Load the trainer's state; returns the block to go on with."""
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "sae_weights.safetensors")
    trainer.sae.process_state_dict_for_loading(weights)
    trainer.sae.load_state_dict(weights)
    trainer.load_trainer_state(checkpoint)
    return int(json.loads((checkpoint / "block.json").read_text())["block"])


@torch.no_grad()
def _progress(trainer: SAETrainer[Any, Any], step: Any, recipe: Recipe) -> str:
    active = float((step.feature_acts != 0).float().sum(-1).mean())
    error = (step.sae_in - step.sae_out).pow(2).sum(-1).mean()
    variance = (step.sae_in - step.sae_in.mean(0)).pow(2).sum(-1).mean()
    dead = int(trainer.dead_neurons.sum())
    return (
        f"{trainer.n_training_samples:,} of {recipe.tokens:,} tokens: explained {1 - float(error / variance):.1%},"
        f" {active:.0f} features a token, {dead} dead"
    )


def halve(folder: Path) -> None:
    """Store the weights of the SAE in a folder as float16, and say so in its record."""
    from safetensors.torch import load_file, save_file

    file = folder / "sae_weights.safetensors"
    save_file({name: weights.half() for name, weights in load_file(file).items()}, file)
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | {"stored": "float16"}, indent=1) + "\n")


def _finish(trainer: SAETrainer[Any, Any], session: Session, recipe: Recipe, folder: Path) -> None:
    """Write the SAE for inference and what it was trained on; the checkpoint goes."""
    trainer.set_final_sae_metadata()
    if trainer.activation_scaler.scaling_factor is not None:
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    trainer.sae.save_inference_model(folder)
    record = _record(session, recipe) | {"tokens": trainer.n_training_samples}
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
