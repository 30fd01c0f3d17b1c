"""Think, then answer: an instruction, a thought, a literal, an answer. The whole runs inside the engine as one request."""

import radixlm as sgl


@sgl.function
def think_then_answer(s, question):
    s += sgl.system("Think in one short sentence. Then answer.")
    s += sgl.user(question)
    s += sgl.assistant_begin()
    s += "Thought:" + sgl.gen("thinking", max_tokens=24, stop=["\n", "."])
    s += ".\nAnswer:" + sgl.gen("answer", max_tokens=16, stop="\n")
    s += sgl.assistant_end()


def main():
    state = think_then_answer.run("Which is larger, the sun or the moon?", temperature=0)
    print(state["thinking"], "=>", state["answer"])
    print(state.explain())  # one request; the literal between the two is forced, not generated
    return state


if __name__ == "__main__":
    main()
