"""RadixLM serves large language models. Public names load when first used: importing the package imports no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from radixlm.version import __version__

if TYPE_CHECKING:
    from radixlm.engine.llm import LLM
    from radixlm.types import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]

_HOMES = {"LLM": "radixlm.engine.llm", "SamplingParams": "radixlm.types"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'radixlm' has no name {name!r}")
    value = vars(importlib.import_module(_HOMES[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
