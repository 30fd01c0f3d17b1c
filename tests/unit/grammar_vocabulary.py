"""A small vocabulary with every kind of token: pieces of characters, quotes, long ones, twins, one special, one empty."""

from __future__ import annotations

from radixlm.grammar.api import TokenVocabulary

EOS = 1
WORDS = (
    """ab aab abb ba bb éa aé 你 你好 世 " ", ": {" "} \\n a" 1, 10 12 true null nul false [[ ]] [" ,[ ab"""
    " a< </ <b a,b ! .é a-你"
)
PIECES = [
    *(bytes((byte,)) for byte in range(256)),
    *(word.encode() for word in [*WORDS.split(), "a" * 33, "ab" * 20, " a", "\n"]),
    "你".encode()[:2],
    "é".encode()[1:] + b"a",
    b"b" + "世".encode()[:1],
]
TOKENS = (b"", b"</s>", *PIECES)
VOCABULARY = TokenVocabulary("small", len(TOKENS) + 5, TOKENS, frozenset({1}), (EOS,), lambda text: list(text.encode()))


def ids(text: str | bytes) -> list[int]:
    """A text token by token, one byte each."""
    return [2 + byte for byte in (text.encode() if isinstance(text, str) else text)]
