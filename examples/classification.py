"""Few-shot classification: every label is scored, the likeliest wins; all examples share one computed prefix."""

import radixlm as sgl

LABELS = [" positive", " negative"]
EXAMPLES = {
    "I loved every minute of it.": " positive",
    "A waste of time.": " negative",
    "What a wonderful cast!": " positive",
}


@sgl.function
def classify(s, review):
    for example, label in EXAMPLES.items():
        s += f"Review: {example}\nSentiment:{label}\n"
    s += f"Review: {review}\nSentiment:" + sgl.select("label", LABELS)


def main():
    reviews = ["Great fun, I laughed a lot.", "Dull and far too long.", "I loved the music."]
    states = classify.run_batch([{"review": review} for review in reviews])
    for review, state in zip(reviews, states):
        print(state["label"], "|", review)
    return [state["label"] for state in states]


if __name__ == "__main__":
    main()
