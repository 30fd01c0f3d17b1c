"""A ReAct agent: the model chooses an action, Python carries it out, the result goes back into the text."""

import radixlm as sgl

FACTS = {"france": "Paris is the capital of France.", "japan": "Tokyo is the capital of Japan."}


def look_up(country: str) -> str:
    """What the encyclopedia says of a country."""
    return FACTS.get(country.strip().lower(), "nothing is known")


@sgl.function
def react_agent(s, question, max_steps=3):
    s += "Question: What is the capital of Japan?\nAction: Look up [Japan]\nObservation: " + FACTS["japan"] + "\n"
    s += "Action: Finish [Tokyo]\n\nQuestion: " + question + "\n"
    for i in range(max_steps):
        s += "Action: " + sgl.select(f"action_{i}", ["Look up", "Finish"] if i + 1 < max_steps else ["Finish"])
        s += " [" + sgl.gen(f"argument_{i}", stop=["]", "\n"], max_tokens=8) + "]\n"
        if s[f"action_{i}"] == "Finish":  # depends on a value: the program is interpreted, and `explain` says so
            return s[f"argument_{i}"]
        s += "Observation: " + look_up(s[f"argument_{i}"]) + "\n"
    return None


def main():
    state = react_agent.run("What is the capital of France?", temperature=0)
    print(state.text())
    print("answer:", state.ret_value)
    print(react_agent.explain("What is the capital of France?"))
    return state


if __name__ == "__main__":
    main()
