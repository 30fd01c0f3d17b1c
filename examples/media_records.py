"""The text side of a multimodal pipeline: captions and transcripts, made elsewhere, become structured records.

Hundreds of captions share one instruction; each becomes one request of literal and constrained parts.
"""

import radixlm as sgl

CAPTIONS = [
    {"source": "image", "text": "A red bus waits at a stop in the rain."},
    {"source": "audio", "text": "Welcome back to the show. Today we talk about bees."},
]


@sgl.function
def to_record(s, source, text):
    s += "Describe each caption or transcript with a topic of a few words and a setting.\n"
    s += "Text: Two children build a sand castle.\nTopic: sand castle\nSetting: outdoors\n"
    s += "Text: " + text + "\nTopic:" + sgl.gen("topic", max_tokens=8, stop="\n")
    s += "\nSetting:" + sgl.select("setting", [" outdoors", " indoors", " studio"])


def main():
    states = to_record.run_batch(CAPTIONS, temperature=0)
    records = [
        {**caption, "topic": state["topic"].strip(), "setting": state["setting"].strip()}
        for caption, state in zip(CAPTIONS, states)
    ]
    print(records)
    return records


if __name__ == "__main__":
    main()
