"""The op tables by name. One is loaded at start; its module is imported only then."""

from __future__ import annotations

from importlib import import_module

from radixlm.errors import ConfigError
from radixlm.ops.api import Ops

OPS = {
    "torch": "radixlm.ops.torch:TorchOps",
    "native": "radixlm.ops.native:NativeOps",
    "triton": "radixlm.ops.triton:TritonOps",
    "triton_scaled": "radixlm.ops.triton_fp8:ScaledOps",
    "triton_fp8": "radixlm.ops.triton_fp8:Fp8Ops",
    "triton_invariant": "radixlm.ops.triton_invariant:InvariantOps",
}


def load_ops(name: str) -> Ops:
    """The op table called `name`. Raises ConfigError when there is none of that name, or its package is missing."""
    if name not in OPS:
        raise ConfigError(f"--ops is {name}; it must be auto or one of {', '.join(OPS)}", param="ops")
    module, _, attribute = OPS[name].partition(":")
    try:
        return getattr(import_module(module), attribute)()
    except ModuleNotFoundError as error:
        text = f"--ops is {name}, which needs the package {error.name}, which is not installed; leave it at auto"
        raise ConfigError(text, param="ops") from error
