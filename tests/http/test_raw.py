"""Broken requests, byte for byte, each with the status it gets; whatever came, the next connection is served."""

from __future__ import annotations

import asyncio
import re

from radixlm.serve import run
from tests.fake_engine import FakeEngine
from tests.http.harness import Server

H = b"Host: localhost\r\n"
JSON = b"Content-Type: application/json\r\n"
BODY = b'{"prompt":"a"}'
LENGTH = b"Content-Length: 14\r\n"
END = b"\r\n"
GET = b"GET /live HTTP/1.1\r\n"
POST = b"POST /generate HTTP/1.1\r\n" + H + JSON

CUT = 0  # the connection is closed without a word

# (what is sent, the statuses of all answers); more than one answer where requests were pipelined
CASES: list[tuple[str, bytes, tuple[int, ...]]] = [
    # -- fine ones, so that the rest is refused for its own fault
    ("plain", GET + H + END, (200,)),
    ("head", b"HEAD /live HTTP/1.1\r\n" + H + END, (200,)),
    ("http 1.0 without a host", b"GET /live HTTP/1.0\r\n\r\n", (200,)),
    ("empty lines before", b"\r\n\r\n" + GET + H + END, (200,)),
    ("absolute path", b"GET http://localhost/live HTTP/1.1\r\n" + H + END, (200,)),
    ("query", b"GET /live?x=1&y=%00 HTTP/1.1\r\n" + H + END, (200,)),
    ("pipelined", (GET + H + END) * 3, (200, 200, 200)),
    ("body", POST + LENGTH + END + BODY, (200,)),
    ("chunked body", POST + b"Transfer-Encoding: chunked\r\n\r\ne\r\n" + BODY + b"\r\n0\r\n\r\n", (200,)),
    (
        "chunk by chunk",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % c for c in BODY) + b"0\r\n\r\n",
        (200,),
    ),
    ("chunk extension", POST + b"Transfer-Encoding: chunked\r\n\r\ne;a=b\r\n" + BODY + b"\r\n0\r\n\r\n", (200,)),
    ("trailer", POST + b"Transfer-Encoding: chunked\r\n\r\ne\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n", (200,)),
    ("expects to be told to go on", POST + LENGTH + b"Expect: 100-continue\r\n\r\n" + BODY, (100, 200)),
    ("other types of json", POST.replace(b"application/json", b"application/x+json") + LENGTH + END + BODY, (200,)),
    # -- request line
    *[
        (f"request line {line!r}", line + b"\r\n" + H + END, (400,))
        for line in (
            b"GET",
            b"GET /live",
            b"GET /live HTTP/1.1 x",
            b"GET /live HTTP/9.9",
            b"GET /live HTTP/1.10",
            b"GET /live HTTP/1.x",
            b"GET /live HTTP",
            b"GET /live XTTP/1.1",
            b"GET /live http/1.1",
            b"G\x00T /live HTTP/1.1",
            b"GET\t/live\tHTTP/1.1",
            b"FOO /live HTTP/1.1",
            b"get /live HTTP/1.1",
            b"GET /li ve HTTP/1.1",
            b"GET \x00 HTTP/1.1",
            b"GET live HTTP/1.1",
            b"{}",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"SSH-2.0-OpenSSH_9.2",
            b"\xff\xfe\xfd",
        )
    ],
    ("preface of http 2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400,)),
    ("method of another protocol", b"DESCRIBE rtsp://localhost/ RTSP/1.0\r\n\r\n", (405,)),
    ("two spaces", b"GET  /live HTTP/1.1\r\n" + H + END, (200,)),
    # -- paths
    *[
        (f"path {path!r}", b"GET " + path + b" HTTP/1.1\r\n" + H + END, (404,))
        for path in (
            b"/nowhere",
            b"/live/",
            b"//live",
            b"/LIVE",
            b"/./live",
            b"/../live",
            b"/a/../live",
            b"/live%00",
            b"/live%2e",
            b"/%2flive",
            b"/live;x",
            b"/..%2f..%2fetc%2fpasswd",
            b"/page/../../../etc/passwd",
            b"/page/..%2f..%2fapp.py",
            b"/page/%2e%2e/app.py",
            b"/" + b"a" * 10_000,
            b"/%ff%fe",
            b"/metricsfoo",
            b"/v1",
        )
    ],
    # -- methods
    *[
        (f"method {method!r}", method + b" /generate HTTP/1.1\r\n" + H + END, (405,))
        for method in (b"GET", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"HEAD", b"PROPFIND")
    ],
    ("connect", b"CONNECT localhost:80 HTTP/1.1\r\n" + H + END, (400,)),
    # -- host
    *[
        (f"host {host!r}", GET + b"Host: " + host + b"\r\n\r\n", (status,))
        for host, status in (
            (b"", 400),
            (b"a b", 400),
            (b"localhost:", 400),
            (b"localhost:999999", 400),
            (b"localhost/live", 400),
            (b"localhost?x", 400),
            (b"user:pass@localhost", 400),
            (b"[::1", 400),
            (b"[zz]", 400),
            (b"\xe4", 400),
            (b"evil.example", 403),
            (b"localhost.evil.example", 403),
            (b"localhost, evil.example", 400),
            (b"a" * 300, 400),
        )
    ],
    ("no host", GET + END, (400,)),
    ("two hosts", GET + H + H + END, (400,)),
    # -- headers
    *[
        (f"header {header!r}", GET + H + header + b"\r\n\r\n", (400,))
        for header in (
            b"no colon",
            b": no name",
            b"na me: x",
            b"name : x",
            b"na\x00me: x",
            b"name: x\x00y",
            b"name: x\ry",
            b"na\xffme: x",
            b"(name): x",
            b'"name": x',
            b" folded: x",
            b"name: x\x01y",
            b"name: x\x7fy",
        )
    ],
    ("large header", GET + H + b"X: " + b"a" * 40_000 + b"\r\n\r\n", (431,)),
    ("many headers", GET + H + b"X: a\r\n" * 9_000 + b"\r\n", (431,)),
    ("header of a megabyte", GET + H + b"X: " + b"a" * 1_000_000, (CUT,)),
    ("bare line feeds", b"GET /live HTTP/1.1\nHost: localhost\n\n", (400,)),
    ("bare carriage return", b"GET /live HTTP/1.1\rHost: localhost\r\r", (400,)),
    # -- how long the body is
    *[
        (f"length {length!r}", POST + b"Content-Length: " + length + b"\r\n\r\n" + BODY, (400,))
        for length in (
            b"-1",
            b"+14",
            b"1 4",
            b"0x0e",
            b"14, 14",
            b"14,15",
            b"one",
            b"",
            b"99999999999999999999",
            b"1e1",
            b"\xb2",
        )
    ],
    ("two lengths", POST + LENGTH + b"Content-Length: 15\r\n\r\n" + BODY, (400,)),
    ("the same length twice", POST + LENGTH + LENGTH + END + BODY, (400,)),
    ("length and chunks", POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + BODY, (400,)),
    ("chunks and length", POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + END + BODY, (400,)),
    *[
        (
            f"coding {coding!r}",
            POST + b"Transfer-Encoding: " + coding + b"\r\n\r\ne\r\n" + BODY + b"\r\n0\r\n\r\n",
            (400,),
        )
        for coding in (b"xchunked", b"chunked, identity", b"chunked;q=1", b"identity", b"\x0bchunked", b"chunked\x00")
    ],
    *[
        (f"chunk {chunk!r}", POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk, (400,))
        for chunk in (
            b"-1\r\n\r\n",
            b"0x1\r\na\r\n",
            b"g\r\n\r\n",
            b"\r\n\r\n",
            b" 1\r\na\r\n",
            b"1\r\nab\r\n",
            b"ffffffffffffffffff\r\na",
            b"e\n" + BODY + b"\n0\n\n",
            b"1\ra",
        )
    ],
    ("no body where one is needed", POST + b"Content-Length: 0\r\n\r\n", (400,)),
    ("no length at all", POST + END, (400,)),
    ("body over the limit", POST + b"Content-Length: 5000\r\n\r\n" + b"a" * 5000, (413,)),
    (
        "chunks over the limit",
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"400\r\n" + b"a" * 1024 + b"\r\n") * 5,
        (413,),
    ),
    ("body of another type", POST.replace(b"application/json", b"text/plain") + LENGTH + END + BODY, (400,)),
    ("form", POST.replace(b"application/json", b"multipart/form-data; boundary=x") + LENGTH + END + BODY, (400,)),
    ("compressed body", POST + b"Content-Encoding: gzip\r\n" + LENGTH + END + BODY, (400,)),
    ("body that is no text", POST + LENGTH + END + b"\xff" * 14, (400,)),
    # -- one after another
    ("rubbish behind a request", GET + H + END + b"\x00\x01\x02\x03" * 4, (400,)),
    ("upgrade to a websocket", GET + H + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", (200,)),
    ("upgrade to http 2", GET + H + b"Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\n\r\n", (200,)),
]


