"""Every example and every block of the guide runs, on SmolLM2."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import radixlm as sgl
from radixlm import LLM

pytestmark = pytest.mark.weights

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def backend():
    with LLM("smollm2-135m", kv_tokens=16384) as llm:
        sgl.set_default_backend(sgl.LocalBackend(host=llm))
        yield
        sgl.set_default_backend(None)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_runs(file, capsys):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.main()
    assert result is not None and capsys.readouterr().out
    if file.stem == "think_then_answer":
        assert result.get_meta_info("answer")["forced_tokens"] > 0
    if file.stem == "react_agent":
        assert result.ret_value == "Paris"
    if file.stem == "classification":
        assert result == [" positive", " negative", " positive"]
    if file.stem == "json_extraction":
        assert [person.name for person in result] == ["Peter", "Ann"]
    if file.stem == "form_filling":
        assert result["meal"] == "dinner" and isinstance(result["guests"], int)


def test_every_block_of_the_guide_runs_in_order(tmp_path):
    """In a file, because programs have lines."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "dsl.md").read_text(), re.S)
    assert len(blocks) > 5
    scope: dict[str, object] = {}
    for number, block in enumerate(blocks):
        file = tmp_path / f"block{number}.py"
        file.write_text(block)
        exec(compile(block, str(file), "exec"), scope)
