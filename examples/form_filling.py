"""Filling in a form by API: literals are the form, each field is generated with its own shape, the result is JSON."""

import json

import radixlm as sgl


@sgl.function
def fill_form(s, request):
    s += "Turn each request into a booking form.\nRequest: Lunch for two, anywhere.\n"
    s += '{"guests": 2, "meal": "lunch", "window": false}\nRequest: ' + request + "\n"
    with s.var_scope("form"):
        s += '{"guests": ' + sgl.gen("guests", regex="[1-9]", max_tokens=4)
        s += ', "meal": "' + sgl.gen("meal", choice=["breakfast", "lunch", "dinner"], max_tokens=8)
        s += '", "window": ' + sgl.gen("window", choice=["true", "false"], max_tokens=4) + "}"


def main():
    state = fill_form.run("Dinner for 4 people, at the window please.", temperature=0)
    form = json.loads(state["form"])
    print(form)
    return form


if __name__ == "__main__":
    main()
