"""What crosses the border between frontend and engine: typed, tagged msgpack. One frame per step and frontend.

A frontend sends `Submit`, `Abort`, `Control`; the engine answers `Outputs` (one per step) and `Reply`. Every frame is
decoded with its type, so garbage is refused at the border. The same objects travel without encoding inside one process.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from radixlm.types import Finish, Request
from radixlm.version import __version__

Missed = Literal["", "new", "evicted", "other_namespace", "scored", "disabled"]
"""Why the rest of a prompt was not in the cache: nothing was missing, never seen, seen and evicted, cached in another namespace
of the same tenant, computed for its log probabilities, or there is no prefix cache."""


class ShowCache(msgspec.Struct, frozen=True, tag=True):
    """What is in the prefix tree: the `most` nodes that saved most tokens, of namespaces that begin with `among`."""

    most: int
    among: str = ""


class MatchPrefix(msgspec.Struct, frozen=True, tag=True):
    """How much of a prompt (int32 bytes) is cached now."""

    namespace: str
    tokens: bytes


class PinPrefix(msgspec.Struct, frozen=True, tag=True):
    """Keep what is cached of a prefix for `ttl_s` seconds; again for the same prefix extends it."""

    namespace: str
    tokens: bytes
    ttl_s: float


class UnpinPrefix(msgspec.Struct, frozen=True, tag=True):
    """Let one kept prefix go, or (None) all, of namespaces that begin with `among`."""

    pin: str | None = None
    among: str = ""


class AbortLabelled(msgspec.Struct, frozen=True, tag=True):
    """End the open requests of this owner with exactly this label, whichever frontend they came through."""

    owner: str
    label: str


Query = ShowCache | MatchPrefix | PinPrefix | UnpinPrefix | AbortLabelled
Command = Literal["info", "stats", "flush_cache", "abort_all", "drain", "ping", "pause", "preempt", "resume"] | Query
"""drain ends what runs as abort_all does, and says why."""


class Submit(msgspec.Struct, frozen=True, tag=True):
    """New requests, in order of arrival."""

    requests: tuple[Request, ...]


class Abort(msgspec.Struct, frozen=True, tag=True):
    """End these requests (keys of this frontend). Unknown keys are ignored: they have ended already."""

    keys: tuple[int, ...]


class Control(msgspec.Struct, frozen=True, tag=True):
    """A command answered by one `Reply` with the same `ticket`."""

    ticket: int
    command: Command


class CacheNode(msgspec.Struct, frozen=True):
    """An edge of the prefix tree, from one branch to the next. `parent` is 0 below a root; `head` are its first tokens.

    `number` names the first node of a chain of nodes that are used equally and shown as one.
    """

    number: int
    parent: int
    namespace: str
    start: int  # tokens before it
    num_tokens: int
    hits: int
    idle_s: float  # seconds since its last use
    num_leases: int
    kept: bool
    head: bytes


class HitWindow(msgspec.Struct, frozen=True):
    """Prompt tokens admitted in the last `window_s` seconds (None: since start), and how many of them were cached."""

    window_s: float | None
    prompt_tokens: int
    cached_tokens: int


class Pin(msgspec.Struct, frozen=True):
    """A kept prefix. `id` follows from its namespace and tokens."""

    id: str
    namespace: str
    num_tokens: int
    expires_in_s: float


class CacheView(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `ShowCache`. Unless `complete`, the walk stopped at its limit; it goes to the nodes with most hits first."""

    nodes: tuple[CacheNode, ...] = ()
    namespaces: dict[str, int] = {}  # tokens seen by the walk
    complete: bool = True
    windows: tuple[HitWindow, ...] = ()
    pins: tuple[Pin, ...] = ()
    kept_tokens: int = 0
    kept_limit: int = 0  # tokens


