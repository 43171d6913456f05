// A text as the tokenizer cuts it: each token in a colour of its neighbours' own, with its id.

const MAX_CHIPS = 5000;
const N_COLOURS = 4;

function setUpTokens({ chosenModel }) {
  const [field, place, problem] = [byId("text"), byId("chips"), byId("tokens-problem")];
  let [running, timer] = [null, 0];

  function chipDetail(token, index) {
    const hex = token.bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0"));
    const count = `${hex.length} byte${hex.length === 1 ? "" : "s"}`;
    return {
      name: tokenName(token),
      lines: [`id ${token.id}`, `${count}: ${hex.slice(0, 24).join(" ")}${hex.length > 24 ? " …" : ""}`, `token ${(index + 1).toLocaleString("en")} of the text`],
      rows: [],
      spoken: `id ${token.id}`,
    };
  }

  function shownCharacter(character) {
    const name = tokenName({ text: character });
    return name === character ? character : make("span", "sign", name);
  }

  // What cannot be seen has a sign, and what is no character its bytes; beneath stands the id.
  function fill(span, token) {
    const text = make("code");
    for (const piece of tokenPieces(token)) {
      if (piece.byte !== undefined) text.append(make("span", "byte", piece.byte));
      else text.append(...[...piece.text].map(shownCharacter));
    }
    span.append(text, make("small", "", String(token.id)));
  }

  function show(tokens) {
    const list = tokenList({
      label: "Tokens of the text; arrow keys move",
      classOf: (token, n) => `chip k${n % N_COLOURS}`,
      detailOf: chipDetail,
      fill,
      endsBlock: (token) => token.bytes.at(-1) === 10,
    });
    list.element.classList.add("chip-list");
    const shown = (from) => tokens.slice(from, from + MAX_CHIPS);
    list.add(shown(0));
    place.replaceChildren(list.element);
    let nShown = Math.min(tokens.length, MAX_CHIPS);
    const rest = () => `Show ${Math.min(MAX_CHIPS, tokens.length - nShown).toLocaleString("en")} more`;
    if (nShown < tokens.length) {
      const more = textButton(rest(), () => {
        list.add(shown(nShown));
        nShown = Math.min(nShown + MAX_CHIPS, tokens.length);
        more.textContent = rest();
        if (nShown >= tokens.length) more.remove();
      }, "");
      place.append(more);
    }
  }

  function count(tokens) {
    const nBytes = tokens.reduce((sum, token) => sum + token.bytes.length, 0);
    const facts = [["tokens", tokens.length], ["bytes", nBytes], ["characters", [...field.value].length]];
    const shown = facts.map(([name, value]) => [name, value.toLocaleString("en")]);
    if (tokens.length) shown.push(["bytes per token", (nBytes / tokens.length).toFixed(2)]);
    byId("token-counts").replaceChildren(
      ...shown.map(([name, value]) => {
        const fact = make("span");
        fact.append(make("strong", "", value), ` ${name}`);
        return fact;
      }),
    );
  }

  async function cut(text, signal) {
    const answer = await request("tokenize", { model: chosenModel(), prompt: text }, signal);
    const { tokens, token_bytes: bytes } = await answer.json();
    return tokens.map((id, n) => ({ id, bytes: bytes[n] }));
  }

  async function tokenize() {
    running?.abort();
    running = new AbortController();
    problem.hidden = true;
    try {
      const { signal } = running;
      const tokens = field.value ? await cut(field.value, signal) : [];
      if (signal.aborted) return;
      count(tokens);
      show(tokens);
    } catch (error) {
      if (error.name === "AbortError") return;
      place.replaceChildren();
      byId("token-counts").replaceChildren();
      problem.hidden = false;
      problem.replaceChildren(...problemBox(error.message, tokenize).childNodes);
      if (error.status === 401) askForToken();
    }
  }

  function tokenizeSoon() {
    fit(field);
    clearTimeout(timer);
    timer = setTimeout(tokenize, 150);
  }

  field.addEventListener("input", tokenizeSoon);
  return { refresh: () => field.value && tokenize(), retry: () => !problem.hidden && tokenize() };
}
