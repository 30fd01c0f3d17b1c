"""Proposed tokens change how many steps a text takes, and nothing else: not its tokens, not its end, not what the cache holds."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from radixlm.grammar.api import allowed
from radixlm.sched import proposer
from radixlm.sched.constrain import Constraining, Constraints
from radixlm.sched.leases import Leases
from radixlm.sched.parts import Parts
from radixlm.sched.planner import Planner
from radixlm.sched.proposer import Proposer
from radixlm.types import SamplingParams
from tests.fake_runner import continuation
from tests.property.harness import Drive
from tests.property.test_constrained import EOS, SAMPLINGS, TOKENS, VOCABULARY, check, encode, grammar


def nothing(self, lease, most):
    return ()


def seer(seed: int, right: float):
    """Proposes what will come, but each token only with the probability `right`, and jumps as the engine will."""
    rng = random.Random(seed)

    def propose(self, lease, most):
        entry, running = lease.request, self._running
        if most <= 0 or entry.matcher is None or rng.random() < 0.2:
            return ()
        known = running.known_length(lease)
        unknown = int(running.rows.length[lease.slot]) - known
        tokens = running.rows.tokens[lease.slot, :known].tolist()
        guessed = _guess(self, entry, tokens, unknown + min(most, rng.randint(1, 8)), rng, right)
        return guessed[unknown : unknown + most]

    return propose


def _guess(constraining, entry, tokens: list[int], most: int, rng, right: float) -> list[int]:
    matcher, known, taken = entry.matcher, len(tokens), 0
    while len(tokens) - known < most:
        options = [t for t in allowed(matcher, VOCABULARY) if t != EOS or not entry.sampling.ignore_eos]
        if not options:
            break
        token = options[continuation(tokens, len(options))] if rng.random() < right else rng.choice(options)
        tokens.append(token)
        taken += matcher.accept((token,))
        if token == EOS or tokens[-1] in entry.sampling.stop_token_ids:
            break
        if jump := constraining._jump(entry, np.array(tokens[known:], np.int32), 9):
            tokens[len(tokens) - jump.num_dropped :] = jump.tokens
            taken += len(jump.tokens) - jump.num_dropped
    matcher.rollback(taken)
    return tokens[known:]


def run(scripts, propose, *, depth: int, jump: bool, own: bool, pages: int, size: int = 1, seed: int = 0) -> Drive:
    """All requests in one drive, arriving at random, some aborted; then each once more with its answer as the prompt."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Constraining, "propose", propose)
        constraints = Constraints(VOCABULARY, lambda sampling: grammar(sampling, own), jump)
        drive = Drive(
            depth=depth, constraints=constraints, vocab_size=len(TOKENS), num_pages=-(-pages // size), context=96,
            page_size=size, max_running=8,
        )  # fmt: skip
        for parts in scripts:
            drive.submit(*parts)
            for _ in range(rng.randrange(4)):
                drive.step()
            if seed and rng.random() < 0.1:
                drive.scheduler.abort(rng.randrange(len(drive.records)))
                drive.collect()
        drive.drain()
        for key, parts in enumerate(scripts):
            answer = drive.records[key].tokens
            if len(parts) == 1 and answer and drive.records[key].ended[0].finish.type != "abort":
                drive.submit((parts[0][0] + answer, SamplingParams(max_tokens=2)))
        drive.drain()
    drive.scheduler.running.tree.evict(drive.limits.num_pages)
    assert drive.scheduler.running.pool.num_free == drive.limits.num_pages
    return drive


def verify(scripts, drive: Drive, *, jump: bool, own: bool) -> None:
    """Every request gives what it gives alone without proposals."""
    for key, record in drive.records.items():
        parts = [(np.frombuffer(p.literal, "<i4").tolist(), p.sampling) for p in record.request.script]
        alone = run([parts], nothing, depth=0, jump=jump, own=own, pages=400).records[0]
        (ended,), (expected,) = record.ended, alone.ended
        assert 0 <= ended.num_accepted <= ended.num_proposed
        if ended.finish.type == "abort":
            assert ended.num_output == len(record.tokens)
            continue
        assert (record.tokens, ended.finish, record.parts) == (
            alone.tokens, expected.finish, [_for(part, key) for part in alone.parts]
        )  # fmt: skip
        assert (ended.num_output, ended.num_forced) == (expected.num_output, expected.num_forced)
        if len(parts) == 1 and key < len(scripts) and not parts[0][1].stop and not parts[0][1].stop_token_ids:
            check(parts[0][1], record.tokens, ended.finish.type)
    counts, ends = drive.scheduler.counts, [record.ended[0] for record in drive.records.values()]
    assert counts.proposed_tokens == sum(ended.num_proposed for ended in ends)
    assert counts.accepted_tokens == sum(ended.num_accepted for ended in ends)
    assert counts.output_tokens == sum(map(len, (record.tokens for record in drive.records.values())))


def _for(part, key: int):
    return type(part)(key, *[getattr(part, name) for name in part.__struct_fields__[1:]])


LIMITS = st.fixed_dictionaries({
    "max_tokens": st.sampled_from([1, 2, 9, 24]), "ignore_eos": st.booleans(),
    "stop": st.sampled_from([(), (), ("fake",)]), "stop_token_ids": st.sampled_from([(), (), tuple(encode("b"))]),
    "min_tokens": st.sampled_from([0, 3]),
})  # fmt: skip
PARTS = st.tuples(SAMPLINGS, LIMITS).map(lambda two: SamplingParams(**two[0], **two[1]))
SCRIPTS = st.lists(st.lists(PARTS, min_size=1, max_size=2), min_size=1, max_size=5)


def scripts_of(asked):
    return [
        [(encode("name 12 abc"[: 3 + 2 * ((i + j) % 4)]), sampling) for j, sampling in enumerate(parts)]
        for i, parts in enumerate(asked)
    ]


@settings(max_examples=100, deadline=None)
@given(
    asked=SCRIPTS, depth=st.integers(0, 1), jump=st.booleans(), own=st.booleans(), tight=st.booleans(),
    size=st.sampled_from([1, 3]), seed=st.integers(0, 9), right=st.sampled_from([0.4, 0.8, 1.0]),
)  # fmt: skip
def test_whatever_is_proposed_each_request_gives_what_it_gives_alone(asked, depth, jump, own, tight, size, seed, right):
    scripts = scripts_of(asked)
    propose = seer(seed, right)
    drive = run(scripts, propose, depth=depth, jump=jump, own=own, pages=60 if tight else 400, size=size, seed=seed)
    verify(scripts, drive, jump=jump, own=own)


FIELDS = [
    {"regex": "(ab|ac|b[cd]){4}12[cd]{20}"}, {"regex": "(name|nam):1(true|false|tru)é{2}[ab]{15}"},
    {"json_schema": '{"type":"array","items":{"enum":["name","nam",true,12]},"minItems":3}'},
]  # fmt: skip


def many(seed: int, depth: int) -> tuple[list, Drive]:
    prompts = [encode(f"n{seed}{i}name 12 abc"[: 5 + i]) for i in range(9)]
    scripts = [[(prompt, SamplingParams(max_tokens=30, **FIELDS[i % 3]))] for i, prompt in enumerate(prompts)]
    wanted = {"depth": depth, "jump": True, "own": True, "pages": 48, "seed": seed}
    return scripts, run(scripts, seer(seed, 0.8), **wanted)


@pytest.mark.parametrize("depth", [0, 1])
def test_the_drives_reach_what_they_are_for(depth):
    total = Counter()
    for seed in range(10):
        _, drive = many(seed, depth)
        counts = drive.scheduler.counts
        total.update(accepted=counts.accepted_tokens, forced=counts.forced_tokens, preempted=counts.preempted)
        total.update(refused=counts.proposed_tokens - counts.accepted_tokens, cached=counts.cached_tokens)
        total.update(foreseen=sum(r.ended[0].num_forced - r.num_forced for r in drive.records.values()))
    assert all(count > 4 for count in total.values()), total


def test_what_is_foreseen_takes_fewer_steps():
    script = [(encode("n"), SamplingParams(max_tokens=30, **FIELDS[0]))]
    drives = [run([script], how, depth=0, jump=True, own=True, pages=400) for how in (seer(1, 1.0), nothing)]
    few, most = [drive.scheduler.counts.steps for drive in drives]
    assert few * 2 < most, (few, most)


# -- where the guesses come from --------------------------------------------------------------------------------------


def _write(guesses: Proposer, text: str, before: int = 0) -> list[int]:
    """A text of the regex below passes by; returns how many of its tokens were guessed right, place by place."""
    matcher = grammar(SamplingParams(regex=r'\{ ?"name" ?: ?"[^"]*" ?, ?"ab" ?: ?[0-9]+ ?\}')).result().matcher()
    right, ids = [], encode(text)
    for index, token in enumerate(ids):
        guessed = guesses.propose(matcher, before, 8)
        right.append(next((n for n, (a, b) in enumerate(zip(guessed, ids[index:])) if a != b), len(guessed)))
        guesses.learn(matcher, before, token)
        assert matcher.accept((token,))
        before = token
    return right


def test_the_structure_of_a_text_is_guessed_the_second_time():
    guesses = Proposer()
    assert not any(_write(guesses, '{ "name": "xyz", "ab": 12}'))
    again = _write(guesses, '{ "name": "pqr", "ab": 3}')
    assert again[0] == len(encode('{ "name": "')), again


def test_free_text_is_guessed_only_where_the_same_came_several_times():
    guesses, rng = Proposer(), random.Random(4)
    for _ in range(4):
        text = '{"name":"' + "".join(rng.choices("ghijklmnop", k=80)) + '","ab":1}'
        assert sum(_write(guesses, text)[6:70]) < 8
    repeated = _write(guesses, '{"name":"' + "gh" * 40 + '","ab":1}')
    assert max(repeated[60:80]) >= 4


def test_places_not_met_for_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr(proposer, "MOST_PLACES", 50)
    guesses = Proposer()
    _write(guesses, '{"name":"' + "".join(map(chr, range(48, 122))).replace("\\", "") + '","ab":1}')
    assert len(guesses._came) == 50 == sum(guesses._num_places.values())
    assert min(guesses._num_places.values()) > 0


# -- mutants ----------------------------------------------------------------------------------------------------------


def _cells_of_refused_tokens_are_cached(monkeypatch):
    def stop(self, lease, length, real=Leases.stop):
        self.rows.computed[lease.slot] = max(self.rows.computed[lease.slot], length)
        real(self, lease, length)

    monkeypatch.setattr(Leases, "stop", stop)


def _what_disagrees_is_kept(monkeypatch):
    def follow(self, lease, proposal, sampled, real=Parts.follow):
        if lease.proposal is proposal:
            self._running.rows.tokens[lease.slot, proposal.start] = proposal.tokens[0]
        real(self, lease, proposal, sampled)

    monkeypatch.setattr(Parts, "follow", follow)


def _masks_are_one_token_late(monkeypatch):
    def fill(self, launched, bits, count, real=Constraining._fill_proposed):
        tried = real(self, launched, bits, count)
        bits[count : count + len(tried)] = bits[count - 1 : count + len(tried) - 1]
        return tried

    monkeypatch.setattr(Constraining, "_fill_proposed", fill)


def _rows_do_not_wait_for_their_proposals(monkeypatch):
    def decoding(self):
        rows, active = self.running.rows, self.running.active
        return active[(rows.length[active] < rows.limit[active]) & (rows.computed[active] >= rows.prompt_end[active])]

    monkeypatch.setattr(Planner, "_decoding", decoding)


def _void_proposals_are_taken(monkeypatch):
    def force(self, lease, kept, tokens, valid_from, real=Leases.force):
        before = lease.proposal
        real(self, lease, kept, tokens, valid_from)
        lease.proposal = before

    monkeypatch.setattr(Leases, "force", force)


def _foreseen_tokens_come_after_what_follows_them(monkeypatch):
    def publish(self, entry, forced, lease=None, real=Parts._publish_forced):
        real(self, entry, forced)

    monkeypatch.setattr(Parts, "_publish_forced", publish)


@pytest.mark.parametrize(
    "mutant",
    [
        _cells_of_refused_tokens_are_cached, _what_disagrees_is_kept, _masks_are_one_token_late,
        _rows_do_not_wait_for_their_proposals, _void_proposals_are_taken, _foreseen_tokens_come_after_what_follows_them,
    ],
)  # fmt: skip
def test_the_check_notices_that(mutant, monkeypatch):
    mutant(monkeypatch)
    for seed in range(12):
        try:
            scripts, drive = many(seed, depth=seed % 2)
            verify(scripts, drive, jump=True, own=True)
        except Exception:
            return
    raise AssertionError(f"{mutant.__name__} survived")
