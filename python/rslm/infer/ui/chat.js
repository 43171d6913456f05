// The conversation: messages, the one answer that may be under way, what can be done with either.

function setUpChat({ chosenModel }) {
  const [list, field] = [byId("messages"), byId("message")];
  let messages = []; // { role, content, ... }; answers as `newAnswer` makes them
  let views = []; // one a message
  let running = null;
  let nTries = 0;

  const lastIndexOf = (role) => messages.findLastIndex((message) => message.role === role);

  function setRunning(controller) {
    running = controller;
    byId("send").hidden = controller !== null;
    byId("stop").hidden = controller === null;
    list.classList.toggle("is-running", controller !== null);
  }

  function append(message, view) {
    const item = make("li", message.role);
    const name = message.role === "user" ? "You" : message.model;
    item.append(make("p", "who", name), view.element);
    list.append(item);
    messages.push(message);
    views.push({ ...view, item });
    byId("start").hidden = true;
    byId("conversation").scrollTop = byId("conversation").scrollHeight;
  }

  function removeFrom(index) {
    for (const view of views.slice(index)) view.item.remove();
    [messages, views] = [messages.slice(0, index), views.slice(0, index)];
    byId("start").hidden = messages.length > 0;
  }

  // Only the last question can be edited, and only the last answer asked for again.
  function refreshActions() {
    for (const [index, view] of views.entries()) {
      view.item.classList.toggle("is-last", index >= lastIndexOf("user"));
      view.refreshFoot?.();
    }
  }

  function userView(content) {
    const element = make("div", "user-body");
    const text = make("div", "user-text", content);
    text.dir = "auto";
    const foot = make("div", "foot-line");
    const copy = textButton("Copy", () => copyText(content, copy));
    foot.append(copy, textButton("Edit", edit, "plain only-last"));
    element.append(text, foot);
    return { element };
  }

  function body(parameters) {
    const system = byId("system").value;
    const said = messages.filter((message) => message.content !== "");
    return {
      model: chosenModel(),
      messages: [
        ...(system ? [{ role: "system", content: system }] : []),
        ...said.map(({ role, content }) => ({ role, content })),
      ],
      ...parameters,
      logprobs: true,
      top_logprobs: N_ALTERNATIVES,
    };
  }

  async function answerLast() {
    const parameters = samplingParameters();
    // The same seed would give the same answer again.
    if (numberOf("seed") !== null) parameters.seed += nTries;
    const asked = body(parameters);
    const answer = newAnswer(asked.model, parameters);
    const view = answerView(answer, {
      onRetry: regenerate,
      actions: () => [textButton("Regenerate", regenerate, "plain only-last")],
    });
    append(answer, view);
    refreshActions();
    const controller = new AbortController();
    setRunning(controller);
    await generate(answer, view, "v1/chat/completions", asked, controller.signal);
    if (running === controller) setRunning(null);
  }

  function send(content) {
    if (running || !content.trim()) return;
    nTries = 0;
    append({ role: "user", content }, userView(content));
    answerLast();
  }

  function regenerate() {
    if (running || lastIndexOf("user") < 0) return;
    nTries += 1;
    removeFrom(lastIndexOf("user") + 1);
    answerLast();
    field.focus();
  }

  function edit() {
    const index = lastIndexOf("user");
    if (running || index < 0 || views[index].item.querySelector("form")) return;
    const { element, item } = views[index];
    const form = make("form", "edit");
    const area = make("textarea");
    area.value = messages[index].content;
    area.setAttribute("aria-label", "Edited message");
    const close = () => {
      form.replaceWith(element);
      field.focus();
    };
    const save = make("button", "main-button", "Send again");
    const row = make("div", "composer-row");
    row.append(textButton("Cancel", close, ""), save);
    form.append(area, row);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      const content = area.value;
      close();
      removeFrom(index);
      send(content);
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
      submitOnEnter(event, form);
    });
    element.replaceWith(form);
    fit(area);
    area.focus();
    item.scrollIntoView({ block: "nearest" });
  }

  function exportConversation() {
    const record = {
      format: "rslm conversation",
      version: 1,
      exported: new Date().toISOString(),
      system: byId("system").value || null,
      messages: messages.map((message) => ({ ...message, tokens: message.tokens?.map(exportedToken) })),
    };
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1)], { type: "application/json" }));
    link.download = `conversation-${record.exported.slice(0, 19).replaceAll(":", "-")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  byId("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) return;
    send(field.value);
    field.value = "";
    fit(field);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "ArrowUp" && field.value === "") edit();
    submitOnEnter(event, byId("chat-form"));
  });
  field.addEventListener("input", () => fit(field));
  byId("stop").addEventListener("click", () => stop());
  byId("export").addEventListener("click", exportConversation);
  byId("new-chat").addEventListener("click", () => {
    stop();
    removeFrom(0);
    field.focus();
  });

  function stop() {
    if (!running) return false;
    running.abort();
    field.focus();
    return true;
  }

  return {
    stop,
    retry: () => messages.at(-1)?.finish === "error" && regenerate(),
    redraw: () => views.forEach((view) => view.rebuild?.()),
  };
}

function exportedToken({ text, bytes, logProb, top }) {
  const plain = (one) => ({
    token: one.text,
    bytes: one.bytes ?? undefined,
    log_prob: Number.isFinite(one.logProb) ? one.logProb : null,
  });
  return { ...plain({ text, bytes, logProb }), top: top.map(plain) };
}

function submitOnEnter(event, form) {
  // Enter also ends what an input method composes.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
}

// As tall as its text, where the style sheet cannot say so.
function fit(area) {
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
