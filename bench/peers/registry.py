"""The peers of a comparison, one row each: how its environment is filled, which weights it reads, which adapter drives it.

To add one: an adapter file with a class `Adapter` (see `worker.Adapter`) and a row here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.peers import gguf_export

TORCH = "torch==2.13.0"  # from an index that offers one, this release is the CPU build
ADAPTERS = Path(__file__).parent


@dataclass(frozen=True)
class Peer:
    """`weights(folder, target, python)` makes `target` from the Hugging Face folder; without it the folder itself is read."""

    name: str
    adapter: str
    environment: str = ""  # name of the virtual environment; empty: the one we run in
    requirements: tuple[str, ...] = ()
    unwanted: tuple[str, ...] = ()  # dependencies to remove again
    apart: bool = False  # computes in a lower precision than the others, so it is nobody's best peer
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


def _llama(kind: str) -> Peer:
    return Peer(
        name=f"llama.cpp {kind}",
        adapter="llama_cpp_batching.py",
        environment="llama",
        requirements=("llama-cpp-python>=0.3.16",),
        apart=kind != "BF16",
        target=f"model-{kind}.gguf",
        weights=_gguf(kind),
    )


OURS = Peer("radixlm", "ours.py")
PEERS = {
    peer.name: peer
    for peer in (
        Peer("transformers", "transformers_generate.py", "transformers", (TORCH, "transformers>=5.0")),
        Peer(
            name="openvino",
            adapter="openvino_genai_batching.py",
            environment="openvino",
            requirements=(TORCH, "openvino-genai>=2026.1", "optimum-intel[openvino]", "nncf"),
            unwanted=(
                "torchvision",
            ),  # optimum-intel names it and needs it for images only; a CUDA build breaks the export
            target="openvino-fp16",
            weights=_openvino,
        ),
        _llama("BF16"),
        _llama("Q8_0"),
    )
}
