// The conversation: messages, the answer that streams in, and what can be done with them.

import { events, ask } from "./api.js";
import { count, duration, h, iconButton, percent } from "./dom.js";
import { LiveMarkdown } from "./markdown.js";
import { TokenView } from "./tokens.js";

const MISSED = {
  new: "the rest was never seen before",
  evicted: "the rest was cached once and had to make room",
  other_namespace: "the rest is cached under another cache_salt",
  scored: "the rest was computed for its log probabilities",
  disabled: "the prefix cache is off",
};

/** A conversation on screen. `changed` is called when messages changed, `answered` after each answer. */
export class Chat {
  constructor({ list, scroll, settings, changed, answered, busy }) {
    Object.assign(this, { list, scroll, settings, changed, answered, busy });
    this.conversation = null;
    this.running = null;
    this.model = undefined;
    this.atEnd = true;
    scroll.addEventListener(
      "scroll",
      () => (this.atEnd = scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60),
    );
  }

  show(conversation) {
    this.stop();
    this.conversation = conversation;
    this.draw();
    this.follow(true);
  }

  /** What the server gets before the next question. */
  history(until = this.conversation.messages.length) {
    const system = this.settings().system.trim();
    const told = this.conversation.messages.slice(0, until).filter((message) => message.content && !message.error);
    return [
      ...(system ? [{ role: "system", content: system }] : []),
      ...told.map(({ role, content }) => ({ role, content })),
    ];
  }

  async send(text) {
    this.conversation.messages.push({ role: "user", content: text });
    await this.answer();
  }

  async regenerate(at) {
    this.stop();
    this.conversation.messages.length = at;
    await this.answer();
  }

  async edit(at, text) {
    this.stop();
    this.conversation.messages.length = at;
    await this.send(text);
  }

  stop() {
    this.running?.abort();
  }

  /** Streams an answer to the last question. */
  async answer() {
    this.stop();
    const controller = (this.running = new AbortController());
    const message = { role: "assistant", content: "", tokens: [] };
    const { messages } = this.conversation;
    const asked = this.history();
    messages.push(message);
    this.draw();
    this.follow(true);
    this.changed();
    this.busy(true);
    const started = performance.now();
    try {
      for await (const event of events("v1/chat/completions", { body: this.body(asked), signal: controller.signal }))
        this.take(message, event, started);
    } catch (error) {
      if (controller.signal.aborted) message.stats = { ...message.stats, stopped: true };
      else message.error = error.message;
    }
    if (this.running === controller) {
      this.running = null;
      this.busy(false);
    }
    if (this.conversation.messages.includes(message)) this.settle(message);
    this.changed();
    this.answered(asked, message);
  }

  body(messages) {
    const chosen = this.settings();
    const stop = chosen.stop.split("\n").filter(Boolean);
    const body = { model: this.model, messages, stream: true, stream_options: { include_usage: true } };
    Object.assign(body, { temperature: chosen.temperature, top_p: chosen.top_p, max_tokens: chosen.max_tokens });
    if (chosen.seed !== "") body.seed = Number(chosen.seed);
    if (stop.length) body.stop = stop;
    if (chosen.logprobs) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    if (chosen.format === "json_schema" && chosen.schema.trim()) {
      body.response_format = {
        type: "json_schema",
        json_schema: { name: "answer", schema: JSON.parse(chosen.schema) },
      };
    }
    if (chosen.format === "regex" && chosen.regex) body.regex = chosen.regex;
    return body;
  }

  take(message, event, started) {
    const choice = event.choices[0];
    if (choice?.delta?.content) {
      message.stats ??= { first: (performance.now() - started) / 1000 };
      message.content += choice.delta.content;
    }
    if (choice?.logprobs?.content) message.tokens.push(...choice.logprobs.content);
    if (choice?.finish_reason) message.stats = { ...message.stats, finish: choice.finish_reason };
    if (event.usage) message.stats = { ...message.stats, ...statsOf(event.usage) };
    this.later(message);
  }

