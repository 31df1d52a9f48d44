"""Routing keeps what shares a cluster: in loops over centroids, with and without places."""

from __future__ import annotations

import pytest
import torch

from sparselens.kernels.parts.cluster import k_means
from sparselens.kernels.policies.routing import Routing

from .conftest import make_call
from .policy_case import mask_of


@pytest.mark.parametrize("window", [0, 11])
def test_it_is_its_formula_in_loops(window: int) -> None:
    call = make_call(50)
    mask = mask_of(f"routing(clusters=4,window={window},iterations=3,seed=5)", call)[0]
    for head in range(6):
        query, key = call.query[0, head].double(), call.key[0, head // 3].double()
        query, key = query / query.norm(dim=1, keepdim=True), key / key.norm(dim=1, keepdim=True)
        centroids = k_means(torch.cat([query, key])[None], 4, 3, 5)[0]
        near = [[[float(at @ c) for c in centroids] for at in side] for side in (query, key)]
        members = []
        for side in near:
            if window:
                by_cluster = [
                    sorted(range(50), key=lambda i, s=side, c=c: -s[i][c])[:window] for c in range(4)
                ]  # type: ignore[misc]
                members.append([{c for c in range(4) if i in by_cluster[c]} for i in range(50)])
            else:
                members.append([{max(range(4), key=lambda c, s=side, i=i: s[i][c])} for i in range(50)])  # type: ignore[misc]
        for q in range(50):
            for k in range(50):
                together = bool(members[0][q] & members[1][k]) or q == k
                assert bool(mask[head, q, k]) == (together and k <= q), (head, q, k)


def test_k_means_is_lloyds_rule_in_loops() -> None:
    points = torch.nn.functional.normalize(torch.randn(1, 30, 4, dtype=torch.float64), dim=-1)
    start = torch.randperm(30, generator=torch.Generator().manual_seed(2))[:3]
    centroids = [points[0, at] for at in start]
    for _ in range(4):
        owned: list[list[torch.Tensor]] = [[], [], []]
        for point in points[0]:
            owned[max(range(3), key=lambda c, p=point: float(p @ centroids[c]))].append(point)  # type: ignore[misc]
        centroids = [
            sum(mine) / sum(mine).norm() if mine else old for mine, old in zip(owned, centroids, strict=True)
        ]  # type: ignore[union-attr, arg-type]
    assert torch.allclose(k_means(points, 3, 4, 2)[0], torch.stack(centroids), atol=1e-12)


def test_a_centroid_without_points_stays() -> None:
    points = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    found = k_means(points, 5, 3, 0)  # more clusters than points: some start at the same place
    assert torch.isfinite(found).all()
    assert torch.allclose(found.norm(dim=-1), torch.ones(1, 5))


def test_planted_clusters_are_found_and_nothing_crosses_them() -> None:
    call = make_call(60, heads=2, kv_heads=1)
    kind = torch.arange(60) % 2
    call.query.copy_(torch.eye(16)[kind * 7].expand_as(call.query))
    call.key.copy_(torch.eye(16)[kind * 7].expand_as(call.key))
    mask = mask_of("routing(clusters=2,window=0,seed=5)", call)[0]  # the seed draws one of each to start from
    assert torch.equal(mask[0], (kind[:, None] == kind[None]).tril())


def test_a_token_without_a_place_reads_itself_alone() -> None:
    mask = mask_of("routing(clusters=1,window=3)", make_call(40))[0]
    assert (mask.sum(-1) == 1).sum() >= 6 * (40 - 3)


def test_without_places_fewer_clusters_are_wider() -> None:
    assert Routing(window=0, clusters=16).wider(4.0) == Routing(window=0, clusters=4)
    assert Routing(window=20).wider(2.0) == Routing(window=40)


def test_fields_that_cannot_be_raise() -> None:
    for wrong in ({"clusters": 0}, {"window": -1}, {"iterations": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Routing(**wrong)
