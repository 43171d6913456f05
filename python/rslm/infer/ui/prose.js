// Text of a model as it grows: paragraphs and fenced code, made of text nodes alone.

function proseView() {
  const element = make("div", "prose");
  let fence = null;
  let line = ""; // the last, unfinished line
  let nShown = 0; // characters of it that are shown; none while it may yet become a fence
  let node = null;
  let block = null;

  function open(tag, className) {
    block = make(tag, className);
    block.dir = "auto";
    node = block.appendChild(document.createTextNode(""));
    return block;
  }

  function startCode(language) {
    if (node) node.data = node.data.replace(/\n+$/, "");
    const pre = make("pre", "code");
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", language ? `Code, ${language}` : "Code");
    pre.append(open("code", ""));
    element.append(pre);
  }

  function write(text) {
    // Around a block of code a blank line would be a second one.
    const shown = node ? text : text.replace(/^\n+/, "");
    if (!shown) return;
    if (!node) element.append(open("p", ""));
    node.appendData(shown);
    // The browser lays a paragraph out anew when it grows, so a long text is several.
    if (!fence && text.endsWith("\n") && node.length > 2000) [node, block] = [null, null];
  }

  const mayBeFence = (text) => /^ {0,3}(?:`{0,2}|~{0,2}|`{3,}[^`]*|~{3,}.*)$/.test(text);

  const fenceOf = (text) => /^ {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)$/.exec(text);
  const closes = (found) => fence && found?.[1].startsWith(fence) && !found[2].trim();

  function endLine() {
    const found = fenceOf(line);
    if (closes(found)) {
      [fence, node, block] = [null, null, null];
    } else if (!fence && found) {
      fence = found[1];
      startCode(found[2].trim().split(/\s/)[0]);
    } else {
      write(`${line.slice(nShown)}\n`);
    }
    [line, nShown] = ["", 0];
  }

  function add(text) {
    for (const [n, part] of text.split("\n").entries()) {
      if (n > 0) endLine();
      line += part;
      if (nShown === 0 && mayBeFence(line)) continue;
      write(line.slice(nShown));
      nShown = line.length;
    }
  }

  function finish() {
    if (!closes(fenceOf(line))) write(line.slice(nShown));
    [line, nShown] = ["", 0];
  }

  return { element, add, finish };
}
