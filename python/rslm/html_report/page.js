"use strict";
// Draws the page's figures from its data, sorts its tables, switches its colours.
(() => {
  const figures = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const nColours = 10;
  // The script knows no name of the page's by itself: what is drawn anew is listed here.
  const redraws = [];

  // plotly.js reads tags and entities in names: a name must stay what it is.
  const plain = (text) =>
    text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  // A property may be one colour for light and one for dark: the browser says which it is.
  const probe = document.body.appendChild(document.createElement("i"));
  probe.hidden = true;
  function style(name) {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  }
  const colour = (number) => style(`--c${number % nColours}`);
  const dash = (number) => dashes[Math.floor(number / nColours) % dashes.length];

  function axis(title, isLog) {
    return {
      title: { text: plain(title), standoff: 10 },
      type: isLog ? "log" : "linear",
      exponentformat: isLog ? "power" : "SI",
      gridcolor: style("--grid"),
      linecolor: style("--line"),
      zeroline: false,
      automargin: true,
    };
  }

  function layout(x, y, more) {
    const font = { family: getComputedStyle(root).getPropertyValue("--font"), color: style("--text"), size: 13 };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font,
      margin: { l: 60, r: 18, t: 10, b: 48 },
      xaxis: x,
      yaxis: y,
      showlegend: false,
      hoverlabel: {
        bgcolor: style("--raised"),
        bordercolor: style("--line"),
        font: { ...font, size: 12 },
        namelength: 60,
      },
      modebar: { color: style("--muted"), activecolor: style("--accent"), bgcolor: "rgba(0,0,0,0)" },
      ...more,
    };
  }

  const options = {
    responsive: true,
    displaylogo: false,
    // Named one by one: some of the others send the data elsewhere.
    modeBarButtons: [
      ["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"],
      ["toImage"],
    ],
    toImageButtonOptions: { format: "svg" },
  };

  function draw(figure, traces, drawn) {
    const place = figure.querySelector(".plot");
    place.classList.add("drawn");
    return Plotly.react(place, traces, drawn, options);
  }

  // The mean of the values within `reach` places, gaps left out.
  function smooth(values, reach) {
    if (reach < 1) return values;
    const sums = [0];
    const counts = [0];
    for (const [i, value] of values.entries()) {
      sums.push(sums[i] + (value ?? 0));
      counts.push(counts[i] + (value === null ? 0 : 1));
    }
    return values.map((value, i) => {
      const [low, high] = [Math.max(0, i - reach), Math.min(values.length, i + reach + 1)];
      const count = counts[high] - counts[low];
      return count ? (sums[high] - sums[low]) / count : null;
    });
  }

  // Places on an axis; one that is a multiple of the first is kept as that factor.
  function placesOn(x, key, first) {
    return typeof x[key] === "number" ? x[first].map((place) => place * x[key]) : x[key];
  }

  function setUpCurves(figure, spec) {
    const control = (name) => figure.querySelector(`[name="${name}"]`);
    const first = Object.keys(spec.axes)[0];
    const hidden = new Set();
    const chosenAxis = () => figure.querySelector("fieldset input:checked").value;

    function tracesOf(line, key, settings) {
      const series = line.series[key];
      if (!series) return [];
      const isRough = spec.rough.includes(key);
      const reach = (n) => (isRough ? Math.floor((n * settings.smoothing) / 200) : 0);
      const [meanX, meanY] = series.meanY ? [series.meanX, series.meanY] : [series.x, series.y];
      const isSmoothed = reach(meanY.length) > 0;
      const base = {
        type: "scatter",
        name: plain(line.name) + (settings.keys.length > 1 ? ` · ${key}` : ""),
        line: { color: colour(line.group), dash: dash(line.group), width: 2 },
        hovertemplate: "%{y:.5~g}<extra>%{fullData.name}</extra>",
      };
      const cut = (x, y) => {
        const places = placesOn(x, settings.axis, first);
        if (!settings.late) return { x: places, y };
        const from = (places.findLast((place) => place !== null) ?? 0) / 10;
        const kept = places.map((place, i) => i).filter((i) => places[i] >= from);
        return { x: kept.map((i) => places[i]), y: kept.map((i) => y[i]) };
      };
      const isSparse = series.y.length <= 60;
      const traces = [];
      if (!isSmoothed || settings.nShown <= 8) {
        const faint = { opacity: 0.28, hoverinfo: "skip", hovertemplate: null };
        const width = isSmoothed ? 1 : 2;
        traces.push({
          ...base,
          ...cut(series.x, series.y),
          ...(isSmoothed ? faint : {}),
          mode: isSparse && !isSmoothed ? "lines+markers" : "lines",
          marker: { size: 6, color: base.line.color },
          line: { ...base.line, width },
        });
      }
      if (isSmoothed) {
        const y = smooth(meanY, reach(meanY.length));
        traces.push({ ...base, ...cut(meanX, y), mode: "lines" });
      }
      return traces;
    }

    function redraw() {
      const shown = spec.lines.filter((line) => !hidden.has(line.group));
      const metric = spec.metrics[Number(control("metric").value)];
      const settings = {
        axis: chosenAxis(),
        keys: metric.keys,
        late: control("late").checked,
        smoothing: Number(control("smoothing").value),
        nShown: shown.length,
      };
      const isRough = metric.keys.some((key) => spec.rough.includes(key));
      control("smoothing").disabled = !isRough;
      figure.querySelector("output").textContent = `${settings.smoothing} %`;
      const traces = shown.flatMap((line) =>
        metric.keys.flatMap((key) => tracesOf(line, key, settings)),
      );
      const logX = control("log-x").checked;
      const logY = control("log-y").checked;
      // A zoom outlives a change of colours or smoothing, not of what the axes mean.
      const view = [settings.axis, metric.title, settings.late, logX, logY].join();
      const x = { ...axis(spec.axes[settings.axis], logX), hoverformat: ".5~s" };
      draw(
        figure,
        traces,
        layout(x, axis(metric.title, logY), {
          uirevision: view,
          hovermode: shown.length <= 8 ? "x unified" : "closest",
          // Validations are far apart.
          hoverdistance: 60,
        }),
      );
    }

    const items = spec.groups.map((name, group) => ({
      name,
      colour: group,
      toggle: (isShown) => {
        isShown ? hidden.delete(group) : hidden.add(group);
        redraw();
      },
    }));
    legend(figure, items);
    figure.querySelector(".controls").addEventListener("input", redraw);
    control("reset").addEventListener("click", () =>
      Plotly.relayout(figure.querySelector(".plot"), {
        "xaxis.autorange": true,
        "yaxis.autorange": true,
      }),
    );
    redraws.push(redraw);
  }

  function swatch(number) {
    const mark = document.createElement("i");
    mark.className = `swatch c${number % nColours} ${dash(number)}`;
    return mark;
  }

  // Names with their colours; where they toggle, as buttons.
  function legend(figure, items) {
    const list = figure.querySelector(".legend");
    for (const item of items) {
      const entry = document.createElement("li");
      const name = document.createElement(item.toggle ? "button" : "span");
      name.append(swatch(item.colour), item.name);
      if (item.toggle) {
        name.type = "button";
        name.title = "show or hide";
        name.setAttribute("aria-pressed", "true");
        name.addEventListener("click", () => {
          const isShown = name.getAttribute("aria-pressed") !== "true";
          name.setAttribute("aria-pressed", String(isShown));
          item.toggle(isShown);
        });
      }
      entry.append(name);
      list.append(entry);
    }
  }

  function setUpPlot(figure, spec) {
    function trace(source) {
      const [line, base] = [colour(source.colour), { type: "scatter", name: plain(source.name) }];
      if (source.kind === "band") {
        return {
          ...base,
          x: [...source.x, ...source.x.toReversed()],
          y: [...source.high, ...source.y.toReversed()],
          fill: "toself",
          fillcolor: line,
          opacity: 0.16,
          line: { width: 0 },
          mode: "lines",
          hoverinfo: "skip",
        };
      }
      const labels = source.labels.length ? { text: source.labels.map(plain) } : {};
      const extra = source.labels.length ? "%{text}<br>" : "";
      return {
        ...base,
        ...labels,
        x: source.x,
        y: source.y,
        mode: source.kind === "points" ? "markers" : source.x.length > 30 ? "lines" : "lines+markers",
        marker: { size: 8, color: line, line: { width: 1, color: style("--page") } },
        line: { color: line, width: 2, dash: source.dashed ? "dash" : "solid" },
        hovertemplate: `${extra}%{x:.4~s}, %{y:.5~g}<extra>%{fullData.name}</extra>`,
      };
    }
    legend(figure, spec.traces.filter((source) => source.name));
    redraws.push(() =>
      draw(
        figure,
        spec.traces.map(trace),
        layout(axis(spec.x.title, spec.x.log), axis(spec.y.title, spec.y.log), {
          uirevision: "same",
          hovermode: "closest",
        }),
      ),
    );
  }

  function setUpForest(figure, spec) {
    const tones = { good: "--good", bad: "--bad", muted: "--muted", "": "--text" };
    const place = figure.querySelector(".plot");
    place.style.height = `${90 + 34 * spec.effects.length}px`;
    figure.querySelector(".legend").remove();
    const rows = spec.effects.map((effect, i) => i);
    function redraw() {
      const colours = spec.effects.map((effect) => style(tones[effect.tone]));
      const traces = rows.map((i) => {
        const { name, estimate, low, high, note } = spec.effects[i];
        const isKnown = low !== null && high !== null;
        return {
          type: "scatter",
          mode: "markers",
          name: plain(name),
          x: [estimate],
          y: [i],
          text: [plain(note)],
          marker: { size: 10, symbol: "square", color: colours[i] },
          error_x: {
            visible: isKnown,
            type: "data",
            symmetric: false,
            array: [high - estimate],
            arrayminus: [estimate - low],
            color: colours[i],
            thickness: 2,
            width: 5,
          },
          hovertemplate: "%{x:.4~g}<br>%{text}<extra>%{fullData.name}</extra>",
        };
      });
      const y = {
        ...axis("", false),
        tickvals: rows,
        ticktext: spec.effects.map((effect) => plain(effect.name)),
        range: [spec.effects.length - 0.5, -0.5],
        fixedrange: true,
      };
      const none = { type: "line", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1 };
      const x = { ...axis(spec.x.title, false), exponentformat: "none" };
      draw(
        figure,
        traces,
        layout(x, y, {
          uirevision: "same",
          hovermode: "closest",
          shapes: [{ ...none, line: { color: style("--line"), width: 1.5, dash: "dot" } }],
        }),
      );
    }
    redraws.push(redraw);
  }

  // Each column shows its text of the moment chosen, or else its last one before that.
  function setUpTexts(block, spec) {
    const choice = block.querySelector("select");
    choice.addEventListener("input", () => {
      for (const [i, column] of block.querySelectorAll("article").entries()) {
        const moments = Object.keys(spec.texts[i]).map(Number);
        const moment = moments.findLast((given) => given <= Number(choice.value));
        column.querySelector("p span").textContent = moment?.toLocaleString("en") ?? "-";
        column.querySelector("pre").textContent = spec.texts[i][moment] ?? "";
      }
    });
  }

  function setUpTable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const valueOf = (row, n) => row.cells[n].dataset.value;
    function compare(one, other) {
      const numbers = [Number(one), Number(other)];
      if (!numbers.some(Number.isNaN)) return numbers[0] - numbers[1];
      return one.localeCompare(other, "en", { numeric: true });
    }
    for (const [n, head] of heads.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const isAscending = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((cell) => cell.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
        const [known, missing] = [[], []];
        for (const row of body.rows) (valueOf(row, n) === undefined ? missing : known).push(row);
        known.sort((a, b) => compare(valueOf(a, n), valueOf(b, n)) * (isAscending ? 1 : -1));
        body.append(...known, ...missing);
      });
    }
  }

  function setUpThemes() {
    const redraw = () => redraws.forEach((one) => one());
    document.querySelector(".themes").addEventListener("input", (event) => {
      root.dataset.theme = event.target.value;
      redraw();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
    // On paper the page is light.
    matchMedia("print").addEventListener("change", redraw);
  }

  const setUps = {
    curves: setUpCurves,
    plot: setUpPlot,
    forest: setUpForest,
    texts: setUpTexts,
    tokens: (block, spec) => scoredTokens(block, spec),
  };
  for (const [name, spec] of Object.entries(figures)) {
    setUps[spec.kind](document.getElementById(name), spec);
  }
  document.querySelectorAll("table.sortable").forEach(setUpTable);
  setUpThemes();
  redraws.forEach((one) => one());
})();
