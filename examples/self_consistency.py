"""Self-consistency: many samples of one chain of thought, and the answer that most of them give."""

from collections import Counter

import radixlm as sgl


@sgl.function
def solve(s, question):
    s += "Q: Tom has 2 apples and buys 3 more. How many has he?\nA: 2 + 3 = 5. The answer is 5.\n"
    s += "Q: " + question + "\nA:" + sgl.gen("steps", max_tokens=24, stop=["The answer", "\n"])
    s += "The answer is " + sgl.gen("answer", max_tokens=3, stop=[".", "\n"])


def main():
    rows = [{"question": "Ann has 4 pears and eats 1. How many has she?"}] * 5
    states = solve.run_batch([{**row} for row in rows], temperature=0.7)
    votes = Counter(state["answer"].strip() for state in states)
    print(votes.most_common())
    return votes


if __name__ == "__main__":
    main()
