"""Log lines: clients cannot break them."""

from __future__ import annotations

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
