// Strips of layers and tokens: what lies under the pointer, in A and B; a click or the arrow keys
// select layer and token.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const cells = new Map();
  const shape = (frame) => JSON.parse(frame.dataset.shape);
  const frames = () => [...document.querySelectorAll(".strip-frame")];

  async function numbers(frame) {
    const url = frame.dataset.cells;
    if (!cells.has(url)) {
      if (cells.size > 12) cells.clear();
      cells.set(url, fetch(url).then((answer) => (answer.ok ? answer.arrayBuffer() : null)).then((bytes) => bytes && new Float32Array(bytes)));
    }
    return cells.get(url);
  }
  function place(frame, event) {
    const box = frame.getBoundingClientRect();
    const s = shape(frame);
    const inside = (value) => Math.min(Math.max(value, 0), 1 - 1e-9);
    return { layer: Math.floor(inside((event.clientY - box.top) / box.height) * s.layers), column: Math.floor(inside((event.clientX - box.left) / box.width) * s.columns), s };
  }
  function outline(frame, layer, column) {
    const s = shape(frame);
    const row = frame.querySelector(".strip-row");
    row.hidden = !(layer >= 0 && layer < s.layers);
    row.style.top = (100 * layer) / s.layers + "%";
    row.style.height = 100 / s.layers + "%";
    const line = frame.querySelector(".strip-column");
    line.hidden = !(column >= 0 && column < s.columns);
    line.style.left = (100 * column) / s.columns + "%";
    line.style.width = 100 / s.columns + "%";
  }
  // Outline the selected layer and token.
  lens.markStrips = function () {
    for (const frame of frames()) {
      const q = lens.get("q");
      outline(frame, Number(lens.get("layer") ?? -1), q === null ? -1 : Math.floor(Number(q) / shape(frame).pool));
    }
  };
  async function read(at) {
    for (const each of frames()) outline(each, at.layer, at.column);
    const values = await Promise.all(frames().map(async (each) => [each.dataset.name, await numbers(each), shape(each)]));
    const line = document.getElementById("strip-readout");
    if (!line) return;
    const [first, last] = [at.column * at.s.pool, Math.min((at.column + 1) * at.s.pool, at.s.length) - 1];
    const token = first === last ? first + " " + lens.token(first) : first + "–" + last;
    const said = values.map(([name, some, s]) => name + " " + (some && at.column < s.columns ? lens.number(some[at.layer * s.columns + at.column], 4) : "–"));
    line.textContent = "layer " + at.layer + "  ×  token " + token + "   " + said.join("   ");
  }
  document.addEventListener("pointermove", function (event) {
    const frame = event.target.closest && event.target.closest(".strip-frame");
    if (frame) read(place(frame, event));
  });
  // With the focus in a strip the arrows move its layer and its token, not the head of the page.
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  document.addEventListener("keydown", function (event) {
    const step = STEPS[event.key];
    const frame = step && document.activeElement && document.activeElement.closest(".strip-frame");
    if (!frame || event.metaKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const s = shape(frame);
    const q = lens.get("q");
    const layer = Math.min(Math.max(Number(lens.get("layer") ?? 0) + step[0], 0), s.layers - 1);
    const column = q === null ? 0 : Math.floor(Number(q) / s.pool) + step[1];
    const at = { layer, column: Math.min(Math.max(column, 0), s.columns - 1), s };
    lens.go({ layer, q: at.column * s.pool });
    read(at);
  }, true);
  document.addEventListener("pointerout", function (event) {
    if (event.target.closest && event.target.closest(".strip-frame") && !(event.relatedTarget && event.relatedTarget.closest && event.relatedTarget.closest(".strip-frame"))) lens.markStrips();
  });
  document.addEventListener("click", function (event) {
    const frame = event.target.closest(".strip-frame");
    if (!frame) return;
    const at = place(frame, event);
    lens.go({ layer: at.layer, q: at.column * at.s.pool });
  });
})();
