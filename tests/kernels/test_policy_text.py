"""Call strings, JSON, plans, functions and files: every way to write a policy, and to get it wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparselens.kernels.policies.a_shape import AShape
from sparselens.kernels.policies.dense import Dense
from sparselens.kernels.policies.oracle_mass import OracleMass
from sparselens.kernels.policies.per_head import PerHead
from sparselens.kernels.policies.random import Random
from sparselens.kernels.policies.sliding_window import SlidingWindow
from sparselens.kernels.policies.vertical_slash import VerticalSlash
from sparselens.kernels.policy import Memory, Policy, parse, policies, policy
from sparselens.kernels.policy_registry import add
from sparselens.kernels.selection import Band, Bits, Everything, Selection

from .conftest import make_call

phases = st.sampled_from(["prefill", "decode", "both"])
shares = st.floats(0.001, 1, allow_nan=False)
simple = st.one_of(
    st.builds(Dense, phase=phases),
    st.builds(SlidingWindow, window=st.integers(1, 9999), dense_below=st.integers(0, 9)),
    st.builds(AShape, sink=st.integers(0, 99), window=st.integers(1, 9999), phase=phases),
    st.builds(VerticalSlash, vertical=st.integers(0, 9), tile=st.sampled_from([0, 64]), phase=phases),
    st.builds(OracleMass, density=shares, mass=st.none() | shares),
    st.builds(
        Random, density=shares, granularity=st.sampled_from(["token", "block"]), seed=st.integers(0, 99)
    ),
)
heads = st.builds("L{}H{}".format, st.integers(0, 40), st.integers(0, 40))
nested = st.builds(PerHead, default=simple, full=st.lists(heads, max_size=4).map(tuple), phase=phases)
twice = st.builds(PerHead, default=nested, full=st.lists(heads, max_size=2).map(tuple))


@settings(max_examples=100, deadline=None)
@given(st.one_of(simple, nested, twice))
def test_printing_and_parsing_round_trip(made: Policy) -> None:
    assert parse(str(made)) == made
    record = json.loads(json.dumps(made.to_json()))
    assert Policy.from_json(record) == made
    assert Policy.from_json({"name": record["name"], "parameters": record["parameters"]}) == made


def test_call_strings_of_the_design() -> None:
    assert parse("a_shape(sink=4,window=128)") == AShape(sink=4, window=128)
    assert parse("a_shape:sink=4,window=128") == AShape(sink=4, window=128)
    assert parse(" a_shape( window = 7 ) ") == AShape(window=7)
    assert parse("dense") == parse("dense()") == Dense()
    text = "per_head(default=a_shape(sink=4,window=128),full=[L18H6,L17H3])"
    assert str(parse(text)) == text
    assert parse(text) == PerHead(default=AShape(4, 128), full=("L18H6", "L17H3"))
    assert parse("per_head(default=dense)") == PerHead(default=Dense())
    assert str(AShape(4, 128, phase="prefill")) == "a_shape(sink=4,window=128,phase=prefill)"


def test_plans_are_json_files(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(AShape(2, 9).to_json()))
    assert parse(f"@{plan}") == AShape(2, 9)
    plan.write_text('{"call": "a_shape(sink=3)"}')
    assert parse(f"@{plan}") == AShape(3)
    plan.write_text('{"name": "per_head", "parameters": {"default": {"name": "dense"}, "full": ["L0H1"]}}')
    assert parse(f"@{plan}") == PerHead(Dense(), ("L0H1",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ashape", r"no policy named 'ashape'; there are a_shape, .*dense"),
        ("a_shape(sinks=4)", r"no field 'sinks'; it has sink, window, phase, dense_below"),
        ("a_shape(sink=4.5)", r"a_shape.sink is int, not 4.5"),
        ("a_shape(sink=true)", r"a_shape.sink is int, not True"),
        ("a_shape(sink=dense())", r"a_shape.sink is int"),
        ("a_shape(sink=4,sink=5)", "given twice"),
        ("a_shape(4)", "field=value"),
        ("a_shape(sink=4", "expected"),
        ("a_shape(sink=)", "a value is missing"),
        ("a_shape(sink=4))", r"from '\)' on"),
        ("", "a value is missing"),
        ("4", "not a policy"),
        ("[dense]", "not a policy"),
        ("a_shape(window=0)", "window is 1 or more"),
        ("a_shape(phase=never)", "phase is one of prefill, decode, both"),
        ("a_shape(dense_below=-1)", "dense_below is 0 or more"),
        ("per_head(full=[18])", r"per_head.full is str, not 18"),
        ("per_head(full=[H18])", "heads are written L18H6"),
        ("per_head(default=4)", "not a policy"),
        ("random(granularity=page)", "granularity is one of token, block"),
        ("@nowhere.json", "cannot read the policy plan"),
        ("nowhere.py:NAME", "no file 'nowhere.py'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_every_file_is_a_policy_with_a_card() -> None:
    found = policies()
    folder = Path(str(policies.__code__.co_filename)).parent / "policies"
    assert {path.stem for path in folder.glob("*.py") if path.stem != "__init__"} == set(found)
    for name, kind in found.items():
        assert kind.name == name
        assert kind.card
        assert kind.source
        assert kind.__doc__
        assert parse(name) == kind()


def test_a_duplicate_name_raises() -> None:
    found = {"dense": Dense}
    with pytest.raises(ValueError, match="two policies are named 'dense'"):
        add(found, Dense)  # type: ignore[arg-type]


@policy
def every_nth(call: object, memory: Memory, *, stride: int = 2) -> Selection:
    """A user's policy."""
    del memory
    return Bits.of(call.key_positions[:, None, None, :] % stride == 0)  # type: ignore[attr-defined]


