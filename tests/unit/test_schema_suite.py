"""The JSON-Schema-Test-Suite: nothing that a schema forbids can be generated, what it allows can be, or it is refused."""

from __future__ import annotations

import pytest

from tests.unit import schema_suite


@pytest.mark.skipif(not schema_suite.SUITE.exists(), reason="the JSON-Schema-Test-Suite is not beside this checkout")
def test_the_test_suite_comes_out_as_the_documentation_says():
    text, wrong = schema_suite.table()
    assert not wrong
    assert text in schema_suite.PAGE.read_text(), "run python -m tests.unit.schema_suite"
