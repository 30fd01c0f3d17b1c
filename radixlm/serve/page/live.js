// What the server does now: speed, requests, and how long people wait for the first token.

import { ask } from "./api.js";
import { count, duration, h, percent, s } from "./dom.js";

const KEPT = 90; // seconds of history
const WIDTH = 320;
const HEIGHT = 64;

export class LivePanel {
  constructor(panel) {
    this.speeds = [];
    this.speed = h("p", { class: "big" });
    this.line = s("polyline", { fill: "none" });
    this.area = s("polygon", {});
    this.top = h("span", { class: "dim" });
    this.figures = h("dl", { class: "figures" });
    this.bars = h("div", { class: "histogram" });
    this.error = h("p", { class: "note", role: "status" });
    const chart = s(
      "svg",
      {
        class: "spark",
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        preserveAspectRatio: "none",
        role: "img",
        "aria-label": "Tokens per second over the last 90 seconds",
      },
      this.area,
      this.line,
    );
    panel.append(
      h("h2", { text: "Tokens per second" }),
      this.speed,
      chart,
      h("p", { class: "axis" }, h("span", { text: "90 s ago" }), this.top),
      h("h2", { text: "Requests" }),
      this.figures,
      h("h2", { text: "Time to first token" }),
      this.bars,
      this.error,
    );
  }

  async refresh() {
    try {
      const live = await ask("v1/stats");
      this.error.textContent = "";
      this.draw(live);
      return live;
    } catch (error) {
      this.error.textContent = error.message;
      return null;
    }
  }

  draw(live) {
    this.speeds.push(live.output_tokens_per_s);
    if (this.speeds.length > KEPT) this.speeds.shift();
    this.speed.textContent = live.output_tokens_per_s.toFixed(live.output_tokens_per_s < 100 ? 1 : 0);
    const most = Math.max(10, ...this.speeds);
    const points = this.speeds.map((speed, at) => [
      WIDTH - (this.speeds.length - 1 - at) * (WIDTH / (KEPT - 1)),
      HEIGHT - 2 - (speed / most) * (HEIGHT - 6),
    ]);
    const path = points.map((point) => point.map((value) => value.toFixed(1)).join(",")).join(" ");
    this.line.setAttribute("points", path);
    this.area.setAttribute(
      "points",
      points.length ? `${points[0][0].toFixed(1)},${HEIGHT} ${path} ${WIDTH},${HEIGHT}` : "",
    );
    this.top.textContent = `peak ${Math.round(Math.max(...this.speeds))}`;
    const figures = [
      ["running", count(live.running)],
      ["waiting", count(live.waiting)],
      ["finished", count(live.finished)],
      ["KV in use", percent(live.kv_usage)],
    ];
    this.figures.replaceChildren(
      ...figures.map(([name, value]) => h("div", {}, h("dt", { text: name }), h("dd", { text: value }))),
    );
    this.histogram(live.first_token_seconds);
  }

  histogram({ bounds, counts }) {
    const first = counts.findIndex(Boolean);
    if (first < 0) {
      this.bars.replaceChildren(h("p", { class: "note", text: "No answer yet." }));
      return;
    }
    const last = counts.findLastIndex(Boolean);
    const from = Math.max(0, Math.min(first - 1, counts.length - 6));
    const to = Math.min(counts.length - 1, Math.max(last + 1, from + 5));
    const most = Math.max(...counts);
    const total = counts.reduce((sum, value) => sum + value, 0);
    const columns = counts.slice(from, to + 1).map((value, at) => {
      const bound = bounds[from + at];
      const name = bound === undefined ? `over ${duration(bounds.at(-1))}` : `up to ${duration(bound)}`;
      return h(
        "li",
        { title: `${name}: ${count(value)} of ${count(total)}` },
        h("i", { style: { "--share": value / most } }),
        h("span", { text: bound === undefined ? "more" : duration(bound) }),
      );
    });
    this.bars.replaceChildren(h("ol", { "aria-label": `Histogram of ${count(total)} answers` }, columns));
  }
}
