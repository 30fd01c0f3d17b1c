"""Models of the Hugging Face hub: fetched once into the hub's own cache."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from radixlm.errors import ModelError

SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
WEIGHTS = ["*.safetensors"]
CONNECT_TIMEOUT_S = 4.0


def hub_folder(model: str, revision: str | None, *, weights: bool) -> Path:
    """The local folder of a hub model, fetched if need be; without weights, only its configs and tokenizer.

    Raises ModelError if the hub has no such model or cannot be reached.
    """
    patterns = SMALL_FILES + (WEIGHTS if weights else [])
    try:
        folder = huggingface_hub.snapshot_download(
            model, revision=revision, allow_patterns=patterns, etag_timeout=CONNECT_TIMEOUT_S
        )
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(f"{model} is neither a local path nor a model of the hub; check the spelling") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ModelError(
            f"{model} is no local path, and the hub could not give it ({reason}); check the network or give a folder"
        ) from error
    return Path(folder)
