"""`Plan`: a program that was traced. It can be looked at, and run again and again without tracing."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from radixlm.lang.backends.api import Backend
from radixlm.lang.compiler import bound
from radixlm.lang.errors import ProgramError
from radixlm.lang.explain import constant_nodes
from radixlm.lang.ir import Argument, Branch, Context, Gen, Node, Program
from radixlm.lang.run import Run, explain, fly
from radixlm.lang.state import ProgramState
from radixlm.types import SamplingParams


class Plan:
    """Made by `SglFunction.compile`. `program` is the intermediate form, with arguments still open."""

    def __init__(self, traced: Run) -> None:
        self._traced = traced
        self.program = traced.whole()

    @property
    def missing(self) -> list[str]:
        """Arguments that are still to be given."""
        return list(dict.fromkeys(node.name for _, node in self.program.nodes() if isinstance(node, Argument)))

    def run(self, backend: Backend | None = None, **arguments: str) -> ProgramState:
        """Runs it to the end with these texts as arguments. Raises what went wrong."""
        from radixlm.lang.defaults import default_backend

        if unknown := [name for name in arguments if name not in self.missing]:
            raise ProgramError(f"there is no open argument {unknown[0]}", program=self.program.name)
        where = backend or self._traced.backend or default_backend()
        run = Run(self.program.name, where, self._traced.settings, live=True)
        nodes = {branch.id: list(branch.nodes) for branch in bound(self.program, arguments).branches}
        run.tracks = [
            replace(t, variables=dict(t.variables), nodes=nodes[t.id], num_sent=0) for t in self._traced.tracks
        ]
        run.returned = True
        run.follow(where.submit(fly(where, [run.program()], [run])))
        run.wait(lambda: run.done)
        return ProgramState(run, run.tracks[0])

    def prefix(self) -> Program:
        """The constant beginning alone, computed and not continued."""
        nodes: list[Node] = list(constant_nodes(self.program))
        if not nodes:
            raise ProgramError(
                "it begins with nothing constant, so there is nothing to cache", program=self.program.name
            )
        nodes.append(Gen(name="cache", sampling=SamplingParams(max_tokens=0)))
        return msgspec.structs.replace(self.program, branches=(Branch(0, tuple(nodes), Context()),))

    def explain(self, form: str = "text") -> str:
        """The plan as text, json or mermaid, or written to FILE.png."""
        return explain(self._traced, form)
