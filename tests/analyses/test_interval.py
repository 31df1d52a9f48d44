"""The bootstrap keeps clusters whole, pairs what is paired, and says when it knows nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparselens.analyses.interval import clustered_mean


def test_a_constant_has_no_width() -> None:
    found = clustered_mean([2.0] * 12, list("aabbccddeeff"))
    assert (found.mean, found.low, found.high, found.n, found.n_clusters) == (2.0, 2.0, 2.0, 12, 6)


def test_copies_inside_a_cluster_do_not_narrow_the_interval() -> None:
    values, names = [0.0, 1.0, 2.0, 3.0], list("abcd")
    once = clustered_mean(values, names)
    many = clustered_mean(np.repeat(values, 50), np.repeat(names, 50))
    assert (many.low, many.high) == pytest.approx((once.low, once.high))


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        effect = np.repeat(random.normal(size=30), 4)
        found = clustered_mean(effect + random.normal(size=120) * 0.5, np.repeat(np.arange(30), 4))
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_one_cluster_has_a_mean_and_no_interval() -> None:
    found = clustered_mean([1.0, 3.0], ["a", "a"])
    assert found.mean == 2.0
    assert math.isnan(found.low)
    assert str(found) == "2"


def test_missing_values_are_left_out_and_counted() -> None:
    found = clustered_mean([1.0, math.nan, 3.0], ["a", "b", "c"])
    assert (found.mean, found.n, found.n_clusters) == (2.0, 2, 2)
    assert clustered_mean([], []).n == 0
