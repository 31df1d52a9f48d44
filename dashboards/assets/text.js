// The prompt's tokens as text: shaded by loss (Compare) or by what a query reads (Head).
// Tokens are put in with textContent only; a trace cannot bring markup with it.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const LEVELS = 32;
  const CHIPS = 12;
  const WORTH = 0.01; // mass in A or B from which a dropped key is struck through
  const shown = { data: null, tokens: [], reads: null, asked: "", cache: new Map() };

  const visible = (text) => text.replaceAll("\t", "⇥").replaceAll("\n", "↵\n");
  const quoted = (text) => "“" + visible(text ?? "").replaceAll("\n", "") + "”";
  lens.number = function (value, digits) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && size < 0.001) return value.toExponential(1).replace("-", "−").replace("e−", "e-");
    return value.toFixed(digits ?? (size < 10 ? 3 : 1)).replace("-", "−");
  };
  lens.token = (pos) => (shown.data ? quoted(shown.data.texts[pos]) : "");

  lens.drawText = function (data) {
    const box = document.getElementById("text");
    if (!box || !data) return;
    shown.data = data;
    lens.first = data.start;
    shown.tokens = [];
    shown.reads = null;
    shown.asked = "";
    shown.fresh = true;
    shown.shade = null;
    shown.shownAt = null;
    shown.hovered = null;
    const marked = new Map();
    for (const span of data.spans || []) for (let p = span.start; p < span.stop; p++) marked.set(p, span.name);
    const paper = document.createDocumentFragment();
    data.texts.forEach(function (text, pos) {
      const token = document.createElement("span");
      token.className = "token";
      token.dataset.pos = pos;
      if (text.startsWith(" ")) {
        token.classList.add("lead");
        token.textContent = " " + visible(text.slice(1));
      } else token.textContent = visible(text) || "∅";
      if (data.special[pos]) token.classList.add("special");
      if (marked.has(pos)) token.classList.add("marked");
      if (data.marks && data.marks[pos]) token.classList.add("sink", data.marks[pos]);
      shown.tokens.push(token);
      paper.append(token);
    });
    box.replaceChildren(paper);
    lens.shade();
    lens.markTokens();
  };

  function paint(token, scale, level) {
    const plain = level === null || (scale === "seq" && level === 0);
    token.style.background = plain ? "" : "var(--" + scale + "-" + level + ")";
    token.style.color = plain ? "" : "var(--on-" + scale + "-" + level + ")";
  }

  lens.shade = function () {
    const data = shown.data;
    if (!data || data.kind === "attention") return;
    const shade = data.only || lens.get("shade") || "diff";
    if (shown.shade === shade) return;
    shown.shade = shade;
    const levels = data.levels[shade];
    shown.tokens.forEach((token, pos) => {
      const level = levels ? levels[pos] : null;
      paint(token, shade === "diff" ? "div" : "seq", shade === "diff" && level === LEVELS / 2 ? null : level);
    });
    const legend = document.getElementById("text-legend");
    if (legend) legend.textContent = data.legends[shade];
  };

  // Bring a token into the middle of the text's own scroll area, without moving the page.
  function into(token) {
    const box = document.getElementById("text");
    if (!box) return;
    const above = token.getBoundingClientRect().top - box.getBoundingClientRect().top;
    if (above < 0 || above > box.clientHeight - 24) box.scrollTop += above - box.clientHeight / 2;
  }

  lens.markTokens = function () {
    if (!shown.data) return;
    if (lens.markBrush) lens.markBrush(shown.tokens);
    document.querySelector(".token.chosen")?.classList.remove("chosen");
    const q = lens.get("q");
    if (q !== null) {
      const token = shown.tokens[Number(q) + (shown.data.kind === "loss" ? 1 : 0)];
      if (token) token.classList.add("chosen");
      if (token && shown.shownAt !== q) into(token);
      shown.shownAt = q;
    }
    if (shown.data.kind !== "attention") lens.shade();
    else {
      if (q !== null) shown.hovered = null;
      lens.read(q !== null ? Number(q) : shown.hovered ?? shown.data.start);
    }
  };

  // ---- who reads whom ------------------------------------------------------------------------------
  async function fetched(asked) {
    try {
      const answer = await fetch("/view/reads?" + asked);
      return answer.ok ? await answer.json() : { problem: await answer.text(), keys: [] };
    } catch (unreached) {
      shown.cache.delete(asked);
      throw unreached;
    }
  }
  lens.read = async function (q) {
    if (q === null || q === undefined || !shown.data) return;
    const params = new URLSearchParams(location.search);
    for (const name of ["sql", "qs", "ks", "side", "hide", "scale", "shade"]) params.delete(name);
    params.set("q", q);
    const asked = params.toString();
    shown.asked = asked;
    if (!shown.cache.has(asked)) {
      if (shown.cache.size > 400) shown.cache.clear();
      shown.cache.set(asked, fetched(asked));
    }
    const reads = await shown.cache.get(asked);
    if (shown.asked !== asked) return;
    shown.reads = reads;
    lens.shadeReads();
  };

  lens.shadeReads = function () {
    const reads = shown.reads;
    const data = shown.data;
    if (!reads || !data || data.kind !== "attention") return;
    const side = lens.get("side") || "b";
    const hide = lens.get("hide") === "1";
    const bend = { linear: (x) => x, sqrt: Math.sqrt, log: (x) => Math.max(0, 1 + Math.log10(Math.max(x, 1e-9)) / 4) }[lens.get("scale") || "sqrt"];
    for (const token of shown.tokens) {
      paint(token, "seq", null);
      token.classList.remove("cut", "query");
    }
    const at = new Map();
    let high = 0;
    reads.keys.forEach((k, i) => {
      at.set(k, i);
      const sink = hide && (reads.way === "reads" ? k === 0 : reads.q === 0);
      if (!sink) high = Math.max(high, side === "diff" ? Math.abs((reads.b[i] ?? 0) - (reads.a[i] ?? 0)) : Math.max(reads.a[i] ?? 0, reads.b[i] ?? 0));
    });
    shown.at = at;
    reads.keys.forEach((k, i) => {
      const token = shown.tokens[k];
      if (!token) return;
      const [a, b] = [reads.a[i], reads.b[i]];
      const value = side === "diff" ? (b ?? 0) - (a ?? 0) : side === "a" ? a : b;
      const hidden = hide && (reads.way === "reads" ? k === 0 : reads.q === 0);
      if (value !== null && high > 0 && !hidden) {
        const size = bend(Math.min(Math.abs(value) / high, 1));
        paint(token, side === "diff" ? "div" : "seq", side === "diff" ? Math.round(LEVELS * (0.5 + (Math.sign(value) * size) / 2)) : Math.round(LEVELS * size));
      }
      const dropped = reads[side === "a" ? "kept_a" : "kept_b"][i] === false;
      if (dropped && Math.max(a ?? 0, b ?? 0) >= WORTH) token.classList.add("cut");
    });
    shown.tokens[reads.q]?.classList.add("query");
    if (shown.fresh && shown.tokens[reads.q]) into(shown.tokens[reads.q]);
    shown.fresh = false;
    list(reads);
    const line = document.getElementById("reads");
    if (line) line.textContent = reads.problem || reads.sentence + " Shading: 0 to " + lens.number(high) + ", " + (lens.get("scale") || "sqrt") + " scale" + (hide ? ", key 0 hidden." : ".") + " Struck through: dropped keys of at least " + WORTH + ".";
  };

  // The strongest of them as chips: they are often far from the query in the text.
  function list(reads) {
    const box = document.getElementById("top-keys");
    if (!box) return;
    const order = reads.keys.map((k, i) => i).sort((i, j) => Math.max(reads.a[j] ?? 0, reads.b[j] ?? 0) - Math.max(reads.a[i] ?? 0, reads.b[i] ?? 0));
    const short = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
    const worth = order.filter((i) => Math.max(reads.a[i] ?? 0, reads.b[i] ?? 0) >= 0.0005);
    box.replaceChildren(...worth.slice(0, CHIPS).map(function (i) {
      const chip = lens.make("li", "chip");
      const dropped = reads.kept_a[i] === false || reads.kept_b[i] === false;
      if (dropped) chip.classList.add("cut");
      chip.dataset.scroll = reads.keys[i];
      chip.title = "A " + short(reads.a[i]) + ", B " + short(reads.b[i]) + (dropped ? ", dropped in " + (reads.kept_b[i] === false ? "B" : "A") : "") + "; click to scroll there";
      chip.style.setProperty("--step", "var(--seq-" + Math.round(LEVELS * Math.sqrt(Math.min(1, Math.max(reads.a[i] ?? 0, reads.b[i] ?? 0)))) + ")");
      chip.append(lens.make("span", "pos", String(reads.keys[i])), lens.make(dropped ? "del" : "span", "word", visible(shown.data.texts[reads.keys[i]] ?? "").replaceAll("\n", "").replaceAll(" ", "·") || "∅"), lens.make("span", "mass", short(reads.a[i]) + " → " + short(reads.b[i])));
      return chip;
    }));
  }

  // ---- pointer -------------------------------------------------------------------------------------
  function tip(event, token) {
    const box = document.getElementById("tip");
    if (!box) return;
    const pos = Number(token.dataset.pos);
    const data = shown.data;
    const lines = ["#" + pos + " " + quoted(data.texts[pos]) + (data.special[pos] ? " special token" : "")];
    if (data.kind !== "attention") {
      const labels = data.labels || { a: "NLL BASE", b: "NLL RUN", diff: "NLL RUN − BASE" };
      for (const name of ["a", "b", "diff"])
        if (data.values[name]) lines.push(labels[name] + "  " + lens.number(data.values[name][pos]));
      if (data.notes && data.notes[pos]) lines.push(data.notes[pos]);
      const span = (data.spans || []).filter((s) => s.start <= pos && pos < s.stop).map((s) => s.name);
      if (span.length) lines.push("span " + span.join(", "));
      if (pos > 0 && data.kind === "loss") lines.push("click: keys of the row that predicts it; drag: a range");
    } else if (shown.reads) {
      const i = shown.at?.get(pos);
      const who = (shown.reads.way === "reads" ? "read by query " + shown.reads.q : "reads key " + shown.reads.q) + (shown.reads.weigh === "value" ? ", shares by value" : "");
      if (i === undefined) lines.push(pos === shown.reads.q ? "the " + (shown.reads.way === "reads" ? "query" : "key") : shown.reads.exact ? "not read" : "not among the stored keys");
      else {
        lines.push("A  " + lens.number(shown.reads.a[i], 4) + " · B  " + lens.number(shown.reads.b[i], 4), who);
        for (const name of ["a", "b"]) if (shown.reads["kept_" + name][i] === false) lines.push("dropped in " + name.toUpperCase());
      }
    }
    box.replaceChildren(...lines.map((line, i) => lens.make("div", i ? "" : "tip-head", line)));
    box.hidden = false;
    const left = Math.min(event.clientX + 12, innerWidth - box.offsetWidth - 8);
    const below = event.clientY + 18 + box.offsetHeight < innerHeight;
    box.style.left = Math.max(left, 4) + "px";
    box.style.top = (below ? event.clientY + 18 : event.clientY - box.offsetHeight - 10) + "px";
  }
  // A page that is drawn under a pointer at rest gets a pointerover, too: that is nobody's choice of a token.
  let timer = null;
  let rest = null;
  document.addEventListener("click", (event) => (rest = [event.clientX, event.clientY]), true);
  document.addEventListener("pointerover", function (event) {
    if (rest && rest[0] === event.clientX && rest[1] === event.clientY) return;
    rest = null;
    const token = event.target.closest && event.target.closest("#text .token");
    const box = document.getElementById("tip");
    if (!token || !shown.data) {
      if (box && !event.target.closest?.(".map-frame")) box.hidden = true;
      return;
    }
    tip(event, token);
    if (shown.data.kind === "attention" && lens.get("q") === null) {
      clearTimeout(timer);
      shown.hovered = Number(token.dataset.pos);
      timer = setTimeout(() => lens.read(Number(token.dataset.pos)).then(() => tip(event, token)), 25);
    }
  });
  document.addEventListener("click", function (event) {
    const jump = event.target.closest("[data-scroll]");
    if (jump) shown.tokens[Number(jump.dataset.scroll)]?.scrollIntoView({ block: "center", behavior: "smooth" });
    const token = event.target.closest("#text .token");
    if (!token || !shown.data || getSelection().toString()) return;
    const pos = Number(token.dataset.pos);
    const q = shown.data.kind === "loss" ? pos - 1 : pos;
    if (q >= 0) lens.go({ q: lens.get("q") === String(q) ? null : q });
  });

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    text: function (data) {
      if (data && data.kind === "attention") shown.cache.clear();
      lens.drawText(data);
      return window.dash_clientside.no_update;
    },
  });
})();
