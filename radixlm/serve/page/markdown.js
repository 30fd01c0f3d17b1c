// Markdown as a model writes it: text to a tree of plain values (`parse`), and the tree to elements (`render`).
// Only the elements made here can appear: HTML in the text stays text, links go to http, https and mailto alone, and
// images are links, so that reading an answer contacts nobody. Time grows with the text, whatever the text is.

const MOST_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,}) {0,4}([\w+#.-]{0,30})[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^( {0,12})([-*+]|\d{1,9}[.)])( {1,4}|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^[\s|:-]{3,}$/;
const LINK = /\[([^[\]\n]{1,300})\]\(([^()\s]{1,2000})(?: "[^"\n]{0,300}")?\)/y;
const URL_START = /https?:\/\/[^\s<>"'`]{1,2000}/y;

/** Blocks of a text: {type, raw, ...}. `raw` is the source, by which a renderer knows what changed. */
export function parse(text, depth = 0) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const start = at;
    const [block, next] = oneBlock(lines, at, depth);
    at = next;
    blocks.push({ ...block, raw: lines.slice(start, at).join("\n") });
  }
  return blocks;
}

function oneBlock(lines, at, depth) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading)
    return [
      { type: "heading", level: heading[1].length, inline: inline(heading[2].trim().replace(/ #{1,6}$/, "")) },
      at + 1,
    ];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MOST_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MOST_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1]))
    return table(lines, at);
  return paragraph(lines, at, depth);
}

function fenced(lines, at, [, mark, language]) {
  let end = at + 1;
  const closes = (line) => line.trim().startsWith(mark) && !line.trim().replaceAll(mark[0], "");
  while (end < lines.length && !closes(lines[end])) end += 1;
  return [{ type: "code", language, text: lines.slice(at + 1, end).join("\n") }, Math.min(end + 1, lines.length)];
}

function quote(lines, at, depth) {
  const inner = [];
  let found;
  while (at < lines.length && (found = QUOTE.exec(lines[at]))) {
    inner.push(found[1]);
    at += 1;
  }
  return [{ type: "quote", blocks: parse(inner.join("\n"), depth + 1) }, at];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const indent = first[1].length;
  const items = [];
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length !== indent || /\d/.test(found[2]) !== ordered) break;
    const [inner, next] = itemLines(lines, at, found);
    items.push(parse(inner.join("\n"), depth + 1));
    at = next;
  }
  return [{ type: "list", ordered, start: ordered ? Number.parseInt(first[2], 10) : 1, items }, at];
}

/** The lines of one item without its indent, and where the next begins. */
function itemLines(lines, at, found) {
  const inner = [found[4]];
  const column = found[1].length + found[2].length + 1;
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at];
    const indent = line.length - line.trimStart().length;
    if (!line.trim()) {
      if (!/^ {2,}\S/.test(lines[at + 1] ?? "")) break;
      inner.push("");
    } else if (indent > found[1].length) inner.push(line.slice(Math.min(indent, column)));
    else break;
  }
  while (at < lines.length && !lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) at += 1;
  return [inner, at];
}

function table(lines, at) {
  const cells = (line) =>
    line
      .trim()
      .replace(/^\||\|$/g, "")
      .split("|")
      .map((cell) => inline(cell.trim()));
  const aligned = lines[at + 1]
    .trim()
    .replace(/^\||\|$/g, "")
    .split("|")
    .map((cell) => (cell.trim().endsWith(":") ? "right" : "left"));
  const head = cells(lines[at]);
  const rows = [];
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1)
    rows.push(cells(lines[at]).slice(0, head.length));
  return [{ type: "table", head, rows, aligned }, at];
}

function paragraph(lines, at, depth) {
  const inner = [lines[at].trimStart()];
  for (at += 1; at < lines.length && lines[at].trim(); at += 1) {
    const line = lines[at];
    if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) break;
    if (depth < MOST_DEPTH && (QUOTE.test(line) || ITEM.test(line))) break;
    inner.push(line.trimStart());
  }
  return [{ type: "paragraph", inline: inline(inner.join("\n")) }, at];
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

/** Spans of a text: strings and {type, ...}. */
export function inline(text, depth = 0) {
  const spans = [];
  const hopeless = new Set(); // marks that are not closed again in this text
  let plain = "";
  let at = 0;
  const push = (span) => {
    if (plain) spans.push(plain);
    plain = "";
    spans.push(span);
  };
  while (at < text.length) {
    const found = oneSpan(text, at, depth, hopeless);
    if (found) push(found[0]);
    else if (text[at] === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) plain += text[(at += 1)];
    else plain += text[at];
    at = found ? found[1] : at + 1;
  }
  if (plain) spans.push(plain);
  return spans;
}

