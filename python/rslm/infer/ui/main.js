// Puts the parts together: views, models, keys.

const VIEWS = ["chat", "complete", "tokens"];
const FIELDS = { chat: "message", complete: "prompt", tokens: "text" };

const chosenModel = () => byId("model").value;
const view = () => VIEWS.find((name) => byId(`tab-${name}`).getAttribute("aria-selected") === "true");
const chat = setUpChat({ chosenModel });
const complete = setUpComplete({ chosenModel });
const tokens = setUpTokens({ chosenModel });

function setHeat(isShown) {
  for (const box of document.querySelectorAll(".show-heat")) box.checked = isShown;
  for (const place of document.querySelectorAll(".scale-place")) {
    place.replaceChildren(...(isShown ? [shadeScale()] : []));
  }
  chat.redraw();
  complete.redraw();
}

function showView(name) {
  for (const other of VIEWS) {
    const [tab, isShown] = [byId(`tab-${other}`), other === name];
    tab.setAttribute("aria-selected", String(isShown));
    tab.tabIndex = isShown ? 0 : -1;
    byId(`view-${other}`).hidden = !isShown;
  }
  tokenDetail.hide();
}

async function loadModels() {
  const [select, problem] = [byId("model"), byId("server-problem")];
  problem.hidden = true;
  try {
    const { data } = await (await request("v1/models")).json();
    const before = chosenModel();
    select.replaceChildren(...data.map(({ id }) => Object.assign(make("option", "", id), { value: id })));
    if (data.some(({ id }) => id === before)) select.value = before;
    select.disabled = data.length === 0;
    if (!data.length) throw new ServerError("The server has no model.");
    document.title = `${chosenModel()} · rslm`;
    return true;
  } catch (error) {
    problem.hidden = false;
    problem.replaceChildren(...problemBox(error.message ?? String(error), loadModels).childNodes);
    announce(error.message);
    if (error.status === 401) askForToken();
    return false;
  }
}

setUpSettings({
  onToken: async () => {
    if (!(await loadModels())) return;
    byId(FIELDS[view()]).focus();
    if (view() === "chat") chat.retry();
    else if (view() === "complete") complete.retry();
    else tokens.retry();
  },
});

for (const [n, name] of VIEWS.entries()) {
  byId(`tab-${name}`).addEventListener("click", () => showView(name));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = VIEWS[(n + step + VIEWS.length) % VIEWS.length];
    showView(next);
    byId(`tab-${next}`).focus();
  });
}
for (const box of document.querySelectorAll(".show-heat")) {
  box.addEventListener("input", () => setHeat(box.checked));
}
byId("model").addEventListener("input", () => {
  document.title = `${chosenModel()} · rslm`;
  tokens.refresh();
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog:modal")) return;
  if (event.key === "Escape" && !event.isComposing && (chat.stop() || complete.stop())) {
    event.preventDefault();
  }
  const isTyping = event.target.matches("input:not([type=checkbox]):not([type=radio]):not([type=range]), textarea, select");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    byId(FIELDS[view()]).focus();
  }
});
byId("message").focus();
loadModels();
