"""What `analyse fidelity` reads and runs: its parameters, the pair, the prompts of the floor and the needles."""

from __future__ import annotations

from dataclasses import dataclass

from sparselens.analyses.analysis import Setting
from sparselens.analyses.fidelity.needle import Needle
from sparselens.analyses.fidelity.pair import Pair
from sparselens.analyses.fidelity.table import Prompts
from sparselens.storage.reader import connect
from sparselens.workbench.prompt import Prompt
from sparselens.workbench.rerun import stored_prompts


@dataclass(frozen=True)
class Fidelity:
    """`run` against the base it was captured with; per-token numbers also by `bucket` positions.

    The floor is measured on `noise` of its prompts with another kernel and on `dtype_noise` of these in another dtype;
    retained scores and free answers on `needles` of its needle prompts. Prompts are taken in the order of their ids.
    """

    run: str = ""
    noise: int = 4
    dtype_noise: int = 2
    needles: int = 16
    bucket: int = 128

    def __post_init__(self) -> None:
        if not self.run:
            raise ValueError("fidelity is of a run: give --run (its name, policy or id)")
        if not 0 <= self.dtype_noise <= self.noise or self.needles < 0:
            raise ValueError("fidelity: needles is 0 or more, and 0 ≤ dtype_noise ≤ noise")
        if self.bucket < 1:
            raise ValueError(f"fidelity: bucket is 1 or more positions, not {self.bucket}")


@dataclass(frozen=True, eq=False)
class Plan:
    """What an analysis reads and runs: the pair, its prompts, those of the floor, the needles.

    `answers`: by metric and side (`base`, `run`) the stored scores by prompt id. `free`: whether both sides have to
    answer the needles by themselves, because the capture did not store it.
    """

    pair: Pair
    prompts: Prompts
    floor: list[Prompt]
    needles: list[Needle]
    answers: dict[tuple[str, str], dict[str, float]]
    free: bool

    @classmethod
    def of(cls, setting: Setting) -> Plan:
        """Read the plan from the trace; `ValueError` where the run has no base or was captured in another dtype."""
        chosen: Fidelity = setting.parameters
        with connect(setting.trace.path) as connection:
            pair = Pair.of(setting.trace, connection, chosen.run)
            dtype, recorded = str(setting.model.dtype).removeprefix("torch."), pair.run.record.dtype
            if dtype != recorded:
                raise ValueError(
                    f"run {pair.run.run_id} was captured in {recorded}; the session is in {dtype}"
                )
            prompts = Prompts.of(connection, pair)
            compared = set(prompts.ids)
            stored = [prompt for prompt in stored_prompts(connection, pair.run) if prompt.id in compared]
            stored.sort(key=lambda prompt: prompt.id)
            answers: dict[tuple[str, str], dict[str, float]] = {}
            for row in pair.ask(connection, "answers").to_pylist():
                side = "run" if row["of_run"] else "base"
                answers.setdefault((row["metric"], side), {})[row["prompt_id"]] = row["value"]
        needles = Needle.among(stored, chosen.needles)
        return cls(pair, prompts, stored[: chosen.noise], needles, answers, not _answered(pair, needles))

    @property
    def tokens(self) -> int:
        """Tokens of all prompts that are run, each counted once for the floor and once as a needle."""
        return sum(map(len, self.floor)) + sum(len(each.prompt) for each in self.needles)


def _answered(pair: Pair, needles: list[Needle]) -> bool:
    """Return whether the capture let both generate as many tokens as each answer has: then it stored who answered."""
    longest = max((len(each.prompt.answer_ids) for each in needles), default=0)
    return all(int(run.record.args.get("generate", 0)) >= longest for run in (pair.base, pair.run))
