"""Log lines: clients cannot break them."""

from __future__ import annotations

import json
import logging

from radixlm import log


def test_a_client_cannot_start_a_new_line_in_the_log(capsys):
    before = logging.root.handlers[:], logging.root.level
    try:
        log.setup("info")
        logging.getLogger("radixlm.test").info("path %s", "/a\r\n2026 ERROR forged\x1b[31m")
        logging.getLogger("radixlm.test").debug("too fine")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith("radixlm.test: path /a\\r\\n2026 ERROR forged\\x1b[31m")
    finally:
        logging.root.handlers[:], logging.root.level = before


def test_json_lines_carry_the_request_and_what_was_added(capsys):
    before = logging.root.handlers[:], logging.root.level
    token = log.request_id.set("req-1")
    try:
        log.setup("info", "json")
        logging.getLogger("radixlm.test").info("a\nb %s", 5, extra=log.fields(status=200))
        try:
            raise ValueError("boom\n{}")
        except ValueError:
            logging.getLogger("radixlm.test").exception("failed")
        first, second = map(json.loads, capsys.readouterr().err.splitlines())
        assert (first["message"], first["level"], first["request_id"], first["status"]) == (
            "a\nb 5",
            "info",
            "req-1",
            200,
        )
        assert "ValueError" in second["traceback"]
    finally:
        log.request_id.reset(token)
        logging.root.handlers[:], logging.root.level = before
