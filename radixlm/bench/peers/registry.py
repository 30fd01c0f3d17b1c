"""The peers of a comparison, one row each: how its environment is filled, which weights it reads, which adapter drives it.

To add one: an adapter file with a class `Adapter` (see `worker.Adapter`) and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from radixlm.bench.peers import gguf_export

TORCH = "torch==2.13.0"  # from an index that offers one, this release is the CPU build
ADAPTERS = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """`weights(folder, target, python)` makes `target` from the Hugging Face folder; without it the folder itself is read."""

    name: str
    adapter: str
    environment: str = ""  # name of the virtual environment; empty: the one we run in
    requirements: tuple[str, ...] = ()
    target: str = ""  # file or folder name of the converted weights
    weights: Callable[[Path, Path, Path], list[str] | None] | None = None

    @property
    def script(self) -> Path:
        """The adapter file."""
        return ADAPTERS / self.adapter


def _openvino(folder: Path, target: Path, python: Path) -> list[str]:
    return [
        str(python.with_name("optimum-cli")),
        *("export", "openvino", "--model", str(folder), "--task", "text-generation-with-past"),
        *("--weight-format", "fp16", str(target)),
    ]


def _gguf(kind: str) -> Callable[[Path, Path, Path], None]:
    def write(folder: Path, target: Path, python: Path) -> None:
        gguf_export.export(folder, target, kind)

    return write


_LLAMA = ("llama-cpp-python>=0.3.16",)
OURS = Peer("radixlm", "ours.py")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", "transformers_generate.py", "transformers", (TORCH, "transformers>=5.0")),
        Peer(
            "openvino",
            "openvino_genai_batching.py",
            "openvino",
            (TORCH, "openvino-genai>=2026.1", "optimum-intel[openvino]", "nncf"),
            "openvino-fp16",
            _openvino,
        ),
        Peer("llama.cpp-bf16", "llama_cpp_batching.py", "llama", _LLAMA, "model-BF16.gguf", _gguf("BF16")),
        Peer("llama.cpp-q8_0", "llama_cpp_batching.py", "llama", _LLAMA, "model-Q8_0.gguf", _gguf("Q8_0")),
    )
}
