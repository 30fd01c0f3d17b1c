"""The loads of `radixlm bench serve` by transformers: static batches of as many sessions as there are users, turn after turn.

usage: python -m bench.static FOLDER WORKLOADS USERS SESSIONS OUTPUT_LOW OUTPUT_HIGH
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

from bench.peers.transformers_generate import Adapter
from radixlm.bench.sessions import WORKLOADS, Session


def run(model: Adapter, sessions: list[Session], users: int) -> tuple[int, int]:
    """(requests, output tokens asked for). What a batch computes beyond a request's own length counts for nothing."""
    requests = tokens = 0
    for first in range(0, len(sessions), users):
        batch = sessions[first : first + users]
        histories: list[list[int]] = [[] for _ in batch]
        for number in range(max(len(session.turns) for session in batch)):
            rows = [row for row, session in enumerate(batch) if number < len(session.turns)]
            lengths = [batch[row].turns[number].max_tokens for row in rows]
            for row in rows:
                new = batch[row].turns[number].new
                assert not isinstance(new, str), f"a turn of text, {new!r}; name workloads of token ids"
                histories[row] += new
            answers, _ = model.generate([histories[row] for row in rows], lengths)
            for row, answer in zip(rows, answers, strict=True):
                histories[row] += answer
            requests, tokens = requests + len(rows), tokens + sum(lengths)
    return requests, tokens


def main(folder: str, names: str, *numbers: str) -> None:
    """Prints a line for each workload."""
    users, count, low, high = map(int, numbers)
    model = Adapter(folder, threads=len(os.sched_getaffinity(0)))
    for name in names.split(","):
        load = replace(WORKLOADS[name], users=users, sessions=count, output=(low, high))
        sessions = load.draw(0, 32000)
        run(model, sessions[:2], 2)
        begun = time.perf_counter()
        requests, tokens = run(model, sessions, users)
        took = time.perf_counter() - begun
        print(f"{name}: {requests / took:.3f} requests/s, {tokens / took:.1f} tok/s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
