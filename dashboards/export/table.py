"""Tables as CSV that a spreadsheet opens without running what is in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The rows as CSV, the names of the columns first; None is an empty cell."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([harmless(name) for name in columns])
    writer.writerows([[harmless(value) for value in row] for row in rows])
    return out.getvalue()


def harmless(value: Any) -> Any:
    """Texts that a spreadsheet would run as a formula get a leading quote."""
    return "'" + value if isinstance(value, str) and value.startswith(FORMULA) else value
