"""What tests of the language share."""

from __future__ import annotations

import pytest

from tests.lang.harness import fake_backend


@pytest.fixture(scope="module")
def backend():
    with fake_backend() as backend:
        yield backend
