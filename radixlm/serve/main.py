"""The frontend process: HTTP and text in front of an engine in another process. Started by the supervisor."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from pathlib import Path

from radixlm.engine.child import Parent, Ready
from radixlm.engine.client import RemoteEngine
from radixlm.engine.frontend import Frontend
from radixlm.engine.reading import load_reading
from radixlm.serve.run import loop_factory, serve
from radixlm.serve.siblings import Siblings

_PARTING_S = 4.0  # after the drain: connections close, the engine is told


def main() -> int:
    """Serves until the supervisor ends the lifeline, then drains."""
    parent = Parent()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(_serve(parent))
    except Exception as error:  # noqa: BLE001 - border: a process main
        parent.report_failure(error)
        return 1
    return 0


async def _serve(parent: Parent) -> None:
    order, config = parent.order, parent.order.config
    reading = load_reading(config, isolated=True)
    engine = RemoteEngine(order.address)
    engine.start()
    frontend = Frontend(
        engine,
        reading.tokenizer,
        reading.template,
        timeout_s=config.request_timeout,
        log_prompts=config.log_prompts,
    )
    # Streams make a million small objects a minute and no cycles; looking for some cost a third of an event's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    listener = None if order.listener is None else socket.socket(fileno=order.listener)
    siblings = Siblings(Path(order.address.removeprefix("ipc://")).parent if config.frontends > 1 else None)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    parent.on_end(lambda: loop.call_soon_threadsafe(stop.set), config.drain_timeout + _PARTING_S)

    def listening(url: str) -> None:
        parent.report(Ready(url=url))
        engine.when_up(lambda: parent.report(Ready()))

    try:
        await serve(frontend, config, listening, stop, listener, siblings)
    finally:
        await frontend.close()


if __name__ == "__main__":
    sys.exit(main())
