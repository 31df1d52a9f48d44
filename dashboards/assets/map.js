// Pointer work on the attention maps: drag a window to zoom (all maps at once), read the cell under the pointer.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const frames = () => [...document.querySelectorAll(".map-frame")];
  const state = { from: null, cells: new Map() };

  async function cells(frame) {
    const url = frame.dataset.cells;
    if (!state.cells.has(url)) {
      if (state.cells.size > 24) state.cells.clear();
      state.cells.set(url, fetch(url).then((answer) => (answer.ok ? answer.arrayBuffer() : null)).then((bytes) => bytes && new Float32Array(bytes)));
    }
    return state.cells.get(url);
  }
  function place(frame, event) {
    const box = frame.getBoundingClientRect();
    const inside = (value) => Math.min(Math.max(value, 0), 1 - 1e-9);
    return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
  }
  const shape = (frame) => JSON.parse(frame.dataset.shape);
  function span(s, axis, index) {
    const start = s[axis + "0"] + index * s.pool;
    return [start, Math.min(start + s.pool, s[axis + "1"])];
  }
  const named = (range) => (range[1] - range[0] === 1 ? range[0] + " " + lens.token(range[0]) : range[0] + "–" + (range[1] - 1));

  async function readout(frame, event) {
    const s = shape(frame);
    const at = place(frame, event);
    const row = Math.floor(at.y * s.rows);
    const column = Math.floor(at.x * s.columns);
    for (const each of frames()) {
      const cross = each.querySelector(".map-cross");
      cross.hidden = false;
      cross.style.left = (100 * column) / s.columns + "%";
      cross.style.top = (100 * row) / s.rows + "%";
      cross.style.width = 100 / s.columns + "%";
      cross.style.height = 100 / s.rows + "%";
    }
    const values = await Promise.all(frames().map(async (each) => [each.dataset.name, await cells(each)]));
    const line = document.getElementById("map-readout");
    if (!line) return;
    const said = values.map(([name, numbers]) => name + " " + (numbers ? lens.number(numbers[row * s.columns + column], 4) : "–"));
    line.textContent = "query " + named(span(s, "q", row)) + "  ×  key " + named(span(s, "k", column)) + "   " + said.join("   ");
  }
  function band(from, to) {
    for (const each of frames()) {
      const box = each.querySelector(".map-band");
      box.hidden = !to;
      if (!to) continue;
      box.style.left = 100 * Math.min(from.x, to.x) + "%";
      box.style.top = 100 * Math.min(from.y, to.y) + "%";
      box.style.width = 100 * Math.abs(from.x - to.x) + "%";
      box.style.height = 100 * Math.abs(from.y - to.y) + "%";
    }
  }
  document.addEventListener("pointerdown", function (event) {
    const frame = event.target.closest(".map-frame");
    if (!frame || event.button !== 0 || event.pointerType === "touch") return;
    event.preventDefault();
    state.from = Object.assign(place(frame, event), { frame });
  });
  document.addEventListener("pointermove", function (event) {
    const frame = state.from ? state.from.frame : event.target.closest && event.target.closest(".map-frame");
    if (state.from) band(state.from, place(frame, event));
    if (frame) readout(frame, event);
  });
  document.addEventListener("pointerup", function (event) {
    if (!state.from) return;
    const from = state.from;
    const to = place(from.frame, event);
    state.from = null;
    band(from, null);
    const s = shape(from.frame);
    if (Math.abs(from.x - to.x) * from.frame.clientWidth < 6 || Math.abs(from.y - to.y) * from.frame.clientHeight < 6) return;
    const [q, k] = [s.q1 - s.q0, s.k1 - s.k0];
    const cut = (low, size, one, two) => [low + Math.floor(Math.min(one, two) * size), Math.max(low + Math.floor(Math.min(one, two) * size) + 1, low + Math.ceil(Math.max(one, two) * size))];
    const [rows, columns] = [cut(s.q0, s.rows * s.pool, from.y, to.y), cut(s.k0, s.columns * s.pool, from.x, to.x)];
    lens.go({ qs: rows[0] + "-" + Math.min(rows[1], s.q0 + q), ks: columns[0] + "-" + Math.min(columns[1], s.k0 + k) });
  });
  document.addEventListener("dblclick", function (event) {
    if (event.target.closest(".map-frame")) lens.go({ qs: null, ks: null });
  });
})();