def test_a_function_is_a_policy_with_fields() -> None:
    assert str(every_nth) == "every_nth(stride=2)"
    assert parse("every_nth(stride=3)") == every_nth(stride=3) != every_nth
    assert parse("per_head(default=every_nth(stride=3,phase=prefill),full=[L0H0])").default.phase == "prefill"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="it has stride, phase, dense_below"):
        parse("every_nth(step=3)")
    with pytest.raises(ValueError, match="it has stride"):
        every_nth(step=3)
    call = make_call(10)
    chosen = every_nth(stride=5).selection_for(call, Memory())
    assert torch.equal(chosen.rows(call, 0, 1)[0, 0, 0].nonzero()[:, 0], torch.tensor([0, 5]))


def test_a_function_may_return_a_mask_and_nothing_else() -> None:
    @policy
    def masked(call: object, memory: Memory) -> torch.Tensor:
        return torch.ones(1, 1, 10, 10).tril()

    @policy
    def wrong(call: object, memory: Memory) -> torch.Tensor:
        return torch.ones(3)

    call = make_call(10)
    assert isinstance(masked.select(call, Memory()), Bits)
    with pytest.raises(TypeError, match="wrong returned Tensor"):
        wrong.select(call, Memory())


def test_source_and_hash_go_with_the_policy() -> None:
    assert "stride: int = 2" in every_nth.source_code
    assert every_nth.to_json()["hash"] == hashlib.sha256(every_nth.source_code.encode()).hexdigest()
    assert "class AShape" in AShape().source_code
    assert AShape().hash != SlidingWindow().hash


def test_a_function_cannot_take_the_name_of_a_policy_or_miss_a_default() -> None:
    with pytest.raises(ValueError, match="there is a policy named 'dense' already"):

        @policy
        def dense(call: object, memory: Memory) -> Selection:
            return Everything()

    with pytest.raises(ValueError, match="needs a default"):

        @policy
        def eager(call: object, memory: Memory, *, width: int) -> Selection:
            return Everything()


def test_a_file_holds_functions_objects_and_classes(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from sparselens.kernels.policy import Policy, policy\n"
        "from sparselens.kernels.policies.a_shape import AShape\n"
        "from sparselens.kernels.selection import Band\n"
        "@policy\n"
        "def of_file(call, memory, *, window: int = 3):\n"
        "    return Band(0, window)\n"
        "SMALL = AShape(1, 2)\n"
        "@dataclass(frozen=True)\n"
        "class Wide(Policy):\n"
        "    window: int = 5\n"
        "    name = 'wide'\n"
        "    def select(self, call, memory):\n"
        "        return Band(0, self.window)\n"
    )
    assert parse(f"{file}:SMALL") == AShape(1, 2)
    made = parse(f"{file}:of_file(window=7)")
    assert made.select(make_call(4), Memory()) == Band(0, 7)
    assert str(made) == f"{file}:of_file(window=7)"
    assert str(parse(str(made))) == str(made)
    wide = parse(f"{file}:Wide(window=6)")
    assert wide.select(make_call(4), Memory()) == Band(0, 6)
    assert str(wide) == f"{file}:Wide(window=6)"
    assert "class Wide" in wide.source_code
    with pytest.raises(ValueError, match=r"no policy 'OTHER' in .*; there are SMALL, of_file"):
        parse(f"{file}:OTHER")


def test_phase_and_short_inputs_are_dense_and_counted() -> None:
    memory = Memory()
    prefill, decode = make_call(20), make_call(20, q_len=1)
    both = AShape(2, 5)
    assert both.selection_for(prefill, memory) == both.selection_for(decode, memory) == Band(2, 5)
    assert (memory.calls, memory.dense_calls) == (2, 0)
    assert AShape(2, 5, phase="prefill").selection_for(decode, memory) == Everything()
    assert AShape(2, 5, phase="decode").selection_for(prefill, memory) == Everything()
    assert AShape(2, 5, dense_below=21).selection_for(prefill, memory) == Everything()
    assert AShape(2, 5, dense_below=20).selection_for(prefill, memory) == Band(2, 5)
    assert (memory.calls, memory.dense_calls) == (6, 3)


def test_memory_keeps_what_is_left_until_reset() -> None:
    memory = Memory(calls=3, dense_calls=1)
    memory.set(2, "columns", 5)
    assert memory.get(2, "columns") == 5
    assert memory.get(1, "columns") is None
    memory.reset()
    assert (memory.get(2, "columns", 0), memory.calls, memory.dense_calls) == (0, 0, 0)
