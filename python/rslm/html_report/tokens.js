"use strict";
// A text as a list of tokens, each shaded by its probability. What stands behind a token shows
// while the pointer is over it, and while the arrow keys have chosen it.

// The least probability of each shade; below the last one stands the warmest.
const SHADES = [0.9, 0.6, 0.35, 0.15, 0.05, 0.01, 0.001];

function shadeOf(logProb) {
  const shade = SHADES.findIndex((least) => Math.exp(logProb) >= least);
  return shade < 0 ? SHADES.length : shade;
}

function percent(logProb) {
  const value = 100 * Math.exp(logProb);
  if (value < 0.001) return "< 0.001 %";
  return `${value.toFixed(value >= 10 ? 1 : value >= 0.1 ? 2 : 3)} %`;
}

// Whole characters and, where bytes are none, the bytes: [{ text } or { byte }].
function piecesOf(bytes) {
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const pieces = [];
  let at = 0;
  const lengthOf = (first) => (first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4);
  while (at < bytes.length) {
    const end = at + lengthOf(bytes[at]);
    let text = null;
    try {
      text = end <= bytes.length ? strict.decode(bytes.subarray(at, end)) : null;
    } catch {
      // It is no character.
    }
    if (text === null) {
      pieces.push({ byte: bytes[at].toString(16).toUpperCase().padStart(2, "0") });
      at += 1;
    } else {
      const last = pieces.at(-1);
      if (last?.text !== undefined) last.text += text;
      else pieces.push({ text });
      at = end;
    }
  }
  return pieces;
}

function tokenPieces(token) {
  return token.bytes ? piecesOf(Uint8Array.from(token.bytes)) : [{ text: token.text }];
}

const NAMES = { " ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥" };
const SPOKEN = { " ": "space ", "\n": "line break ", "\r": "carriage return ", "\t": "tab " };
const INVISIBLE = /[\s\p{Cc}\p{Cf}\p{Zs}]/gu;
const code = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;

// A token's text with signs for what cannot be seen, for eyes or for ears.
function tokenName(token, isSpoken = false) {
  const names = isSpoken ? SPOKEN : NAMES;
  return tokenPieces(token)
    .map((piece) =>
      piece.byte !== undefined
        ? `${isSpoken ? "byte " : "\\x"}${piece.byte}${isSpoken ? " " : ""}`
        : piece.text.replace(INVISIBLE, (character) => names[character] ?? code(character)),
    )
    .join("");
}

