"""DSPy: its LM, and the same with a schema. (Its adapters put the form into the prompt, which is up to the model.)"""

from __future__ import annotations

import json

import dspy
from seen import MODEL, PERSON, QUESTION, URL, check, done, is_person

lm = dspy.LM(
    f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", temperature=0.0, max_tokens=120, cache=False, num_retries=0
)
dspy.configure(lm=lm)

with check("the plain LM") as seen:
    (answer,) = lm(QUESTION)
    assert answer
    seen.append(answer)

with check("a schema through the plain LM") as seen:
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    (answer,) = lm(QUESTION, response_format=form)
    assert is_person(json.loads(answer))
    seen.append(answer)

done()
