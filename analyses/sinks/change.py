"""What a policy does to sinks: two runs of the same prompts, on the rows in which the policy dropped something."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparselens.analyses.comparison import queries
from sparselens.analyses.sinks.measure import Measure, Prompts, grid
from sparselens.storage.mask import keep_rows
from sparselens.storage.reader import Connection

FIRST = 8
"""Rows before this position have hardly another key to read; masses on the first token leave them out."""
NEWEST = 8
"""Keys that count as newest: the query's own and those before it."""
BLOCK = 512
"""Query rows of a stored selection that are expanded at a time."""
EDGES = 500_000
"""Rows of a layer's heads whose edges are read at a time: about ten times as many edges."""

PARTS = ("sink_to_oldest", "sink_to_newest", "sink_to_later", "sink_to_others")
OLDEST = ("oldest_mass_base", "oldest_mass_run")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs of the same prompts: ids of the `base` and of the `run`, and `shape`: layers and heads.

    A head sinks where it gives the first token more than `epsilon` under the base; a later token is a sink where it
    receives more than `received`, but not near the end (`edge`). `paired`: one capture made both, so `edges` has the
    base's probabilities.
    """

    connection: Connection
    prompts: Prompts
    base: str
    run: str
    shape: tuple[int, int]
    epsilon: float
    received: float
    edge: int
    paired: bool

    def ask(self, name: str, **more: Any) -> Any:
        """Return a statement of `sink_change.sql` as an arrow table."""
        text = queries("sinks/change.sql")[name]
        given = {"base": self.base, "run": self.run, "received": self.received, "edge": self.edge}
        used = {key: value for key, value in (given | {"first": FIRST} | more).items() if f"${key}" in text}
        return self.connection.sql(text, used, max_rows=None).arrow()


@dataclass(frozen=True, eq=False)
class Rows:
    """The affected rows of one prompt that predict a token, from position 8 on.

    `at [rows]` positions; `base [rows]`, `run [rows]` what the next token costs (nats); `oldest [layers, heads, rows]`
    the oldest key that each head keeps there (see `oldest_kept`).
    """

    at: Any
    base: Any
    run: Any
    oldest: Any


def changes(pair: Pair) -> list[Measure]:
    """Return every measure of what the run changed against its base, by head, by layer and of the run."""
    rows = _affected(pair)
    counts = np.asarray([len(each.at) for each in rows])
    found = _of_layers(pair)
    sinking: Any = np.zeros(pair.shape, bool)
    if counts.any():
        heads = {"sink_kept": np.stack([_kept(each) for each in rows])} | _masses(pair)
        sinking = Measure("", np.moveaxis(heads["sink_mass_base"], 0, -1)).coarser().values > pair.epsilon
        if pair.paired:
            moved = [_moved(pair, *each) for each in zip(pair.prompts.ids, rows, strict=True)]
            heads |= {name: np.stack([each[name] for each in moved]) for name in (*PARTS, *OLDEST)}
            heads["sink_to_unstored"] = -heads["sink_change"] - sum(heads[name] for name in PARTS)
        found += [Measure(name, values, counts[:, None, None], "affected") for name, values in heads.items()]
    return [*(level for each in found for level in each.levels()), *_losses(pair, rows, sinking)]


def _affected(pair: Pair) -> list[Rows]:
    """Return the affected rows of each prompt."""
    table = pair.ask("losses")
    owner = table["prompt_id"].to_numpy(zero_copy_only=False)
    columns = [table[name].to_numpy() for name in ("q_pos", "base", "run")]
    found = []
    for prompt in pair.prompts.ids:
        at, base, run = (column[owner == prompt] for column in columns)
        found.append(Rows(at, base, run, oldest_kept(pair, prompt, at)))
    return found


def oldest_kept(pair: Pair, prompt: str, at: Any) -> Any:
    """Return the oldest key that each head keeps in the rows `at`, `[layers, heads, rows]`: 0 is the first token.

    −1 where a row keeps nothing, −2 where the head was not recorded. Equal selections, as static policies make, are
    expanded once.
    """
    table = pair.ask("selections", prompt=prompt)
    found: Any = np.full((*pair.shape, len(at)), -2, np.int32)
    known: dict[bytes, Any] = {}
    for layer, head, data in zip(
        *(table[name].to_pylist() for name in ("layer", "head", "data")), strict=True
    ):
        if len(at) and data not in known:
            edges = range(int(at[0]), int(at[-1]) + 1, BLOCK)
            blocks = [_oldest(data, start, min(start + BLOCK, int(at[-1]) + 1)) for start in edges]
            known[data] = np.concatenate(blocks)[at - at[0]]
        found[layer, head] = known.get(data, 0)
    return found


def _oldest(data: bytes, start: int, stop: int) -> Any:
    """Return the oldest kept key of the rows start … stop − 1 of one selection."""
    if keep_rows(data, start, stop, 1).all():
        return np.zeros(stop - start, np.int32)
    keep = keep_rows(data, start, stop, stop)
    return np.where(keep.any(1), keep.argmax(1), -1)


def _kept(rows: Rows) -> Any:
    """Return the share of the rows in which each head keeps the first token: `[layers, heads]`."""
    if not len(rows.at):
        return np.full(rows.oldest.shape[:2], np.nan)
    return np.where(rows.oldest[..., 0] == -2, np.nan, (rows.oldest == 0).mean(-1))


def _of_layers(pair: Pair) -> list[Measure]:
    """Return what changed in the tokens of each layer, and in the values of each head."""
    table, drains = pair.ask("tokens"), pair.ask("drains")
    names = ("new_sinks", "lost_sinks", "first_residual_change", "other_residual_change")
    found = [Measure(name, grid(table, name, pair.prompts, pair.shape[:1])) for name in names]
    return [
        *found,
        Measure("value_drain_change", grid(drains, "value_drain_change", pair.prompts, pair.shape)),
    ]


def _masses(pair: Pair) -> dict[str, Any]:
    """Return means over the affected rows that `row_stats` has: `[prompts, layers, heads]` by metric."""
    table = pair.ask("levels")
    names = ("sink_mass_base", "sink_mass_run", "entropy_change", "unstored_mass")
    found = {name: grid(table, name, pair.prompts, pair.shape) for name in names}
    return found | {"sink_change": found["sink_mass_run"] - found["sink_mass_base"]}


def _moved(pair: Pair, prompt: str, rows: Rows) -> dict[str, Any]:
    """Return where mass went in one prompt, mean over its affected rows: `[layers, heads]` by metric."""
    layers, heads = pair.shape
    found = {name: np.full(pair.shape, np.nan) for name in (*PARTS, *OLDEST)}
    if not len(rows.at):
        return found
    length = pair.prompts.lengths[pair.prompts.ids.index(prompt)]
    later = pair.ask("other_sinks", prompt=prompt)
    sinks: Any = np.zeros((layers, length), bool)
    sinks[later["layer"].to_numpy(), later["pos"].to_numpy()] = True
    step = max(1, EDGES // (length * heads))
    for start in range(0, layers, step):
        part = slice(start, min(start + step, layers))
        edges = pair.ask("edges", prompt=prompt, start=start, stop=part.stop)
        for name, values in _parts(edges, rows, sinks[part], part).items():
            found[name][part] = values
    return found


def _parts(edges: Any, rows: Rows, sinks: Any, part: slice) -> dict[str, Any]:
    """Return the same for the layers of `part`, whose `edges` leave the first token out.

    `sinks [layers, tokens]` are the base's other sinks. A key is of the first part that fits: oldest kept, newest,
    other sink, any other. The masses on the oldest kept key are over the rows that drop the first token.
    """
    oldest = rows.oldest[part]
    layers, heads, n_rows = oldest.shape
    row = np.full(sinks.shape[1], -1)
    row[rows.at] = np.arange(n_rows)
    edges = edges.filter(row[edges["q_pos"].to_numpy()] >= 0)
    layer, head, query, key = (
        edges[name].to_numpy().astype(int) for name in ("layer", "head", "q_pos", "k_pos")
    )
    layer -= part.start
    before, after = edges["p_base"].to_numpy(), edges["p"].to_numpy()
    is_oldest = key == oldest[layer, head, row[query]]
    kind = np.select([is_oldest, query - key < NEWEST, sinks[layer, key]], [0, 1, 2], 3)
    cell = layer * heads + head
    gain = np.bincount(cell * len(PARTS) + kind, after - before, layers * heads * len(PARTS))
    shape = layers, heads
    recorded = oldest[..., 0] != -2
    gain = np.where(recorded[..., None], gain.reshape(*shape, -1) / n_rows, np.nan)
    found = {name: gain[..., index] for index, name in enumerate(PARTS)}
    dropping = np.where(recorded, (oldest != 0).sum(-1), 0)
    for name, mass in zip(OLDEST, (before, after), strict=True):
        total = np.bincount(cell[is_oldest], mass[is_oldest], layers * heads).reshape(shape)
        found[name] = np.where(dropping > 0, total / np.maximum(dropping, 1), np.nan)
    return found


def _losses(pair: Pair, rows: list[Rows], sinking: Any) -> list[Measure]:
    """Return what the next token costs on the affected rows, split by whether the sink was kept there.

    It was where all heads of `sinking [layers, heads]` keep the first token; without such heads nothing is split.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for tokens, each in zip(pair.prompts.lengths, rows, strict=True):
        kept = (each.oldest[sinking] == 0).all(0)
        change = each.run - each.base
        sets = {
            "nll_base": each.base,
            "nll_run": each.run,
            "nll_change": change,
            "nll_change_kept": change[kept & sinking.any()],
            "nll_change_dropped": change[~kept & sinking.any()],
        }
        for name, values in sets.items():
            mean = float(values.mean()) if len(values) else float("nan")
            found.setdefault(name, []).append((mean, len(values)))
        possible = max(tokens - 1 - FIRST, 0)
        share = len(each.at) / possible if possible else float("nan")
        found.setdefault("affected_rows", []).append((share, possible))
    columns = {name: np.asarray(pairs, float).T for name, pairs in found.items()}
    return [Measure(name, values, n, "affected") for name, (values, n) in columns.items()]
