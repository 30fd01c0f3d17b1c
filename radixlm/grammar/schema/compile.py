"""A JSON Schema becomes the program of an automaton, or is refused with the pointer of the keyword that is too much."""

from __future__ import annotations

from dataclasses import dataclass

from radixlm.errors import InvalidRequest
from radixlm.grammar.automaton.program import Program
from radixlm.grammar.schema.document import Document, Refused, read
from radixlm.grammar.schema.emit import Emitter
from radixlm.grammar.schema.evaluate import Schema
from radixlm.grammar.schema.keywords import KEYWORDS


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """The texts that a schema allows; `not_enforced`: pointers of keywords that were left out because it need not be strict."""

    program: Program
    not_enforced: tuple[str, ...]


def compile_schema(text: str) -> CompiledSchema:
    """Raises InvalidRequest for what is no schema or cannot be enforced, and Unsupported for one over the limits.

    `"x-guidance"` in a schema has two options: `whitespace_flexible`, spaces and line ends may stand between tokens, where
    otherwise texts are compact; and `lenient`, keywords that cannot be enforced are left out.
    """
    value = read(text)
    options = value.get("x-guidance") if isinstance(value, dict) else None
    options = options if isinstance(options, dict) else {}
    try:
        schema = Schema(Document(value), KEYWORDS, strict=options.get("lenient") is not True)
        program = Emitter(schema, whitespace=options.get("whitespace_flexible") is True).program()
    except Refused as error:
        raise InvalidRequest(f"the JSON schema cannot be enforced at {error}", param="json_schema") from error
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the JSON schema has half a surrogate pair: {error.reason}", param="json_schema"
        ) from error
    return CompiledSchema(program, tuple(schema.not_enforced))