  /** Draws the growing answer once a frame. */
  later(message) {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      if (!message.view || message.settled) return;
      message.view.live.update(message.content);
      this.follow();
    });
  }

  settle(message) {
    message.settled = true;
    const old = message.view?.element;
    const fresh = this.element(message, this.conversation.messages.indexOf(message));
    if (old?.isConnected) old.replaceWith(fresh);
    this.follow();
  }

  follow(force = false) {
    if (force || this.atEnd) this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  draw() {
    const { messages } = this.conversation;
    this.list.replaceChildren(
      ...(messages.length ? messages.map((message, at) => this.element(message, at)) : [this.welcome()]),
    );
  }

  welcome() {
    const ideas = [
      "Name three rivers of Europe and the seas they reach.",
      "Write a haiku about a cache that remembers.",
      "Explain prefix caching to a ten-year-old.",
    ];
    const use = (text) => () => this.send(text);
    return h(
      "div",
      { class: "welcome" },
      h("h2", { text: "What shall we talk about?" }),
      h("p", {
        text: "Everything runs on this server. The panel beside the conversation shows what its cache remembers of it.",
      }),
      h(
        "ul",
        {},
        ideas.map((text) => h("li", {}, h("button", { type: "button", class: "idea", text, onclick: use(text) }))),
      ),
    );
  }

  element(message, at) {
    return message.role === "user" ? this.question(message, at) : this.reply(message, at);
  }

  question(message, at) {
    const body = h("div", { class: "bubble", text: message.content });
    const element = h(
      "article",
      { class: "message user", "aria-label": "You" },
      body,
      h(
        "div",
        { class: "actions" },
        iconButton("edit", "Edit and ask again", () => this.editor(element, message, at)),
        iconButton("copy", "Copy", () => copy(message.content)),
      ),
    );
    return element;
  }

  editor(element, message, at) {
    const field = h("textarea", { rows: 3, "aria-label": "Edit the message" });
    field.value = message.content;
    const cancel = () => element.replaceWith(this.question(message, at));
    const save = () => field.value.trim() && this.edit(at, field.value.trim());
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") cancel();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        save();
      }
    });
    element.replaceChildren(
      h(
        "div",
        { class: "editor" },
        field,
        h(
          "div",
          { class: "row" },
          h("button", { type: "button", class: "quiet", text: "Cancel", onclick: cancel }),
          h("button", { type: "button", class: "primary", text: "Ask again", onclick: save }),
        ),
      ),
    );
    field.focus();
  }

  reply(message, at) {
    const prose = h("div", { class: "prose" });
    const live = new LiveMarkdown(prose);
    live.update(message.content);
    const waiting = this.running && !message.settled && at === this.conversation.messages.length - 1;
    const element = h(
      "article",
      {
        class: waiting ? "message assistant streaming" : "message assistant",
        "aria-label": "Answer",
        "aria-busy": waiting ? "true" : "false",
      },
      prose,
    );
    message.view = { element, live };
    if (message.error) element.append(h("p", { class: "error", role: "alert", text: message.error }));
    if (!waiting) element.append(this.footer(message, at, prose));
    addCopies(prose);
    return element;
  }

  footer(message, at, prose) {
    const actions = h(
      "div",
      { class: "actions" },
      iconButton("again", "Regenerate", () => this.regenerate(at)),
      iconButton("copy", "Copy", () => copy(message.content)),
    );
    if (message.tokens?.length) {
      const view = new TokenView(message.tokens);
      const toggle = iconButton(
        "chance",
        "Token probabilities",
        () => {
          const on = toggle.getAttribute("aria-pressed") !== "true";
          toggle.setAttribute("aria-pressed", String(on));
          if (on) prose.after(view.element);
          else view.element.remove();
          prose.hidden = on;
        },
        { "aria-pressed": "false" },
      );
      actions.append(toggle);
    }
    return h("footer", {}, actions, cost(message.stats));
  }
}

function statsOf(usage) {
  const details = usage.radixlm ?? {};
  return {
    prompt: usage.prompt_tokens,
    output: usage.completion_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    missed: details.missed ?? "",
    queue: details.queue_s,
    prefill: details.prefill_s,
    decode: details.decode_s,
  };
}

/** What the answer cost: a bar of the prompt that came from the cache, and the figures. */
function cost(stats) {
  if (!stats) return null;
  const parts = [];
  if (stats.stopped) parts.push("stopped");
  if (stats.finish === "length") parts.push("cut at the token limit");
  if (stats.output) parts.push(`${count(stats.output)} tokens`);
  if (stats.output > 1 && stats.decode) parts.push(`${((stats.output - 1) / stats.decode).toFixed(1)} tokens/s`);
  if (stats.first) parts.push(`first after ${duration(stats.first)}`);
  const line = h("p", { class: "cost" }, h("span", { text: parts.join(" · ") }));
  if (stats.prompt) {
    const why = MISSED[stats.missed] ? `; ${MISSED[stats.missed]}` : "";
    const text = `${count(stats.cached)} of ${count(stats.prompt)} prompt tokens from the cache`;
    const times =
      stats.prefill === undefined
        ? ""
        : `. Queue ${duration(stats.queue)}, prompt ${duration(stats.prefill)}, answer ${duration(stats.decode)}.`;
    line.append(
      h(
        "span",
        { class: "hitbar", title: `${text}${why}${times}` },
        h("i", { style: { "--share": stats.cached / stats.prompt } }),
        h("span", { text: `${percent(stats.cached / stats.prompt)} cached` }),
      ),
    );
  }
  return line;
}

function addCopies(prose) {
  for (const pre of prose.querySelectorAll("pre"))
    pre.append(iconButton("copy", "Copy the code", () => copy(pre.querySelector("code").textContent)));
}

const copy = (text) => navigator.clipboard?.writeText(text);

/** How much of these messages is cached now. */
export const matchOf = (messages, signal) => ask("v1/cache/match", { body: { messages }, signal });
