"""`radixlm key NAME`: makes an API key, and the lines for the file that `--api-keys` names. Only its hash stands there."""

from __future__ import annotations

import json
from collections.abc import Sequence

from radixlm.engine.caller import ALL_SCOPES
from radixlm.options import Parser
from radixlm.serve.keys import hash_of, new_key


def main(argv: Sequence[str]) -> int:
    """Prints the key on the first line, as a comment, and then its table."""
    parser = Parser("radixlm key", "Make an API key and its entry for the file behind --api-keys.")
    parser.add_argument("name", metavar="NAME", help="whose key it is")
    parser.add_argument(
        "--scope", action="append", choices=sorted(ALL_SCOPES), help="may be repeated (default: inference)"
    )
    parser.add_argument("--max-requests", type=int, help="most requests under way at a time")
    parser.add_argument("--max-tokens", type=int, help="most tokens that one answer may have")
    parsed = parser.read(argv)
    key = new_key()
    print(f"# give this to {parsed.name}, it is stored nowhere: {key}")
    print(f"[{json.dumps(parsed.name)}]")
    print(f'sha256 = "{hash_of(key)}"')
    print(f"scopes = {json.dumps(parsed.scope or ['inference'])}")
    for name, limit in (("max_requests", parsed.max_requests), ("max_tokens", parsed.max_tokens)):
        if limit is not None:
            print(f"{name} = {limit}")
    return 0