async def exchange(port: int, sent: bytes) -> tuple[int, ...]:
    """The statuses of what comes back until the server closes or has nothing more to say."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = b""
    try:
        writer.write(sent)
        while True:
            data = await asyncio.wait_for(reader.read(1 << 16), 0.3 if received else 3)
            if not data:
                break
            received += data
    except (TimeoutError, ConnectionError):
        pass
    writer.close()
    return tuple(int(code) for code in re.findall(rb"(?:^|\n|\})HTTP/1\.1 (\d{3}) ", received)) or (CUT,)


def test_every_broken_request_gets_its_status_and_leaves_nothing_behind():
    async def main() -> list[str]:
        server = Server(FakeEngine(), port=0, max_body=4096)
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        task = asyncio.ensure_future(run.serve(server.frontend, server.config, ready.set_result, stop))
        port = int((await ready).rsplit(":", 1)[1])
        wrong: list[str] = []
        try:
            for first in range(0, len(CASES), 48):
                some = CASES[first : first + 48]
                found = await asyncio.gather(*(exchange(port, sent) for _, sent, _ in some))
                wrong += [f"{name}: {got}, not {want}" for (name, _, want), got in zip(some, found) if got != want]
                assert await exchange(port, GET + H + END) == (200,)
        finally:
            stop.set()
            await asyncio.wait_for(task, 20)
            await server.client.aclose()
        assert server.engine.num_open == 0
        return wrong

    assert len(CASES) >= 120
    with asyncio.Runner(loop_factory=run.loop_factory) as runner:
        wrong = runner.run(asyncio.wait_for(main(), 60))
    assert not wrong, "\n".join(wrong)


def test_the_cases_have_names_of_their_own():
    assert len({name for name, _, _ in CASES}) == len(CASES)
