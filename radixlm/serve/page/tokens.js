// The answer as its tokens, each shaded by how surprised the model was; hover or focus shows what else was likely.

import { h, percent } from "./dom.js";

export class TokenView {
  constructor(tokens) {
    this.card = h("div", {
      class: "card",
      role: "tooltip",
      id: `likely-${Math.random().toString(36).slice(2)}`,
      hidden: true,
    });
    this.element = h(
      "div",
      { class: "tokens", "aria-label": "Tokens of the answer" },
      texts(tokens).map((text, at) => this.span(tokens[at], text)),
      this.card,
    );
    this.element.addEventListener("pointerleave", () => this.hide());
  }

  span(token, text) {
    const chance = Math.exp(token.logprob);
    const level = Math.min(5, Math.floor(-token.logprob / 0.5)); // 0: sure, 5: under 8 %
    const special = /^<\|.*\|>$|^<\/?s>$/.test(text) ? " mark" : "";
    const span = h("span", {
      class: `token t${level}${special}`,
      tabindex: "0",
      text: text || "·",
      "aria-label": `${text}, ${percent(chance)}`,
    });
    const show = () => this.show(span, token);
    span.addEventListener("pointerenter", show);
    span.addEventListener("focus", show);
    span.addEventListener("blur", () => this.hide());
    span.addEventListener("keydown", (event) => {
      const next = { ArrowRight: span.nextElementSibling, ArrowLeft: span.previousElementSibling }[event.key];
      if (next?.classList.contains("token")) next.focus();
      if (event.key === "Escape") this.hide();
    });
    return span;
  }

  show(span, token) {
    const likely = token.top_logprobs.some((other) => other.token === token.token)
      ? token.top_logprobs
      : [token, ...token.top_logprobs];
    const rows = likely.map((other) =>
      h(
        "li",
        { class: other.token === token.token ? "chosen" : "" },
        h("code", { text: visible(other.token) }),
        h("i", { style: { "--share": Math.exp(other.logprob) } }),
        h("span", { text: percent(Math.exp(other.logprob)) }),
      ),
    );
    this.card.replaceChildren(h("ol", {}, rows));
    this.card.hidden = false;
    const box = this.element.getBoundingClientRect();
    const at = span.getBoundingClientRect();
    this.card.style.left = `${Math.max(0, Math.min(at.left - box.left, box.width - this.card.offsetWidth))}px`;
    this.card.style.top = `${at.bottom - box.top + 6}px`;
  }

  hide() {
    this.card.hidden = true;
  }
}

const visible = (text) => (text.trim() ? text : text.replaceAll("\n", "↵").replaceAll(" ", "␣"));

/** Texts of tokens; a character that several tokens share stands at the last of them. */
function texts(tokens) {
  const decoder = new TextDecoder();
  return tokens.map((token) =>
    token.bytes ? decoder.decode(new Uint8Array(token.bytes), { stream: true }) : token.token,
  );
}
