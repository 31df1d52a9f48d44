// Shades the text by what the hovered token reads. Numbers come from #data, texts are never made into markup.
(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const box = document.getElementById("text");
  const readout = document.getElementById("readout");
  const tokens = Array.from(box.children);
  const STEPS = 32;
  const CHIPS = 6;
  const WORTH = 0.01;
  let shown = data.q;
  let locked = false;

  const number = (value) => (value === null ? "–" : value.toFixed(3));
  const said = (at) => "“" + (tokens[at] ? tokens[at].textContent.replaceAll("\n", "") : "") + "”";

  function shade(query) {
    const row = data.rows[query];
    if (!row) return;
    shown = query;
    const side = data.two ? 2 : 1;
    let high = 0;
    for (const key of row.slice(1)) high = Math.max(high, key[1] || 0, key[2] || 0);
    for (const token of tokens) token.className = "";
    for (const key of row.slice(1)) {
      const token = tokens[key[0]];
      if (!token) continue;
      const step = high > 0 ? Math.round(STEPS * Math.sqrt((key[side] || 0) / high)) : 0;
      if (step > 0) token.classList.add("s" + step);
      if (!key[3] && Math.max(key[1] || 0, key[2] || 0) >= WORTH) token.classList.add("cut");
    }
    tokens[query].classList.add("query");
    const best = row.slice(1).sort((x, y) => Math.max(y[1] || 0, y[2] || 0) - Math.max(x[1] || 0, x[2] || 0));
    const out = row[0];
    const keys = best.slice(0, CHIPS).map(function (key) {
      const mass = data.two ? number(key[1]) + " → " + number(key[2]) : number(key[1]);
      return key[0] + " " + said(key[0]) + " " + mass + (key[3] ? "" : " dropped");
    });
    const left = data.two ? "A " + number(out[1]) + ", B " + number(out[2]) : number(out[1]);
    readout.textContent = "query " + query + " " + said(query) + " · left out (not stored) " + left + "\n" + keys.join(" · ");
  }

  if (!Object.keys(data.rows).length) return;
  box.addEventListener("mouseover", function (event) {
    const at = tokens.indexOf(event.target);
    if (at >= 0 && !locked) shade(at);
  });
  box.addEventListener("click", function (event) {
    const at = tokens.indexOf(event.target);
    if (at < 0) return;
    locked = !locked || at !== shown;
    shade(at);
  });
  box.addEventListener("keydown", function (event) {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    locked = true;
    shade(Math.min(Math.max(shown + by, 0), tokens.length - 1));
  });
  if (data.rows[data.q]) shade(data.q);
  if (tokens[data.q]) box.scrollTop = tokens[data.q].offsetTop - box.offsetTop - box.clientHeight / 2;
})();
