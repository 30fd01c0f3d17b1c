"""Which files of a folder hold its weights: one, or several with an index. No torch in here."""

from __future__ import annotations

import json
from pathlib import Path

from radixlm.errors import ModelError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def shard_names(folder: Path) -> list[str]:
    """The safetensors files of a folder, in order. Raises ModelError if there are none or one is missing."""
    if (folder / INDEX).is_file():
        names = _shards_in_index(folder / INDEX)
    else:
        names = [SINGLE] if (folder / SINGLE).is_file() else sorted(p.name for p in folder.glob("*.safetensors"))
    if not names:
        raise ModelError(f"{folder} holds no .safetensors file; give a folder with weights or --load-format dummy")
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(f"{folder} lacks {name}, one of {len(names)} weight files; fetch the model again")
    return names


def _shards_in_index(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index} is damaged ({error!r}); fetch the model again") from error
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ModelError(f"{index} names files outside its folder; fetch the model again")
    return names
