"""Which plan of streaming heads keeps the answers, and what sink tokens are worth, at equal density.

    python benchmarks/plans.py [--gates NAME=FILE …] [--resume DIR]

Plans of DuoAttention (a flag each key-value head) by optimised gates, by two rankings of heads, and at random,
against a uniform A-shape whose window is widened to the same measured density. Then windows with four sink tokens
against windows without, the same number of keys in every row. `smollm2-135m`, 512 tokens, one thread; about an hour.

Gates are calibrated with the defaults of `sparselens calibrate duo_attention` unless files are given (NAME `gates` is
the one that others are compared with). Rankings are measured on needles of two families, all plans tested on six
others. A ranking of query heads becomes one of key-value heads by the largest score of the group. Intervals are 95 %
bootstraps over whole families (prose: over prompts), differences paired by prompt. What was expected stands in
`EXPECTED`, written before the first run. Writes `benchmarks/results/plans.json`; numbers of single prompts are kept in
the user's cache, so that an interrupted run goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path

# beside this file lies `kernels.py`, and transformers imports a package of that name
HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import platformdirs
import torch

from sparselens.analyses.cause.plan import drawn
from sparselens.analyses.cause.ranking import ranking_numbers
from sparselens.analyses.interval import clustered_mean
from sparselens.analyses.ledger import Ledger
from sparselens.analyses.stage import OUTCOMES, outcome
from sparselens.kernels.kernel import Kernel, kernel
from sparselens.kernels.plan import Plan, read_plan
from sparselens.kernels.policies.duo_attention import retrieval_heads
from sparselens.kernels.policy import parse
from sparselens.workbench.calibration import calibration
from sparselens.workbench.models import load
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.session import Session
from sparselens.workbench.widen import density_of, widened

MODEL = "smollm2-135m"
SINK, RECENT = 8, 64
STREAMING = f"a_shape(sink={SINK},window={RECENT})"
RANKED_ON = "needles(length=512,families=[magic_number,passkey],depths=[0.1,0.3,0.5,0.7],n=16,seed=11)"
TESTED_ON = (
    "needles(length=512,families=[city_fact,hidden_item,colour_code,meeting,ingredient,pet],"
    "depths=[0.1,0.3,0.5,0.7,0.8],n=24,seed=12)"
)
PROSE = "prose(length=512,n=16,seed=13)"
SHARES = (0.5, 0.75)
DRAWS = 3
MATCHED_AT = 0.5
WINDOWS = (64, 256)
EXPECTED = {
    "gates − random": "answer NLL below 0: the gates find the heads that retrieve",
    "gates − matched": "answer NLL below 0: also within each layer",
    "gates − uniform": "answer NLL below 0: some heads far is worth more than all heads a little further",
    "sinks − none": "NLL below 0, on prose and on needles: pretrained heads rest on the first token",
}
RESULTS = HERE / "results" / "plans.json"


@dataclass(eq=False)
class Bench:
    """The model, the prompts, and the numbers of single prompts as they are made."""

    session: Session
    kernel: Kernel
    ledger: Ledger
    folder: Path
    tested: list[Prompt] = field(init=False)
    prose: list[Prompt] = field(init=False)

    def __post_init__(self) -> None:
        self.tested, self.prose = (self.session.prompts(each) for each in (TESTED_ON, PROSE))
        _ = self.session.readout

    @torch.no_grad()
    def numbers(self, policy: str, prompts: Sequence[Prompt]) -> Any:
        """Return `[prompts, 4]`: the answer's `OUTCOMES` (NaN without one) and the mean NLL of all tokens."""
        plans = " ".join(json.dumps(plan.content) for plan in parse(policy).plans)
        found = []
        for prompt in prompts:
            compute = partial(self._one, policy, prompt)
            found.append(self.ledger.once(f"{policy} {plans} {prompt.id}", compute)["numbers"])
        return np.stack(found)

    def _one(self, policy: str, prompt: Prompt) -> dict[str, Any]:
        ids = torch.tensor([prompt.token_ids])
        decoder: Any = self.session.model.get_decoder()
        with self.session.under(policy, kernel=self.kernel):
            states = decoder(input_ids=ids, use_cache=False).last_hidden_state[0]
        losses = torch.nn.functional.cross_entropy(self.session.readout.logits(states[:-1]), ids[0, 1:])
        answer = outcome(self.session, states, prompt) if prompt.answer_ids else [float("nan")] * 3
        print(f"{policy[-60:]:60} {prompt.name:40} {answer[0]:7.3f} {float(losses):7.3f}", flush=True)
        return {"numbers": [*answer, float(losses)]}

    def density(self, policy: str) -> float:
        """Return the density on a tested prompt; all have the same length, and the policies are static."""
        return density_of(self.session, parse(policy), self.kernel, self.tested[:1])

    def written(self, name: str, scores: Any) -> str:
        """Return the file of a plan that streams the key-value heads with the lowest `scores [layers, kv_heads]`."""
        low, high = float(np.min(scores)), float(np.max(scores))
        plan = Plan(
            "duo_attention", MODEL, self.session.provenance.weight_hash, self.session.n_layers, self.session.n_heads,
            self.session.n_kv_heads, {"scores": name}, {"gates": ((scores - low) / (high - low)).tolist()},
        )  # fmt: skip
        return str(plan.write(self.folder / f"{name.replace(' ', '-')}.json"))


