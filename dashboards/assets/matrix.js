// Compare: several runs side by side, a lane of heads each, and the boxes that pick heads to be given back.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const state = { data: null };
  const percent = (share) => (share === null || share === undefined ? "–" : lens.number(100 * share, 1) + " %");

  function said(line, at) {
    const head = "L" + Math.floor(at / state.data.heads) + "H" + (at % state.data.heads);
    const between = line.lows.length && line.lows[at] !== null ? " [" + lens.number(line.lows[at]) + ", " + lens.number(line.highs[at]) + "]" : "";
    return head + " · " + line.name + " · " + state.data.metric + " " + (line.values[at] === null ? "not in the trace" : lens.number(line.values[at]) + between);
  }

  function lane(line, number) {
    const data = state.data;
    const box = lens.make("div", "lane");
    box.style.setProperty("--layers", data.layers);
    for (let l = 0; l < data.layers; l++) {
      const layer = lens.make("div", "lane-layer");
      for (let h = 0; h < data.heads; h++) {
        const at = l * data.heads + h;
        const cell = lens.make("i", "lane-cell" + (line.levels[at] === null ? " missing" : ""));
        cell.dataset.cell = "L" + l + "H" + h;
        cell.dataset.lane = number;
        cell.dataset.at = at;
        if (line.levels[at] !== null) cell.style.backgroundColor = "var(--" + data.scale + "-" + line.levels[at] + ")";
        layer.append(cell);
      }
      box.append(layer);
    }
    return box;
  }

  function ruler() {
    const box = lens.make("div", "lane ruler");
    box.style.setProperty("--layers", state.data.layers);
    const step = state.data.layers > 20 ? 5 : state.data.layers > 10 ? 2 : 1;
    for (let l = 0; l < state.data.layers; l++) box.append(lens.make("span", "", l % step ? "" : String(l)));
    return box;
  }

  function row(line, number) {
    const box = lens.make("div", "matrix-row");
    const name = lens.make("button", "link matrix-name", line.name);
    name.type = "button";
    name.title = "Use as B: " + line.name + (line.policy ? " · " + line.policy : "");
    name.dataset.go = JSON.stringify({ b: line.run, circuit_a: null, circuit_b: null, edge: null });
    name.dataset.run = line.run;
    const loss = line.loss || {};
    const rise = loss.change === undefined ? "" : (loss.change >= 0 ? "+" : "") + lens.number(loss.change, 2) + (loss.low === null ? "" : " [" + lens.number(loss.low, 2) + ", " + lens.number(loss.high, 2) + "]");
    const cells = [
      [percent(line.density), "kept pairs ÷ allowed pairs"],
      [loss.b === undefined ? "–" : lens.number(loss.a, 2) + " → " + lens.number(loss.b, 2), (loss.kind === "answer" ? "answer NLL" : "NLL") + " of base and run, nats a token; " + (loss.n || 0) + " prompts in " + (loss.n_groups || 0) + " groups"],
      [rise || "–", "run − base, paired by prompt"],
      [percent(loss.share), "rise ÷ the largest rise among these runs"],
    ];
    box.append(name);
    for (const [text, title] of cells) {
      const cell = lens.make("span", "matrix-number", text);
      cell.title = title;
      box.append(cell);
    }
    box.append(line.problem ? lens.make("span", "note said", line.problem) : lane(line, number));
    return box;
  }

  lens.drawMatrix = function (data) {
    const box = document.getElementById("matrix");
    if (!box) return;
    box.replaceChildren();
    const readout = document.getElementById("matrix-readout");
    if (readout) readout.textContent = "";
    state.data = data && data.lines ? data : null;
    if (!state.data) return;
    const kind = data.lines.some((line) => line.loss.kind === "answer") ? "answer NLL" : "NLL";
    const top = lens.make("div", "matrix-row matrix-top");
    for (const word of ["run", "density", kind, "rise", "of the gap"]) top.append(lens.make("span", word === "run" ? "" : "matrix-number", word));
    top.append(ruler());
    box.append(top, ...data.lines.map(row));
    lens.mark();
  };

  document.addEventListener("pointerover", function (event) {
    const cell = event.target.closest?.(".lane-cell");
    const readout = cell && document.getElementById("matrix-readout");
    if (readout && state.data) readout.textContent = said(state.data.lines[Number(cell.dataset.lane)], Number(cell.dataset.at));
  });
  document.addEventListener("click", function (event) {
    const cell = event.target.closest?.(".lane-cell");
    if (!cell || !state.data) return;
    const at = Number(cell.dataset.at);
    lens.go({ b: state.data.lines[Number(cell.dataset.lane)].run, layer: Math.floor(at / state.data.heads), head: at % state.data.heads, circuit_a: null, circuit_b: null, edge: null });
  });

  // ---- heads that are picked ------------------------------------------------------------------------
  const picked = () => (lens.get("picked") || "").split(",").filter(Boolean);
  lens.isPicked = (name) => picked().includes(name);
  lens.markPicks = function () {
    const now = new Set(picked());
    for (const box of document.querySelectorAll(".pick")) box.setAttribute("aria-checked", String(now.has(box.dataset.pick)));
    for (const name of document.querySelectorAll("[data-run]")) name.toggleAttribute("aria-current", name.dataset.run === lens.get("b"));
  };
  document.addEventListener("click", async function (event) {
    const one = event.target.closest?.("[data-pick]");
    const only = event.target.closest?.("[data-pick-only]");
    const copy = event.target.closest?.("[data-copy]");
    if (one) {
      const name = one.dataset.pick;
      const now = picked();
      lens.go({ picked: (now.includes(name) ? now.filter((each) => each !== name) : [...now, name]).join(",") });
    } else if (only) lens.go({ picked: only.dataset.pickOnly });
    else if (copy) {
      const text = document.getElementById(copy.dataset.copy)?.textContent ?? "";
      try {
        await navigator.clipboard.writeText(text);
        lens.say("Command copied");
      } catch {
        window.prompt("Copy this command", text);
      }
    }
  });

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    matrix: function (data) {
      lens.drawMatrix(data);
      return window.dash_clientside.no_update;
    },
  });
})();
