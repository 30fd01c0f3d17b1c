"""Stand-ins for the engine and frontend processes: they follow the protocol of `radixlm.engine.child` and compute nothing.

`--model` scripts them: words separated by commas. Each appends its pid to the file that `--cache-dir` names.
"""

import os
import threading
import time

from radixlm.engine.child import Failed, Parent, Ready
from radixlm.messages import EngineInfo

INFO = EngineInfo(
    model="fake", architecture="fake", dtype="float32", device="cpu", vocab_size=1, context_length=1, num_pages=1,
    page_size=1, max_running=1, max_queued=1, tokens_per_step=1, eos_token_ids=(),
)  # fmt: skip


def main(name: str) -> int:
    parent = Parent()
    config = parent.order.config
    words = config.model.split(",")
    with open(str(config.cache_dir), "a") as file:
        print(name, os.getpid(), file=file, flush=True)
    if f"{name}-fails" in words:
        parent.report(Failed("bad_model", "there is no such model; name another with --model"))
        return 1
    if f"{name}-vanishes" in words:
        return 7
    if f"{name}-hangs" in words:
        time.sleep(60)
    ended = threading.Event()
    if f"{name}-deaf" not in words:
        parent.on_end(ended.set)
    else:
        parent.on_end(lambda: time.sleep(60))
    parent.report(Ready(INFO) if name == "engine" else Ready(url=parent.order.address))
    if name != "engine" and f"{name}-alone" not in words:
        parent.report(Ready())
    if f"{name}-dies" in words:
        time.sleep(0.05)
        return 9
    ended.wait(60)
    return 0
