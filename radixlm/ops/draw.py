"""Choosing tokens from logits in plain torch. A row's token depends on its own logits, parameters and random number alone.

Weights exp((logit - best) / temperature) become whole numbers, and whole numbers add up to the same sum in any order. So
cumulative sums, and with them the tokens, are the same bit for bit for any number of rows and threads. The token is found
by inversion: the first whose cumulative weight exceeds uniform * total. A token of weight 0 is never chosen.

Order of the cuts: top-k, then top-p of what is left, then min-p (relative to the most likely token, so no sums change).
Equal logits are ordered by token id.
"""

from __future__ import annotations

import torch

from radixlm.ops.api import Choice

SLICE_ELEMENTS = 1 << 19
"""Logits worked on at a time; the rows' results do not depend on it."""

CANDIDATES = 256  # most cuts end among so few tokens that the vocabulary need not be sorted


def top(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest of each row, largest first, equal ones by index; their values and indices, each [rows, count].

    Which of the values equal to the smallest returned one are among them is not defined.
    """
    if count >= values.shape[1]:
        ordered, ids = torch.sort(values, dim=-1, descending=True, stable=True)
        return ordered, ids
    ids = values.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    ordered, order = torch.sort(values.gather(1, ids), dim=-1, descending=True, stable=True)
    return ordered, ids.gather(1, order)


def choose(logits: torch.Tensor, largest: torch.Tensor, choice: Choice) -> torch.Tensor:
    """See `radixlm.ops.api.Ops.choose`. Rows are worked on a few at a time, so that their temporaries stay in the cache."""
    step = max(1, SLICE_ELEMENTS // logits.shape[1])
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for start in range(0, len(logits), step):
        mine = slice(start, start + step)
        some = choice.rows(mine)
        weights = weigh(logits[mine], largest[mine], some.temperature)
        tokens[mine] = draw_cut(weights, some) if choice.cut else draw(weights, some)
    return tokens


def weigh(logits: torch.Tensor, largest: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """exp((logits - largest) / temperature), float32 [rows, vocab], in the place of logits."""
    return logits.sub_(largest.unsqueeze(1)).div_(temperature.unsqueeze(1)).exp_()


def draw(weights: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Random tokens without top-k and top-p: weights float32 [rows, vocab], largest 1 -> int64 [rows]."""
    if choice.any_min_p:
        weights = weights.masked_fill_(weights < choice.min_p.unsqueeze(1), 0.0)
    return _invert(_whole(weights, weights.shape[1]), choice.uniform)


def draw_cut(weights: torch.Tensor, choice: Choice) -> torch.Tensor:
    """Random tokens under top-k, top-p and min-p: weights float32 [rows, vocab], largest 1 -> int64 [rows]."""
    whole = _whole(weights, weights.shape[1])
    total = whole.sum(dim=-1)
    tokens, complete = _draw_among(weights, total, choice, CANDIDATES)
    rest = (~complete).nonzero().squeeze(1)  # rows whose cut lies beyond the candidates
    if len(rest):
        some = choice.rows(rest)
        tokens[rest], _ = _draw_among(weights[rest], total[rest], some, _enough(whole[rest], total[rest], some))
    return tokens


def _enough(whole: torch.Tensor, total: torch.Tensor, choice: Choice) -> int:
    """So many of the largest weights of each row hold all that its cut can keep, and one that it cannot.

    Weights below (1 - top_p) * total / vocab add up to less than 1 - top_p of the total, so top-p keeps none of them.
    """
    vocab = whole.shape[1]
    floor = (1 - choice.top_p) * total / vocab * (1 - 1e-9)
    count = (whole >= floor.unsqueeze(1)).sum(dim=-1)
    return int(torch.where(choice.top_k < vocab, vocab, count).max()) + 1


def _draw_among(
    weights: torch.Tensor, total: torch.Tensor, choice: Choice, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens as if only the `count` largest weights existed, and whether more would have changed nothing."""
    vocab = weights.shape[1]
    ordered, ids = top(weights, count)
    whole = _whole(ordered, vocab)
    top_k = choice.top_k.unsqueeze(1)
    in_top_k = torch.arange(ordered.shape[1], device=weights.device) < top_k
    whole = whole * in_top_k
    mass = torch.where(choice.top_k < vocab, whole.sum(dim=-1), total)
    before = whole.cumsum(dim=-1) - whole
    kept = in_top_k & (before < (choice.top_p * mass).unsqueeze(1))
    kept[:, 0] = True
    last = ordered.gather(1, kept.sum(dim=-1, keepdim=True) - 1)
    complete = last.squeeze(1) > ordered[:, -1]  # strictly: else a token left out may tie with one that was kept
    complete &= (choice.top_k <= ordered.shape[1]) | (choice.top_k == vocab)
    kept &= ordered >= choice.min_p.unsqueeze(1)
    ids, by_id = ids.sort(dim=-1)
    picked = _invert((whole * kept).gather(1, by_id), choice.uniform)
    return ids.gather(1, picked.unsqueeze(1)).squeeze(1), complete


def _whole(weights: torch.Tensor, vocab: int) -> torch.Tensor:
    """Weights from 0 to 1 as int64, such that `vocab` of them add up to at most 2**52, which float64 holds exactly."""
    return (weights * 2.0 ** (52 - (vocab - 1).bit_length())).to(torch.int64)


def _invert(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds uniform * total; int64 [rows]."""
    sums = weights.cumsum(dim=-1)
    threshold = (uniform * sums[:, -1]).to(torch.int64).unsqueeze(1)
    found = torch.searchsorted(sums, threshold, right=True).squeeze(1)
    return found.clamp_(
        max=weights.shape[1] - 1
    )  # only rows that were not finite need it; they are marked by the caller
