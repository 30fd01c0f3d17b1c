"""DSPy: a signature, whole and streamed by the plain LM, and through the JSON adapter, which sends a schema."""

from __future__ import annotations

import dspy
from seen import MODEL, QUESTION, URL, check, done

lm = dspy.LM(
    f"openai/{MODEL}", api_base=f"{URL}/v1", api_key="none", temperature=0.0, max_tokens=120, cache=False, num_retries=0
)
dspy.configure(lm=lm)

with check("the plain LM") as seen:
    (answer,) = lm(QUESTION)
    assert answer
    seen.append(answer)

with check("a signature through the JSON adapter") as seen, dspy.context(adapter=dspy.JSONAdapter()):
    found = dspy.Predict("question -> answer: bool")(question="Is Paris in France?")
    assert isinstance(found.answer, bool)
    seen.append(found.answer)

done()
