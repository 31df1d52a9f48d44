"""What a capture stores equals the same numbers computed by hand from the bare model's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sparselens.storage.mask import keep_rows
from sparselens.storage.part import Part
from sparselens.storage.pooled import decode
from sparselens.storage.reader import connect
from sparselens.workbench.capture import capture, estimate

POLICY = "a_shape(sink=2,window=9)"
MIXED = "per_head(default=a_shape(sink=2,window=9),full=[L0H1,L1H3])"


class Traced:
    """A trace and the tensors of the bare model under the same masks, written out by hand."""

    def __init__(self, session: Any, prompts: Any, path: Path) -> None:
        self.session, self.prompts, self.path = session, prompts, path
        self.base, self.run, self.mixed = capture(
            session, prompts, [POLICY, MIXED], path, keep=["qk", "z", "resid"], generate=3, progress=False
        )
        self.connection = connect(path)

    def df(self, text: str) -> pd.DataFrame:
        return self.connection.sql(text).df()

    @torch.no_grad()
    def by_hand(self, prompt: Any, policy: str | None) -> list[dict[str, Tensor]]:
        """Per layer: dense pattern, executed pattern, values, z, attention output; float64, under the policy's mask."""
        model, tokens = self.session.model, len(prompt.token_ids)
        query, key = torch.arange(tokens)[:, None], torch.arange(tokens)[None]
        causal = key <= query
        layers: list[dict[str, Tensor]] = []
        states = model.model.embed_tokens(torch.tensor(prompt.token_ids)).double()
        rotary = model.model.rotary_emb(states[None].float(), torch.arange(tokens)[None])
        cos, sin = (part[0].double() for part in rotary)

        def linear(layer: Any, x: Tensor) -> Tensor:
            return x @ layer.weight.double().T

        def norm(layer: Any, x: Tensor) -> Tensor:
            scale = (x.pow(2).mean(-1, keepdim=True) + layer.variance_epsilon).rsqrt()
            return x * scale * layer.weight.double()

        def rotate(x: Tensor) -> Tensor:
            half = torch.cat([-x[..., 4:], x[..., :4]], -1)
            return x * cos[:, None] + half * sin[:, None]

        for index, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            x = norm(layer.input_layernorm, states)
            q, k, v = (
                linear(p, x).view(tokens, -1, 8)
                for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            q, k = rotate(q), rotate(k)
            k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * 8**-0.5
            keep = causal.expand(4, -1, -1).clone()
            if policy is not None:
                keep &= (key < 2) | (query - key < 9)
            if policy == MIXED:
                keep[{0: 1, 1: 3}[index]] = causal
            dense = torch.softmax(scores.masked_fill(~causal, -torch.inf), -1)
            executed = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1)
            z = torch.einsum("hqk,khd->hqd", executed, v)
            by_head = attention.o_proj.weight.double().T.view(4, 8, -1)
            written = z @ by_head
            layers.append(
                {"dense": dense, "executed": executed, "keep": keep, "v": v.transpose(0, 1), "z": z,
                 "written": written, "w_o": by_head, "resid": states, "q": q, "k": k}
            )  # fmt: skip
            states = states + written.sum(0)
            x = norm(layer.post_attention_layernorm, states)
            gate = torch.nn.functional.silu(linear(layer.mlp.gate_proj, x))
            states = states + linear(layer.mlp.down_proj, gate * linear(layer.mlp.up_proj, x))
        logits = linear(model.lm_head, norm(model.model.norm, states))
        layers[-1]["logp"] = torch.log_softmax(logits, -1)
        return layers


@pytest.fixture(scope="module")
def traced(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return Traced(small, prompts, tmp_path_factory.mktemp("capture") / "trace")


def close(ours: Any, expected: Any, tolerance: float = 2e-4) -> None:
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(expected, np.float64), atol=tolerance, rtol=1e-3
    )


def test_every_table_has_rows_and_every_run_every_prompt(traced: Traced) -> None:
    for table in [
        "runs",
        "prompts",
        "tokens",
        "spans",
        "head_stats",
        "row_stats",
        "edges",
        "predictions",
        "token_stats",
        "value_norms",
        "selections",
        "pooled_maps",
        "diffs",
        "token_diffs",
        "prompt_scores",
        "generations",
        "activations",
    ]:
        assert traced.df(f"SELECT count(*) AS n FROM {table}")["n"][0] > 0, table
    counted = traced.df("SELECT run_id, count(DISTINCT prompt_id) AS n FROM predictions GROUP BY run_id")
    assert counted["n"].tolist() == [3, 3, 3]


