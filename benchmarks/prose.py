"""What stands in BENCHMARKS.md beside the results: how they are measured, and the arithmetic of 10^9 snippets."""

from __future__ import annotations

from benchmarks.budget import FEWEST_LONG, LONG, LONGEST, WHOLE_RUN
from benchmarks.paper import Rank, prototype_numbers, transport_numbers, weight_numbers
from benchmarks.tables import amount, table

METHOD = f"""## How this is measured

- **Right first.** Each contender's result is compared with the float64 reference before it is timed; training steps and
  mAP likewise. What is wrong is not timed. At ten and a hundred times the size, NMS and proposals are compared in as
  many groups and videos, drawn at random, as the method's size has, temporal IoU in 500 rows, mAP in one class, and
  Sinkhorn with a float64 oracle that goes through the rows stretch by stretch.
- **Ratios are of pairs.** The op as `case.ops` runs it and the peer, one right after the other and in turns first,
  round after round; the ratio is the median of the pairs' ratios, its interval the 95 % bootstrap interval of that
  median (where calls take longer than {LONG:g} s, the range of fewer pairs, {FEWEST_LONG} at least, and their number).
  Times of single rows were taken at different moments: on a shared machine compare ratios, not times.
- **What would take long is named, not timed:** a call that is predicted, in proportion to its time at a smaller size,
  to take more than {LONGEST:g} s; and large sizes that would be begun later than {WHOLE_RUN:g} s after the first case.
- **Times** are medians with quartiles of the rounds, after a warm-up, on as many threads as the machine's line says,
  for all contenders alike, with results freed. On CUDA they are of graph replay (or eager calls, where a call waits for
  the host), between events, over inputs that rotate so that none is found in the L2 cache; where as many as are rotated
  fit into it together, the row says so. Launching is a part of eager times and not of replays.
- **The limit** is the larger of two times: the bytes that have to be read and written once, at the rate of a copy of
  that size on this machine, and the operations of the matrix products at the rate of a float32 product; both rates
  are the best seen. With backward: also the gradients written, and three times the products. Exponentials and
  sorting are not counted, so 100 % is out of reach for what consists of them.
- **Peers** get their own best settings: no convergence checks where they can be left out, no warnings, costs laid out
  so that they need no transposition, assignments and boxes in the form they take, made beforehand. A cost that has to
  be built from logits and prior is part of their time.
- Again: `make bench` (some minutes, quick sizes, results in `build/bench`), `make bench-results` (all of this page).
  Packages to compare with: `pip install 'case-wtal[peers]'`, and the other extras of the table above.
"""
PAPER = """Arithmetic (`benchmarks/paper.py`), not measurements: the clustering of 10^9 snippets as one set. Rows are
split over ranks; transport needs K sums an iteration and prototypes one K x H sum, whatever the number of snippets, so
both stay small beside the gradients of the network, and only the rank prior moves data in proportion to the snippets:
a distributed sort of the scores. `sinkhorn(group=...)` has the split transport today (on the reference path, prior
given as a matrix); the distributed ranking and split prototypes are not there.

"""


def on_paper() -> str:
    rows = []
    for ranks in (8, 64, 512):
        rank = Rank(ranks)
        rows.append((
            f"{ranks}", f"{rank.rows:,}", *(amount(size) for size in (
                rank.features, rank.embeddings, rank.logits, rank.ranking, rank.exchanged,
                *(rank.all_reduced(n) for n in (transport_numbers(), prototype_numbers(), weight_numbers())),
            )),
        ))  # fmt: skip
    head = (
        "ranks", "snippets a rank", "features, half", "embeddings, half", "cluster logits", "ranking", "sent: ranking",
        "sent: Sinkhorn", "sent: prototypes", "sent: gradients",
    )  # fmt: skip
    return table(head, rows)
