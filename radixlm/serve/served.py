"""The one model of this server and the names it goes by."""

from __future__ import annotations

from radixlm.config import Config
from radixlm.engine.validate import show
from radixlm.errors import UnknownModel


def served_name(config: Config) -> str:
    """The name under which the model is served."""
    return config.served_model_name or config.model


def check_model(name: str, config: Config) -> None:
    """Raises UnknownModel unless the model is served here under this name."""
    if name not in (served_name(config), config.model):
        raise UnknownModel(
            f"the model {show(name)} is not served here; this server has {served_name(config)!r}", param="model"
        )
