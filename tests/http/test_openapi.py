"""The OpenAPI document: every route with its types, and no reference that leads nowhere."""

from __future__ import annotations

import json
import re

from tests.http.harness import Server, with_server


def document() -> dict:
    async def test(server: Server):
        return (await server.client.get("/openapi.json")).json(), server.app.state.rows

    return with_server(test)


def test_every_route_is_described_with_its_types_and_errors():
    paths, rows = document()[0]["paths"], document()[1]
    for row in rows:
        for method in row.methods:
            operation = paths[re.sub(r":\w+\}", "}", row.path)][method.lower()]
            assert operation["summary"], row.path
            assert ("requestBody" in operation) == (row.body is not None), row.path
            assert set(operation["responses"]) >= {"200", "400", "401", "403", "500", "503"}, row.path
            assert bool(operation["security"]) == (row.scope != "public"), row.path
            assert row.answer is not None or row.media != "application/json", f"{row.path} does not say what it answers"


def test_every_reference_leads_somewhere():
    found, _ = document()
    references = set(re.findall(r'"\$ref": "([^"]+)"', json.dumps(found)))
    assert references
    for reference in references:
        place = found
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    names = [operation["operationId"] for path in found["paths"].values() for operation in path.values()]
    assert len(names) == len(set(names))
