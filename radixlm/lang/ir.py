"""The intermediate form of a program: frozen nodes on branches, and what comes back from running them.

A node that is wrong cannot be built; `verify` then proves that the nodes of a program fit together. Names of values are
unique on their branch (a second `gen("x")` is recorded as `x@2`). All of it is JSON: it is what `POST /v1/programs` takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from radixlm.lang.errors import ProgramError
from radixlm.messages import TokenLogprobs
from radixlm.types import SamplingParams

VERSION = 1
MAX_BRANCHES = 256
MAX_NODES = 4096
MAX_MESSAGES = 256  # their frame is rendered once for each
MAX_OPTIONS = 128
ROLES = ("system", "user", "assistant", "tool")
REGEX_INT = r"[-+]?[0-9]+[ \n]*"
REGEX_FLOAT = r"[-+]?[0-9]*\.?[0-9]+[ \n]*"
REGEX_BOOL = r"(True|False)"
REGEX_STR = r"\"[\w\d\s]*\""

Method = Literal["token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized"]


class _Node(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    line: int = 0  # of the program's source


class Text(_Node, frozen=True):
    """A literal."""

    text: str


class Argument(_Node, frozen=True):
    """A literal that is given when the program is bound."""

    name: str


class Ref(_Node, frozen=True):
    """The text of a value generated on this or another branch."""

    branch: int
    name: str


class Gen(_Node, frozen=True):
    """Generated text, kept as value `name`."""

    name: str
    sampling: SamplingParams = SamplingParams()

    def __post_init__(self) -> None:
        _named(self, self.name)


class Select(_Node, frozen=True):
    """One of `options`, the likeliest by `method`, kept as value `name`. A temperature above 0 draws by likelihood."""

    name: str
    options: tuple[str, ...]
    method: Method = "token_length_normalized"
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _named(self, self.name)
        texts = all(isinstance(option, str) and option for option in self.options)
        if not 1 <= len(self.options) <= MAX_OPTIONS or not texts:
            raise ProgramError(
                f"select has {len(self.options)} choices; it needs 1 to {MAX_OPTIONS}, each a text that is not empty",
                line=self.line,
                node=f"select {self.name}",
            )
        if len(set(self.options)) < len(self.options):
            raise ProgramError("select has the same choice twice", line=self.line, node=f"select {self.name}")
        if not 0 <= self.temperature <= 2:
            raise ProgramError(f"temperature is {self.temperature}; it must be from 0 to 2", line=self.line)


class Open(_Node, frozen=True):
    """A message of a role begins."""

    role: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ProgramError(f"role is {self.role}; it must be one of {', '.join(ROLES)}", line=self.line)


class Close(_Node, frozen=True):
    """The open message ends."""


class Begin(_Node, frozen=True):
    """What follows, up to the matching `End`, is kept as value `name`."""

    name: str


class End(_Node, frozen=True):
    """See `Begin`."""

    name: str


class Fork(_Node, frozen=True):
    """Branches begin here, each with all that this branch holds so far."""

    children: tuple[int, ...]


class Reason(_Node, frozen=True):
    """Splits generated value `source` into reasoning (`NAME_reasoning_content`) and what is said (`NAME`, kept in the text)."""

    name: str
    source: str
    model_type: str = ""


Node = Text | Argument | Ref | Gen | Select | Open | Close | Begin | End | Fork | Reason


class Piece(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stretch of a branch's text: literal (`tokens` None: tokenised together with its neighbours) or generated."""

    text: str
    tokens: tuple[int, ...] | None = None


