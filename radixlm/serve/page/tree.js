// The cache: hit rates, where the KV memory is, and the radix tree with the path of the current prompt.

import { ask } from "./api.js";
import { count, duration, h, icon, iconButton, percent } from "./dom.js";

const SHOWN = 48;
const WINDOWS = { 60: "1 min", 300: "5 min", 3600: "1 hour", null: "always" };

/** The panel. `beginning()` gives the messages that "keep" pins. */
export class CachePanel {
  constructor(panel, beginning) {
    this.beginning = beginning;
    this.path = new Map(); // node number: tokens of it that the prompt passes
    this.cached = 0; // tokens of the prompt that were a hit
    this.report = null;
    this.shut = new Set(); // numbers of nodes whose children are hidden
    this.rates = h("dl", { class: "figures four" });
    this.memory = h("div", { class: "memory" });
    this.tree = h("ul", { role: "tree", class: "tree", "aria-label": "Radix tree" });
    this.note = h("p", { class: "note" });
    this.pins = h("ul", { class: "pins" });
    this.error = h("p", { class: "note", role: "status" });
    this.keep = h(
      "button",
      { type: "button", class: "quiet", onclick: () => this.pin() },
      icon("pin"),
      "Keep this prefix for an hour",
    );
    panel.append(
      h("h2", { text: "Prompt tokens from the cache" }),
      this.rates,
      h("h2", { text: "KV memory" }),
      this.memory,
      h("h2", { text: "Radix tree" }),
      this.note,
      this.tree,
      h("h2", { text: "Kept" }),
      this.pins,
      this.keep,
      this.error,
    );
    this.tree.addEventListener("keydown", (event) => this.move(event));
  }

  async refresh() {
    try {
      this.report = await ask(`v1/cache?top=${SHOWN}`);
      this.draw();
    } catch (error) {
      this.note.textContent = error.message;
    }
  }

  /** Colours the way of a prompt through the tree. */
  follow(match, cached = match.cached_tokens) {
    this.path = new Map(match.path.map((node) => [node.number, node.num_tokens]));
    this.cached = cached;
    if (this.report) this.drawTree();
  }

  draw() {
    const { report } = this;
    this.rates.replaceChildren(
      ...report.hit_rates.map((one) =>
        h(
          "div",
          { title: `${count(one.cached_tokens)} of ${count(one.prompt_tokens)} prompt tokens` },
          h("dt", { text: WINDOWS[one.window_s] }),
          h("dd", { text: one.rate === null ? "–" : percent(one.rate) }),
        ),
      ),
    );
    drawMemory(this.memory, report);
    this.drawTree();
    this.pins.replaceChildren(
      ...report.pins.map((pin) =>
        h(
          "li",
          {},
          h("span", { text: `${count(pin.num_tokens)} tokens` }),
          h("span", { class: "dim", text: `${duration(pin.expires_in_s)} left` }),
          iconButton("trash", "Let it go", () => this.unpin(pin.id)),
        ),
      ),
    );
  }

  drawTree() {
    const { prefixes, complete, num_nodes: total } = this.report;
    const children = new Map();
    const known = new Set(prefixes.map((node) => node.number));
    for (const node of prefixes) {
      const parent = known.has(node.parent) ? node.parent : `root ${node.namespace}`;
      children.set(parent, [...(children.get(parent) ?? []), node]);
    }
    const most = Math.max(1, ...prefixes.map((node) => node.tokens_saved));
    const focused = document.activeElement?.dataset?.number;
    const names = [...new Set(prefixes.map((node) => node.namespace))].sort();
    const rows = names.flatMap((name) => [
      ...(names.length > 1 || name
        ? [h("li", { class: "namespace", role: "none", text: name || "default namespace" })]
        : []),
      ...this.branch(children, `root ${name}`, most, 1),
    ]);
    this.tree.replaceChildren(...rows);
    const all = [...this.tree.querySelectorAll("[role=treeitem]")];
    const current = all.find((row) => row.dataset.number === focused) ?? all[0];
    if (current) current.tabIndex = 0;
    if (focused) current?.focus({ preventScroll: true });
    const part = complete ? "" : " The most used part of it was looked at.";
    this.note.textContent = prefixes.length
      ? `${count(total)} nodes; those that saved most are shown.${part}`
      : "Nothing is cached yet. Ask something.";
  }

  branch(children, parent, most, level) {
    const nodes = (children.get(parent) ?? []).sort(
      (a, b) => b.tokens_saved - a.tokens_saved || b.hits - a.hits || a.idle_s - b.idle_s,
    );
    return nodes.map((node) => {
      const below = children.has(node.number) ? this.branch(children, node.number, most, level + 1) : [];
      const shut = this.shut.has(node.number);
      const row = h(
        "li",
        {
          role: "treeitem",
          "aria-level": level,
          "aria-expanded": below.length ? String(!shut) : undefined,
          tabindex: "-1",
          dataset: { number: node.number },
          class: this.state(node),
        },
        this.row(node, most),
      );
      if (below.length) row.append(h("ul", { role: "group", hidden: shut }, below));
      row.firstChild.addEventListener("click", () => this.toggle(row, node.number));
      return row;
    });
  }

