// Draws the layer × head grid from plain data; the colours are CSS variables, so themes cost nothing.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const make = (lens.make = function (tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  });

  lens.drawGrid = function (grid) {
    const box = document.getElementById("grid");
    if (!box || !grid) return;
    box.replaceChildren();
    if (!grid.heads) return;
    const table = make("div", "grid-cells");
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", grid.label);
    table.style.setProperty("--heads", grid.heads);
    table.style.setProperty("--cell", Math.max(13, Math.min(24, Math.round(420 / grid.layers))) + "px");
    const group = grid.group || 0;
    const head = make("div", "grid-row grid-top");
    head.setAttribute("role", "row");
    head.append(make("span", "grid-corner", "L∖H"));
    for (let h = 0; h < grid.heads; h++) {
      const name = make("span", "grid-name" + (group > 1 && h % group === 0 ? " opens" : "") + (group > 1 && h % group === group - 1 ? " closes" : ""), String(h));
      name.setAttribute("role", "columnheader");
      if (group > 1) name.title = "head " + h + " reads key-value head " + Math.floor(h / group);
      head.append(name);
    }
    table.append(head);
    for (let l = 0; l < grid.layers; l++) {
      const row = make("div", "grid-row");
      row.setAttribute("role", "row");
      row.append(make("span", "grid-name", String(l)));
      for (let h = 0; h < grid.heads; h++) {
        const at = l * grid.heads + h;
        const level = grid.levels[at];
        const cell = make("button", "cell" + (group > 1 && h % group === 0 && h ? " opens" : ""));
        const name = "L" + l + "H" + h;
        cell.type = "button";
        cell.tabIndex = -1;
        cell.dataset.cell = name;
        cell.dataset.go = JSON.stringify({ layer: l, head: h });
        cell.setAttribute("role", "gridcell");
        const said = name + " · " + grid.metric + " " + (grid.texts[at] ?? "not in the trace");
        cell.setAttribute("aria-label", said);
        cell.title = said;
        if (level === null || level === undefined) cell.classList.add("missing");
        else cell.style.backgroundColor = "var(--" + grid.scale + "-" + level + ")";
        for (const mark of ["under", "roles", "unsure"]) if (grid[mark] && grid[mark][at]) cell.classList.add(mark);
        row.append(cell);
      }
      table.append(row);
    }
    box.append(table);
    lens.mark();
    const first = table.querySelector("[aria-current]") || table.querySelector(".cell");
    if (first) first.tabIndex = 0;
  };
  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    grid: function (data) {
      lens.drawGrid(data);
      return window.dash_clientside.no_update;
    },
  });
})();
