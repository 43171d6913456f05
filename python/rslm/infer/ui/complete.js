// A text that the model goes on with, as base models do, or whose tokens it scores.

function setUpComplete({ chosenModel }) {
  const [field, place] = [byId("prompt"), byId("continuation")];
  let [running, shown, again] = [null, null, null];

  function setRunning(controller) {
    running = controller;
    for (const id of ["continue", "score"]) byId(id).hidden = controller !== null;
    byId("stop-complete").hidden = controller === null;
  }

  function show(title, answer, actions) {
    const view = answerView(answer, { onRetry: () => again(), actions });
    place.replaceChildren(make("h2", "", title), view.element);
    shown = view;
    return view;
  }

  async function goOn() {
    if (running) return;
    again = goOn;
    const parameters = samplingParameters();
    const asked = { model: chosenModel(), prompt: field.value, ...parameters, logprobs: N_ALTERNATIVES };
    const answer = newAnswer(asked.model, parameters);
    const view = show("Continuation", answer, () => [
      textButton("Regenerate", goOn),
      ...(answer.content ? [textButton("Append to the text", () => take(answer))] : []),
    ]);
    const controller = new AbortController();
    setRunning(controller);
    await generate(answer, view, "v1/completions", asked, controller.signal);
    setRunning(null);
  }

  function take(answer) {
    field.value += answer.content;
    fit(field);
    place.replaceChildren();
    shown = null;
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  // The prompt comes back with the log-probability of each of its tokens, and nothing is added.
  async function score() {
    if (running || !field.value) return;
    again = score;
    const answer = newAnswer(chosenModel(), {});
    const asked = { model: answer.model, prompt: field.value, max_tokens: 0, echo: true, logprobs: N_ALTERNATIVES };
    const controller = new AbortController();
    setRunning(controller);
    try {
      const response = await request("v1/completions", asked, controller.signal);
      const { text, tokens } = readChunk(await response.json());
      Object.assign(answer, { content: text, tokens, finish: "stop" });
      setHeat(true);
      announce("Scored");
    } catch (error) {
      const isStopped = error.name === "AbortError";
      Object.assign(answer, { finish: isStopped ? "stopped" : "error", problem: isStopped ? null : error.message });
      if (error.status === 401) askForToken();
    }
    setRunning(null);
    const view = show(scoreTitle(answer), answer);
    view.ended();
  }

  function scoreTitle(answer) {
    const scored = answer.tokens.filter((token) => Number.isFinite(token.logProb));
    if (!scored.length) return "The text, scored";
    const loss = -scored.reduce((sum, token) => sum + token.logProb, 0) / scored.length;
    return `The text, scored: ${loss.toFixed(3)} nats per token`;
  }

  byId("complete-form").addEventListener("submit", (event) => {
    event.preventDefault();
    goOn();
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      goOn();
    }
  });
  field.addEventListener("input", () => fit(field));
  byId("score").addEventListener("click", score);
  byId("stop-complete").addEventListener("click", () => stop());

  function stop() {
    running?.abort();
    if (running) field.focus();
    return running !== null;
  }

  return {
    stop,
    retry: () => place.querySelector(".problem") && again(),
    redraw: () => shown?.rebuild(),
  };
}
