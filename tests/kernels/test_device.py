"""Nothing is made on a default device: with that set elsewhere, calls on the CPU stay on the CPU."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.kernel import kernel
from sparselens.kernels.policy import parse
from sparselens.kernels.statistics import NAMES, Want, weights_at

from .conftest import make_call
from .policy_case import Case, cases, chosen


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.text)
def test_masks_and_statistics_are_made_where_the_tensors_are(case: Case) -> None:
    alone = "padded" in case.exceptions or parse(case.text).phase == "decode"
    for pads in (None,) if alone else (None, [(0, 0), (5, 3)]):
        call = make_call(40, pads=pads)
        want = Want(NAMES - {"gathered"})
        with torch.device("meta"):
            selection = chosen(case.text, call)
            found = kernel("reference").attend(call, selection, want)
            selection.tiles(call, 16)
            selection.density(call)
            selection.encode(call)
            weights_at(call, found.lse, found.statistics["top_index"])
        tensors = [found.output, found.lse, *found.statistics.values()]
        assert all(tensor.device.type == "cpu" for tensor in tensors)
