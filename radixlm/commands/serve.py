"""`radixlm serve [MODEL] [options]`: a supervised server, and a panel that says what it serves and where."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence

from radixlm import log
from radixlm.commands.panel import show_panel
from radixlm.config import Config
from radixlm.engine.supervisor import Supervisor
from radixlm.options import Parser, add_options, resolve_options
from radixlm.serve.keys import check_exposure
from radixlm.serve.listen import allow_many_connections, bind, check_tls


def main(argv: Sequence[str]) -> int:
    """Serves until SIGINT or SIGTERM. Raises StartError when the server cannot start or go on."""
    parser = Parser("radixlm serve", "Serve a model over HTTP.")
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="as --model (default: smollm2-135m)"
    )
    add_options(parser)
    config = resolve_options(parser.read(argv), os.environ)
    log.setup(config.log_level, config.log_format)
    check_tls(config)
    check_exposure(config)
    allow_many_connections()
    asyncio.run(_serve(config))
    return 0


async def _serve(config: Config) -> None:
    listener = bind(config.host, config.port)
    try:
        await Supervisor(config, show_panel, listener).run()
    finally:
        listener.close()