  /** hit: came from the cache; fresh: on the prompt's path, computed by it. */
  state(node) {
    if (!this.path.has(node.number)) return "";
    return node.start < this.cached ? "hit" : "fresh";
  }

  row(node, most) {
    const text = node.text ?? "text not shown to this key";
    const last = node.idle_s < 1.5 ? "used now" : `used ${duration(node.idle_s)} ago`;
    const title = `${text}\n\n${count(node.num_tokens)} tokens after ${count(node.start)}, ${last}, ${count(node.hits)} hits saved ${count(node.tokens_saved)} tokens${node.kept ? ", kept" : ""}`;
    const hit = Math.max(0, Math.min(node.num_tokens, this.cached - node.start)) / node.num_tokens;
    return h(
      "div",
      {
        class: "node",
        title,
        style: { "--saved": node.tokens_saved / most, "--part": this.path.has(node.number) ? hit : 0 },
      },
      h("span", { class: node.text === null ? "text dim" : "text" }, pieces(text)),
      node.num_leases ? h("span", { class: "busy", title: "in use by a running request" }) : null,
      node.kept ? icon("pin") : null,
      h("span", { class: "number", text: count(node.num_tokens) }),
      h("span", { class: "number hits", text: node.hits ? `×${count(node.hits)}` : "" }),
    );
  }

  toggle(row, number) {
    const group = row.querySelector(":scope > ul");
    if (!group) return;
    group.hidden = !group.hidden;
    row.setAttribute("aria-expanded", String(!group.hidden));
    if (group.hidden) this.shut.add(number);
    else this.shut.delete(number);
  }

  move(event) {
    const rows = [...this.tree.querySelectorAll("[role=treeitem]")].filter(
      (row) => !row.parentElement.closest("[hidden]"),
    );
    const at = rows.indexOf(document.activeElement);
    if (at < 0) return;
    const row = rows[at];
    const shut = row.getAttribute("aria-expanded") === "false";
    let next = { ArrowDown: rows[at + 1], ArrowUp: rows[at - 1], Home: rows[0], End: rows.at(-1) }[event.key];
    if (event.key === "ArrowRight" || event.key === "ArrowLeft" || event.key === "Enter") {
      const closes = event.key === "ArrowLeft" && row.hasAttribute("aria-expanded") && !shut;
      if (closes || (shut && event.key === "ArrowRight") || event.key === "Enter")
        this.toggle(row, Number(row.dataset.number));
      else next = event.key === "ArrowLeft" ? row.parentElement.closest("[role=treeitem]") : rows[at + 1];
    } else if (!next) return;
    event.preventDefault();
    if (!next) return;
    row.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  async pin() {
    await this.try(() => ask("v1/cache/pin", { body: { messages: this.beginning(), ttl_s: 3600 } }));
  }

  async unpin(id) {
    await this.try(() => ask("v1/cache/unpin", { body: { id } }));
  }

  async try(action) {
    this.error.textContent = "";
    try {
      await action();
    } catch (error) {
      this.error.textContent = error.message;
    }
    await this.refresh();
  }
}

/** A text on one line; special tokens like <|im_end|> stand back. */
function pieces(text) {
  const parts = text
    .replace(/\n/g, "↵")
    .replace(/\s+/g, " ")
    .split(/(<\|[^|<>]{1,30}\|>|<\/?s>)/);
  return parts.map((part, at) => (at % 2 ? h("span", { class: "mark", text: part }) : part));
}

/** A bar of the pool: computed with now, kept on purpose, cached, free. */
export function drawMemory(element, report) {
  const parts = [
    ["running", "in use", report.running_tokens],
    ["kept", "kept", report.kept_tokens],
    ["idle", "cached", report.idle_tokens],
    ["free", "free", report.free_tokens],
  ];
  const total = report.total_tokens || 1;
  element.replaceChildren(
    h(
      "div",
      {
        class: "stack",
        role: "img",
        "aria-label": parts.map(([, name, tokens]) => `${name} ${percent(tokens / total)}`).join(", "),
      },
      parts.map(([kind, , tokens]) => h("i", { class: kind, style: { "flex-grow": tokens / total } })),
    ),
    h(
      "ul",
      { class: "legend" },
      parts.map(([kind, name, tokens]) =>
        h("li", {}, h("i", { class: kind }), `${name} `, h("b", { text: count(tokens) })),
      ),
    ),
  );
}
