"""A slice of the fuzzer; `make test-api` runs all of it."""

from __future__ import annotations

from tests.http.api_fuzz import fuzz, num_cases


def test_no_body_that_the_document_allows_or_forbids_breaks_a_promise_of_the_document():
    result = fuzz("--max-examples", "2", "--phases", "fuzzing", "--seed", "1", "--generation-deterministic")
    assert result.returncode == 0, result.stdout[-6000:]
    assert num_cases(result.stdout) > 100
