// The markdown module without a browser: what it makes of texts, hostile ones included. Run by tests/page/test_site.py.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const source = readFileSync(new URL("../../radixlm/serve/page/markdown.js", import.meta.url));
const { inline, LiveMarkdown, parse, render, safeUrl } = await import(
  `data:text/javascript;base64,${source.toString("base64")}`
);

// As much of a document as rendering needs; every element that is made is written down.
const made = [];
class Element {
  constructor(tag) {
    this.tag = tag;
    this.attributes = {};
    this.childNodes = [];
    made.push(this);
  }
  setAttribute(name, value) {
    this.attributes[name] = String(value);
  }
  append(...children) {
    for (const child of children) {
      this.childNodes.push(child);
      if (child instanceof Element) child.parent = this;
    }
  }
  get lastChild() {
    return this.childNodes.at(-1);
  }
  remove() {
    this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1);
  }
  get textContent() {
    return this.childNodes.map((child) => child.textContent ?? String(child)).join("");
  }
}
globalThis.document = { createElement: (tag) => new Element(tag), createTextNode: (text) => ({ textContent: text }) };

const html = (node) =>
  node instanceof Element
    ? `<${node.tag}${Object.entries(node.attributes)
        .map(([name, value]) => ` ${name}=${JSON.stringify(value)}`)
        .join("")}>${node.childNodes.map(html).join("")}</${node.tag}>`
    : String(node.textContent ?? node);
const show = (text) => render(parse(text)).map(html).join("");

const PAIRS = [
  ["plain\ntwo", "<p>plain<br></br>two</p>"],
  [
    "# One\n\ntwo **bold *both* x** `a*b*`",
    "<h3>One</h3><p>two <strong>bold <em>both</em> x</strong> <code>a*b*</code></p>",
  ],
  ["## Closed ##", "<h4>Closed</h4>"],
  ["snake_case_name and _this_ and 2 * 3 * 4", "<p>snake_case_name and <em>this</em> and 2 * 3 * 4</p>"],
  ["~~gone~~ \\*kept\\*", "<p><del>gone</del> *kept*</p>"],
  ["- a\n- b\n  - c\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"],
  ["3. three\n4. four", '<ol start="3"><li>three</li><li>four</li></ol>'],
  ["1. one\n\n2. two", '<ol start="1"><li>one</li><li>two</li></ol>'],
  ["> quoted\n> more\n\nafter", "<blockquote><p>quoted<br></br>more</p></blockquote><p>after</p>"],
  ["```py\nx = '<b>'\n```\nafter", '<pre data-language="py" tabindex="0"><code>x = \'<b>\'</code></pre><p>after</p>'],
  ["```\nnot closed", '<pre data-language="" tabindex="0"><code>not closed</code></pre>'],
  [
    "| a | b |\n|---|--:|\n| 1 | 2 |",
    '<div class="table" tabindex="0"><table><thead><tr><th class="left">a</th><th class="right">b</th></tr></thead><tbody><tr><td class="left">1</td><td class="right">2</td></tr></tbody></table></div>',
  ],
  ["---", "<hr></hr>"],
  ["**open and `open", "<p>**open and `open</p>"],
];
for (const [text, expected] of PAIRS)
  test(`markdown of ${JSON.stringify(text)}`, () => assert.equal(show(text), expected));

test("links lead to the web or to mail, open apart, and tell nobody where from", () => {
  const link = (href, label) =>
    `<p><a href="${href}" target="_blank" rel="noopener noreferrer nofollow">${label}</a></p>`;
  assert.equal(show("[x](https://a.example/b)"), link("https://a.example/b", "x"));
  assert.equal(
    show("https://a.example/b."),
    link("https://a.example/b", "https://a.example/b").replace("</p>", ".</p>"),
  );
  assert.equal(show("![pic](https://a.example/i.png)"), link("https://a.example/i.png", "image: pic"));
});

