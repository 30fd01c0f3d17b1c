// What this browser remembers: conversations and settings. Losing it loses nothing but convenience.

const CONVERSATIONS = "radixlm.conversations";
const SETTINGS = "radixlm.settings";
const MOST = 100;

export const DEFAULTS = {
  system: "",
  temperature: 0.7,
  top_p: 1,
  max_tokens: 512,
  seed: "",
  stop: "",
  format: "text", // text, json_schema or regex
  schema: "",
  regex: "",
  logprobs: true,
  theme: "auto",
};

function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(name)) ?? fallback;
  } catch {
    return fallback;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
  } catch {
    // full or forbidden: the page goes on without a memory
  }
}

export const loadSettings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });
export const saveSettings = (settings) => write(SETTINGS, settings);

/** Newest first. A message is {role, content} and, for answers, {stats, error}. */
export function loadConversations() {
  const found = read(CONVERSATIONS, []);
  return Array.isArray(found) ? found.filter((one) => Array.isArray(one?.messages)) : [];
}

export function saveConversations(conversations) {
  const kept = conversations.filter((one) => one.messages.length).slice(0, MOST);
  const lean = ({ role, content, stats, error }) => ({ role, content, stats, error });
  write(
    CONVERSATIONS,
    kept.map((one) => ({ ...one, messages: one.messages.map(lean) })),
  );
}

export const newConversation = () => ({
  id: Date.now().toString(36) + Math.random().toString(36).slice(2, 6),
  messages: [],
});

/** The first words of a conversation. */
export function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === "user")?.content ?? "";
  return first.replace(/\s+/g, " ").trim().slice(0, 60) || "New conversation";
}
