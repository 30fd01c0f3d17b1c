"""Checkpoints with 8-bit weights: what is loaded is what the numbers and their scales mean, multiplied out by hand here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from radixlm.errors import ModelError
from radixlm.models.config import read_config
from radixlm.models.load import Loader
from radixlm.ops.scaled import FP8, Scaled, stack
from radixlm.ops.torch import TorchOps
from radixlm.weights.checkpoint import Checkpoint
from radixlm.weights.safetensors import Safetensors
from tests.models.families import make_oracle, open_decoder, oracle_logits
from tests.models.harness import Bench

TOKENS = [1, 5, 99, 23, 4, 17]
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 20]}
PER_WEIGHT = {"quant_method": "fp8", "activation_scheme": "static"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
}
KINDS: dict[str, tuple[dict[str, Any], str, tuple[int, int] | None]] = {
    "blocks": (BLOCKS, "weight_scale_inv", (16, 20)),
    "blocks larger than the weights": (BLOCKS | {"weight_block_size": [128, 128]}, "weight_scale_inv", (128, 128)),
    "one scale": (PER_WEIGHT, "weight_scale", None),
    "rows": (COMPRESSED, "weight_scale", (1, 1 << 20)),
}


def rounded(weight: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Block by block: the 8-bit numbers, the scales, and what they mean."""
    rows, columns = (range(0, size, side) for size, side in zip(weight.shape, block, strict=True))
    small, meant = torch.zeros(weight.shape, dtype=FP8), torch.zeros_like(weight)
    scales = torch.zeros(len(rows), len(columns))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            part = (slice(row, row + block[0]), slice(column, column + block[1]))
            scales[i, j] = weight[part].abs().max() / 448
            small[part] = (weight[part] / scales[i, j]).to(FP8)
            meant[part] = small[part].float() * scales[i, j]
    return small, scales, meant


def write(folder: Path, kind: str, family: str = "qwen3 biased", **sizes: int) -> torch.nn.Module:
    """A checkpoint of this kind, and the model that computes with what it means."""
    config, name, block = KINDS[kind]
    model = make_oracle(family, **sizes)
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    tensors = load_file(folder / "model.safetensors")
    for key, weight in list(tensors.items()):
        if key.endswith("_proj.weight"):
            small, scales, meant = rounded(weight, block or (1 << 20, 1 << 20))
            tensors[key], scale_key = small, key.removesuffix("weight") + name
            tensors[scale_key] = scales if block else scales.reshape(())
            if kind == "one scale":
                tensors[key.removesuffix("weight") + "input_scale"] = torch.tensor([0.5])
            model.state_dict()[key].copy_(meant)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_weights_that_are_meant(kind: str, tmp_path: Path) -> None:
    oracle = write(tmp_path, kind)
    decoder = open_decoder(tmp_path)
    torch.testing.assert_close(
        Bench(decoder).forward((0, 0, TOKENS))[0], oracle_logits(oracle, TOKENS), rtol=1e-4, atol=1e-4
    )


class _Keeping(TorchOps):
    """Multiplies by the weights written out, and remembers in which form it got them."""

    keeps_scaled = True

    def __init__(self) -> None:
        self.scaled: list[bool] = []

    def pack(self, weight, bias, *, gated=False):
        self.scaled.append(isinstance(weight, Scaled))
        return super().pack(weight.plain() if isinstance(weight, Scaled) else weight, bias)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_that_keeps_8_bits_gets_them_wherever_stacked_blocks_do_not_cut_weights(
    kind: str, tmp_path: Path
) -> None:
    oracle = write(tmp_path, kind)
    config, ops = read_config(json.loads((tmp_path / "config.json").read_text())), _Keeping()
    source = Safetensors(tmp_path)
    checkpoint = Checkpoint(source, torch.device("cpu"), torch.float32, lambda done, total: None)
    decoder = Loader(config, checkpoint, ops).load(64, torch.device("cpu"))
    torch.testing.assert_close(
        Bench(decoder).forward((0, 0, TOKENS))[0], oracle_logits(oracle, TOKENS), rtol=1e-4, atol=1e-4
    )
    assert ops.scaled[-1] is False, "the head is in 32 bits"
    assert all(ops.scaled[:-1]) == (kind != "blocks larger than the weights")
    assert kind == "blocks larger than the weights" or decoder.weight_bytes < sum(
        tensor.nbytes for tensor in make_oracle("qwen3 biased").state_dict().values()
    )


def edit(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight_scale_inv"), r"up_proj\.weight is .*without a scale"),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.weight_scale_inv": torch.ones(2, 9)}), r"does not fit \[48, 32\]"),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(48, 32)}), "float32 with scales"),
        (lambda t: t.update({"model.layers.1.mlp.up_proj.weight_scale": torch.ones(48, 1)}), "does not use"),
        (lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"].to(FP8)}), "without a scale"),
    ],
)  # fmt: skip
def test_weights_and_scales_that_do_not_fit_are_named(change, words: str, tmp_path: Path) -> None:
    write(tmp_path, "blocks")
    edit(tmp_path, change)
    with pytest.raises(ModelError, match=words):
        open_decoder(tmp_path)


@pytest.mark.parametrize("rows", [(32, 16), (32, 16, 24)])
def test_stacked_weights_mean_what_each_meant(rows: tuple[int, ...]) -> None:
    """Also where the last one ends in the middle of a block, and where another does."""
    parts = [torch.randn(count, 40) for count in rows]
    scaled = [Scaled(*rounded(part, (16, 16))[:2], (16, 16), torch.float32) for part in parts]
    meant = torch.cat([rounded(part, (16, 16))[2] for part in parts])
    for keep in (True, False):
        stacked = stack(list(scaled), keep_scaled=keep)
        assert isinstance(stacked, Scaled) == (keep and len(rows) == 2)
        assert torch.equal(stacked.plain() if isinstance(stacked, Scaled) else stacked, meant)
