"""The gates of DuoAttention: low where streaming changes nothing, high where a head must look far."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from copy_model import FIRST_WORD, copy_prompts, copy_session
from small_session import small_session
from small_tokenizer import small_tokenizer

from sparselens.kernels.policies.duo_attention import DuoAttention as Policy
from sparselens.workbench.calibration import calibration, calibrations
from sparselens.workbench.calibrations.duo_attention import DuoAttention
from sparselens.workbench.encoder import Encoder
from sparselens.workbench.passkey import ORDINALS, WORDS, Recital, recital

PLACES = [(word, 4 + 3 * word) for word in range(12)]  # 20 positions and more before the question's end


def copies(n: int) -> list[Recital]:
    """Recitals of the copy model: the rows that predict the three words hidden far back."""
    prompts = copy_prompts(PLACES)
    start = len(prompts[0]) - 3
    return [Recital(prompt.token_ids, (start - 1, start, start + 1)) for prompt in (prompts * n)[:n]]


def gates_of(session: Any, *, steps: int = 25, **arguments: Any) -> torch.Tensor:
    """The gates after a short optimisation on the copy model's prompts."""
    made = DuoAttention(steps=steps, rate=0.1, **arguments)
    return torch.tensor(made.optimised(session, copies(steps), lambda _: None)[0]["gates"])


@pytest.mark.parametrize("full", ["base", "mixed"])
def test_the_head_that_must_look_far_keeps_its_gate_and_the_others_lose_it(full: str) -> None:
    gates = gates_of(copy_session(), sink=1, recent=8, full=full)
    assert gates[1, 0] > 0.7
    gates[1, 0] = 0
    assert torch.equal(gates, torch.zeros(2, 2))


def test_a_window_that_reaches_the_needle_frees_every_head() -> None:
    assert torch.equal(gates_of(copy_session(), sink=1, recent=64), torch.zeros(2, 2))


def test_without_a_penalty_nothing_pulls_the_gates_down() -> None:
    assert torch.equal(gates_of(copy_session(), steps=3, sink=1, recent=8, penalty=0.0), torch.ones(2, 2))


@pytest.mark.parametrize("full", ["base", "mixed"])
def test_the_gradient_is_that_of_finite_differences(full: str) -> None:
    session = small_session()
    session.model.double()
    ids = torch.randint(3, 3000, (50,), generator=torch.Generator().manual_seed(3))
    example = Recital(tuple(ids.tolist()), (30, 41, 48))
    made = DuoAttention(sink=2, recent=6, full=full, kernel="reference")
    gates = torch.tensor([[0.8, 0.3], [0.5, 0.6]], dtype=torch.float64, requires_grad=True)
    made._distance(session, example, gates).backward()
    # The model's norms round to float32: 1e-7 of a distance of 1, 1.5 ÷ step times; the rule's own error is step⁴.
    step = 0.01
    for place in ((0, 0), (0, 1), (1, 0), (1, 1)):
        values = {}
        for steps in (-2, -1, 1, 2):
            moved = gates.detach().clone()
            moved[place] += steps * step
            values[steps] = made._distance(session, example, moved).item()
        slope = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
        assert float(gates.grad[place]) == pytest.approx(slope, rel=1e-3, abs=1.5e-5)


@pytest.mark.parametrize("full", ["base", "mixed"])
def test_open_gates_are_the_dense_model_and_closed_ones_the_streaming_model(full: str) -> None:
    session = small_session()
    ids = tuple(range(5, 65))
    rows = tuple(range(40, 60))
    made = DuoAttention(sink=2, recent=6, full=full)
    assert made._distance(session, Recital(ids, rows), torch.ones(2, 2)).item() < 1e-12
    decoder = session.model.get_decoder()
    states = []
    for policy in ("dense", "a_shape(sink=2,window=6)"):
        with torch.no_grad(), session.under(policy):
            states.append(decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0, rows])
    expected = sum(float(x) ** 2 for x in (states[0] - states[1]).flatten()) / states[0].numel()
    found = made._distance(session, Recital(ids, rows), torch.zeros(2, 2)).item()
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    session = copy_session()
    session.model.model.embed_tokens.weight.requires_grad_(False)
    before = {
        name: (weight.clone(), weight.requires_grad) for name, weight in session.model.named_parameters()
    }
    gates_of(session, steps=2, sink=1, recent=8)
    for name, weight in session.model.named_parameters():
        assert torch.equal(weight, before[name][0])
        assert weight.requires_grad == before[name][1]
        assert weight.grad is None


