"""Tree of thought: several ideas side by side, each judged by the model's own likelihoods, the best one carried on."""

import radixlm as sgl


@sgl.function
def tree_of_thought(s, problem, width=3):
    s += "Problem: " + problem + "\n"
    ideas = s.fork(width)
    ideas += lambda i: f"Idea {i + 1}:" + sgl.gen("idea", max_tokens=16, stop="\n", temperature=0.8, seed=i)
    ideas += "\nIs this idea good? Answer: " + sgl.select("verdict", ["yes", "no"])
    ideas.join()
    best = max(range(width), key=lambda i: margin(ideas[i]))
    s += "Idea:" + ideas[best]["idea"] + "\nThe first step is to" + sgl.gen("solution", max_tokens=24, stop=["\n", "."])


def margin(branch) -> float:
    """How much likelier the model finds yes than no."""
    yes, no = branch.get_meta_info("verdict")["normalized_prompt_logprobs"]
    return yes - no


def main():
    state = tree_of_thought.run("How can a village save water?", temperature=0)
    print(state["idea"])
    print(state["solution"])
    return state


if __name__ == "__main__":
    main()
