"""Writes a checkpoint with random 8-bit weights, so that an engine of that kind can be measured as it starts and serves.

python -m bench.gpu.checkpoint8 FOLDER [--shape llama-3-8b] [--scales blocks|rows]
radixlm serve FOLDER        # takes triton_scaled by itself on a card; --ops triton serves the same written out in 16 bits
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

from radixlm.ops.scaled import FP8
from radixlm.weights.byte_tokenizer import write_byte_tokenizer
from radixlm.weights.shapes import SHAPES
from radixlm.weights.shards import INDEX

BLOCK = 128
SPREAD = 0.02
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def linear(name: str, out: int, size: int, *, blocks: bool) -> dict[str, torch.Tensor]:
    """Numbers that fill the type's range, and scales that bring them to the spread of fresh weights."""
    numbers = (torch.randn(out, size, device=DEVICE) * 100).clamp(-448, 448).to(FP8).cpu()
    grid = (math.ceil(out / BLOCK), math.ceil(size / BLOCK)) if blocks else (out, 1)
    scale = (torch.rand(grid) + 0.5) * SPREAD / 100
    return {f"{name}.weight": numbers, f"{name}.{'weight_scale_inv' if blocks else 'weight_scale'}": scale}


def layer(at: str, config: dict[str, int], *, blocks: bool) -> dict[str, torch.Tensor]:
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    sizes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    tensors = {f"{at}{norm}.weight": torch.ones(hidden) for norm in ("input_layernorm", "post_attention_layernorm")}
    for name, (out, size) in sizes.items():
        tensors |= linear(at + name, out, size, blocks=blocks)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--scales", choices=("blocks", "rows"), default="blocks")
    options = parser.parse_args()
    folder, config = options.folder, SHAPES[options.shape]
    folder.mkdir(parents=True, exist_ok=True)
    more = {"weight_block_size": [BLOCK, BLOCK]} if options.scales == "blocks" else {}
    content = config | {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"} | more}
    (folder / "config.json").write_text(json.dumps(content, indent=1))
    write_byte_tokenizer(folder)
    ends = {"model.norm.weight": torch.ones(config["hidden_size"])}
    for name in ("model.embed_tokens.weight", *(() if config.get("tie_word_embeddings") else ("lm_head.weight",))):
        ends[name] = (torch.randn(config["vocab_size"], config["hidden_size"], device=DEVICE) * SPREAD).bfloat16().cpu()
    where = {}
    for index in range(-1, config["num_hidden_layers"]):
        tensors = ends if index < 0 else layer(f"model.layers.{index}.", config, blocks=options.scales == "blocks")
        file = f"model-{index + 1:05}.safetensors"
        save_file(tensors, folder / file, {"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": where}))


if __name__ == "__main__":
    main()
