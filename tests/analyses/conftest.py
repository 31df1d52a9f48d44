"""A trace of a small random model: a paired capture, and two runs captured apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

POLICY = "a_shape(sink=2,window=9)"


@pytest.fixture(scope="session")
def small() -> Any:
    from small_session import small_session

    return small_session()


@pytest.fixture(scope="session")
def prompts(small: Any) -> Any:
    words = (
        "the quick brown fox jumps over the lazy dog while seven wizards mix jade and quartz by the river "
    )
    return small.prompts(
        [
            {
                "id": f"p{n}",
                "text": words * (1 + n % 3) + f"and then {n}",
                "answer": " river",
                "group": f"family {n % 3}",
            }
            for n in range(6)
        ]
    )


@pytest.fixture(scope="session")
def paired(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from sparselens.workbench.capture import capture

    path: Path = tmp_path_factory.mktemp("paired") / "trace"
    return capture(small, prompts, [POLICY], path, generate=1, verify=True, progress=False)


@pytest.fixture(scope="session")
def apart(small: Any, prompts: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from sparselens.workbench.capture import capture

    path: Path = tmp_path_factory.mktemp("apart") / "trace"
    first = capture(small, prompts, [], path, run_name="first", progress=False)
    second = capture(small, prompts[:5], [POLICY], path, base=None, run_name="second", progress=False)
    return [*first, *second]
