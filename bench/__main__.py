"""`python -m bench KIND`: `radixlm bench` with the kinds that hold this project to its word; no installation needs them."""

import sys

from radixlm.bench.main import KINDS
from radixlm.cli import main

KINDS |= {
    "peers": ("bench.peers.compare:Peers", "The cases of `offline` beside other engines, interleaved, same weights."),
    "sched": ("bench.sched:Sched", "What the scheduler costs per step, without a model."),
    "frontend": ("bench.frontend.measure:Frontend", "What HTTP costs and bears: streams, idle connections, disconnects, overload."),
    "grammar": ("bench.grammar:Constraints", "What constraints cost, what jump-forward saves, how long schemas take to compile."),
    "programs": ("bench.programs:Programs", "Programs of the language beside the same flows as plain HTTP calls."),
    "masks": ("bench.masks:Masks", "Masks and compilation of constraints with a real vocabulary, beside other libraries."),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
