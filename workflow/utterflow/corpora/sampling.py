"""Which entries of a corpus are used. Only ids, groups and seeds decide: a draw is the same everywhere."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from utterflow.config.corpora import SMOKE_ROWS, Corpus, Sample
from utterflow.files import seed_of


def chosen_positions(ids: Sequence[str], groups: Sequence[str | None], cfg: Corpus) -> list[int]:
    """Positions of the entries to use, ascending: the sample is drawn first, then cut by `limit` and `smoke`.

    So a limited run computes the first rows of the full run.

    Args:
        ids, groups: one each per entry, in corpus order.
    """
    drawn = draw(ids, groups, cfg.sample)
    limits = [cfg.limit, SMOKE_ROWS if cfg.smoke else None]
    return drawn[: min((limit for limit in limits if limit is not None), default=len(drawn))]


def draw(ids: Sequence[str], groups: Sequence[str | None], sample: Sample) -> list[int]:
    """Positions of the drawn entries, ascending.

    The entries with the smallest seeded hash of their id are taken. So a smaller sample is part of a larger
    one, and entries added to the corpus leave most of a draw as it was.
    """
    wanted = math.floor(len(ids) * sample.percent / 100 + 0.5)
    wanted = min(max(wanted, 1), sample.max_samples or len(ids), len(ids))
    if wanted == len(ids):
        return list(range(len(ids)))
    order = sorted(range(len(ids)), key=lambda position: (seed_of(sample.seed, ids[position]), position))
    if sample.method != "stratified":
        return sorted(order[:wanted])
    shares = allocate(Counter(groups), wanted)
    members = defaultdict(list)
    for position in order:
        members[groups[position]].append(position)
    return sorted(position for group, share in shares.items() for position in members[group][:share])


def allocate(sizes: Counter[str | None], wanted: int) -> dict[str | None, int]:
    """Split `wanted` over groups in proportion to their sizes, by largest remainders."""
    total = sizes.total()
    shares = {group: wanted * size // total for group, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda group: (-(wanted * sizes[group] % total), group or ""))
    for group in by_remainder[: wanted - sum(shares.values())]:
        shares[group] += 1
    return shares
