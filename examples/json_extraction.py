"""Records out of prose: the shape is given by a type, the values come back as objects of it."""

from dataclasses import dataclass

import radixlm as sgl


@dataclass
class Person:
    name: str
    age: int


@sgl.function
def extract(s, sentence):
    s += "Write each person as JSON.\nMary is 31 years old.\n" + '{"name":"Mary","age":31}\n'
    s += sentence + "\n" + sgl.gen("person", type=Person, max_tokens=48)


def main():
    states = extract.run_batch(
        [{"sentence": "Peter is 42 years old."}, {"sentence": "Ann is 7 years old."}], temperature=0
    )
    people = [state["person"] for state in states]
    print(people)
    return people


if __name__ == "__main__":
    main()
