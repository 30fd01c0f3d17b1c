"""guidance's OpenAI model: it streams with log probabilities and explicit nulls."""

from __future__ import annotations

from guidance import assistant, gen, system, user
from guidance.models import OpenAI
from seen import MODEL, QUESTION, URL, check, done

model = OpenAI(MODEL, base_url=f"{URL}/v1", api_key="none", echo=False)

with check("a program of roles and one gen") as seen:
    lm = model
    with system():
        lm += "You are brief."
    with user():
        lm += QUESTION
    with assistant():
        lm += gen("answer", max_tokens=24, temperature=0)
    assert lm["answer"]
    seen.append(lm["answer"])

with check("a second turn goes on from the first") as seen:
    with user():
        lm += "And of Italy?"
    with assistant():
        lm += gen("second", max_tokens=16, temperature=0)
    assert lm["second"]
    seen.append(lm["second"])

done()