class Turn(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message: its role and where in the text its content is; `end` -1 while it is open."""

    role: str
    start: int
    end: int = -1


class Context(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that a branch holds: its text in pieces, and the messages in it. `framed`: the text began with a message.

    `scopes` are open `var_scope`s by name, with the character where each begins.
    """

    pieces: tuple[Piece, ...] = ()
    turns: tuple[Turn, ...] = ()
    framed: bool = False
    scopes: dict[str, int] = {}

    @property
    def text(self) -> str:
        """The text as a whole."""
        return "".join(piece.text for piece in self.pieces)


class Branch(msgspec.Struct, frozen=True, omit_defaults=True):
    """Nodes in order. `context` is where a branch goes on that ran before; None for one that a `Fork` here begins."""

    id: int
    nodes: tuple[Node, ...]
    context: Context | None = None


class Program(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One instance of a program, or a later stretch of one: branches that begin with a context, and those they fork."""

    name: str = "program"
    version: int = VERSION
    branches: tuple[Branch, ...]
    stream: bool = False  # send text as it comes, not only whole values
    tools: tuple[dict[str, Any], ...] = ()  # descriptions for the chat template
    num_api_spec_tokens: int = 0  # asked for ahead where each generated part would be a request

    def nodes(self) -> Iterator[tuple[Branch, Node]]:
        """Every node with its branch."""
        return ((branch, node) for branch in self.branches for node in branch.nodes)


class Meta(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How a value came about. `scores` are a select's, by option: each token of it with its log probability."""

    finish: str = "stop"
    matched: int | str | None = None
    completion_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    scores: tuple[tuple[TokenLogprobs, ...], ...] = ()
    unconditional: tuple[tuple[TokenLogprobs, ...], ...] = ()


class TextEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """More text of a branch: literal, or of value `name` (of answer 0 where there are several)."""

    program: int
    branch: int
    text: str
    name: str = ""
    num_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()


class ValueEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A value is whole: one text, or a list of them for `n` above 1. `metas` has one entry for each."""

    program: int
    branch: int
    name: str
    value: str | list[str]
    metas: tuple[Meta, ...] = ()


class UsageEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A request to the model ended: the values it brought, and what it cost."""

    program: int
    branch: int
    names: tuple[str, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    forced_tokens: int
    seconds: float


class BranchEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """A branch has run to its end; `context` is where it can go on."""

    program: int
    branch: int
    context: Context


class ErrorEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The program failed; nothing more comes of it."""

    program: int
    message: str
    code: str = "internal"
    status: int = 500
    line: int = 0
    node: str = ""
    unsupported: bool = False


class EndEvent(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The program ended well; nothing more comes of it."""

    program: int


Event = TextEvent | ValueEvent | UsageEvent | BranchEvent | ErrorEvent | EndEvent


def describe(node: Node) -> str:
    """The node in a few words, for errors and plans."""
    match node:
        case Text(text=text):
            return f"text {text[:40]!r}{'...' if len(text) > 40 else ''}"
        case Gen(name=name) | Select(name=name) | Argument(name=name) | Begin(name=name) | End(name=name):
            return f"{type(node).__name__.lower()} {name}"
        case Ref(branch=branch, name=name):
            return f"value {name} of branch {branch}"
        case Open(role=role):
            return f"{role} begins"
        case Close():
            return "message ends"
        case Fork(children=children):
            return f"fork into {len(children)}"
        case Reason(name=name):
            return f"separate reasoning of {name}"


def constant_nodes(branch: Branch) -> list[Text | Open | Close]:
    """The nodes at the beginning of a branch that are the same whatever the program is given."""
    found: list[Text | Open | Close] = []
    for node in branch.nodes:
        if not isinstance(node, Text | Open | Close):
            break
        found.append(node)
    return found


def verify(program: Program) -> None:
    """Raises ProgramError unless the nodes fit together: known branches and values, matched messages, nothing waits for itself."""
    if program.version != VERSION:
        raise ProgramError(f"version is {program.version}; this one runs version {VERSION}", program=program.name)
    nodes = [node for _, node in program.nodes()]
    forks, opened = ([node.line for node in nodes if isinstance(node, kind)] for kind in (Fork, Open))
    held = sum(len(branch.context.turns) for branch in program.branches if branch.context is not None)
    for count, what, most, lines in (
        (len(program.branches), "branches", MAX_BRANCHES, forks),
        (len(nodes), "nodes", MAX_NODES, [node.line for node in nodes]),
        (held + len(opened), "messages", MAX_MESSAGES, opened),
    ):
        if count > most:
            line = lines[-1] if lines else 0
            raise ProgramError(f"{count} {what}; a program has at most {most}", program=program.name, line=line)
    if not program.branches:
        raise ProgramError("0 branches; a program has at least 1", program=program.name)
    _Proof(program).run()


class _Proof:
    """Walks all branches as far as they can go, again and again: what is left then waits for something that never comes."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._left = {branch.id: list(branch.nodes) for branch in program.branches}
        if len(self._left) < len(program.branches):
            raise ProgramError("two branches have the same id", program=program.name)
        self._begun = {branch.id: branch.context for branch in program.branches if branch.context is not None}
        self._known: set[tuple[int, str]] = set()
        self._open = {id_: bool(at.turns and at.turns[-1].end < 0) for id_, at in self._begun.items()}
        self._scopes = {id_: set(at.scopes) for id_, at in self._begun.items()}

    def run(self) -> None:
        moved = True
        while moved:
            moved = False
            for id_ in list(self._begun):
                while (nodes := self._left[id_]) and self._step(id_, nodes[0]):
                    nodes.pop(0)
                    moved = True
        for id_, nodes in self._left.items():
            if nodes:
                waits = "is never forked" if id_ not in self._begun else "waits for something that never comes"
                raise self._error(nodes[0], f"branch {id_} {waits}")

    def _step(self, id_: int, node: Node) -> bool:
        """Goes past a node; False if it must wait."""
        match node:
            case Ref(branch=branch, name=name):
                self._require(branch in self._left, node, f"there is no branch {branch}")
                return (branch, name) in self._known
            case Gen(name=name) | Select(name=name):
                self._know(id_, node, name)
            case End(name=name):
                self._require(name in self._scopes[id_], node, f"no scope {name} is open")
                self._know(id_, node, name)
            case Begin(name=name):
                self._scopes[id_].add(name)
            case Open() | Close():
                self._turn(id_, node)
            case Fork(children=children):
                self._fork(id_, node, children)
            case Reason(name=name, source=source):
                self._require((id_, source) in self._known, node, f"there is no value {source}")
                self._know(id_, node, name, f"{name}_reasoning_content")
            case Argument(name=name):
                raise self._error(node, f"the argument {name} is not bound; give it to run or bind")
            case Text():
                pass
        return True

    def _know(self, id_: int, node: Node, *names: str) -> None:
        for name in names:
            self._require((id_, name) not in self._known, node, f"the value {name} exists already")
            self._known.add((id_, name))

    def _turn(self, id_: int, node: Open | Close) -> None:
        opens = isinstance(node, Open)
        rule = "a message begins inside another; end the first" if opens else "no message is open here"
        self._require(self._open[id_] != opens, node, rule)
        self._open[id_] = opens

    def _fork(self, id_: int, node: Fork, children: tuple[int, ...]) -> None:
        for child in children:
            fresh = child in self._left and child not in self._begun
            self._require(fresh, node, f"branch {child} is unknown or has begun already")
            self._begun[child] = Context()
            self._open[child], self._scopes[child] = self._open[id_], set(self._scopes[id_])

    def _require(self, holds: bool, node: Node, rule: str) -> None:
        if not holds:
            raise self._error(node, rule)

    def _error(self, node: Node, rule: str) -> ProgramError:
        return ProgramError(rule, program=self._program.name, line=node.line, node=describe(node))


def _named(node: Gen | Select, name: object) -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= 256:
        kind = type(node).__name__.lower()
        raise ProgramError(f"a {kind} needs a name: text of 1 to 256 characters", line=node.line, node=kind)
