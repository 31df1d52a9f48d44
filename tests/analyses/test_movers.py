"""Direct effects by source sum to those of the whole head, and find the one head that carries the answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from copy_model import copy_session
from copy_pairs import PLACE, copy_pair

from sparselens.analyses.circuit.direct import direct
from sparselens.analyses.circuit.patch import Pair, Run
from sparselens.analyses.circuit.port import ports_of
from sparselens.analyses.movers import question
from sparselens.analyses.movers.choice import held_out, right_choices
from sparselens.analyses.movers.cut import folds_of
from sparselens.analyses.movers.measure import measured_case
from sparselens.analyses.movers.plan import Case, Movers, groups_of, references, sources
from sparselens.analyses.movers.question import ANALYSIS
from sparselens.storage.reader import connect
from sparselens.storage.trace import Trace

HEAD = 2  # L1H0 of two layers of two heads
WINDOW = "a_shape(sink=1,window=6)"


def copy_cases(count: int, *, found: bool = True, other: bool = True) -> list[Case]:
    pairs = [copy_pair(number, found=found, other=other) for number in range(count)]
    return [Case(clean, (corrupt,), sources(clean)) for clean, corrupt in pairs]


@pytest.fixture(scope="module")
def reader() -> Any:
    return copy_session()


def measured(session: Any, case: Case, policy: str = "dense") -> dict[str, Any]:
    return measured_case(session, ports_of(session), case, policy, "blocked")


def random_case(session: Any) -> Case:
    """A case with options on the small random model."""
    ids = torch.randint(5, 2000, (24,), generator=torch.Generator().manual_seed(3)).tolist()
    clean, corrupt = copy_pair(0)
    spans = {"right": (3, 4), "right_end": (6, 7), "wrong1": (8, 9), "wrong1_end": (11, 12), "END": (23, 24)}
    spans["answer"] = (24, 25)
    tokens = (*ids, 77)
    made = [
        replace(each, token_ids=tokens, spans=spans, answer_ids=(77,), foils=(78, 79))
        for each in (clean, corrupt)
    ]
    assert max(tokens) < len(session.tokenizer)
    return Case(made[0], (made[1],), sources(made[0]))


@pytest.mark.parametrize("policy", ["dense", "a_shape(sink=2,window=5)"])
def test_parts_sum_to_what_the_head_writes_itself(small: Any, policy: str) -> None:
    case = random_case(small)
    found = measured(small, case, policy)
    run = Run(small, Pair(case.prompt, case.references, case.metric), policy, "blocked")
    whole = direct(run)
    heads = torch.cat([whole[run.graph.writing(layer)] for layer in range(small.n_layers)])
    assert found["direct"].sum(0) == pytest.approx(heads.numpy(), abs=1e-5)
    assert found["attention"].sum(0) == pytest.approx(np.ones(8), abs=1e-5)
    assert found["difference"] == pytest.approx(run.full(), abs=1e-5)


def test_every_part_is_the_loop_over_its_tokens(small: Any) -> None:
    """Against the attention map and the values of the model itself, layer 0, in the dumbest loops."""
    case = random_case(small)
    found = measured(small, case)
    model, row = small.model, case.row
    run = Run(small, Pair(case.prompt, case.references, case.metric), "dense", "blocked")
    stream = run.clean.stream[row]
    head = model.lm_head.weight
    axis = (head[77] - (head[78] + head[79]) / 2) * model.model.norm.weight
    axis = axis / (stream.square().mean() + model.config.rms_norm_eps).sqrt()
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            ids = torch.tensor([case.prompt.token_ids])
            weights = model(input_ids=ids, output_attentions=True, use_cache=False).attentions[0][0]
            layer = model.model.layers[0]
            normed = layer.input_layernorm(model.model.embed_tokens(ids[0]))
            values = layer.self_attn.v_proj(normed)
    finally:
        model.set_attn_implementation("sdpa")
    for place, positions in enumerate(case.sources.values()):
        for number in range(4):
            group = number // 2
            expected = 0.0
            for key in positions:
                written = (
                    layer.self_attn.o_proj.weight[:, 8 * number : 8 * number + 8]
                    @ values[key, 8 * group : 8 * group + 8]
                )
                expected += float((weights[number, row, key] * (written @ axis)).detach())
            assert found["direct"][place, number] == pytest.approx(expected, abs=1e-5)


def test_the_head_that_reads_the_subject_has_all_of_the_direct_effect(reader: Any) -> None:
    case = copy_cases(1)[0]
    found = measured(reader, case)
    parts = list(case.sources)
    mine = found["direct"][:, HEAD]
    assert mine[parts.index("subject")] == pytest.approx(found["difference"], rel=1e-4)
    assert found["attention"][parts.index("subject"), HEAD] > 0.99
    assert abs(np.delete(mine, parts.index("subject"))).max() < 1e-3
    assert abs(np.delete(found["direct"], HEAD, axis=1)).max() == 0
    assert found["first_token"] == found["choice"] == 1


def test_a_policy_that_drops_the_subject_takes_the_effect_with_it(reader: Any) -> None:
    case = copy_cases(1)[0]
    found = measured(reader, case, WINDOW)
    place = list(case.sources).index("subject")
    assert found["kept"][place].tolist() == [0, 0, 0, 0]
    assert found["direct"][place].tolist() == [0, 0, 0, 0]
    assert found["attention"][place].tolist() == [0, 0, 0, 0]
    assert found["choice"] == 0
    wide = measured(reader, case, f"a_shape(sink=1,window={case.row - PLACE + 1})")
    assert wide["kept"][place].tolist() == [1, 1, 1, 1]


def answered(
    session: Any, trace: Path, monkeypatch: pytest.MonkeyPatch, cases: list[Case], **given: Any
) -> str:
    monkeypatch.setattr(question, "cases", lambda *_: cases)
    return ANALYSIS.run(session, trace, heads=1, draws=2, **given)


def asked(trace: Path, text: str) -> list[Any]:
    with connect(trace) as connection:
        return list(connection.sql(text).rows)


def test_the_analysis_finds_the_head_and_cutting_it_is_what_matters(
    reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(reader, tmp_path / "t", monkeypatch, copy_cases(6))
    best = asked(
        tmp_path / "t",
        "SELECT layer, head, value FROM head_scores WHERE metric = 'direct_subject' ORDER BY value DESC",
    )
    assert best[0][:2] == (1, 0)
    assert [value for *_, value in best[1:]] == [0, 0, 0]
    cuts = {
        (kind, order, metric): (value, low)
        for kind, order, metric, value, low in asked(
            tmp_path / "t",
            "SELECT kind, order_by, metric, value, ci_low FROM interventions WHERE fold IS NULL",
        )
    }
    whole = cuts["none", None, "logit_diff"][0]
    # the reference is one prompt in which the head says the foil: the difference turns round
    assert cuts["mean", "direct", "logit_diff_fall"][0] == pytest.approx(2 * whole, rel=1e-3)
    assert cuts["mean", "random", "logit_diff_fall"][0] == pytest.approx(0, abs=1e-6)
    assert cuts["mean", "direct", "logit_diff_fall_over_random"][1] > 0
    shown = ANALYSIS.show(Trace.open(tmp_path / "t"), run, {"top": 1})
    assert shown.rows[0]["head_name"] == "L1H0"
    assert "6 of 6 prompts" in shown.notes[0]


def test_base_policy_and_change_are_told_apart(
    reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(reader, tmp_path / "t", monkeypatch, copy_cases(4), policy=WINDOW)
    found = dict(
        asked(
            tmp_path / "t",
            "SELECT metric, value FROM head_scores WHERE layer = 1 AND head = 0 AND value IS NOT NULL",
        )
    )
    assert found["direct_subject"] == 0
    assert found["direct_subject_base"] > 1
    assert found["direct_subject_change"] == pytest.approx(-found["direct_subject_base"])
    assert found["kept_subject"] == 0
    evals = dict(asked(tmp_path / "t", "SELECT metric, value FROM evals"))
    assert (evals["choice_base"], evals["choice"], evals["kept_subject_any"]) == (1, 0, 0)
    assert evals["kept_END"] == 1
    assert any(
        "keeps some of it at END" in note for note in ANALYSIS.show(Trace.open(tmp_path / "t"), run, {}).notes
    )


def test_a_model_that_answers_nothing_is_told_so_and_no_head_is_named(
    reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = answered(reader, tmp_path / "t", monkeypatch, copy_cases(4, found=False))
    assert asked(tmp_path / "t", "SELECT count(*) FROM head_scores") == [(0,)]
    assert asked(tmp_path / "t", "SELECT count(*) FROM interventions") == [(0,)]
    notes = ANALYSIS.show(Trace.open(tmp_path / "t"), run, {}).notes
    assert "not applicable on this model: the base answers 0 of 4 prompts" in notes[0]


def test_options_below_twice_chance_are_not_applicable() -> None:
    case = replace(copy_cases(1)[0])
    spans = {"right": (3, 4), "right_end": (6, 7), "wrong1": (8, 9), "wrong1_end": (11, 12)}
    prompts = [replace(case.prompt, spans=spans, foils=(1, 2, 3), group=f"g{number}") for number in range(4)]
    every = [Case(prompt, case.references, case.sources) for prompt in prompts]
    for right, applicable in (((1, 1, 0, 0), True), ((1, 0, 0, 0), False)):
        numbers = [{"choice": each, "first_token": 0.0} for each in right]
        answers, why_not = question._answered(every, numbers)
        assert answers.tolist() == [bool(each) for each in right]
        assert (why_not == "") is applicable
    two = [Case(replace(prompt, foils=(1,)), case.references, case.sources) for prompt in prompts]
    assert question._answered(two, [{"choice": each, "first_token": 0.0} for each in (1, 1, 1, 0)])[1] == ""
    assert "75% are asked for" in question._answered(two, [{"choice": each} for each in (1, 1, 0, 0)])[1]


def test_heads_are_chosen_on_the_groups_that_are_not_tested() -> None:
    groups = ["a", "b", "a", "b"]
    scores = np.array([[9, 0, 1, 0], [0, 9, 0, 1], [9, 0, 1, 0], [0, 9, 0, 1]], float)
    first, second = folds_of(groups, scores, (2, 2), Movers(heads=1, draws=3))
    assert (first.tested, first.heads) == ((0, 2), ((0, 1),))
    assert (second.tested, second.heads) == ((1, 3), ((0, 0),))
    assert set(first.random) == {((0, 0),)}


def test_raw_scores_are_queries_times_keys_before_they_are_turned(small: Any) -> None:
    case = random_case(small)
    found = measured(small, case)
    layer = small.model.model.layers[0]
    ids = torch.tensor(case.prompt.token_ids)
    with torch.no_grad():
        normed = layer.input_layernorm(small.model.model.embed_tokens(ids))
        query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
    assert case.labels == [(3, 6), (8, 11)]
    for number, place in enumerate((3, 6, 8, 11)):
        for head in range(4):
            group = head // 2
            expected = query[case.row, 8 * head : 8 * head + 8] @ key[place, 8 * group : 8 * group + 8]
            assert found["raw"][number, head] == pytest.approx(float(expected), abs=1e-4)


def test_the_option_with_the_largest_score_is_chosen_and_ties_count_their_share() -> None:
    raw = np.array([[5, 0, 1], [0, 9, 1], [1, 1, 1], [3, 3, 1]], float)  # label, end of right; of wrong
    found = right_choices({"raw": raw, "paid": raw})
    assert found["qk_accuracy_label"].tolist() == [1, 0, 0.5]
    assert found["qk_accuracy_end"].tolist() == [0, 1, 0.5]


def test_the_best_head_is_tested_on_other_groups() -> None:
    groups = [f"g{number // 2}" for number in range(16)]
    tested = held_out(groups, 0.25, 0)
    assert (~tested).sum() == 4
    assert not {group for group, mine in zip(groups, tested, strict=True) if mine} & {
        group for group, mine in zip(groups, tested, strict=True) if not mine
    }
    with pytest.raises(ValueError, match="two groups or more"):
        held_out(["one", "one"], 0.25, 0)


def test_numbered_spans_are_one_part_and_an_option_is_one_group() -> None:
    clean, _ = copy_pair(0)
    spans = {"right": (1, 2), "right_end": (3, 4), "wrong1": (5, 6), "wrong2": (7, 8), "answer": (30, 31)}
    parts = sources(replace(clean, spans=spans))
    assert parts["wrong"] == (5, 7)
    assert parts["sink"] == (0,)
    assert sorted(place for places in parts.values() for place in places) == list(range(30))
    groups = groups_of(list(parts))
    assert [list(parts)[place] for place in groups["right"]] == ["right", "right_end"]


def test_references_are_the_own_corrupt_prompt_and_others_like_it() -> None:
    pairs = [copy_pair(number) for number in range(4)]
    corrupt = [pair[1] for pair in pairs]
    odd = replace(corrupt[2], spans={**corrupt[2].spans, "subject": (6, 7)})
    found = references(pairs[0][0], [corrupt[1], odd, corrupt[0], replace(corrupt[2], name="like")], 3)
    assert [prompt.name for prompt in found] == ["corrupt-0", "like"]


def test_sets_without_pairs_are_refused(small: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no clean and corrupt pairs with answers and foils"):
        ANALYSIS.run(small, tmp_path / "t", prompts="prose(n=2,length=64)")
    with pytest.raises(ValueError, match="validation is a share"):
        Movers(validation=1.0)
