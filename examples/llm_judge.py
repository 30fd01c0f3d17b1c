"""A judge of several dimensions: one essay, one branch per dimension, read once; then a grade from all of them."""

import radixlm as sgl

DIMENSIONS = ["clarity", "evidence", "style"]
ESSAY = (
    "Bees matter. They carry pollen from flower to flower, and without them a third of our food would not grow. " * 3
)


@sgl.function
def judge(s, essay):
    s += "Essay: " + essay + "\n"
    branches = s.fork(len(DIMENSIONS))
    for branch, dimension in zip(branches, DIMENSIONS):
        branch += f"The {dimension} of the essay is"
        branch += sgl.gen("remark", max_tokens=16, stop=["\n", "."])
    branches.join()
    for branch, dimension in zip(branches, DIMENSIONS):
        s += f"{dimension}:" + branch["remark"] + "\n"
    s += "Grade of the essay, from A to D: " + sgl.select("grade", ["A", "B", "C", "D"])


def main():
    state = judge.run(ESSAY, temperature=0)
    for dimension, remark in zip(DIMENSIONS, state["remark"]):
        print(dimension, "|", remark)
    print("grade:", state["grade"])
    return state


if __name__ == "__main__":
    main()
