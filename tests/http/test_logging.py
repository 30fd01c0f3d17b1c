"""What the log tells of requests: who, what and how long; never what was said, unless the operator asks."""

from __future__ import annotations

import logging

from tests.http.harness import Server, with_server

SECRET = "xyzzy plugh"


async def chat(server: Server) -> None:
    body = {"messages": [{"role": "user", "content": SECRET}]}
    await server.post("/v1/chat/completions", body, headers={"x-request-id": "req-9"})
    await server.post("/generate", {"text": SECRET, "sampling_params": {"temperature": SECRET}})
    await server.client.get("/live")


def test_requests_are_logged_with_their_outcome_and_without_their_prompts(caplog):
    caplog.set_level(logging.INFO)
    with_server(chat)
    lines = [record.fields for record in caplog.records if record.name == "radixlm.access"]
    assert [(line["path"], line["status"]) for line in lines] == [("/v1/chat/completions", 200), ("/generate", 400)]
    assert SECRET not in caplog.text


def test_prompts_are_logged_where_the_operator_asks(caplog):
    caplog.set_level(logging.INFO)
    with_server(chat, log_prompts=True)
    assert SECRET in caplog.text
