"""Splits what a model said into its reasoning and the rest, by the marks that its family writes."""

from __future__ import annotations

MARKS = {"": ("<think>", "</think>"), "kimi": ("\u25c1think\u25b7", "\u25c1/think\u25b7")}
"""By model type; every other type writes the default ones."""


def separate(text: str, model_type: str = "") -> tuple[str, str]:
    """(reasoning, the rest), both without the white space around them. Text that never ends its reasoning is all reasoning."""
    begin, end = MARKS.get(model_type, MARKS[""])
    before, found, after = text.partition(end)
    if found:
        return before.strip().removeprefix(begin).strip(), after.strip()
    if text.lstrip().startswith(begin):
        return text.strip().removeprefix(begin).strip(), ""
    return "", text
