"""A support chat of several turns: what was said stays in the cache, so each turn computes only what is new."""

import radixlm as sgl

QUESTIONS = ["My parcel is late. What can I do?", "How long should I wait?"]


@sgl.function
def support_chat(s, questions):
    s += sgl.system("You are the support desk of a shop. Answer in one sentence.")
    for i, question in enumerate(questions):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{i}", max_tokens=24))


def main():
    state = support_chat.run(QUESTIONS, temperature=0, stream=True)
    for piece in state.text_iter():
        print(piece, end="", flush=True)
    for message in state.messages():
        print(message["role"], "|", message["content"])
    return state


if __name__ == "__main__":
    main()
