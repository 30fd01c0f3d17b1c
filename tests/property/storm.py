"""A seeded storm on a small scheduler: everything at once, checked against the oracle. Raises when anything is wrong."""

from __future__ import annotations

import random

from radixlm.cache.radix import origin
from radixlm.messages import PinPrefix, UnpinPrefix
from radixlm.sched.steering import answer
from radixlm.types import SamplingParams
from tests.property.harness import Drive, expected, expected_vectors


def storm(seed: int) -> Drive:
    """One storm; the same seed does the same."""
    rng = random.Random(seed)
    size = rng.choice([1, 1, 3])
    drive = Drive(
        depth=rng.choice([0, 1, 2]), page_size=size, num_pages=-(-int(48 * rng.choice([1.0, 1.2, 3])) // size),
        tokens_per_step=rng.choice([4, 8, 64]), policy=rng.choice(["lpm", "dfs-weight", "fcfs"]),
        knee_tokens=rng.choice([0, 6]), step_sizes=rng.choice([(), (5, 9, 12, 40)]),
    )  # fmt: skip
    for _ in range(rng.randrange(4, 16)):
        for _ in range(rng.randrange(4)):
            fields = {"priority": rng.randrange(2), "namespace": rng.choice(["", "", "b"])}
            if rng.random() < 0.2:
                drive.submit((_literal(rng, 24), None), pooling=rng.choice(["mean", "last"]), **fields)
            else:
                drive.submit(*_script(rng), **fields)
        for _ in range(rng.randrange(8)):
            drive.now += rng.choice([0.0, 0.02])
            drive.step()
        if drive.records and rng.random() < 0.4:
            _steer(drive, rng)
        if rng.random() < 0.2 and drive.records:
            drive.scheduler.abort(rng.randrange(len(drive.records)))
            drive.collect()
    drive.drain(3000)
    check(drive)
    check_pins(drive)
    return drive


def check(drive: Drive) -> None:
    """What left the scheduler is what each request gives alone."""
    for record in drive.records.values():
        assert len(record.ended) == 1, "exactly one terminal event"
        sent, finish = expected(record.request)
        if record.ended[0].finish.type in ("stop", "length"):
            assert record.tokens == sent, "the tokens of a request computed alone and cold"
            assert record.ended[0].finish == finish
            assert record.vectors == expected_vectors(record.request), "the vector of a prompt computed alone and cold"
        else:
            assert record.tokens == sent[: len(record.tokens)], "an aborted request sent a prefix"
    limits = drive.limits
    for plan in drive.plans:
        assert plan.num_tokens <= limits.tokens_per_step + limits.max_running, "what runners have room for"
        assert (plan.lengths > 0).all()
        assert plan.num_tokens == plan.lengths.sum()


def _steer(drive: Drive, rng: random.Random) -> None:
    """Pins what a request asked, lets pins go, or lets time pass."""
    asked = drive.records[rng.randrange(len(drive.records))].request
    query = PinPrefix(asked.namespace, asked.script[0].literal, rng.choice([1.0, 9.0]))
    drive.now += rng.choice([0.0, 0.0, 0.5])
    answer(drive.scheduler, UnpinPrefix() if rng.random() < 0.1 else query)


def check_pins(drive: Drive) -> None:
    """What is kept outlives any eviction until its time has come; then everything can be free."""
    running, pins = drive.scheduler.running, drive.scheduler.pins
    running.tree.evict(drive.limits.num_pages)
    pins.expire(drive.now)
    for kept in pins.by_id.values():
        assert origin(kept.node) == (kept.namespace, kept.num_pages - len(kept.node.pages))
    assert sum(len(node.pages) for node in pins.crossing()) <= pins.quota
    drive.num_kept = len(pins.by_id)
    drive.now += 10.0
    pins.expire(drive.now)
    running.tree.evict(drive.limits.num_pages)
    assert running.pool.num_free == drive.limits.num_pages, "everything was let go, yet pages are missing"


def _literal(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(1, 4) for _ in range(rng.randrange(1, most))]


def _script(rng: random.Random):
    def sampling() -> SamplingParams:
        stop = ("fake",) if rng.random() < 0.4 else ()
        return SamplingParams(max_tokens=rng.choice([1, 3, 8, 24]), stop=stop, ignore_eos=rng.random() < 0.5)

    parts = [(_literal(rng, 16), sampling())]
    if rng.random() < 0.4:
        parts.append((_literal(rng, 6), SamplingParams(max_tokens=rng.randrange(1, 6))))
    return parts
