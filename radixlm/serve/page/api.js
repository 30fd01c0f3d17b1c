// The server's public endpoints, and nothing else. A key lives in sessionStorage: it ends with the tab.

const KEY = "radixlm.key";

/** What the server said was wrong. */
export class ServerError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? "";
  }
}

let askForKey = null;
let asking = null;

/** `ask()` resolves to a key; called at most once at a time when the server wants one. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

export const setKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

async function call(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = {
      ...(body && { "content-type": "application/json" }),
      ...(key && { authorization: `Bearer ${key}` }),
    };
    const answer = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
    });
    if (answer.ok) return answer;
    const error = (await answer.json().catch(() => null))?.error;
    if (answer.status !== 401 || !askForKey) throw new ServerError(answer.status, error);
    asking ??= askForKey().finally(() => (asking = null));
    setKey(await asking);
  }
}

/** The JSON of a GET, or of a POST where there is a body. */
export const ask = async (path, options) => (await call(path, options)).json();

/** The events of a stream, decoded; ends with [DONE]. Throws ServerError for an error event or a stream cut short. */
export async function* events(path, options) {
  const reader = (await call(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ServerError(200, { message: "the connection ended in the middle of the answer" });
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (!block.startsWith("data: ")) continue;
      if (block === "data: [DONE]") return;
      const event = JSON.parse(block.slice(6));
      if (event.error) throw new ServerError(200, event.error);
      yield event;
    }
  }
}
