"""The sampler against a naive one: one row at a time, float64, sorted lists."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.ops.api import Ops
from radixlm.ops.library import unavailable_reason
from radixlm.ops.table import load_ops
from radixlm.runner.random import bits64, uniform
from radixlm.runner.sampler import Rows, Sampler
from radixlm.sched.plan import Opened
from radixlm.sched.sampled import FAILED, Masks
from radixlm.types import SamplingParams

CPU = torch.device("cpu")
TABLES = ["torch"] if unavailable_reason() else ["torch", "native"]
EOS = (2, 5)
MASK64 = (1 << 64) - 1


@dataclass
class Case:
    """One row: what was asked, what is known, and its logits."""

    sampling: SamplingParams
    logits: np.ndarray = field(repr=False)  # float32 [vocab]
    seed: int = 7
    tokens: list[int] = field(default_factory=lambda: [1, 2, 3])
    num_prompt: int = 3
    allowed: list[int] | None = None

    @property
    def position(self) -> int:
        return len(self.tokens)


def run(
    cases: list[Case], slots: list[int] | None = None, device: torch.device = CPU, ops: Ops | None = None
) -> list[int]:
    """The tokens that the sampler chooses for these rows in one call."""
    vocab = len(cases[0].logits)
    slots = slots or list(range(len(cases)))
    sampler = Sampler(max(slots) + 1, vocab, device, ops)
    for slot, case in zip(slots, cases):
        known = np.array(case.tokens, dtype=np.int32)
        sampler.open(Opened(slot, case.sampling, case.seed, known, case.num_prompt, EOS))
    logits = torch.from_numpy(np.stack([case.logits for case in cases])).to(device)
    chosen = sampler.sample(logits, rows_of(slots, [case.position for case in cases], device), masks_of(cases))
    return chosen.tokens.tolist()


def rows_of(slots: list[int], positions: list[int], device: torch.device = CPU) -> Rows:
    index = np.array(slots, dtype=np.int32)
    return Rows(index, np.array(positions, dtype=np.int32), torch.from_numpy(index).to(device))


def masks_of(cases: list[Case]) -> Masks | None:
    rows = [i for i, case in enumerate(cases) if case.allowed is not None]
    if not rows:
        return None
    bits = np.zeros((len(rows), -(-len(cases[0].logits) // 32)), dtype=np.uint32)
    for row, i in enumerate(rows):
        for token in cases[i].allowed or ():
            bits[row, token // 32] |= np.uint32(1 << token % 32)
    return Masks(np.array(rows, dtype=np.int32), bits.view(np.int32))


# -- the oracle -------------------------------------------------------------------------------------------------------


def edited(case: Case) -> list[float]:
    """The logits after penalties, bias, min_tokens and mask."""
    p, logits = case.sampling, [float(x) for x in case.logits]
    counts = Counter(case.tokens[case.num_prompt :])
    for token in set(case.tokens):
        logits[token] *= 1 / p.repetition_penalty if logits[token] > 0 else p.repetition_penalty
    for token, count in counts.items():
        logits[token] -= p.frequency_penalty * count + p.presence_penalty
    for token, bias in (p.logit_bias or {}).items():
        logits[token] += bias
    if len(case.tokens) - case.num_prompt < p.min_tokens:
        for token in EOS + p.stop_token_ids:
            logits[token] = -math.inf
    if case.allowed is not None:
        logits = [x if token in case.allowed else -math.inf for token, x in enumerate(logits)]
    return logits


def splitmix64(seed: int, count: int) -> int:
    """Output number `count` of the generator, by its textbook loop."""
    state = seed & MASK64
    z = 0
    for _ in range(count + 1):
        state = (state + 0x9E3779B97F4A7C15) & MASK64
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        z ^= z >> 31
    return z


def probabilities(case: Case, top_p: float) -> list[tuple[int, float]]:
    """(token, probability) of every token that may be chosen, in the order in which the inversion walks over them."""
    p, logits = case.sampling, edited(case)
    best = max(logits)
    weights = [math.exp((x - best) / p.temperature) for x in logits]
    order = list(range(len(weights)))
    if 0 < p.top_k < len(weights) or p.top_p < 1:
        order.sort(key=lambda token: (-weights[token], token))
        order = order[: p.top_k] if p.top_k > 0 else order
        mass, before, kept = sum(weights[t] for t in order), 0.0, 0
        while kept < len(order) and (before < top_p * mass or not kept):
            before += weights[order[kept]]
            kept += 1
        order = order[:kept]
    order = sorted(token for token in order if weights[token] >= p.min_p)
    total = sum(weights[token] for token in order)
    return [(token, weights[token] / total) for token in order]


def choose(chances: list[tuple[int, float]], number: float) -> int:
    reached, token = 0.0, -1
    for token, probability in chances:
        reached += probability
        if reached > number:
            return token
    return token


def acceptable(case: Case) -> set[int]:
    """What the oracle chooses, also when rounding tips a number that lies on an edge."""
    if case.sampling.temperature < 1e-5:
        logits = edited(case)
        return {token for token, x in enumerate(logits) if x >= max(logits) - 1e-5}
    number = (splitmix64(case.seed, case.position) >> 11) * 2.0**-53
    steps = (-2e-6, 0.0, 2e-6)
    chances = [probabilities(case, case.sampling.top_p + step) for step in steps]
    return {choose(each, min(max(number + step, 0.0), 1 - 1e-9)) for each in chances for step in steps}


# -- every combination ------------------------------------------------------------------------------------------------


def near(low: float, high: float, plain: float) -> st.SearchStrategy[float]:
    return st.just(plain) | st.floats(low, high, allow_nan=False).map(lambda x: round(x, 3))


def params(vocab: int) -> st.SearchStrategy[SamplingParams]:
    token = st.integers(0, vocab - 1)
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1e-6, 0.3, 0.7, 1.0, 1.8]),
        top_k=st.sampled_from([-1, 1, 2, 5, 40, 255, 256, 257, 5000]),
        top_p=st.sampled_from([1.0, 0.999, 0.95, 0.6, 0.1, 1e-6]),
        min_p=near(0.0, 1.0, 0.0),
        repetition_penalty=near(0.5, 2.0, 1.0),
        frequency_penalty=near(-2.0, 2.0, 0.0),
        presence_penalty=near(-2.0, 2.0, 0.0),
        logit_bias=st.none() | st.dictionaries(token, near(-100.0, 100.0, 1.5), max_size=4),
        min_tokens=st.sampled_from([0, 0, 1, 3]),
        stop_token_ids=st.lists(token, max_size=2).map(tuple),
    )


@st.composite
def cases(draw: st.DrawFn, vocab: int) -> Case:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = (rng.standard_normal(vocab) * draw(st.sampled_from([0.1, 1.0, 5.0]))).astype(np.float32)
    tokens = draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=12))
    allowed = draw(st.none() | st.lists(st.integers(6, vocab - 1), min_size=1, max_size=30, unique=True))
    sampling = draw(params(vocab))
    if allowed is not None and sampling.min_tokens:  # the row must keep a token
        allowed = [t for t in allowed if t not in sampling.stop_token_ids] or None
    seed = draw(st.integers(-(2**63), 2**64 - 1))
    return Case(sampling, logits, seed, tokens, draw(st.integers(1, len(tokens))), allowed)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("vocab", [40, 640, 1000, 2501])
def test_any_combination_of_parameters_agrees_with_the_naive_sampler(vocab: int, table: str) -> None:
    ops = load_ops(table)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(cases(vocab), min_size=1, max_size=5))
    def check(rows: list[Case]) -> None:
        for case, token in zip(rows, run(rows, ops=ops)):
            assert token in acceptable(case)

    check()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(cases(700), min_size=2, max_size=9), st.randoms(use_true_random=False), st.sampled_from(TABLES))
def test_a_row_chooses_the_same_token_alone_and_among_others_in_any_order_and_slot(
    rows: list[Case], random, table: str
) -> None:
    ops = load_ops(table)
    alone = [run([case], ops=ops)[0] for case in rows]
    order = list(range(len(rows)))
    random.shuffle(order)
    together = run([rows[i] for i in order], slots=random.sample(range(16), len(rows)), ops=ops)
    assert [together[order.index(i)] for i in range(len(rows))] == alone


# -- numbers ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, MASK64), st.integers(0, 50))
def test_random_bits_are_those_of_the_textbook_generator(seed: int, position: int) -> None:
    found = bits64(np.array([seed], np.uint64), np.array([position], np.uint64))
    assert int(found[0]) == splitmix64(seed, position)


def test_uniform_numbers_of_neighbouring_seeds_and_positions_are_independent() -> None:
    seeds, positions = np.meshgrid(np.arange(300, dtype=np.uint64), np.arange(300, dtype=np.uint64))
    numbers = uniform(seeds, positions)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 5 / math.sqrt(12 * numbers.size)
    for shifted in (numbers[1:, :], numbers[:, 1:]):
        correlation = np.corrcoef(numbers[: shifted.shape[0], : shifted.shape[1]].ravel(), shifted.ravel())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(shifted.size)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.0, top_k=6),
        SamplingParams(temperature=1.0, top_p=0.8),
        SamplingParams(temperature=1.3, min_p=0.2),
        SamplingParams(temperature=0.9, top_k=10, top_p=0.9, min_p=0.05, presence_penalty=1.0),
    ],
)
def test_tokens_follow_their_probabilities(sampling: SamplingParams) -> None:
    """Chi-square over 20,000 draws; 1e-6 of such tests would fail by chance, and the seeds are fixed."""
    draws, vocab = 20_000, 16
    logits = np.random.default_rng(3).permutation(np.linspace(-2, 2, vocab, dtype=np.float32))
    case = Case(sampling, logits, num_prompt=1)
    expected = dict(probabilities(case, sampling.top_p))
    sampler = Sampler(draws, vocab, CPU)
    known = np.array(case.tokens, dtype=np.int32)
    for slot in range(draws):
        sampler.open(Opened(slot, sampling, slot, known, case.num_prompt, ()))
    rows = rows_of(list(range(draws)), [3] * draws)
    found = Counter(sampler.sample(torch.from_numpy(logits).repeat(draws, 1), rows, None).tokens.tolist())
    assert set(found) <= set(expected)
    statistic = sum((found[t] - draws * p) ** 2 / (draws * p) for t, p in expected.items())
    freedom = len(expected) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 4.75 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson-Hilferty, p = 1e-6
    assert statistic < limit


# -- single features --------------------------------------------------------------------------------------------------


def peaked(vocab: int, *order: int) -> np.ndarray:
    """Logits that rank these tokens first, in this order."""
    logits = np.zeros(vocab, dtype=np.float32)
    for rank, token in enumerate(order):
        logits[token] = 10 - rank
    return logits


def test_temperature_zero_is_argmax_and_ties_go_to_the_lower_id() -> None:
    for vocab in (40, 128):
        logits = peaked(vocab)
        logits[[9, 30]] = 4.0
        assert run([Case(SamplingParams(temperature=0.0), logits)]) == [9]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_p=0.5)])
def test_a_row_without_finite_logits_fails_alone(bad: float, sampling: SamplingParams) -> None:
    for vocab in (40, 640):
        good = peaked(vocab, 17)
        broken = np.full(vocab, bad, dtype=np.float32) if bad == -math.inf else peaked(vocab, 3)
        broken[11] = bad
        rows = [Case(SamplingParams(temperature=0.0), good), Case(sampling, broken), Case(sampling, good * 10)]
        assert run(rows) == [17, FAILED, 17]


def test_a_mask_that_allows_nothing_fails_its_row_alone() -> None:
    rows = [Case(SamplingParams(), peaked(64, 8) * 9, allowed=[]), Case(SamplingParams(), peaked(64, 8) * 9)]
    assert run(rows) == [FAILED, 8]


def test_a_mask_narrower_than_the_vocabulary_forbids_the_rest() -> None:
    sampler = Sampler(1, 100, CPU)
    sampler.open(Opened(0, SamplingParams(temperature=0.0), 1, np.zeros(1, np.int32), 1, ()))
    masks = Masks(np.zeros(1, np.int32), np.array([[1 << 7, 0]], dtype=np.int32))
    assert sampler.sample(torch.from_numpy(peaked(100, 99, 7))[None], rows_of([0], [1]), masks).tokens.tolist() == [7]


def test_end_tokens_wait_for_min_tokens_and_then_win_again() -> None:
    sampling = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(9,))
    sampler = Sampler(1, 40, CPU)
    sampler.open(Opened(0, sampling, 1, np.array([1, 1], np.int32), 2, EOS))
    logits = torch.from_numpy(peaked(40, 2, 5, 9, 20))
    found = [sampler.sample(logits[None].clone(), rows_of([0], [p]), None).tokens.item() for p in (2, 3, 4)]
    assert found == [20, 20, 2]


def test_penalties_count_tokens_as_they_are_sampled() -> None:
    sampler = Sampler(1, 40, CPU)
    sampling = SamplingParams(temperature=0.0, frequency_penalty=0.6)
    sampler.open(Opened(0, sampling, 1, np.array([1, 1], np.int32), 2, ()))
    logits = torch.from_numpy(peaked(40, 7, 8))  # 10 and 9
    found = [sampler.sample(logits[None].clone(), rows_of([0], [p]), None).tokens.item() for p in range(2, 8)]
    assert found == [7, 7, 8, 7, 8, 7]  # 7 until it was penalised twice, then in turn


def test_a_slot_forgets_its_former_request() -> None:
    sampler = Sampler(1, 40, CPU)
    heavy = SamplingParams(
        temperature=0.0, logit_bias={8: 50.0, 9: 60.0}, repetition_penalty=2.0, min_tokens=9, logprobs=3
    )
    sampler.open(Opened(0, heavy, 1, np.array([7, 7, 9], np.int32), 1, EOS))
    sampler.open(Opened(0, SamplingParams(temperature=0.0), 1, np.array([7], np.int32), 1, EOS))
    chosen = sampler.sample(torch.from_numpy(peaked(40, 2, 7))[None], rows_of([0], [1]), None)
    assert chosen.tokens.tolist() == [2] and chosen.scores is None
    sampler.open(Opened(0, SamplingParams(temperature=0.0, logit_bias={3: 20.0}), 1, np.array([7], np.int32), 1, EOS))
    assert sampler.sample(torch.from_numpy(peaked(40, 2, 7))[None], rows_of([0], [1]), None).tokens.tolist() == [3]


def test_a_flat_distribution_cut_beyond_the_candidates_keeps_the_lowest_ids() -> None:
    """All weights tie, so top-k must look at the whole vocabulary to know which 300 it keeps."""
    draws, vocab = 3000, 2048
    sampler = Sampler(draws, vocab, CPU)
    for slot in range(draws):
        sampler.open(Opened(slot, SamplingParams(top_k=300 if slot % 2 else 100), slot, np.zeros(1, np.int32), 1, ()))
    tokens = sampler.sample(torch.zeros(draws, vocab), rows_of(list(range(draws)), [1] * draws), None).tokens
    assert tokens[1::2].max() == 299 and tokens[::2].max() == 99
    assert len(set(tokens.tolist())) > 280


def test_a_wide_nucleus_is_found_without_sorting_and_is_exact() -> None:
    """Flat enough that top-p keeps far more than the first candidates, with ties as half precision makes them."""
    logits = torch.randn(1, 3000, generator=torch.Generator().manual_seed(5)).bfloat16().float().numpy()[0]
    cases = [Case(SamplingParams(top_p=p), logits, seed) for seed in range(40) for p in (0.5, 0.9)]
    for case, token in zip(cases, run(cases)):
        assert len(probabilities(case, case.sampling.top_p)) > 400
        assert token in acceptable(case)
