"""Tools for models whose chat template knows none: the chat is rewritten in words that every model can read.

Tools go into the system message as Hermes and Qwen models were taught, calls and their results into ordinary messages, so
that the parser `hermes` reads the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import cast

from radixlm.types import Json

_SHOWS_TOOLS = re.compile(r"\btools\b")
_SHOWS_CALLS = re.compile(r"\btool_calls\b|\btool\b")
_LESSON = """# Tools

You may call one or more functions to help with what the user asks. These are their signatures, one JSON object a line:
<tools>
{tools}
</tools>

For each call write a JSON object with its name and arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": <function name>, "arguments": <arguments object>}}
</tool_call>"""


def taught(chat: list[Json], tools: Sequence[Json], template: str) -> list[Json]:
    """The chat with what the template itself does not show to the model."""
    if not _SHOWS_CALLS.search(template):
        chat = [_plain(message) for message in chat]
    if not tools or _SHOWS_TOOLS.search(template):
        return chat
    lesson = _LESSON.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
    if chat[0].get("role") == "system":
        return [{**chat[0], "content": f"{chat[0].get('content', '')}\n\n{lesson}"}, *chat[1:]]
    return [{"role": "system", "content": lesson}, *chat]


def _plain(message: Json) -> Json:
    """A call or its result as an ordinary message."""
    content = message.get("content", "")
    if message.get("role") == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    written = [_written(call) for call in cast(list[Json], calls)]
    return {"role": message.get("role"), "content": "\n".join([content, *written] if content else written)}


def _written(call: Json) -> str:
    function = cast(Json, call.get("function") or {})
    body = {"name": function.get("name"), "arguments": function.get("arguments", {})}
    return f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"
