// What a client saw: the same lines as python/seen.py prints.
export const URL = process.env.RADIXLM_URL;
export const MODEL = process.env.RADIXLM_MODEL;
export const QUESTION = "Name the capital of France.";
export const CITY = {
  type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"], additionalProperties: false,
};

let failed = 0;

export async function check(name, body) {
  try {
    const seen = await body();
    console.log(`ok ${name} | ${JSON.stringify(seen ?? "").slice(0, 200)}`);
  } catch (error) {
    failed += 1;
    console.error(error);
    console.log(`FAILED ${name} | ${JSON.stringify(String(error)).slice(0, 300)}`);
  }
}

export function done() {
  process.exit(failed ? 1 : 0);
}
