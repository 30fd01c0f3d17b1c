"""RadixLM serves large language models. Public names load when first used: importing the package imports no torch.

`import radixlm as sgl` runs programs written for SGLang's language.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from radixlm.version import __version__

if TYPE_CHECKING:
    from radixlm.engine.llm import LLM
    from radixlm.types import SamplingParams

_HOMES = {
    "radixlm.engine.llm": ("LLM",),
    "radixlm.types": ("SamplingParams",),
    "radixlm.lang.api": (
        "gen", "gen_int", "gen_string", "select", "image", "video", "separate_reasoning",
        "system", "system_begin", "system_end", "user", "user_begin", "user_end",
        "assistant", "assistant_begin", "assistant_end",
    ),
    "radixlm.lang.program": ("function",),
    "radixlm.lang.defaults": ("set_default_backend", "flush_cache", "get_server_info", "generate"),
    "radixlm.lang.choices": (
        "token_length_normalized", "greedy_token_selection", "unconditional_likelihood_normalized",
    ),
    "radixlm.lang.errors": ("ProgramError", "TraceError", "Unsupported"),
    "radixlm.lang.backends.local": ("LocalBackend",),
    "radixlm.lang.backends.http": ("HttpBackend",),
    "radixlm.lang.backends.openai": ("OpenAIBackend",),
    "radixlm.lang.backends.sglang": ("RuntimeEndpoint",),
    "radixlm.lang.backends.engine": ("Engine", "Runtime"),
}  # fmt: skip
"""Public names by the module they live in."""
_PLACES = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["LLM", "SamplingParams", "__version__"]
__all__ += sorted(_PLACES.keys() - set(__all__))  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'radixlm' has no name {name!r}")
    value = vars(importlib.import_module(_PLACES[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
