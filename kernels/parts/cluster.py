"""K-means on the unit sphere, for all heads at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def k_means(points: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    """Return centroids `[heads, clusters, d]` of length 1 for points `[heads, n, d]` of length 1, by cosine.

    Starts from points drawn with `seed`, the same places in every head; fewer points than clusters are used again. A
    centroid that no point is nearest to stays where it is.
    """
    draw = torch.randperm(points.shape[1], generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    start = draw.to(points.device)[torch.arange(clusters, device=points.device) % points.shape[1]]
    centroids = points[:, start]
    for _ in range(iterations):
        nearest = (points @ centroids.transpose(1, 2)).argmax(-1, keepdim=True).expand_as(points)
        total = torch.zeros_like(centroids).scatter_add_(1, nearest, points)
        taken = torch.zeros_like(centroids).scatter_add_(1, nearest, torch.ones_like(points)) > 0
        centroids = torch.where(taken, normalize(total, dim=-1), centroids)
    return centroids
