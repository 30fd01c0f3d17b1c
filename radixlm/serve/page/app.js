// Puts the page together: conversations on the left, the chat, and the inspector on the right.

import { ask, onKeyWanted } from "./api.js";
import { Chat, matchOf } from "./chat.js";
import { count, h, icon, iconButton, percent } from "./dom.js";
import { LivePanel } from "./live.js";
import { SettingsPanel, summaryOf } from "./settings.js";
import { loadConversations, loadSettings, newConversation, saveConversations, titleOf } from "./store.js";
import { CachePanel } from "./tree.js";

const DRAFT_MS = 350;
const LIVE_MS = 1000;
const CACHE_MS = 2500;

const $ = (id) => document.getElementById(id);
const settings = loadSettings();
let conversations = loadConversations();
let current = newConversation();

for (const [id, name] of [
  ["open-sidebar", "menu"],
  ["open-inspector", "panel"],
  ["send", "send"],
  ["stop", "stop"],
])
  $(id).append(icon(name));

// -- the key ----------------------------------------------------------------------------------------------------------

function wantKey() {
  const dialog = $("key-dialog");
  $("key").value = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve($("key").value.trim()), { once: true }),
  );
}
onKeyWanted(async () => {
  const key = await wantKey();
  if (!key) throw new Error("this server asks for an API key; the settings have a place for it");
  return key;
});

// -- the chat ---------------------------------------------------------------------------------------------------------

const prompt = $("prompt");
const cache = new CachePanel($("panel-cache"), () => chat.history());
const live = new LivePanel($("panel-live"));
const chat = new Chat({
  list: $("messages"),
  scroll: $("scroll"),
  settings: () => settings,
  changed: remember,
  busy: (on) => {
    $("send").hidden = on;
    $("stop").hidden = !on;
  },
  answered: async (asked, message) => {
    const said = message.content ? [{ role: "assistant", content: message.content }] : [];
    const match = await matchOf([...asked, ...said]).catch(() => null);
    await cache.refresh();
    if (match) cache.follow(match, message.stats?.cached ?? 0);
  },
});

function remember() {
  current.updated = Date.now();
  conversations = [current, ...conversations.filter((one) => one !== current && one.id !== current.id)];
  saveConversations(conversations);
  drawList();
}

function open(conversation) {
  current = conversation;
  chat.show(conversation);
  drawList();
  drawer("sidebar", false);
  matchDraft();
}

function drawList() {
  const shown = conversations.filter((one) => one.messages.length);
  $("conversations").replaceChildren(
    ...shown.map((one) =>
      h(
        "li",
        { class: one === current ? "current" : "" },
        h("button", {
          type: "button",
          "aria-current": one === current ? "true" : undefined,
          text: titleOf(one),
          title: titleOf(one),
          onclick: () => open(one),
        }),
        iconButton("trash", "Delete this conversation", () => remove(one)),
      ),
    ),
  );
}

function remove(conversation) {
  conversations = conversations.filter((one) => one !== conversation);
  saveConversations(conversations);
  if (conversation === current) open(newConversation());
  else drawList();
}

$("new").addEventListener("click", () => {
  open(newConversation());
  prompt.focus();
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = prompt.value.trim();
  if (!text || chat.running) return;
  prompt.value = "";
  grow();
  $("match").textContent = "";
  chat.send(text);
});
$("stop").addEventListener("click", () => {
  chat.stop();
  prompt.focus();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});
prompt.addEventListener("input", () => {
  grow();
  matchDraft();
});

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, 220)}px`;
}

// -- how much of the draft is cached ----------------------------------------------------------------------------------

let drafting = null;
let draftTimer = 0;

function matchDraft() {
  clearTimeout(draftTimer);
  drafting?.abort();
  draftTimer = setTimeout(async () => {
    const text = prompt.value.trim();
    const messages = [...chat.history(), ...(text ? [{ role: "user", content: text }] : [])];
    $("match").textContent = "";
    if (!text || chat.running) return;
    drafting = new AbortController();
    const match = await matchOf(messages, drafting.signal).catch(() => null);
    if (!match || chat.running) return;
    cache.follow(match);
    $("match").textContent =
      `${percent(match.cached_tokens / match.prompt_tokens)} of ${count(match.prompt_tokens)} tokens cached`;
  }, DRAFT_MS);
}

// -- the inspector ----------------------------------------------------------------------------------------------------

const TABS = ["cache", "live", "settings"];
let tab = "cache";

function choose(name) {
  tab = name;
  for (const one of TABS) {
    $(`tab-${one}`).setAttribute("aria-selected", String(one === name));
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
    $(`panel-${one}`).hidden = one !== name;
  }
  poll();
}
for (const name of TABS) {
  $(`tab-${name}`).addEventListener("click", () => choose(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    choose(TABS[(TABS.indexOf(name) + step + TABS.length) % TABS.length]);
    $(`tab-${tab}`).focus();
  });
}

new SettingsPanel($("panel-settings"), settings, {
  changed: () => {
    $("summary").textContent = summaryOf(settings);
    matchDraft();
  },
  wantKey,
  forget: () => {
    conversations = [];
    saveConversations([]);
    open(newConversation());
  },
});
$("summary").textContent = summaryOf(settings);

/** Opens or shuts a side that is a drawer on small screens; on wide ones the inspector folds away. */
function drawer(id, on) {
  document.body.classList.toggle(`show-${id}`, on);
  $(`open-${id}`).setAttribute("aria-expanded", String(on));
  $("shade").hidden = !["sidebar", "inspector"].some((side) => document.body.classList.contains(`show-${side}`));
  if (on && matchMedia("(max-width: 1080px)").matches) $(id).querySelector("button")?.focus();
}
for (const id of ["sidebar", "inspector"]) {
  $(`open-${id}`).addEventListener("click", () => {
    if (id === "inspector" && matchMedia("(min-width: 1081px)").matches) document.body.classList.toggle("folded");
    else drawer(id, !document.body.classList.contains(`show-${id}`));
    poll();
  });
}
const shut = () => ["sidebar", "inspector"].forEach((id) => drawer(id, false));
$("shade").addEventListener("click", shut);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && document.body.matches(".show-sidebar, .show-inspector")) shut();
  else if (event.key === "Escape" && chat.running) chat.stop();
});

// -- what the server does ---------------------------------------------------------------------------------------------

let round = 0; // the newest call of `poll`; loops of older ones end

/** Asks only while somebody looks. */
function poll() {
  const mine = ++round;
  const visible = $("inspector").offsetParent !== null;
  const repeat = async (work, delay) => {
    while (mine === round && !document.hidden) {
      await work();
      await new Promise((resolve) => setTimeout(resolve, delay));
    }
  };
  repeat(refreshLive, LIVE_MS);
  if (visible && tab === "cache") repeat(() => cache.refresh(), CACHE_MS);
}

async function refreshLive() {
  const now = await live.refresh();
  if (!chat.model) await learnModel().catch(() => {});
  const busy = now && (now.running || now.waiting);
  $("status").textContent = now
    ? busy
      ? `${now.running} running${now.waiting ? `, ${now.waiting} waiting` : ""}`
      : "idle"
    : live.error.textContent;
  $("status").dataset.state = now ? (busy ? "busy" : "idle") : "lost";
}

document.addEventListener("visibilitychange", poll);

async function learnModel() {
  const model = (await ask("v1/models")).data[0];
  chat.model = model.id;
  $("model").textContent = model.id;
  document.title = `${model.id} · RadixLM`;
}

open(conversations[0] ?? current);
poll();
