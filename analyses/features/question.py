"""`features`: what an SAE sees of a run and of its base, on the same tokens.

Runs the model that is recorded under the base's and the run's policy, encodes every token at the SAE's site, and
stores the strongest features, what wrote them, and what became of each feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparselens.analyses.analysis import Analysis, Findings, Setting
from sparselens.analyses.features.rows import DEFINITIONS, diff_rows, pair_of, run_rows, sae_row
from sparselens.analyses.features.show import show
from sparselens.analyses.runs import carried
from sparselens.storage.reader import connect

if TYPE_CHECKING:
    from sparselens.analyses.features.measure import Ask
    from sparselens.workbench.prompt import Prompt
    from sparselens.workbench.sae import Sae


@dataclass(frozen=True)
class Features:
    """The SAE (`sae`, empty: the one shipped for the model; `hook` where it does not say its own), the run, its base.

    `base` is the run's own base unless given. Of each token the `top` strongest features are stored, of the best
    `sourced` of them the `keys` largest parts by head and source token. `prompts` 0: all prompts of the run.
    """

    run: str = ""
    base: str = ""
    sae: str = ""
    hook: str = ""
    top: int = 32
    sourced: int = 2
    keys: int = 8
    prompts: int = 0

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("features compares a captured run with its base: name it with --run")
        for name in ("top", "sourced", "keys"):
            if getattr(self, name) < 1:
                raise ValueError(f"features: {name} is 1 or more, not {getattr(self, name)}")


def find(setting: Setting) -> Findings:
    """Encode every prompt under both policies; `ValueError` where the SAE does not fit the model."""
    from sparselens.analyses.features.measure import Ask
    from sparselens.workbench.progress import Progress
    from sparselens.workbench.sae import load_sae, shipped_for

    chosen: Features = setting.parameters
    run, base = pair_of(setting.trace, chosen.run, chosen.base)
    sae = load_sae(chosen.sae or shipped_for(setting.model), setting.model, hook=chosen.hook or None)
    prompts = _prompts(setting)
    ask = Ask(chosen.top, chosen.sourced, chosen.keys)
    units = []
    with Progress(len(prompts), 2 * sum(len(each) for each in prompts), enabled=setting.progress) as bar:
        for prompt in prompts:
            bar.says(f"features · {prompt.name}")

            def compute(prompt: Prompt = prompt) -> dict[str, Any]:
                return _unit(setting, sae, prompt, ask)

            units.append((prompt, setting.ledger.once(f"{sae.weight_hash} {ask} {prompt.id}", compute)))
            bar.advance(2 * len(prompt))
            bar.finished_prompt()
    rows = [("saes", sae_row(sae))]
    for side, one in (("a", base), ("b", run)):
        rows += run_rows(units, side, sae, one.run_id, run.run_id)
    rows += diff_rows(units, sae, base.run_id, run.run_id)
    definitions = {"extra": {"definitions": DEFINITIONS}}
    return Findings(rows, carried(run.record) | {"parents": [run.run_id, base.run_id]} | definitions)


def _prompts(setting: Setting) -> list[Prompt]:
    """Return the prompts that both runs have, in the order of their ids; `ValueError` where there is none."""
    from sparselens.workbench.rerun import stored_prompts

    chosen: Features = setting.parameters
    run, base = pair_of(setting.trace, chosen.run, chosen.base)
    with connect(setting.trace.path) as connection:
        stored = [each for each in stored_prompts(connection, run) if each.id in set(base.prompt_ids)]
    if not stored:
        raise ValueError(f"features: {run.record.name} and {base.record.name} have no prompt in common")
    stored.sort(key=lambda prompt: prompt.id)
    return stored[: chosen.prompts or len(stored)]


def _unit(setting: Setting, sae: Sae, prompt: Prompt, ask: Ask) -> dict[str, Any]:
    """Return all numbers of one prompt."""
    from sparselens.analyses.features.measure import Encoded, prompt_numbers
    from sparselens.kernels.kernel import kernel
    from sparselens.workbench.decode import decoded_tokens
    from sparselens.workbench.recorded import recorded_policy

    sides = []
    for each in reversed(pair_of(setting.trace, setting.parameters.run, setting.parameters.base)):
        steps = decoded_tokens(prompt, each.record.args.get("decode")) or None
        sides.append(
            Encoded.of(
                setting.model,
                sae,
                prompt,
                recorded_policy(each),
                kernel(each.record.kernel or "blocked"),
                steps,
            )
        )
    base, run = sides
    return prompt_numbers(base, run, prompt, sae, setting.model, ask)


def cost(setting: Setting) -> str:
    """Return what the analysis will run."""
    prompts = _prompts(setting)
    tokens = sum(len(each) for each in prompts)
    return f"{len(prompts)} prompts ({tokens:,} tokens) under base and policy, one forward pass each"


ANALYSIS = Analysis(
    name="features",
    question="which SAE features does a policy keep, lose or bring in, and which dropped keys fed them?",
    parameters=Features,
    find=find,
    cost=cost,
    show=show,
    model_of_run=True,
)