const HOSTILE = [
  "<script>alert(1)</script>",
  "<img src=x onerror=alert(1)>",
  "<svg/onload=alert(1)>",
  "[x](javascript:alert(1))",
  "[x](JaVaScRiPt:alert(1))",
  "[x](java\tscript:alert(1))",
  "[x](data:text/html,<script>alert(1)</script>)",
  "[x](vbscript:x)",
  "[x](//evil.example)",
  "[x](file:///etc/passwd)",
  "![x](javascript:alert(1))",
  "<a href='javascript:alert(1)'>x</a>",
  '[x](https://a.example/" onclick="alert(1))',
  "```html\n<script>alert(1)</script>\n```",
  "`<script>`",
  "| <b>a</b> | b |\n|--|--|\n| <img src=x onerror=alert(1)> | x |",
  "# <iframe src=//evil.example>",
  "> <object data=x>",
  "- <style>*{}</style>",
  '```" onmouseover=alert(1)\nx\n```',
  "[<img src=x onerror=alert(1)>](https://a.example)",
  "<https://a.example/<script>>",
  "&lt;script&gt;",
  "[x]( javascript:alert(1))",
];
const TAGS = new Set([
  "p",
  "br",
  "h3",
  "h4",
  "h5",
  "h6",
  "hr",
  "blockquote",
  "pre",
  "code",
  "ul",
  "ol",
  "li",
  "div",
  "table",
  "thead",
  "tbody",
  "tr",
  "th",
  "td",
  "strong",
  "em",
  "del",
  "a",
]);
const ATTRIBUTES = new Set(["href", "target", "rel", "class", "tabindex", "start", "data-language"]);

test("nothing a text says becomes an element or attribute of its choice", () => {
  made.length = 0;
  for (const text of HOSTILE)
    for (const wrapped of [text, `- ${text}`, `> ${text}`, `**${text}**`, `[${text}](https://a.example)`])
      show(wrapped);
  assert.ok(made.length > 200);
  for (const element of made) {
    assert.ok(TAGS.has(element.tag), element.tag);
    for (const name of Object.keys(element.attributes)) assert.ok(ATTRIBUTES.has(name), name);
    if (element.attributes.href) assert.match(element.attributes.href, /^(https?|mailto):/);
    if (element.attributes["data-language"]) assert.match(element.attributes["data-language"], /^[\w+#.-]{0,30}$/);
  }
  for (const url of ["javascript:x", "data:x", " javascript:x", "jav\nascript:x", "blob:x", "ftp://x", "", "x"])
    assert.equal(safeUrl(url), null, url);
});

test("no word is lost, however marks are mixed", () => {
  let state = 7;
  const pick = (from) => from[(state = (state * 1103515245 + 12345) % 2 ** 31) % from.length];
  for (let round = 0; round < 2000; round += 1) {
    const words = Array.from(
      { length: 12 },
      (_, i) =>
        pick(["*", "**", "_", "`", "~~", "[", "]", "(", " ", "\n", "\n\n", "- ", "  - ", "> ", "# ", "|", "1. "]) +
        `w${i}`,
    );
    const shown = render(parse(words.join("")))
      .map((node) => node.textContent)
      .join(" ");
    for (let i = 0; i < 12; i += 1) assert.ok(shown.includes(`w${i}`), JSON.stringify(words.join("")));
  }
});

test("time grows with the text: hostile repetitions of 100,000 characters end soon", () => {
  const started = process.cpuUsage().user;
  const n = 100_000;
  for (const unit of [
    "*",
    "**a ",
    "_a",
    "`",
    "``a",
    "[",
    "[x](",
    "![",
    "~~",
    "> ",
    "- ",
    "# ",
    "|",
    "|-",
    "```",
    "\\",
    "http://",
    "https://a.",
    "1. ",
    "\n",
    " ",
    "a_",
    "*a **b ",
    "#  ",
    "```  `",
    "- - ",
    "[a](",
  ]) {
    const text = unit.repeat(n / unit.length);
    parse(text);
    parse(`x${text}x`);
    inline(text);
    parse(`-${text}x\n${text}`);
  }
  assert.ok(process.cpuUsage().user - started < 60e6, "a pattern takes more than its share");
});

test("a text that grows ends as the same text at once, and finished blocks stay", () => {
  const text = "# Title\n\nSome *text* here.\n\n- a\n- b\n\n```js\nlet x;\n```\n\nEnd.";
  const whole = new LiveMarkdown(new Element("div"));
  whole.update(text);
  const growing = new LiveMarkdown(new Element("div"));
  let title = null;
  for (let end = 1; end <= text.length; end += 1) {
    growing.update(text.slice(0, end));
    if (end > 20) title ??= growing.element.childNodes[0];
  }
  assert.equal(html(growing.element), html(whole.element));
  assert.equal(growing.element.childNodes[0], title);
});