@pytest.mark.parametrize("policy", [None, POLICY, MIXED])
def test_head_stats_equal_the_patterns_by_hand(traced: Traced, policy: str | None) -> None:
    run = {None: traced.base, POLICY: traced.run, MIXED: traced.mixed}[policy]
    for prompt in traced.prompts:
        rows = traced.df(
            f"SELECT * FROM head_stats WHERE run_id = '{run.run_id}' AND prompt_id = '{prompt.id}' AND rows = 'all'"
            " AND pattern = 'executed' ORDER BY layer, head"
        )
        tokens = len(prompt.token_ids)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)[None]
        for layer, hand in enumerate(traced.by_hand(prompt, policy)):
            ours = rows[rows["layer"] == layer]
            p, dense, keep = hand["executed"], hand["dense"], hand["keep"]
            close(ours["entropy"], torch.special.entr(p).sum(-1).mean(-1))
            close(ours["sink_mass"], p[:, 8:, 0].mean(-1))
            close(ours["local_mass"], (p * (distance < 64)).sum(-1).mean(-1))
            close(ours["previous_mass"], p.diagonal(-1, 1, 2).mean(-1))
            close(ours["distance"], (p * distance).sum(-1).mean(-1), 2e-3)
            close(ours["density"], keep.sum((1, 2)) / (tokens * (tokens + 1) / 2))
            close(ours["kept_mass"], (dense * keep).sum(-1).mean(-1))
            kept = (dense * keep)[:, 1:, 1:].sum(-1) / dense[:, 1:, 1:].sum(-1)
            close(ours["kept_mass_nosink"], torch.cat([torch.ones(4, 1), kept], 1).mean(-1), 1e-3)
            close(ours["write_norm"], hand["written"].norm(dim=-1).mean(-1))


def test_diffs_equal_the_written_vectors_by_hand(traced: Traced) -> None:
    for prompt in traced.prompts:
        base, run = traced.by_hand(prompt, None), traced.by_hand(prompt, POLICY)
        rows = traced.df(
            f"SELECT * FROM diffs WHERE run_b = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
            " ORDER BY layer, head"
        )
        for layer, (a, b) in enumerate(zip(base, run, strict=True)):
            scale = a["written"].sum(0).norm(dim=-1).mean()
            local = torch.softmax(a["dense"].log().masked_fill(~b["keep"], -torch.inf), -1)
            written_local = torch.einsum("hqk,hkd->hqd", local, a["v"]) @ a["w_o"]
            affected = (~b["keep"] & (a["dense"] > 0)).any(-1)
            start = len(prompt.token_ids) - len(prompt.answer_ids)
            answer = torch.zeros_like(affected)
            answer[:, start - 1 : start - 1 + len(prompt.answer_ids)] = True
            sets = {"all": torch.ones_like(affected), "affected": affected}
            if prompt.answer_ids:
                sets["span:answer"] = answer
            for name, where in sets.items():
                for scope, pattern, written in (
                    ("end_to_end", b["executed"], b["written"]),
                    ("local_mask", local, written_local),
                    ("local_policy", local, written_local),
                ):
                    ours = rows[(rows["layer"] == layer) & (rows["rows"] == name) & (rows["scope"] == scope)]
                    error = (written - a["written"]).norm(dim=-1) / scale
                    close(ours["write_error"], masked_mean(error, where))
                    cosine = torch.nn.functional.cosine_similarity(written, a["written"], dim=-1)
                    close(ours["out_cosine"], masked_mean(cosine, where), 1e-3)
                    entropy = (torch.special.entr(pattern) - torch.special.entr(a["executed"])).sum(-1)
                    close(ours["entropy_change"], masked_mean(entropy, where))
                    if scope != "end_to_end" or name == "span:answer":
                        middle = (pattern + a["executed"]) / 2
                        entr = torch.special.entr
                        js = (entr(middle) - (entr(pattern) + entr(a["executed"])) / 2).sum(-1)
                        close(ours["js"], masked_mean(js, where))
                    if scope != "end_to_end":
                        close(ours["kept_mass"], masked_mean((a["dense"] * b["keep"]).sum(-1), where))
            close(
                rows[(rows["layer"] == layer) & (rows["rows"] == "all")]["n_rows"],
                [len(prompt.token_ids)] * 12,
            )