def rankings(bench: Bench) -> dict[str, Any]:
    """Return the mean score of each key-value head by ranking: the largest of its query heads' `[layers, kv_heads]`."""
    names = ("write_error", "retrieval")
    base, policy = parse("dense"), parse(STREAMING)
    made = [
        bench.ledger.once(
            f"{STREAMING} ranks {prompt.id}",
            lambda prompt=prompt: ranking_numbers(bench.session, prompt, base, policy, bench.kernel, names),
        )
        for prompt in bench.session.prompts(RANKED_ON)
    ]
    answered = [each for each in made if bool(each["answered"])]
    shape = (bench.session.n_layers, bench.session.n_kv_heads, -1)
    found = {
        "write_error": np.mean([each["write_error"] for each in made], axis=0),
        "retrieval": np.mean([each["retrieval"] for each in answered], axis=0),
    }
    print(f"{len(answered)} of {len(made)} ranking prompts answered")
    return {name: scores.reshape(shape).max(-1) for name, scores in found.items()}


def random_scores(bench: Bench, seed: int, like: Plan | None, share: float) -> Any:
    """Return random scores; with `like` as many heads of each layer are highest as that plan keeps dense there."""
    shape = (bench.session.n_layers, bench.session.n_kv_heads)
    scores = np.random.default_rng(seed).random(shape)
    if like is None:
        return scores
    flags = np.array(retrieval_heads(like, share, None))
    heads = [(int(layer), int(head)) for layer, head in np.argwhere(flags)]
    for place in drawn(heads, [], shape, f"{seed} {share}"):
        scores[place] += 1
    return scores


def policies(bench: Bench, gates: Mapping[str, str], share: float) -> dict[str, str]:
    """Return the policies of one share of streaming heads, by name; the uniform one at the density of the gates."""
    ranked = rankings(bench)
    files = dict(gates) | {name: bench.written(name, scores) for name, scores in ranked.items()}
    like = read_plan(gates["gates"], "duo_attention")
    kinds = {"random": None} | ({"matched": like} if share == MATCHED_AT else {})
    for seed in range(DRAWS):
        for kind, match in kinds.items():
            name = f"{kind} {seed}"
            files[name] = bench.written(f"{name} {share}", random_scores(bench, seed, match, share))
    found = {
        name: f'duo_attention(plan="{file}",streaming={share},sink={SINK},recent={RECENT})'
        for name, file in files.items()
    }
    density = bench.density(found["gates"])
    wide, _ = widened(bench.session, parse(STREAMING), bench.kernel, bench.tested[:1], density)
    return found | {"uniform": str(wide)}


