// Redraws grid and table for another metric or other prompts, and shades the text. Texts are never made into markup.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const pages = new Set(data.pages);
  const byId = (id) => document.getElementById(id);
  const STEPS = 32;

  function number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && size < 0.001) return value.toExponential(1).replaceAll("-", "−").replace("e−", "e-");
    return value.toFixed(3).replace("-", "−");
  }
  const name = (at) => "L" + Math.floor(at / data.heads) + "H" + (at % data.heads);

  function draw() {
    const metric = data.metrics.find((each) => each.name === byId("metric").value);
    const over = data.over.find((each) => each.place === byId("over").value);
    const values = over.values[metric.name];
    const [low, high] = over.ends[metric.name];
    const scale = metric.signed ? "div" : "seq";
    for (const cell of document.querySelectorAll(".cell")) {
      const value = values[Number(cell.dataset.at)];
      const place = high > low ? Math.min(Math.max((value - low) / (high - low), 0), 1) : 0;
      cell.className = cell.className.replace(/\b(missing|[sd]\d+)\b/, value === null ? "missing" : scale[0] + Math.round(STEPS * place));
      const role = data.roles[name(Number(cell.dataset.at))];
      cell.title = name(Number(cell.dataset.at)) + " · " + number(value) + (role ? " · " + role : "");
    }
    byId("low").textContent = number(low);
    byId("high").textContent = number(high);
    byId("bar").className = "bar " + scale;
    byId("meaning").textContent = metric.name + ": " + metric.meaning + ".";
    byId("caption").textContent = over.caption;
    rank(metric, over);
  }

  function rank(metric, over) {
    const body = byId("ranked").tBodies[0];
    const size = (at) => {
      const value = over.values[metric.name][at];
      return value === null ? -Infinity : metric.signed ? Math.abs(value) : value;
    };
    const order = Array.from(over.values[metric.name].keys()).sort((x, y) => size(y) - size(x));
    body.replaceChildren(...order.map((at) => row(at, over)));
    const columns = Array.from(byId("ranked").tHead.rows[0].cells);
    columns.forEach((cell, place) => cell.classList.toggle("by", place > 0 && (data.metrics[place - 1] || {}).name === metric.name));
  }

  function row(at, over) {
    const made = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    if (pages.has(name(at))) {
      const link = document.createElement("a");
      link.href = "heads/" + name(at) + ".html";
      link.textContent = name(at);
      head.append(link);
    } else head.textContent = name(at);
    made.append(head);
    for (const metric of data.metrics) made.insertCell().textContent = number(over.values[metric.name][at]);
    const role = made.insertCell();
    role.className = "left";
    role.textContent = data.roles[name(at)] || "";
    return made;
  }

  function shade(section, side) {
    for (const token of section.querySelectorAll(".token")) {
      const level = token.dataset.levels.split(" ")[["diff", "a", "b"].indexOf(side)];
      const kept = token.className.split(" ").filter((each) => !/^[sd]\d+$/.test(each));
      if (level) kept.push(level);
      token.className = kept.join(" ");
    }
    for (const option of section.querySelectorAll("[data-shade]"))
      option.setAttribute("aria-pressed", String(option.dataset.shade === side));
    for (const legend of section.querySelectorAll("[data-legend]")) legend.hidden = legend.dataset.legend !== side;
  }

  byId("metric").addEventListener("change", draw);
  byId("over").addEventListener("change", draw);
  document.addEventListener("click", function (event) {
    const option = event.target.closest("[data-shade]");
    if (option) shade(option.closest("section"), option.dataset.shade);
  });
  draw();
})();