def masked_mean(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(-1) / where.sum(-1)


def test_predictions_and_divergences_equal_the_logits_by_hand(traced: Traced) -> None:
    for prompt in traced.prompts:
        base = traced.by_hand(prompt, None)[-1]["logp"]
        run = traced.by_hand(prompt, POLICY)[-1]["logp"]
        ids = torch.tensor(prompt.token_ids)
        rows = traced.df(
            f"SELECT * FROM predictions WHERE run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}' ORDER BY pos"
        )
        assert rows["pos"].tolist() == list(range(1, len(ids)))
        close(rows["nll"], -run[:-1].gather(-1, ids[1:, None])[:, 0])
        assert (rows["top1_id"].to_numpy() == run[:-1].argmax(-1).numpy()).mean() > 0.99
        close(rows["top1_p"], run[:-1].max(-1).values.exp())
        changes = traced.df(
            f"SELECT * FROM token_diffs WHERE run_b = '{traced.run.run_id}' AND prompt_id = '{prompt.id}' ORDER BY pos"
        )
        close(changes["kl"], (base.exp() * (base - run)).sum(-1)[:-1])
        close(changes["nll_change"], (base - run)[:-1].gather(-1, ids[1:, None])[:, 0])
        assert changes["affected"].tolist() == [row >= 11 for row in range(len(ids) - 1)]


def test_edges_hold_the_top_keys_of_both_runs_and_row_stats_the_rest(traced: Traced) -> None:
    prompt = traced.prompts[1]
    base, run = traced.by_hand(prompt, None), traced.by_hand(prompt, POLICY)
    edges = traced.df(
        f"SELECT * FROM edges WHERE run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
    )
    rows = traced.df(
        f"SELECT * FROM row_stats WHERE run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
        " AND pattern = 'executed'"
    ).set_index(["layer", "head", "q_pos"])
    assert not edges.duplicated(["layer", "head", "q_pos", "k_pos"]).any()
    for layer in range(2):
        a, b, keep = base[layer]["dense"], run[layer]["executed"], run[layer]["keep"]
        here = edges[edges["layer"] == layer]
        at = tuple(torch.as_tensor(here[name].to_numpy(np.int64)) for name in ("head", "q_pos", "k_pos"))
        close(here["p"], b[at])
        close(here["p_base"], a[at])
        assert here["kept"].tolist() == keep[at].tolist()
        listed = set(zip(*(part.tolist() for part in at), strict=True))
        for pattern in (a, b):
            weight, key = pattern.topk(8)
            for head, query, slot in (weight >= 0.0101).nonzero().tolist():
                assert (head, query, int(key[head, query, slot])) in listed
        stored = torch.zeros(b.shape[:2], dtype=torch.float64)
        for head, query, p in zip(here["head"], here["q_pos"], here["p"], strict=True):
            stored[int(head), int(query)] += p
        unstored = [
            rows.loc[(layer, head, query), "unstored_mass"]
            for head in range(4)
            for query in range(b.shape[1])
        ]
        close(unstored, (1 - stored).flatten(), 1e-5)
    assert (~edges["kept"]).any()
    assert set(edges["reason"]) == {"run", "base", "both"}


def test_row_stats_equal_the_rows_by_hand(traced: Traced) -> None:
    prompt = traced.prompts[0]
    base, run = traced.by_hand(prompt, None), traced.by_hand(prompt, POLICY)
    rows = traced.df(
        f"SELECT * FROM row_stats WHERE run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
        " AND pattern = 'executed' ORDER BY layer, head, q_pos"
    )
    for layer in range(2):
        ours = rows[rows["layer"] == layer]
        a, b = base[layer], run[layer]
        close(ours["entropy"], torch.special.entr(b["executed"]).sum(-1).flatten())
        close(ours["sink_mass"], b["executed"][:, :, 0].flatten())
        close(ours["kept_mass"], (b["dense"] * b["keep"]).sum(-1).flatten())
        error = (b["written"] - a["written"]).norm(dim=-1) / a["written"].sum(0).norm(dim=-1).mean()
        close(ours["write_error"], error.flatten())


def test_token_tables_equal_the_tensors_by_hand(traced: Traced) -> None:
    prompt = traced.prompts[0]
    tokens = len(prompt.token_ids)
    where = f"run_id = '{traced.base.run_id}' AND prompt_id = '{prompt.id}'"
    stats = traced.df(f"SELECT * FROM token_stats WHERE {where} ORDER BY layer, pos")
    norms = traced.df(f"SELECT * FROM value_norms WHERE {where} ORDER BY layer, head, pos")
    for layer, hand in enumerate(traced.by_hand(prompt, None)):
        ours = stats[stats["layer"] == layer]
        close(ours["resid_norm"], hand["resid"].norm(dim=-1))
        close(ours["received_mass"], hand["executed"].sum(1).mean(0) / torch.arange(tokens, 0, -1))
        values = (hand["v"] @ hand["w_o"]).norm(dim=-1)
        close(norms[norms["layer"] == layer]["value_write_norm"], values.flatten())


def test_selections_decode_to_the_executed_mask_and_maps_to_its_pools(traced: Traced) -> None:
    prompt = traced.prompts[1]
    tokens = len(prompt.token_ids)
    where = f"run_id = '{traced.mixed.run_id}' AND prompt_id = '{prompt.id}'"
    kept = traced.df(f"SELECT * FROM selections WHERE {where} ORDER BY layer, head")
    maps = traced.df(f"SELECT * FROM pooled_maps WHERE {where} ORDER BY layer, head")
    for layer, hand in enumerate(traced.by_hand(prompt, MIXED)):
        for head in range(4):
            row = kept[(kept["layer"] == layer) & (kept["head"] == head)].iloc[0]
            mask = keep_rows(bytes(row["data"]), 0, tokens, tokens)
            assert (torch.from_numpy(mask) == hand["keep"][head]).all()
            picture = maps[(maps["layer"] == layer) & (maps["head"] == head)].iloc[0]
            pool, size = int(picture["pool"]), int(picture["size"])
            padded = torch.zeros(size * pool, size * pool, dtype=torch.float64)
            padded[:tokens, :tokens] = hand["executed"][head]
            count = torch.ones(size * pool)
            count[tokens:] = 0
            expected = (
                padded.view(size, pool, size, pool).sum((1, 3)) / count.view(size, pool).sum(1)[:, None]
            )
            close(decode(bytes(picture["data"]), size), expected, 2e-3)


def test_kept_vectors_are_the_models(traced: Traced) -> None:
    prompt = traced.prompts[0]
    where = f"run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
    hand = traced.by_hand(prompt, POLICY)[1]
    for hook, expected in (
        ("blocks.1.attn.hook_rot_q", hand["q"].transpose(0, 1)),
        ("blocks.1.attn.hook_rot_k", hand["k"].transpose(0, 1)[::2]),
        ("blocks.1.attn.hook_z", hand["z"]),
        ("blocks.1.hook_resid_pre", hand["resid"][None]),
    ):
        rows = traced.df(
            f"SELECT vector FROM activations WHERE {where} AND hook = '{hook}' ORDER BY head, pos"
        )
        ours = np.stack(rows["vector"].to_list())
        close(ours, expected.flatten(0, 1), 5e-3)


def test_generations_are_the_masked_models_greedy_tokens(traced: Traced) -> None:
    prompt = traced.prompts[0]
    ids = list(prompt.token_ids[: -len(prompt.answer_ids)])
    for run, policy in ((traced.base, None), (traced.run, POLICY)):
        rows = traced.df(
            f"SELECT token_id FROM generations WHERE run_id = '{run.run_id}' AND prompt_id = '{prompt.id}'"
            " ORDER BY step"
        )
        now = list(ids)
        for token in rows["token_id"]:
            grown = type(prompt)(**{**prompt.__dict__, "token_ids": tuple(now)})
            assert int(traced.by_hand(grown, policy)[-1]["logp"][-1].argmax()) == int(token)
            now.append(int(token))


def test_scores_are_means_over_the_answer(traced: Traced) -> None:
    prompt = traced.prompts[1]
    logp = traced.by_hand(prompt, POLICY)[-1]["logp"]
    start = len(prompt.token_ids) - len(prompt.answer_ids)
    ids = torch.tensor(prompt.answer_ids)
    expected = float(-logp[start - 1 : -1].gather(-1, ids[:, None]).mean())
    scores = traced.df(
        f"SELECT metric, value FROM prompt_scores WHERE run_id = '{traced.run.run_id}' AND prompt_id = '{prompt.id}'"
    ).set_index("metric")["value"]
    assert scores["answer_nll"] == pytest.approx(expected, abs=1e-4)
    assert scores["logit_diff"] == pytest.approx(
        float(logp[start - 1, ids[0]] - logp[start - 1, prompt.foils[0]]), abs=1e-4
    )


def test_a_users_metric_is_stored(small: Any, prompts: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def largest(logits: Tensor, prompt: Any) -> float:
        seen.append(tuple(logits.shape))
        return float(logits.max())

    run, *_ = capture(small, prompts[:1], [], tmp_path / "t", metrics={"largest": largest}, progress=False)
    rows = run.sql("SELECT value FROM prompt_scores WHERE metric = 'largest'").rows
    assert len(rows) == 1
    assert seen == [(len(prompts[0].answer_ids), 3000)]


def test_restricting_heads_changes_what_is_recorded_and_not_what_runs(
    small: Any, prompts: Any, tmp_path: Path
) -> None:
    whole = capture(small, prompts[:1], [POLICY], tmp_path / "whole", progress=False)[1]
    part = capture(small, prompts[:1], [POLICY], tmp_path / "part", heads=["L1H2"], progress=False)[1]
    assert set(part.df("head_stats")["head_name"]) == {"L1H2"}
    assert part.df("predictions")["nll"].tolist() == whole.df("predictions")["nll"].tolist()
    question = "SELECT {} FROM diffs WHERE layer = 1 AND head = 2 ORDER BY scope, rows"
    ours, theirs = (run.sql(question.format("write_error, kept_mass")).rows for run in (part, whole))
    assert ours == theirs


def test_a_policy_alone_needs_no_base(small: Any, prompts: Any, tmp_path: Path) -> None:
    (run,) = capture(small, prompts[:1], [POLICY], tmp_path / "t", base=None, progress=False)
    assert run.sql("SELECT count(*) FROM diffs").rows == [(0,)]
    assert run.sql("SELECT min(kept_mass) < 1 FROM row_stats").rows == [(True,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": ["L9H0"]}, "2 layers of 4 heads"),
        ({"heads": ["18.6"]}, "written L18H6"),
        ({"keep": ["hook_nothing"]}, "nothing to keep is called 'hook_nothing'"),
        ({"kernel": "fast"}, "blocked"),
        ({"policies": ["windows(window=3)"]}, "sliding_window"),
        ({"policies": ["a_shape(sinks=3)"]}, "sink"),
        ({"base": None}, "nothing to capture"),
    ],
)
def test_bad_options_leave_no_trace_behind(
    small: Any, prompts: Any, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        capture(small, prompts, **{"policies": [], "trace": tmp_path / "t", "progress": False, **options})
    assert not (tmp_path / "t").exists()


def test_a_map_cannot_be_kept_as_vectors(prompts: Any, tmp_path: Path, tiny: Any) -> None:
    from small_tokenizer import small_tokenizer

    from sparselens.workbench.models import wrap

    session = wrap(tiny("llama"), small_tokenizer())
    with pytest.raises(ValueError, match="map of tokens × tokens"):
        capture(session, prompts, [], tmp_path / "t", keep=["blocks.0.attn.hook_pattern"], progress=False)
    assert not (tmp_path / "t").exists()


def test_an_interrupted_capture_resumes_to_the_same_rows(
    small: Any, prompts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = capture(small, prompts, [POLICY], tmp_path / "whole", progress=False)
    commit, count = Part._commit, 0

    def fail(part: Part) -> None:
        nonlocal count
        count += 1
        if count == 4:  # the second prompt's policy run: its base is in, it is not
            raise KeyboardInterrupt
        commit(part)

    monkeypatch.setattr(Part, "_commit", fail)
    with pytest.raises(KeyboardInterrupt):
        capture(small, prompts, [POLICY], tmp_path / "cut", progress=False)
    monkeypatch.setattr(Part, "_commit", commit)
    assert connect(tmp_path / "cut").sql("SELECT DISTINCT status FROM runs").rows == [("interrupted",)]
    resumed = capture(small, prompts, [POLICY], tmp_path / "cut", resume=True, progress=False)
    for mine, theirs in zip(resumed, whole, strict=True):
        for table, columns in (
            ("head_stats", "prompt_id, pattern, rows, layer, head, entropy, density, kept_mass, write_norm"),
            ("edges", "prompt_id, layer, head, q_pos, k_pos, p, p_base, kept, reason"),
            ("predictions", "prompt_id, pos, nll, top1_id"),
        ):
            question = f"SELECT {columns} FROM {table} WHERE run_id = '{{}}' ORDER BY ALL"
            assert (
                mine.sql(question.format(mine.run_id)).rows == theirs.sql(question.format(theirs.run_id)).rows
            )
    question = "SELECT prompt_id, scope, rows, layer, head, write_error, js FROM diffs ORDER BY ALL"
    assert resumed[1].sql(question).df().equals(whole[1].sql(question).df())


def test_the_estimate_is_of_the_size_that_is_written(traced: Traced) -> None:
    said = sum(size for _, size in estimate(traced.session, traced.prompts, 3, ("qk",)))
    stored = sum(file.stat().st_size for file in traced.path.rglob("*.parquet")) / 1e6
    assert 0.2 < said / stored < 5