function make(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

// The lengths of shades in words, as a line with their colours.
function shadeScale() {
  const scale = make("span", "scale");
  const boxes = make("span");
  boxes.setAttribute("aria-hidden", "true");
  for (let shade = 0; shade <= SHADES.length; shade += 1) boxes.append(make("i", `h${shade}`));
  scale.append("likely", boxes, "surprising");
  return scale;
}

function showPieces(place, token) {
  for (const piece of tokenPieces(token)) {
    if (piece.byte !== undefined) {
      place.append(make("span", "byte", piece.byte));
      continue;
    }
    // A line break alone would have no place to point at.
    for (const [n, line] of piece.text.split("\n").entries()) {
      if (n > 0) {
        const sign = make("span", "break", "↵");
        sign.setAttribute("aria-hidden", "true");
        place.append(sign, "\n");
      }
      place.append(line);
    }
  }
}

// The one box that says more about a token.
const tokenDetail = (() => {
  let box = null;
  let owner = null;
  let shownFor = null;
  let timer = 0;

  function hide(asker = owner) {
    clearTimeout(timer);
    if (box && asker === owner) {
      box.hidden = true;
      owner = null;
    }
  }

  function build() {
    box = make("div", "detail");
    box.id = "token-detail";
    box.setAttribute("role", "tooltip");
    // Whoever points at the box may read it.
    box.addEventListener("pointerenter", () => clearTimeout(timer));
    box.addEventListener("pointerleave", () => hide());
    document.body.append(box);
  }

  function row(entry) {
    const item = make("li", entry.isChosen ? "chosen" : "");
    const length = make("span", "length");
    const bar = make("i");
    bar.style.width = `${100 * Math.exp(entry.logProb)}%`;
    length.append(bar);
    item.append(make("code", "", entry.name), length, make("span", "", percent(entry.logProb)));
    return item;
  }

  function place(target) {
    const [at, margin] = [target.getClientRects()[0] ?? target.getBoundingClientRect(), 8];
    const { width, height } = box.getBoundingClientRect();
    const left = Math.max(margin, Math.min(at.left, innerWidth - width - margin));
    const below = at.bottom + margin;
    const top = below + height <= innerHeight ? below : Math.max(margin, at.top - height - margin);
    box.style.left = `${left}px`;
    box.style.top = `${top}px`;
  }

  function show(asker, target, detail) {
    if (!box) build();
    clearTimeout(timer);
    [owner, shownFor] = [asker, target];
    const head = make("p");
    head.append(make("code", "name", detail.name));
    box.replaceChildren(head);
    for (const line of detail.lines) box.append(make("p", "facts-line", line));
    if (detail.rows.length) {
      const list = make("ol");
      list.append(...detail.rows.map(row));
      box.append(list);
    }
    // In a dialog that lies over the page the box lies over the dialog.
    (target.closest("dialog:modal") ?? document.body).append(box);
    box.hidden = false;
    place(target);
  }

  return {
    show,
    hide,
    hideSoon: () => {
      clearTimeout(timer);
      timer = setTimeout(() => hide(), 150);
    },
    follow: () => box !== null && !box.hidden && place(shownFor),
    isShown: () => box !== null && !box.hidden,
  };
})();

// What the box says of a token that was predicted: { text or bytes, id, logProb, rank, top }.
function predictionDetail(token) {
  const lines = [];
  const spoken = [];
  if (Number.isFinite(token.logProb)) {
    lines.push(`probability ${percent(token.logProb)} · ${(-token.logProb).toFixed(2)} nats`);
    spoken.push(percent(token.logProb));
  } else {
    lines.push("not predicted: nothing stands before it");
  }
  const place = token.rank ?? token.top.findIndex((one) => sameToken(one, token)) + 1;
  if (place > 0 && lines.length) lines.push(place === 1 ? "the likeliest token" : `place ${place.toLocaleString("en")} of all tokens`);
  if (token.id !== undefined) lines.push(`id ${token.id}`);
  const isAmong = token.top.some((one) => sameToken(one, token));
  const shown = isAmong || !Number.isFinite(token.logProb) ? token.top : [...token.top, token];
  const rows = shown.map((one) => ({
    name: tokenName(one),
    logProb: one.logProb,
    isChosen: sameToken(one, token),
  }));
  for (const one of token.top.filter((other) => !sameToken(other, token))) {
    spoken.push(`${tokenName(one, true)} ${percent(one.logProb)}`);
  }
  return { name: tokenName(token), lines, rows, spoken: spoken.join(", ") };
}

function sameToken(one, other) {
  if (one.id !== undefined && other.id !== undefined) return one.id === other.id;
  return tokenName(one) === tokenName(other);
}

// The browser lays a block out anew when it grows, so a long text is several.
const endsLongBlock = (token, nInBlock) => nInBlock >= 200 && token.text?.endsWith("\n");

// A list of tokens, which grows: `classOf(token, n)` is a token's class, `detailOf(token, n)` what is
// said of it, `fill(span, token)` shows it, and after one that `endsBlock` a line begins.
function tokenList({ label, classOf, detailOf, fill = showPieces, endsBlock = endsLongBlock }) {
  const list = make("div", "tokens");
  const [tokens, spans, numbers] = [[], [], new WeakMap()];
  let chosen = -1;
  let wasChosen = 0;
  let block = null;
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", label);
  list.setAttribute("aria-orientation", "horizontal");
  list.tabIndex = 0;
  list.dir = "auto";

  function add(more) {
    const rest = document.createDocumentFragment();
    for (const token of more) {
      if (!block) {
        block = make("div");
        block.setAttribute("role", "presentation");
        rest.append(block);
      }
      const span = make("span", `token ${classOf(token, tokens.length)}`);
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      fill(span, token);
      numbers.set(span, tokens.length);
      tokens.push(token);
      spans.push(span);
      block.append(span);
      if (endsBlock(token, block.childElementCount)) block = null;
    }
    list.append(rest);
  }

  function choose(n) {
    if (chosen >= 0) {
      spans[chosen].setAttribute("aria-selected", "false");
      spans[chosen].removeAttribute("id");
      spans[chosen].removeAttribute("aria-label");
    }
    chosen = n;
    if (n < 0) {
      list.removeAttribute("aria-activedescendant");
      return;
    }
    const span = spans[n];
    const detail = detailOf(tokens[n], n);
    span.id = "chosen-token";
    span.setAttribute("aria-selected", "true");
    span.setAttribute("aria-label", `${tokenName(tokens[n], true)}: ${detail.spoken}`);
    list.setAttribute("aria-activedescendant", span.id);
    span.scrollIntoView({ block: "nearest" });
    tokenDetail.show(list, span, detail);
  }

  // The token of the line above or below that is nearest.
  function inNextLine(step) {
    const from = spans[chosen].getBoundingClientRect();
    let [best, bestGap, line] = [chosen, Infinity, null];
    for (let n = chosen + step; n >= 0 && n < spans.length; n += step) {
      const at = spans[n].getBoundingClientRect();
      if (Math.abs(at.top - from.top) < 4) continue;
      line ??= at.top;
      if (Math.abs(at.top - line) >= 4) break;
      const gap = Math.abs(at.left - from.left);
      if (gap < bestGap) [best, bestGap] = [n, gap];
    }
    return best;
  }

  const moves = {
    ArrowRight: () => Math.min(chosen + 1, spans.length - 1),
    ArrowLeft: () => Math.max(chosen - 1, 0),
    ArrowDown: () => inNextLine(1),
    ArrowUp: () => inNextLine(-1),
    Home: () => 0,
    End: () => spans.length - 1,
  };
  list.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && tokenDetail.isShown()) {
      tokenDetail.hide();
      event.stopPropagation();
    }
    const hasOther = event.ctrlKey || event.metaKey || event.altKey;
    if (hasOther || !(event.key in moves) || !spans.length) return;
    event.preventDefault();
    choose(moves[event.key]());
  });
  list.addEventListener("focus", () => {
    if (spans.length && list.matches(":focus-visible")) choose(wasChosen);
  });
  list.addEventListener("blur", () => {
    tokenDetail.hide(list);
    wasChosen = Math.max(chosen, 0);
    choose(-1);
  });
  list.addEventListener("pointerover", (event) => {
    const span = event.target.closest?.(".token");
    const n = span && numbers.get(span);
    if (n !== undefined && n !== null) tokenDetail.show(list, span, detailOf(tokens[n], n));
  });
  list.addEventListener("pointerleave", (event) => {
    // A finger that lifts has not gone elsewhere.
    if (event.pointerType !== "touch") tokenDetail.hideSoon();
  });
  return { element: list, add };
}
// Makes a list of tokens of a report's text that stands there already.
function scoredTokens(block, spec) {
  const entry = (id, logProb) => {
    const shown = spec.vocab[id];
    const text = typeof shown === "string" ? { text: shown } : { bytes: shown };
    return { ...text, id, logProb: logProb ?? NaN };
  };
  const list = tokenList({
    label: block.querySelector("p").textContent,
    classOf: (token) => (Number.isFinite(token.logProb) ? `h${shadeOf(token.logProb)}` : "h0"),
    detailOf: predictionDetail,
  });
  list.add(
    spec.tokens.map(([id, logProb, rank, ...top]) => ({
      ...entry(id, logProb),
      rank,
      top: top.map((pair) => entry(...pair)),
    })),
  );
  block.querySelector("p").append(" ", shadeScale());
  block.querySelector("pre").replaceWith(list.element);
}

addEventListener("pointerdown", (event) => {
  // A finger has no way to leave a token but by touching something else.
  const isInside = event.target.closest?.(".token, .detail");
  if (event.pointerType === "touch" && !isInside) tokenDetail.hide();
});
addEventListener("scroll", tokenDetail.follow, { capture: true, passive: true });
addEventListener("resize", tokenDetail.follow, { passive: true });
