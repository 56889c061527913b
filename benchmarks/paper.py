"""What 10^9 snippets on many GPUs would need: memory a rank and bytes over the network, by arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

SNIPPETS, MODALITIES, CLUSTERS, WIDTH, FEATURES, CLASSES, ITERATIONS = 10**9, 2, 16, 512, 1024, 20, 3
FLOAT, HALF, KEY = 4, 2, 8


@dataclass(frozen=True)
class Rank:
    """Of one of ``ranks`` processes, bytes; rows are split evenly."""

    ranks: int

    @property
    def rows(self) -> int:
        return -(-SNIPPETS // self.ranks)

    @property
    def features(self) -> int:
        """All rows in half precision, both streams."""
        return self.rows * MODALITIES * FEATURES * HALF

    @property
    def embeddings(self) -> int:
        return self.rows * MODALITIES * WIDTH * HALF

    @property
    def logits(self) -> int:
        """What Sinkhorn reads; the plan itself is two vectors."""
        return self.rows * CLUSTERS * FLOAT

    @property
    def ranking(self) -> int:
        """Scores and their places, for the rank prior."""
        return self.rows * (FLOAT + KEY)

    @property
    def exchanged(self) -> int:
        """Scores and places of a distributed sort: each crosses the network once there and once back."""
        return 2 * self.ranking

    def all_reduced(self, numbers: int) -> int:
        """Bytes that a rank sends for a sum of so many float32 numbers, by a ring."""
        return 2 * (self.ranks - 1) * numbers * FLOAT // self.ranks


def transport_numbers() -> int:
    """Column sums of each iteration."""
    return ITERATIONS * CLUSTERS


def prototype_numbers() -> int:
    """W^T E of both streams, the clusters' and foreground and background."""
    return MODALITIES * (CLUSTERS + 2) * WIDTH


def weight_numbers() -> int:
    """Gradients of all weights."""
    branch = 2 * (FEATURES * WIDTH + WIDTH) + WIDTH * (CLASSES + 1 + CLUSTERS) + CLASSES + 1
    return MODALITIES * branch