def test_the_rate_rises_over_a_fifth_and_falls_over_the_last() -> None:
    found = [DuoAttention(steps=50)._rise_and_fall(step) for step in range(50)]
    assert found[:10] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert found[10:41] == [1.0] * 31
    assert found[41:] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert DuoAttention(steps=300)._rise_and_fall(0) == 0.1


def test_a_plan_of_the_small_model_runs_as_a_policy(tmp_path: Path) -> None:
    session = small_session()
    text = "duo_attention(steps=2,shortest=160,longest=200,passkeys=2,words=3,sink=2,recent=16,seed=4)"
    plan = calibration(text).plan(session)
    assert plan.content == calibration(text).plan(session).content
    assert len(plan.data["curve"]) == len(plan.data["tokens"]) == 2
    assert plan.data["arguments"]["seed"] == 4
    policy = Policy(plan=str(plan.write(tmp_path / "gates.json")), sink=2, recent=16)
    assert session.logits(torch.arange(5, 65)[None], policy=policy).shape == (1, 60, 3000)


def test_it_is_found_by_its_method() -> None:
    assert calibrations()["duo_attention"] is DuoAttention


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps=0", "at least 1"),
        ("shortest=700", "lengths go from 700 to 640"),
        ("labels=all", "labels is answer or tail"),
        ("full=dense", "full is base or mixed"),
    ],
)
def test_bad_arguments_are_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calibration(f"duo_attention({text})")


def test_a_prompt_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the model's context 256"):
        next(DuoAttention().examples(small_session()))


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(small_tokenizer(bos=True))


def test_the_labels_predict_the_words_that_stand_in_the_prose(encoder: Encoder) -> None:
    made = recital(encoder, random.Random(0), length=300, passkeys=3, words=4)
    text = encoder.tokenizer.decode(made.ids[1:])
    keys = [text.split(f"the {ordinal} passkey is: ")[1].split(".")[0] for ordinal in ORDINALS[:3]]
    assert all(len(key.split()) == 4 and set(key.split()) <= set(WORDS) for key in keys)
    assert encoder.tokenizer.decode([made.ids[row + 1] for row in made.rows]) == "".join(
        f" {key}" for key in keys
    )
    for key in keys:
        assert text.count(key) == 2
    assert 300 - 90 <= len(made.ids) <= 305  # whole sentences, of 45 words at most


def test_the_tail_begins_with_the_first_question(encoder: Encoder) -> None:
    made = recital(encoder, random.Random(0), length=300, passkeys=3, words=4, labels="tail")
    tail = encoder.tokenizer.decode(made.ids[made.rows[0] :])
    assert tail.lstrip().startswith("Which words are the first passkey?")
    assert made.rows == tuple(range(made.rows[0], len(made.ids)))


def test_passkeys_stand_at_other_depths_each_time(encoder: Encoder) -> None:
    rng = random.Random(0)
    depths = []
    for _ in range(20):
        made = recital(encoder, rng, length=300, passkeys=1, words=3)
        depths.append(encoder.tokenizer.decode(made.ids).index("Remember"))
    assert len(set(depths)) > 10


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"passkeys": 11}, "1 to 10 passkeys"),
        ({"words": 0}, "at least one word"),
        ({"labels": "all"}, "answer or tail"),
        ({"length": 120}, "no room for prose"),
    ],
)
def test_recitals_that_cannot_be_made_are_refused(
    encoder: Encoder, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        recital(encoder, random.Random(0), **{"length": 300, "passkeys": 3, "words": 4} | fields)


def test_words_of_the_copy_model_are_in_reach_of_no_window() -> None:
    for example in copies(12):
        needle = example.ids.index(example.ids[-1])
        assert example.rows[0] - needle > 8
        assert example.ids[needle] >= FIRST_WORD
