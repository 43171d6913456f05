// One answer: what came of it so far, and how it is shown, as prose or token by token.

const announce = (text) => {
  // What is said twice is read out twice.
  byId("status").textContent = "";
  requestAnimationFrame(() => (byId("status").textContent = text));
};

// Frames do not come to a page that nobody looks at; and where drawing takes long, as in one
// paragraph of ten thousand tokens, most of the time is left to the keyboard.
function soon(work, lastSeconds) {
  if (document.hidden || lastSeconds > 0.016) setTimeout(work, Math.max(100, 3000 * lastSeconds));
  else requestAnimationFrame(work);
}

const isHeatShown = () => document.querySelector(".show-heat").checked;

function newAnswer(model, parameters) {
  return {
    role: "assistant",
    content: "",
    model,
    parameters,
    tokens: [],
    finish: null,
    problem: null,
    usage: null,
    firstTokenSeconds: null,
    tokensPerSecond: null,
  };
}

const short = (value) =>
  value.toLocaleString("en", value < 100 ? { maximumSignificantDigits: 3 } : { maximumFractionDigits: 0 });

function statistics(answer) {
  const parts = [];
  const nTokens = answer.usage?.completion_tokens ?? answer.tokens.length;
  if (nTokens) parts.push(`${nTokens.toLocaleString("en")} token${nTokens === 1 ? "" : "s"}`);
  if (answer.tokensPerSecond) parts.push(`${short(answer.tokensPerSecond)} tokens/s`);
  if (answer.firstTokenSeconds !== null) {
    parts.push(`first after ${Math.round(1000 * answer.firstTokenSeconds)} ms`);
  }
  if (answer.finish === "length") parts.push("cut at the limit");
  if (answer.finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function textButton(text, onClick, className = "plain") {
  const button = make("button", className, text);
  button.type = "button";
  button.addEventListener("click", onClick);
  return button;
}

async function copyText(text, button) {
  let isCopied = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    isCopied = copyOldWay(text, button);
  }
  announce(isCopied ? "Copied" : "The browser does not let this page copy");
  button.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// Outside of TLS and this machine itself there is no clipboard but by selecting.
function copyOldWay(text, button) {
  const area = make("textarea", "unseen");
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  button.focus();
  return isCopied;
}

// `actions` are buttons beneath the answer, shown once it has ended; `onRetry` begins anew.
function answerView(answer, { onRetry, actions = () => [] }) {
  const element = make("article", "answer");
  const [body, foot] = [make("div", "answer-body"), make("div", "foot")];
  let [prose, heat] = [null, null];
  let [nCharacters, nTokens, isWaiting, drawSeconds] = [0, 0, false, 0];
  element.append(body, foot);

  function rebuild() {
    [prose, heat, nCharacters, nTokens] = [null, null, 0, 0];
    tokenDetail.hide();
    if (isHeatShown() && (answer.tokens.length || answer.finish === null)) {
      heat = tokenList({
        label: "Tokens of the answer by probability; arrow keys move",
        classOf: (token) => (Number.isFinite(token.logProb) ? `h${shadeOf(token.logProb)}` : "h0"),
        detailOf: predictionDetail,
      });
    } else {
      prose = proseView();
    }
    body.replaceChildren((heat ?? prose).element);
    draw();
  }

  function draw() {
    isWaiting = false;
    if (heat) {
      heat.add(answer.tokens.slice(nTokens));
      nTokens = answer.tokens.length;
    } else {
      prose.add(answer.content.slice(nCharacters));
      nCharacters = answer.content.length;
      if (answer.finish !== null) prose.finish();
    }
  }

  function changed() {
    if (!isWaiting) {
      isWaiting = true;
      soon(() => isWaiting && following(draw), drawSeconds);
    }
  }

  // The end stays in view for those who look at it.
  function following(work) {
    const scroller = element.closest(".scroller");
    const begin = performance.now();
    const isAtEnd = scroller && scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    work();
    // Asking for a height makes the browser lay the page out, so that the time holds that, too.
    if (isAtEnd && scroller.scrollHeight) scroller.scrollTop = scroller.scrollHeight;
    drawSeconds = (performance.now() - begin) / 1000;
  }

  function ended() {
    element.removeAttribute("aria-busy");
    following(() => {
      // Without tokens there is nothing to shade: the text itself is shown.
      if (heat && !answer.tokens.length) rebuild();
      else draw();
      refreshFoot();
    });
  }

  function refreshFoot() {
    foot.replaceChildren();
    if (answer.finish === null) return;
    if (answer.problem) foot.append(problemBox(answer.problem, onRetry));
    const line = make("div", "foot-line");
    const copy = textButton("Copy", () => copyText(answer.content, copy));
    line.append(...(answer.content ? [copy] : []), ...actions());
    line.append(make("span", "figures", statistics(answer)));
    if (line.textContent) foot.append(line);
  }

  element.setAttribute("aria-busy", String(answer.finish === null));
  rebuild();
  return { element, changed, ended, rebuild, refreshFoot };
}

function problemBox(message, onRetry) {
  const box = make("div", "problem");
  box.setAttribute("role", "alert");
  box.append(make("p", "", message), textButton("Try again", onRetry, ""));
  return box;
}

// Runs one generation into `answer` and its view; never throws.
async function generate(answer, view, path, body, signal) {
  const begin = performance.now();
  let [first, last] = [null, null];
  try {
    for await (const chunk of generation(path, body, signal)) {
      if (chunk.text || chunk.tokens.length) {
        last = performance.now();
        first ??= last;
        answer.content += chunk.text;
        answer.tokens.push(...chunk.tokens);
        answer.firstTokenSeconds ??= (first - begin) / 1000;
        view.changed();
      }
      answer.usage = chunk.usage ?? answer.usage;
      answer.finish = chunk.finish ?? answer.finish;
    }
    answer.finish ??= "stop";
  } catch (error) {
    const isStopped = error.name === "AbortError";
    if (!isStopped && !(error instanceof ServerError)) console.error(error);
    answer.finish = isStopped ? "stopped" : "error";
    answer.problem = isStopped ? null : error.message;
    if (error.status === 401) askForToken();
  }
  const nTokens = answer.usage?.completion_tokens ?? answer.tokens.length;
  if (nTokens > 1 && last > first) answer.tokensPerSecond = (1000 * (nTokens - 1)) / (last - first);
  view.ended();
  // The box with the problem is an alert of its own.
  if (!answer.problem) announce(answer.finish === "stopped" ? "Stopped" : answer.content);
}
