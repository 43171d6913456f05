// What the page asks the server for: standard OpenAI routes, and /tokenize.

const byId = (id) => document.getElementById(id);

class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

async function request(path, body, signal) {
  const headers = {};
  const token = byId("token").value.trim();
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers,
      body: body && JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const isToken = error instanceof TypeError && /[^\x20-\x7e]/.test(token);
    throw new ServerError(
      isToken ? "A bearer token has no such characters." : "The server cannot be reached.",
    );
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  if (response.status === 401) return new ServerError("The server asks for a bearer token: give it in the settings, and press Enter.", 401);
  let message = `The server answered ${response.status} ${response.statusText}`.trim();
  try {
    message = (await response.json()).error.message || message;
  } catch {
    // The status says enough.
  }
  const wait = Number(response.headers.get("Retry-After"));
  if (response.status === 503 && wait > 0) message += ` Try again in ${wait} s.`;
  return new ServerError(message, response.status);
}

// The data of server-sent events, to the end that says so; one without it is a connection lost.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, data] = ["", []];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        if (line !== "" || !data.length) continue;
        const event = data.join("\n");
        data = [];
        if (event === "[DONE]") return;
        yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ServerError("The connection was lost before the answer ended.");
}

const byLogProb = (one, other) => other.logProb - one.logProb;
const chatTokens = (logProbs) =>
  (logProbs?.content ?? []).map((one) => ({
    ...chatToken(one),
    top: (one.top_logprobs ?? []).map(chatToken).sort(byLogProb),
  }));
const chatToken = (one) => ({ text: one.token, bytes: one.bytes ?? null, logProb: one.logprob });

// Legacy completions write bytes that are no character as `bytes:\xe2\x82`.
function legacyToken(text, logProb) {
  const match = /^bytes:((?:\\x[0-9a-f]{2})+)$/i.exec(text);
  const bytes = match && match[1].match(/[0-9a-f]{2}/gi).map((pair) => parseInt(pair, 16));
  return { text, bytes, logProb: logProb ?? NaN };
}
const legacyTokens = (logProbs) =>
  (logProbs?.tokens ?? []).map((text, n) => ({
    ...legacyToken(text, logProbs.token_logprobs?.[n]),
    top: Object.entries(logProbs.top_logprobs?.[n] ?? {})
      .map((pair) => legacyToken(...pair))
      .sort(byLogProb),
  }));

// One piece of either kind of stream in one form.
function readChunk(chunk) {
  if (chunk.error) throw new ServerError(chunk.error.message ?? "The server gave up.");
  const choice = chunk.choices?.[0];
  return {
    text: choice?.delta?.content ?? choice?.text ?? "",
    tokens: choice?.logprobs?.content ? chatTokens(choice.logprobs) : legacyTokens(choice?.logprobs),
    finish: choice?.finish_reason ?? null,
    usage: chunk.usage ?? null,
  };
}

async function* generation(path, body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  for await (const event of events(await request(path, asked, signal))) {
    let chunk;
    try {
      chunk = JSON.parse(event);
    } catch {
      throw new ServerError("The server sent something that is no JSON.");
    }
    yield readChunk(chunk);
  }
}
