"""Sinks the slow way: whole maps of transformers' eager attention under an explicit mask, walked in loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from statistics import mean, median
from typing import Any

import torch
from transformers import LlamaForCausalLM

KEEP: dict[str, Callable[[int, int], bool]] = {
    "dense": lambda q, k: True,
    "sliding_window(window=9)": lambda q, k: q - k < 9,
    "a_shape(sink=2,window=12)": lambda q, k: k < 2 or q - k < 12,
    "without_first": lambda q, k: k > 0 or q == 0,
}


def walked(session: Any, prompt: Any, policy: str) -> dict[str, Any]:
    """Maps `[layer][head][q][k]`, residual norms `[layer][pos]`, written norms `[layer][head][pos]`, losses `[q]`."""
    config = copy.deepcopy(session.model.config)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(session.model.state_dict())
    ids = torch.tensor([prompt.token_ids])
    size = ids.shape[1]
    mask = torch.full((1, 1, size, size), float("-inf"))
    for q in range(size):
        for k in range(q + 1):
            if KEEP[policy](q, k):
                mask[0, 0, q, k] = 0
    values: dict[int, Any] = {}
    hooks = [
        layer.self_attn.v_proj.register_forward_hook(lambda _, __, out, at=at: values.__setitem__(at, out[0]))
        for at, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        out = model(ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    written = []
    for at, layer in enumerate(model.model.layers):
        per_group = values[at].view(size, groups, width)
        weight = layer.self_attn.o_proj.weight.detach()
        written.append(
            [
                (per_group[:, head // (heads // groups)] @ weight[:, head * width : (head + 1) * width].T)
                .norm(dim=-1)
                .tolist()
                for head in range(heads)
            ]
        )
    losses = torch.nn.functional.cross_entropy(out.logits[0, :-1].double(), ids[0, 1:], reduction="none")
    return {
        "size": size,
        "maps": [each[0].double().tolist() for each in out.attentions],
        "norms": [each[0].norm(dim=-1).tolist() for each in out.hidden_states[:-1]],
        "written": written,
        "losses": losses.tolist(),
    }


class Means:
    """Values by metric and place, one a prompt; a place of heads also counts for its layer and the run."""

    def __init__(self) -> None:
        self.found: dict[tuple[Any, ...], list[float]] = {}

    def add(self, values: dict[tuple[Any, ...], float | None], *, heads: bool = True) -> None:
        """Take the numbers of one prompt, by `(metric, layer, head)`, `(metric, layer, None)` or `(metric,)`."""
        layers: dict[tuple[Any, ...], list[float]] = {}
        whole: dict[tuple[Any, ...], list[float]] = {}
        for key, value in values.items():
            if value is None:
                continue
            if len(key) == 1 or heads or key[2] is None:
                self.found.setdefault(key, []).append(value)
            if len(key) == 3 and key[2] is not None:
                layers.setdefault((*key[:2], None), []).append(value)
            elif len(key) == 3:
                whole.setdefault(key[:1], []).append(value)
        for key, each in layers.items():
            self.found.setdefault(key, []).append(mean(each))
            whole.setdefault(key[:1], []).append(mean(each))
        for key, each in whole.items():
            self.found.setdefault(key, []).append(mean(each))

    def result(self) -> dict[tuple[Any, ...], float]:
        """Means over prompts."""
        return {key: mean(values) for key, values in self.found.items()}


def received(attention: list[Any], key: int) -> float:
    """What a key gets of the queries that may see it, mean over heads."""
    size = len(attention[0])
    return mean(mean(head[q][key] for q in range(key, size)) for head in attention)


def slow_profile(
    session: Any, prompts: list[Any], policy: str, *, window: int, epsilon: float, received: float
) -> dict[tuple[Any, ...], float]:
    """Sinks of one run."""
    plain, of_heads = Means(), Means()
    for prompt in prompts:
        run = walked(session, prompt, policy)
        size, one, rates = run["size"], {}, {}
        for layer, attention in enumerate(run["maps"]):
            norms = run["norms"][layer]
            for head, weights in enumerate(attention):
                written = run["written"][layer][head]
                one["value_drain", layer, head] = written[0] / mean(written[1:])
                if size >= window:
                    alpha = mean(weights[q][0] for q in range(window))
                    rates["sink_alpha", layer, head] = alpha
                    rates["sink_rate", layer, head] = float(alpha > epsilon)
            one["residual_peak", layer, None] = norms[0] / mean(norms[1:])
            one["residual_peak_other", layer, None] = max(norms[1:]) / median(norms[1:])
            sinks = later_sinks(attention, received)
            one["other_sinks", layer, None] = float(len(sinks))
            if sinks:
                rest = [at for at in range(1, size) if at not in sinks]
                writes = [mean(head[at] for head in run["written"][layer]) for at in range(size)]
                got = [_received(attention, at) for at in sinks]
                one["other_sinks_received", layer, None] = mean(got)
                ratio = mean(norms[at] for at in sinks) / median(norms[at] for at in rest)
                one["other_sinks_residual", layer, None] = ratio
                ratio = mean(writes[at] for at in sinks) / median(writes[at] for at in rest)
                one["other_sinks_write", layer, None] = ratio
        of_heads.add(one)
        plain.add(rates, heads=False)
    return of_heads.result() | plain.result()


_received = received


def later_sinks(attention: list[Any], least: float) -> list[int]:
    """Later tokens, the last eighth and at least 8 left out, that receive more than `least`."""
    size = len(attention[0])
    return [at for at in range(1, size - max(8, size // 8)) if _received(attention, at) > least]


def slow_change(
    session: Any, prompts: list[Any], policy: str, *, received: float
) -> dict[tuple[Any, ...], float]:
    """What `policy` changes against the dense run, on its affected rows. Its mask is the same in all heads."""
    means = Means()
    for prompt in prompts:
        base, run = (walked(session, prompt, name) for name in ("dense", policy))
        size = run["size"]
        kept = [[k for k in range(q + 1) if KEEP[policy](q, k)] for q in range(size)]
        rows = [q for q in range(8, size - 1) if len(kept[q]) < q + 1]
        one: dict[tuple[Any, ...], float | None] = {}
        for layer in range(len(base["maps"])):
            before, after = base["maps"][layer], run["maps"][layer]
            sinks, now = later_sinks(before, received), later_sinks(after, received)
            one["new_sinks", layer, None] = float(len(set(now) - set(sinks)))
            one["lost_sinks", layer, None] = float(len(set(sinks) - set(now)))
            norm = [run["norms"][layer][at] / base["norms"][layer][at] - 1 for at in range(size)]
            one["first_residual_change", layer, None] = norm[0]
            one["other_residual_change", layer, None] = mean(norm[at] for at in sinks) if sinks else None
            for head in range(len(before)):
                drains = [one_run["written"][layer][head] for one_run in (run, base)]
                drain = [written[0] / mean(written[1:]) for written in drains]
                one["value_drain_change", layer, head] = drain[0] - drain[1]
                if rows:
                    moved = head_moved(before[head], after[head], kept, rows, sinks)
                    one |= {(name, layer, head): value for name, value in moved.items()}
        one[("affected_rows",)] = len(rows) / (size - 9)
        if rows:
            change = {q: run["losses"][q] - base["losses"][q] for q in rows}
            one[("nll_base",)] = mean(base["losses"][q] for q in rows)
            one[("nll_run",)] = mean(run["losses"][q] for q in rows)
            one[("nll_change",)] = mean(change.values())
            for name, there in (("nll_change_kept", True), ("nll_change_dropped", False)):
                chosen = [change[q] for q in rows if (0 in kept[q]) is there]
                one[(name,)] = mean(chosen) if chosen else None
        means.add(one)
    return means.result()


def head_moved(
    before: Any, after: Any, kept: list[list[int]], rows: list[int], sinks: list[int]
) -> dict[str, float | None]:
    """Where one head's mass went, mean over `rows`."""
    parts = dict.fromkeys(("oldest", "newest", "later", "others", "unstored"), 0.0)
    oldest_base, oldest_run = [], []
    unstored = 0.0
    for q in rows:
        stored = {k for weights in (before[q], after[q]) for k in top(weights, q)}
        unstored += sum(after[q][k] for k in range(q + 1) if k not in stored)
        first_kept = kept[q][0]
        for k in range(1, q + 1):
            part = "others"
            if k not in stored:
                part = "unstored"
            elif k == first_kept:
                part = "oldest"
            elif q - k < 8:
                part = "newest"
            elif k in sinks:
                part = "later"
            parts[part] += after[q][k] - before[q][k]
        if first_kept > 0:
            there = first_kept in stored
            oldest_base.append(before[q][first_kept] if there else 0.0)
            oldest_run.append(after[q][first_kept] if there else 0.0)
    found: dict[str, float | None] = {f"sink_to_{name}": total / len(rows) for name, total in parts.items()}
    found["unstored_mass"] = unstored / len(rows)
    found["sink_kept"] = mean(float(0 in kept[q]) for q in rows)
    found["sink_mass_base"] = mean(before[q][0] for q in rows)
    found["sink_mass_run"] = mean(after[q][0] for q in rows)
    found["sink_change"] = mean(after[q][0] - before[q][0] for q in rows)
    found["entropy_change"] = mean(entropy(after[q]) - entropy(before[q]) for q in rows)
    found["oldest_mass_base"] = mean(oldest_base) if oldest_base else None
    found["oldest_mass_run"] = mean(oldest_run) if oldest_run else None
    return found


def top(weights: Any, q: int) -> list[int]:
    """The keys among the eight strongest that get at least 0.01."""
    order = sorted(range(q + 1), key=lambda k: -weights[k])[:8]
    return [k for k in order if weights[k] >= 0.01]


def entropy(weights: Any) -> float:
    """In nats."""
    return -sum(p * math.log(p) for p in weights if p > 0)