def said(values: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Return mean and interval over whole families; prompts without one stand alone."""
    found = clustered_mean(values, [prompt.group or prompt.id for prompt in prompts])
    return {
        "mean": found.mean, "low": found.low, "high": found.high, "n": found.n, "n_clusters": found.n_clusters
    }  # fmt: skip


def row(bench: Bench, policy: str) -> tuple[dict[str, Any], Any]:
    """Return a policy's line of the table, and its numbers by prompt."""
    found = bench.numbers(policy, bench.tested)
    columns = (*OUTCOMES, "nll")
    return {
        "policy": re.sub(r'plan="[^"]*/', 'plan="', policy),
        "density": bench.density(policy),
        **{name: said(found[:, at], bench.tested) for at, name in enumerate(columns)},
    }, found


def compared(bench: Bench, gates: Mapping[str, str], share: float) -> dict[str, Any]:
    """Return the table of one share, the differences to the gates, and how much the plans overlap."""
    named = policies(bench, gates, share)
    lines, numbers = {}, {}
    for name, policy in named.items():
        lines[name], numbers[name] = row(bench, policy)
    for kind in ("random", "matched"):
        if f"{kind} 0" in numbers:
            numbers[kind] = np.mean([numbers[f"{kind} {seed}"] for seed in range(DRAWS)], axis=0)
    differences = {
        f"gates − {name}": {
            column: said(numbers["gates"][:, at] - values[:, at], bench.tested)
            for at, column in enumerate((*OUTCOMES, "nll"))
        }
        for name, values in numbers.items()
        if name != "gates"
    }
    flags = {
        name: np.array(retrieval_heads(parse(policy).plans[0], share, None))
        for name, policy in named.items()
        if name != "uniform"
    }
    overlap = {
        f"{a} · {b}": float((flags[a] & flags[b]).sum() / (flags[a] | flags[b]).sum())
        for a, b in combinations(flags, 2)
    }
    return {"policies": lines, "differences": differences, "jaccard": overlap}


def sinks(bench: Bench) -> list[dict[str, Any]]:
    """Return, for each window, what four sink tokens change at the same number of keys in every row."""
    found = []
    for window in WINDOWS:
        pair = (f"a_shape(sink=4,window={window - 4})", f"sliding_window(window={window})")
        line: dict[str, Any] = {"policies": pair, "density": [bench.density(policy) for policy in pair]}
        for name, prompts, columns in (
            ("prose", bench.prose, {"nll": 3}),
            ("needles", bench.tested, {"nll": 3, "answer_nll": 0, "whole_answer": 2}),
        ):
            base, with_sinks, without = (bench.numbers(policy, prompts) for policy in ("dense", *pair))
            for column, at in columns.items():
                line[f"{name} {column}"] = {
                    "dense": said(base[:, at], prompts),
                    "with": said(with_sinks[:, at], prompts),
                    "without": said(without[:, at], prompts),
                    "sinks − none": said(with_sinks[:, at] - without[:, at], prompts),
                }
        found.append(line)
    return found


def gates_of(given: Sequence[str], bench: Bench) -> dict[str, str]:
    """Return the plans of gates by name: the files given, or a calibration with its defaults, made once."""
    if given:
        found = dict(each.split("=", 1) for each in given)
        if "gates" not in found:
            raise SystemExit("--gates gates=FILE names the plan that others are compared with")
        return found
    file = bench.folder / "gates.json"
    if not file.exists():
        calibration("duo_attention").plan(bench.session, lambda line: print(line, flush=True)).write(file)
    return {"gates": str(file)}


def show(result: Mapping[str, Any]) -> None:
    """Print the tables."""

    def cell(value: Mapping[str, Any]) -> str:
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"

    for share, part in result["shares"].items():
        print(f"\nstreaming {share}")
        for name, line in part["policies"].items():
            print(
                f"  {name:14} {line['density']:.3f}  " + "  ".join(cell(line[column]) for column in OUTCOMES)
            )
        for name, line in part["differences"].items():
            print(f"  {name:24} " + "  ".join(cell(line[column]) for column in OUTCOMES))
    for line in result["sinks"]:
        print("\n", *line["policies"], [round(density, 4) for density in line["density"]])
        for name, numbers in line.items():
            if " " in name:
                print(f"  {name:20} " + "  ".join(f"{key} {cell(value)}" for key, value in numbers.items()))


def main() -> int:
    """Calibrate or read the gates, compare, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gates", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--resume", type=Path, help="where numbers of single prompts are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    folder = given.resume or Path(platformdirs.user_cache_dir("sparselens")) / "benchmarks" / "plans"
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        load(MODEL, progress=False), kernel("blocked"), Ledger(lambda: folder, resumed=folder), folder
    )
    gates = gates_of(given.gates, bench)
    outer = {
        name: row(bench, policy)[0] for name, policy in (("dense", "dense"), ("all streaming", STREAMING))
    }
    result = {
        "model": MODEL,
        "ranked_on": RANKED_ON,
        "tested_on": TESTED_ON,
        "prose": PROSE,
        "streaming": STREAMING,
        "expected": EXPECTED,
        "gates": {name: read_plan(file, "duo_attention").to_json() for name, file in gates.items()},
        "references": outer,
        "shares": {str(share): compared(bench, gates, share) for share in SHARES},
        "sinks": sinks(bench),
    }
    show(result)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
