"""`Engine` and `Runtime` under the names that SGLang's users know: a model in this process, and one behind a server of its own."""

from __future__ import annotations

import asyncio
import atexit
import json
import subprocess
import threading
import time
from collections import deque
from typing import Any, Self

from radixlm.engine.results import Choice
from radixlm.errors import StartError
from radixlm.killable import command_of
from radixlm.lang.backends.local import LocalBackend
from radixlm.lang.backends.sglang import RuntimeEndpoint
from radixlm.lang.options import SAMPLING
from radixlm.text.tokenizer import Tokenizer
from radixlm.types import Json


class Engine(LocalBackend):
    """A model in this process: generates, and is a backend of programs. Options are those of LLM."""

    def __init__(self, model_path: str | None = None, **options: Any) -> None:
        super().__init__(model_path, **options)
        self.llm = self.host

    def generate(
        self,
        prompt: str | list[str] | None = None,
        sampling_params: Json | None = None,
        input_ids: list[int] | list[list[int]] | None = None,
    ) -> Json | list[Json]:
        """{text, output_ids, meta_info}, or a list of them for a list of prompts."""
        asked = prompt if prompt is not None else input_ids
        alone = isinstance(asked, str) or bool(asked and isinstance(asked[0], int))
        prompts: Any = [asked] if alone else asked
        outputs = self.llm.generate(prompts, _params(sampling_params))
        answers = [_answer(output.choices[0]) for output in outputs]
        return answers[0] if alone else answers

    async def async_generate(self, prompt: str, sampling_params: Json | None = None) -> Json:
        """`generate` of one prompt for event loops."""
        return _answer((await self.llm.agenerate(prompt, _params(sampling_params))).choices[0])

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.llm.tokenizer

    def shutdown(self) -> None:
        """Ends the engine."""
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()


class Runtime(RuntimeEndpoint):
    """A server in processes of its own, started here and ended by `shutdown`. `options` are those of `radixlm serve`."""

    def __init__(
        self, model_path: str | None = None, log_level: str = "error", launch_timeout: float = 300.0, **options: Any
    ) -> None:
        words = [word for name, value in options.items() for word in _words(name.replace("_", "-"), value)]
        named = [model_path] if model_path else []
        command = [*command_of("radixlm"), "serve", *named, "--port=0", f"--log-level={log_level}", *words]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        atexit.register(self.shutdown)
        self._errors: deque[str] = deque(maxlen=20)
        self._collector = threading.Thread(target=self._errors.extend, args=[self._process.stderr], daemon=True)
        self._collector.start()
        watch = threading.Timer(launch_timeout, self._process.kill)
        watch.start()
        try:
            self.url = self._listening()
            super().__init__(self.url)
            # it listens before it can answer
            while self.submit(self.address.ask("GET", "/ready")).result().status != 200:
                time.sleep(0.02)
        finally:
            watch.cancel()

    def generate(self, prompt: str | list[str], sampling_params: Json | None = None, **fields: Any) -> str:
        """The server's answer, as JSON text."""
        body = {"text": prompt, "sampling_params": sampling_params or {}, **fields}
        return json.dumps(self.submit(self.address.post("/generate", body)).result())

    async def async_generate(self, prompt: str, sampling_params: Json | None = None) -> str:
        """`generate` for event loops."""
        return await asyncio.to_thread(self.generate, prompt, sampling_params)

    def cache_prefix(self, prefix: str) -> None:
        """Computes a text, so that the cache has it."""
        self.generate(prefix, {"max_new_tokens": 0})

    def get_server_info(self) -> Json:
        """What the server says of itself."""
        return self.submit(self.server_info()).result()

    def shutdown(self) -> None:
        """Ends the server; open requests may finish."""
        atexit.unregister(self.shutdown)
        self._process.terminate()
        self._process.wait()

    close = shutdown

    def _listening(self) -> str:
        assert self._process.stdout is not None, "its panel comes through a pipe"
        url = next((line.split()[1] for line in self._process.stdout if line.startswith("listening: ")), "")
        if not url:
            self.shutdown()
            self._collector.join()
            raise StartError(f"the server did not start: {''.join(self._errors)[-500:]}")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()  # a full pipe would stop it
        return url


def _words(flag: str, value: Any) -> list[str]:
    """An option as it is typed: nothing for None, and for a `disable-...` that is False."""
    if value is None or (value is False and flag.startswith("disable")):
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    return [f"--{flag}={value}"]


def _params(sampling_params: Json | None) -> Json:
    """SGLang's names as ours."""
    given = {"max_new_tokens": 128, **(sampling_params or {})}
    return {SAMPLING.get(name, name): [v] if name == "stop" and isinstance(v, str) else v for name, v in given.items()}


def _answer(choice: Choice) -> Json:
    usage = choice.usage
    meta = {
        "finish_reason": {"type": choice.finish_reason, "matched": choice.matched},
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": usage.cached_tokens,
    }
    return {"text": choice.text, "output_ids": list(choice.token_ids), "meta_info": meta}
