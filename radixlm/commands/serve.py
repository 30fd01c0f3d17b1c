"""`radixlm serve [MODEL] [options]`: a supervised server, and a panel that says what it serves and where."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
from collections.abc import Sequence

from radixlm.commands.panel import show_panel
from radixlm.config import Config
from radixlm.engine.supervisor import Supervisor
from radixlm.options import Parser, add_options, resolve_options
from radixlm.serve.keys import check_exposure


def main(argv: Sequence[str]) -> int:
    """Serves until SIGINT or SIGTERM. Raises StartError when the server cannot start or go on."""
    parser = Parser("radixlm serve", "Serve a model over HTTP.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="as --model (default: smollm2-135m)"
    )
    add_options(parser)
    config = resolve_options(parser.read(argv), os.environ)
    logging.basicConfig(
        level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    check_exposure(config)
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    await Supervisor(config, show_panel).run()
