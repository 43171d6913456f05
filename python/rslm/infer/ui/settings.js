// The settings: what is sent along with each request, the token, the colours.

const SLIDERS = ["temperature", "top_p", "min_p", "repetition_penalty"];
const NUMBERS = ["top_k", "max_tokens", "seed"];
const N_ALTERNATIVES = 5;
const isWide = matchMedia("(min-width: 64rem)");

// Reading or writing fails where the browser keeps nothing.
function kept(storage, name, value) {
  try {
    if (value === undefined) return window[storage].getItem(`rslm-${name}`);
    if (value === "") window[storage].removeItem(`rslm-${name}`);
    else window[storage].setItem(`rslm-${name}`, value);
  } catch {
    // Then it holds as long as the page.
  }
  return null;
}

function numberOf(id) {
  const field = byId(id);
  return field.value === "" || !field.validity.valid ? null : field.valueAsNumber;
}

// Parameters of a request; what leaves a distribution as it is stays out, as some servers know none of it.
function samplingParameters() {
  const given = {
    max_tokens: numberOf("max_tokens") ?? Number(byId("max_tokens").defaultValue),
    temperature: numberOf("temperature"),
    seed: numberOf("seed") ?? crypto.getRandomValues(new Uint32Array(1))[0],
  };
  const extra = { top_p: 1, min_p: 0, repetition_penalty: 1, top_k: null };
  for (const [name, neutral] of Object.entries(extra)) {
    if (numberOf(name) !== neutral) given[name] = numberOf(name);
  }
  return given;
}

function showValues() {
  for (const id of SLIDERS) {
    const shown = Number(byId(id).value).toFixed(2);
    document.querySelector(`output[for="${id}"]`).textContent = shown;
  }
  for (const id of NUMBERS) {
    const field = byId(id);
    field.setAttribute("aria-invalid", String(!field.validity.valid));
  }
}

function keepValues() {
  const values = Object.fromEntries([...SLIDERS, ...NUMBERS].map((id) => [id, byId(id).value]));
  kept("localStorage", "sampling", JSON.stringify(values));
  showValues();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  for (const radio of document.getElementsByName("theme")) radio.checked = radio.value === theme;
}

// Beside the conversation where there is room, over it elsewhere.
function showSettings(isShown, moveFocus = true) {
  const dialog = byId("settings");
  if (dialog.open) dialog.close();
  if (isShown && isWide.matches) dialog.setAttribute("open", "");
  else if (isShown) dialog.showModal();
  byId("open-settings").setAttribute("aria-expanded", String(isShown));
  if (!isShown && moveFocus) byId("open-settings").focus();
}

function askForToken() {
  showSettings(true);
  byId("token").setAttribute("aria-invalid", "true");
  byId("token").focus();
}

function setUpSettings({ onToken }) {
  let saved = {};
  try {
    saved = JSON.parse(kept("localStorage", "sampling")) ?? {};
  } catch {
    // Somebody else's.
  }
  for (const id of [...SLIDERS, ...NUMBERS]) if (typeof saved[id] === "string") byId(id).value = saved[id];
  byId("token").value = kept("sessionStorage", "token") ?? "";
  const theme = kept("localStorage", "theme");
  setTheme(["light", "dark"].includes(theme) ? theme : "auto");
  showValues();
  showSettings(isWide.matches, false);

  byId("settings-form").addEventListener("input", (event) => {
    const { id, name, value } = event.target;
    if (id === "token") {
      kept("sessionStorage", "token", value);
      event.target.removeAttribute("aria-invalid");
    } else if (name === "theme") {
      setTheme(value);
      kept("localStorage", "theme", value);
    } else {
      keepValues();
    }
  });
  byId("settings-form").addEventListener("submit", (event) => event.preventDefault());
  byId("token").addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    if (!isWide.matches) showSettings(false);
    onToken();
  });
  byId("reset").addEventListener("click", () => {
    for (const id of [...SLIDERS, ...NUMBERS]) byId(id).value = byId(id).defaultValue;
    keepValues();
  });
  byId("open-settings").addEventListener("click", () => showSettings(!byId("settings").open));
  byId("close-settings").addEventListener("click", () => showSettings(false));
  byId("settings").addEventListener("cancel", (event) => {
    event.preventDefault();
    showSettings(false);
  });
  isWide.addEventListener("change", () => showSettings(isWide.matches, false));
}
