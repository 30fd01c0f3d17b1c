"""A JSON Schema becomes the program of an automaton, or is refused with the pointer of the keyword that is too much."""

from __future__ import annotations

from dataclasses import dataclass

from radixlm.errors import InvalidRequest
from radixlm.grammar.automaton.program import Program
from radixlm.grammar.schema.document import Document, Refused, read
from radixlm.grammar.schema.emit import Emitter
from radixlm.grammar.schema.keywords import Schema


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """The texts that a schema allows; `not_enforced`: pointers of keywords that were left out because it need not be strict."""

    program: Program
    not_enforced: tuple[str, ...]


def compile_schema(text: str, *, strict: bool = True, whitespace: bool = False) -> CompiledSchema:
    """`whitespace`: spaces and line ends may stand between tokens; otherwise texts are compact.

    Raises InvalidRequest for what is no schema or, with `strict`, cannot be enforced, and Unsupported at a limit.
    """
    try:
        schema = Schema(Document(read(text)), strict=strict)
        program = Emitter(schema, whitespace=whitespace).program()
    except Refused as error:
        raise InvalidRequest(f"the JSON schema cannot be enforced at {error}", param="json_schema") from error
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the JSON schema has half a surrogate pair: {error.reason}", param="json_schema"
        ) from error
    return CompiledSchema(program, tuple(schema.not_enforced))
