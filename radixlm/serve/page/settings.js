// How answers are sampled and shaped, and how the page looks. Kept in this browser.

import { hasKey, setKey } from "./api.js";
import { DEFAULTS, saveSettings } from "./store.js";
import { h } from "./dom.js";

const EXAMPLE =
  '{\n  "type": "object",\n  "properties": {\n    "name": { "type": "string" },\n    "length_km": { "type": "integer" }\n  },\n  "required": ["name", "length_km"]\n}';

export class SettingsPanel {
  constructor(panel, settings, { changed, wantKey, forget }) {
    Object.assign(this, { settings, changed, wantKey });
    const format = h(
      "div",
      { class: "segments", role: "radiogroup", "aria-label": "Shape of the answer" },
      this.choice("format", "text", "Free text"),
      this.choice("format", "json_schema", "JSON schema"),
      this.choice("format", "regex", "Regex"),
    );
    this.schema = this.text("schema", "JSON schema", {
      rows: 8,
      placeholder: EXAMPLE,
      class: "mono",
      spellcheck: "false",
    });
    this.regex = this.text("regex", "Regular expression", {
      rows: 2,
      placeholder: "(yes|no), because [a-z ]{10,80}\\.",
      class: "mono",
      spellcheck: "false",
    });
    this.problem = h("p", { class: "error", role: "alert", hidden: true });
    const theme = h(
      "div",
      { class: "segments", role: "radiogroup", "aria-label": "Theme" },
      this.choice("theme", "auto", "System"),
      this.choice("theme", "light", "Light"),
      this.choice("theme", "dark", "Dark"),
    );
    panel.append(
      this.text("system", "System prompt", { rows: 4, placeholder: "How should the model behave?" }),
      this.slider("temperature", "Temperature", 0, 2, 0.05),
      this.slider("top_p", "Top p", 0.05, 1, 0.05),
      h(
        "div",
        { class: "pair" },
        this.number("max_tokens", "Most tokens", 1),
        this.number("seed", "Seed", 0, "random"),
      ),
      this.text("stop", "Stop strings, one a line", { rows: 2, class: "mono", spellcheck: "false" }),
      h("h2", { text: "Shape of the answer" }),
      format,
      this.schema,
      this.regex,
      this.problem,
      h("label", { class: "check" }, this.checkbox("logprobs"), "Ask for token probabilities"),
      h("h2", { text: "Page" }),
      theme,
      h(
        "p",
        { class: "row" },
        h("button", { type: "button", class: "quiet", text: "API key", onclick: () => this.key() }),
        h("button", { type: "button", class: "quiet", text: "Delete all conversations", onclick: forget }),
        h("button", { type: "button", class: "quiet", text: "Defaults", onclick: () => this.reset() }),
      ),
    );
    this.show();
  }

  set(name, value) {
    this.settings[name] = value;
    this.save();
  }

  save() {
    saveSettings(this.settings);
    dispatchEvent(new Event("themechange"));
    this.show();
    this.changed();
  }

  /** Only the field of the chosen shape is there, and a broken schema is said at once. */
  show() {
    const { format, schema } = this.settings;
    this.schema.hidden = format !== "json_schema";
    this.regex.hidden = format !== "regex";
    this.problem.hidden = true;
    if (format === "json_schema" && schema.trim()) {
      try {
        JSON.parse(schema);
      } catch (error) {
        this.problem.textContent = `The schema is no JSON: ${error.message}`;
        this.problem.hidden = false;
      }
    }
  }

  async key() {
    setKey(await this.wantKey());
    this.changed();
  }

  reset() {
    Object.assign(this.settings, DEFAULTS);
    this.save();
    location.reload();
  }

  text(name, label, attributes) {
    const field = h("textarea", { ...attributes, oninput: () => this.set(name, field.value) });
    field.value = this.settings[name];
    return h("label", { class: "field" }, h("span", { text: label }), field);
  }

  number(name, label, min, placeholder = "") {
    const field = h("input", {
      type: "number",
      min,
      step: 1,
      placeholder,
      onchange: () =>
        this.set(name, field.value === "" ? DEFAULTS[name] : Math.max(min, Math.round(Number(field.value)))),
    });
    field.value = this.settings[name];
    return h("label", { class: "field" }, h("span", { text: label }), field);
  }

  slider(name, label, min, max, step) {
    const shown = h("output", { text: this.settings[name] });
    const field = h("input", {
      type: "range",
      min,
      max,
      step,
      value: this.settings[name],
      oninput: () => {
        shown.textContent = field.value;
        this.set(name, Number(field.value));
      },
    });
    return h("label", { class: "field slider" }, h("span", { text: label }), shown, field);
  }

  checkbox(name) {
    const field = h("input", { type: "checkbox", onchange: () => this.set(name, field.checked) });
    field.checked = this.settings[name];
    return field;
  }

  choice(name, value, label) {
    const field = h("input", { type: "radio", name, value, onchange: () => this.set(name, value) });
    field.checked = this.settings[name] === value;
    return h("label", {}, field, h("span", { text: label }));
  }
}

/** The settings that differ from what most people expect, in a few words. */
export function summaryOf(settings) {
  const parts = [`temperature ${settings.temperature}`, `up to ${settings.max_tokens} tokens`];
  if (settings.system.trim()) parts.unshift("system prompt");
  if (settings.format === "json_schema") parts.push("JSON schema");
  if (settings.format === "regex") parts.push("regex");
  if (hasKey()) parts.push("key");
  return parts.join(" · ");
}