class CacheMatch(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `MatchPrefix`. `path` has (node number, tokens of it that match) from the root down."""

    num_prompt: int
    num_cached: int
    missed: Missed = ""
    path: tuple[tuple[int, int], ...] = ()


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `PinPrefix`: the pin, or why there is none."""

    pin: Pin | None = None
    refused: str = ""


class Unpinned(msgspec.Struct, frozen=True):
    """Answer to `UnpinPrefix`: how many prefixes were let go."""

    unpinned: int


class AbortedLabelled(msgspec.Struct, frozen=True):
    """Answer to `AbortLabelled`: how many requests were ended."""

    aborted: int


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position: the token there and the k most likely, best first."""

    token: int
    logprob: float
    top_tokens: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Logprobs(msgspec.Struct, frozen=True, tag=True):
    """Positions `start`, `start + 1`, ... of a request's whole sequence (prompt positions and output positions alike)."""

    key: int
    start: int
    positions: tuple[TokenLogprobs, ...]


class Pooled(msgspec.Struct, frozen=True, tag=True):
    """The vector of a request with `pooling`: float32 little-endian bytes, [hidden size], not normalised."""

    key: int
    vector: bytes


class PartEnded(msgspec.Struct, frozen=True, tag=True):
    """Generated part `part` of a script ended and another literal run follows.

    The last `num_dropped` tokens sent for this part are not in the sequence (they held the stop), `healed` (int32 bytes)
    stand there in their place: the text before the stop, tokenised anew.
    """

    key: int
    part: int
    finish: Finish
    num_dropped: int = 0
    healed: bytes = b""


class Forced(msgspec.Struct, frozen=True, tag=True):
    """Tokens that a grammar left no choice about: they follow the tokens sent so far without being sampled.

    The last `num_dropped` tokens sent are not in the sequence: `tokens` (int32 bytes) spell their text and then `text`, as
    the tokenizer would spell both together.
    """

    key: int
    num_dropped: int
    tokens: bytes
    text: bytes


class Ended(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """The one terminal event of a request. Times are seconds; `queue_s` until admission, `prefill_s` until the first token.

    `missed` says why no more than `num_cached` tokens came from the cache.
    """

    key: int
    finish: Finish
    num_prompt: int = 0
    num_cached: int = 0
    num_output: int = 0
    num_forced: int = 0
    num_proposed: int = 0
    num_accepted: int = 0
    num_preempted: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    total_s: float = 0.0
    missed: Missed = ""
    not_enforced: tuple[str, ...] = ()  # JSON pointers into lenient schemas: what was left to the model
    code: str = ""  # an error code of radixlm.errors when the request was rejected or failed


Detail = Logprobs | PartEnded | Forced | Pooled


class Outputs(msgspec.Struct, frozen=True, tag=True):
    """All that one step produced for one frontend.

    `keys` (int64 bytes) and `tokens` (int32 bytes) pair up: request keys[i] got tokens[i]; a key may repeat, in order.
    Tokens apply first, then `details` in order, then `ended`.
    """

    keys: bytes = b""
    tokens: bytes = b""
    details: tuple[Detail, ...] = ()
    ended: tuple[Ended, ...] = ()


class Reply(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Control`: JSON-like values."""

    ticket: int
    result: dict[str, Any] = {}


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What frontends must know of an engine; the result of the `info` command."""

    model: str
    architecture: str
    dtype: str
    device: str
    vocab_size: int
    context_length: int
    num_pages: int
    page_size: int
    max_running: int
    max_queued: int
    tokens_per_step: int
    eos_token_ids: tuple[int, ...]
    knee_tokens: int = 0
    step_sizes: tuple[int, ...] = ()
    weight_bytes: int = 0
    kv_bytes: int = 0
    attention: str = ""
    ops: str = ""
    version: str = __version__


def name_of(command: Command) -> str:
    """A command without its arguments, for messages."""
    return command if isinstance(command, str) else type(command).__name__


ToEngine = Submit | Abort | Control
FromEngine = Outputs | Reply

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_to_engine(frame: bytes) -> ToEngine:
    """Raises msgspec.DecodeError (or its ValidationError) for anything but a well-typed frame."""
    return _to_engine.decode(frame)


def decode_from_engine(frame: bytes) -> FromEngine:
    """Raises msgspec.DecodeError (or its ValidationError) for anything but a well-typed frame."""
    return _from_engine.decode(frame)
