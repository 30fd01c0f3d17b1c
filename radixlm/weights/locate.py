"""From the name of a model to files on this machine: fetched, checked and converted if need be. No torch in here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from radixlm.config import Config
from radixlm.errors import ModelError
from radixlm.types import Json
from radixlm.weights.byte_tokenizer import write_byte_tokenizer
from radixlm.weights.cache import cache_folder, cached
from radixlm.weights.gguf import MAGIC, GgufFile, open_gguf
from radixlm.weights.gguf_config import config_json, generation_json
from radixlm.weights.gguf_tokenizer import write_tokenizer
from radixlm.weights.shapes import SHAPES
from radixlm.weights.smollm2 import NAME as SMOLLM2
from radixlm.weights.smollm2 import smollm2_folder

SMALL_FILES = ["*.json", "*.jinja", "tokenizer.model"]
WEIGHTS = ["*.safetensors"]
CONNECT_TIMEOUT_S = 4.0
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(?<!\.gguf)")
MOST_SHOWN = 256  # characters of a path in an error
TOKENIZER_FORMAT = 1  # of what `write_tokenizer` writes; a change makes new cache entries


@dataclass(frozen=True, slots=True)
class Located:
    """A model whose files are on this machine."""

    name: str  # as it was asked for
    format: Literal["safetensors", "gguf", "dummy"]
    path: Path | None  # a folder, or a GGUF file; None for random weights of a built-in shape
    config: Json  # config.json, or a GGUF file's metadata in its terms
    generation: Json  # generation_config.json in the same way; may be empty
    tokenizer: Path | None  # folder with tokenizer.json and tokenizer_config.json, or what --tokenizer names


@contextmanager
def reading_files() -> Generator[None]:
    """A file that the system does not let us read is a ModelError that names it."""
    try:
        yield
    except OSError as error:
        name = str(error.filename)[:MOST_SHOWN]
        raise ModelError(f"cannot read {name} ({error.strerror}); check its name and who may read it") from error


@reading_files()
def locate(config: Config) -> Located:
    """Finds the model of `config`, fetching it if it is not here. Raises ModelError naming cause and remedy."""
    if config.load_format == "dummy":
        return _dummy(config)
    path = _path(config, weights=True)
    return _gguf(path, config) if path.is_file() else _folder(path, config)


def _path(config: Config, *, weights: bool) -> Path:
    """The folder or the GGUF file that `--model` means."""
    path = Path(config.model).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        lone = files and not any(path.glob("*.safetensors")) and not (path / "config.json").is_file()
        return _only(files, path) if lone or (files and config.load_format == "gguf") else path
    if path.is_file():
        return path
    if config.model == SMOLLM2:
        return smollm2_folder(config)
    if HUB_ID.fullmatch(config.model):
        return hub_folder(config.model, config.revision, weights=weights)
    raise ModelError(
        f"there is no model {config.model}: no such folder or GGUF file, not a hub id (owner/name), not {SMOLLM2}"
    )


def hub_folder(model: str, revision: str | None, *, weights: bool) -> Path:
    """The local folder of a hub model, in the hub's own cache; without weights, only its configs and tokenizer.

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


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise ModelError(f"{folder} holds {len(files)} GGUF files; name one of them, such as {files[0]}")
    return files[0]


def _folder(folder: Path, config: Config) -> Located:
    if config.load_format == "gguf":
        raise ModelError(f"--load-format is gguf, and {folder} holds no GGUF file")
    generation = folder / "generation_config.json"
    return Located(
        name=config.model,
        format="safetensors",
        path=folder,
        config=_read_json(folder / "config.json"),
        generation=_read_json(generation) if generation.is_file() else {},
        tokenizer=_tokenizer(config, folder if (folder / "tokenizer.json").is_file() else None),
    )


def _gguf(path: Path, config: Config) -> Located:
    if config.load_format == "safetensors" or not _begins_as_gguf(path):
        raise ModelError(f"{path} is not a GGUF file; a model is a folder, a GGUF file, a hub id or {SMOLLM2}")
    file = open_gguf(path)
    tokenizer = _tokenizer(config, None) or _gguf_tokenizer(file, config)
    return Located(config.model, "gguf", path, config_json(file), generation_json(file), tokenizer)


def _begins_as_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def _gguf_tokenizer(file: GgufFile, config: Config) -> Path:
    """The file's tokenizer, converted once per file and version of it."""
    state = file.path.stat()
    identity = f"{file.path.resolve()}:{state.st_size}:{state.st_mtime_ns}:{TOKENIZER_FORMAT}"
    entry = cache_folder(config) / "tokenizers" / hashlib.sha256(identity.encode()).hexdigest()[:16]
    return cached(entry, lambda folder: write_tokenizer(file.metadata, folder))


def _dummy(config: Config) -> Located:
    """Random weights: of a built-in shape, or of a config.json here or on the hub."""
    built_in = config.model in SHAPES and not Path(config.model).is_dir()
    path = None if built_in else _path(config, weights=False)
    if path is not None and path.is_file():
        raise ModelError(f"random weights need a config.json; give a folder or one of {', '.join(SHAPES)}")
    own = path if path is not None and (path / "tokenizer.json").is_file() else None
    model = SHAPES[config.model] if path is None else _read_json(path / "config.json")
    tokenizer = _tokenizer(config, own) or cached(cache_folder(config) / "tokenizers" / "bytes", write_byte_tokenizer)
    return Located(config.model, "dummy", path, model, {}, tokenizer)


def _tokenizer(config: Config, own: Path | None) -> Path | None:
    if config.tokenizer is None:
        return own
    given = Path(config.tokenizer).expanduser()
    if not given.is_file() and not (given / "tokenizer.json").is_file():
        raise ModelError(f"--tokenizer is {given}; it must be a tokenizer.json or a folder that holds one")
    return given


def _read_json(path: Path) -> Json:
    if not path.is_file():
        raise ModelError(f"{path.parent} lacks {path.name}; give a folder with config.json and weights")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged ({error}); fetch the model again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the model again")
    return content
