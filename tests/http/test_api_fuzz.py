"""A slice of the fuzzer; `make test-api` runs all of it."""

from __future__ import annotations

import schemathesis

from tests.http.api_fuzz import KEY, fuzz, num_cases, served

PROGRAM = {"branches": [{"id": 0, "nodes": [{"type": "Text", "text": "a"}], "context": {}}]}
STREAMED = {
    "/generate": {"prompt": "a"},
    "/v1/completions": {"prompt": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "model": "fake", "max_tokens": 3},
    "/v1/programs": {"programs": [PROGRAM]},
}


def test_no_body_that_the_document_allows_or_forbids_breaks_a_promise_of_the_document():
    result = fuzz("--max-examples", "2", "--phases", "fuzzing", "--seed", "1", "--generation-deterministic")
    assert result.returncode == 0, result.stdout[-6000:]
    assert num_cases(result.stdout) > 100


def test_every_streamed_answer_holds_events_as_the_document_describes_them():
    with served() as url:
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        paths = document.raw_schema["paths"]
        streams = {path for path, found in paths.items() if "text/event-stream" in str(found.get("post"))}
        assert streams == set(STREAMED)
        for path, body in STREAMED.items():
            case = document[path]["POST"].Case(body={**body, "stream": True}, media_type="application/json")
            answer = case.call(headers={"Authorization": f"Bearer {KEY}"})
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == ["text/event-stream; charset=utf-8"]
            case.validate_response(answer)
