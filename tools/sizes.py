"""The size table: how many lines of code each package has, and whether a file, class or function has outgrown its limit.

A line of code is one that is not blank, not a comment and not part of a docstring. Limits are those of CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent / "radixlm"
TOTAL, FILE, CLASS, FUNCTION = 25_987, 300, 200, 40
ALLOWED = {
    "radixlm/attention/triton_kernel.py:_attend_kernel": "a Triton kernel is one function; its loop cannot call out cheaply",
    "radixlm/attention/triton_schedule.py:_schedule_kernel": "a Triton kernel is one function",
}
"""Things over a limit, by `file` or `file:name`, each with the reason why splitting would make it worse."""


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """The numbers of the lines of code."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            skipped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return {n for n, line in lines if line.strip() and not line.lstrip().startswith("#") and n not in skipped}


def oversized(path: Path) -> tuple[int, list[str]]:
    """(lines of code in the file, what is too large in it)."""
    source = path.read_text()
    tree = ast.parse(source)
    code = code_lines(source, tree)
    name = str(path.relative_to(ROOT.parent))
    found = (
        [f"{name}: {len(code)} lines, a file has at most {FILE}"] if len(code) > FILE and name not in ALLOWED else []
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            limit = CLASS if isinstance(node, ast.ClassDef) else FUNCTION
            count = len(code & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            if count > limit and f"{name}:{node.name}" not in ALLOWED:
                found.append(f"{name}:{node.lineno} {node.name}: {count} lines, the limit is {limit}")
    return len(code), found


def main() -> int:
    """Prints the table; 1 if something is over its limit."""
    packages: Counter[str] = Counter()
    problems: list[str] = []
    for path in sorted(ROOT.rglob("*.py")):
        count, found = oversized(path)
        parts = path.relative_to(ROOT).parts
        packages[parts[0] if len(parts) > 1 else "(top)"] += count
        problems += found
    for package, count in sorted(packages.items()):
        print(f"{package:12} {count:6}")
    print(f"{'total':12} {packages.total():6} of {TOTAL}")
    if packages.total() > TOTAL:
        problems.append(f"{packages.total()} lines in all, the limit is {TOTAL}")
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