function oneSpan(text, at, depth, hopeless) {
  const char = text[at];
  if (char === "\n") return [{ type: "break" }, at + 1];
  if (char === "`") return codeSpan(text, at, hopeless);
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return link(text, at, depth);
  if (char === "h") return bareLink(text, at);
  if (depth >= MOST_DEPTH) return null;
  for (const [mark, type] of MARKS) {
    if (char === mark[0] && text.startsWith(mark, at)) {
      const found = marked(text, at, mark, hopeless);
      if (found) return [{ type, inline: inline(found[0], depth + 1) }, found[1]];
    }
  }
  return null;
}

function codeSpan(text, at, hopeless) {
  const mark = /`{1,8}/y;
  mark.lastIndex = at;
  const ticks = mark.exec(text)[0];
  const end = hopeless.has(ticks) ? -1 : text.indexOf(ticks, at + ticks.length);
  if (end < 0) {
    hopeless.add(ticks);
    return [ticks, at + ticks.length];
  }
  return [{ type: "code", text: text.slice(at + ticks.length, end) }, end + ticks.length];
}

/** [inside, end] of **inside**; a mark opens before text and closes after text, and _ does not stand inside words. */
function marked(text, at, mark, hopeless) {
  const start = at + mark.length;
  if (hopeless.has(mark) || !text[start] || /\s/.test(text[start]) || text[start] === mark[0]) return null;
  if (mark[0] === "_" && /\w/.test(text[at - 1] ?? "")) return null;
  for (let end = text.indexOf(mark, start + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
    const alone = mark.length > 1 || (text[end + 1] !== mark && text[end - 1] !== mark);
    if (alone && !/\s/.test(text[end - 1]) && !(mark[0] === "_" && /\w/.test(text[end + mark.length] ?? ""))) {
      return [text.slice(start, end), end + mark.length];
    }
  }
  hopeless.add(mark);
  return null;
}

function link(text, at, depth) {
  const image = text[at] === "!";
  LINK.lastIndex = image ? at + 1 : at;
  const found = LINK.exec(text);
  const href = found && safeUrl(found[2]);
  if (!href) return null;
  const label = image ? [`image: ${found[1]}`] : depth < MOST_DEPTH ? inline(found[1], MOST_DEPTH) : [found[1]];
  return [{ type: "link", href, inline: label }, LINK.lastIndex];
}

function bareLink(text, at) {
  URL_START.lastIndex = at;
  const found = /\w/.test(text[at - 1] ?? "") ? null : URL_START.exec(text);
  const shown = found?.[0].replace(/[.,;:!?)\]}*_]+$/, "");
  const href = shown && safeUrl(shown);
  return href ? [{ type: "link", href, inline: [shown] }, at + shown.length] : null;
}

/** The URL if it leads to the web or to a mail address; null otherwise. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** Elements of blocks. */
export const render = (blocks) => blocks.map(renderBlock);

const make = (tag, children = [], attributes = {}) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

const RENDER = {
  paragraph: (block) => make("p", spans(block.inline)),
  heading: (block) => make(`h${Math.min(6, block.level + 2)}`, spans(block.inline)),
  rule: () => make("hr"),
  quote: (block) => make("blockquote", render(block.blocks)),
  code: (block) => make("pre", [make("code", [block.text])], { "data-language": block.language, tabindex: "0" }),
  list: (block) =>
    make(block.ordered ? "ol" : "ul", block.items.map(item), block.ordered ? { start: block.start } : {}),
  table: (block) =>
    make(
      "div",
      [
        make("table", [
          make("thead", [row(block, block.head, "th")]),
          make(
            "tbody",
            block.rows.map((cells) => row(block, cells, "td")),
          ),
        ]),
      ],
      { class: "table", tabindex: "0" },
    ),
};

const renderBlock = (block) => RENDER[block.type](block);

/** An item of one paragraph needs no paragraph. */
const item = (blocks) =>
  make(
    "li",
    blocks.flatMap((block, i) => (i === 0 && block.type === "paragraph" ? spans(block.inline) : [renderBlock(block)])),
  );

const row = (block, cells, tag) =>
  make(
    "tr",
    cells.map((cell, i) => make(tag, spans(cell), { class: block.aligned[i] ?? "left" })),
  );

function spans(parts) {
  return parts.map((part) => {
    if (typeof part === "string") return document.createTextNode(part);
    if (part.type === "break") return make("br");
    if (part.type === "code") return make("code", [part.text]);
    if (part.type === "link")
      return make("a", spans(part.inline), { href: part.href, target: "_blank", rel: "noopener noreferrer nofollow" });
    return make(part.type, spans(part.inline));
  });
}

/** Keeps an element up to date with a text that grows: blocks whose source did not change stay as they are. */
export class LiveMarkdown {
  constructor(element) {
    this.element = element;
    this.raws = [];
  }

  update(text) {
    const blocks = parse(text);
    let same = 0;
    while (same < blocks.length && same < this.raws.length && blocks[same].raw === this.raws[same]) same += 1;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...render(blocks.slice(same)));
    this.raws = blocks.map((block) => block.raw);
  }
}
