// One selection = the URL's query string. Everything here reads it or changes it; nothing else is kept.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const skip = () => window.dash_clientside.no_update;

  lens.get = (name) => new URLSearchParams(location.search).get(name);

  // Put changes into the URL (null removes) and tell Dash; path switches the page.
  lens.go = function (changes, path, replace) {
    const params = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes || {})) {
      if (value === null || value === undefined || value === "") params.delete(name);
      else params.set(name, String(value));
    }
    if (changes && "head" in changes && !("node" in changes)) params.delete("node");
    const search = params.toString().replaceAll("%3A", ":").replaceAll("%2C", ",").replaceAll("%7E", "~");
    const url = (path || location.pathname) + (search ? "?" + search : "");
    if (url === location.pathname + location.search) return;
    history[replace ? "replaceState" : "pushState"]({}, "", url);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    lens.mark();
  };

  // Outline what is selected; called after every change of the URL and after every drawing.
  lens.mark = function () {
    const head = "L" + lens.get("layer") + "H" + lens.get("head");
    const only = location.pathname === "/heads" && lens.get("only") ? new Set(lens.get("only").split(",")) : null;
    for (const cell of document.querySelectorAll("[data-cell]")) {
      if (cell.dataset.cell === head) {
        cell.setAttribute("aria-current", "true");
        if (document.activeElement && document.activeElement.matches(".cell")) cell.focus({ preventScroll: true });
      }
      else cell.removeAttribute("aria-current");
      cell.classList.toggle("aside", only !== null && !only.has(cell.dataset.cell));
    }
    for (const link of document.querySelectorAll("[data-page]")) {
      if (link.dataset.page === location.pathname) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    for (const option of document.querySelectorAll("[data-option]")) {
      const [name, value] = option.dataset.option.split("=");
      const chosen = lens.get(name) || option.dataset.initial;
      option.setAttribute("aria-pressed", String(chosen === value));
    }
    if (lens.markTokens) lens.markTokens();
    if (lens.markPicks) lens.markPicks();
    if (lens.markStrips) lens.markStrips();
    if (lens.markEdges) lens.markEdges();
  };
  window.addEventListener("popstate", () => lens.mark());

  document.addEventListener("click", function (event) {
    if (event.defaultPrevented || event.button !== 0 || event.metaKey || event.ctrlKey || event.shiftKey) return;
    const target = event.target.closest("[data-go], [data-page], [data-option]");
    if (!target) return;
    event.preventDefault();
    if (target.dataset.option) {
      const [name, value] = target.dataset.option.split("=");
      lens.go({ [name]: value === target.dataset.initial ? null : value });
    } else lens.go(target.dataset.go ? JSON.parse(target.dataset.go) : {}, target.dataset.page);
  });

  // ---- lists of which one entry is chosen --------------------------------------------------------------
  let settled = {};
  const shown = new WeakMap(); // the entries of each list
  function fill(list, entries) {
    if (!list || !entries || shown.get(list) === entries) return;
    shown.set(list, entries);
    list.replaceChildren(...entries.map((entry) => Object.assign(new Option(entry.label ?? entry, entry.value ?? entry), { disabled: Boolean(entry.disabled) })));
  }
  document.addEventListener("change", function (event) {
    const field = event.target.dataset.choose;
    if (!field) return;
    const changes = { [field]: event.target.value };
    if (field === "prompt") Object.assign(changes, { q: null, qs: null, ks: null, brush: null });
    if (field === "rows") changes.brush = null;
    if (["task", "a", "b"].includes(field)) Object.assign(changes, { circuit_a: null, circuit_b: null, edge: null });
    lens.go(changes);
  });

  lens.say = function (text) {
    const status = document.getElementById("status");
    if (!status) return;
    status.textContent = text;
    status.classList.add("shown");
    clearTimeout(lens.sayTimer);
    lens.sayTimer = setTimeout(() => status.classList.remove("shown"), 1800);
  };
  lens.copyLink = async function () {
    try {
      await navigator.clipboard.writeText(location.href);
      lens.say("Link copied");
    } catch {
      window.prompt("Copy this link", location.href);
    }
  };
  lens.swap = () => lens.go({ a: lens.get("b"), b: lens.get("a"), ...(lens.swapCircuits ? lens.swapCircuits() : {}) });
  lens.step = function (by) {
    const options = lens.prompts || [];
    const at = options.indexOf(lens.get("prompt"));
    const next = options[Math.min(Math.max(at + by, 0), options.length - 1)];
    if (next) lens.go({ prompt: next, q: null, qs: null, ks: null, brush: null });
  };
  lens.move = function (layers, heads) {
    const shape = lens.shape || [0, 0];
    const layer = Number(lens.get("layer")) + layers;
    const head = Number(lens.get("head")) + heads;
    if (layer >= 0 && head >= 0 && layer < shape[0] && head < shape[1]) lens.go({ layer, head });
  };
  // Zoom to 64 queries that end a little after the chosen one, and as many keys.
  lens.around = function () {
    const q = Number(lens.get("q") ?? lens.first ?? 0);
    const start = Math.max(0, q - 48);
    lens.go({ qs: start + "-" + (start + 64), ks: start + "-" + (start + 64) });
  };
  lens.help = function (open) {
    const dialog = document.getElementById("help");
    if (!dialog) return;
    if (open === false || dialog.open) dialog.close();
    else dialog.showModal();
  };

  const keys = {
    ArrowUp: () => lens.move(-1, 0), ArrowDown: () => lens.move(1, 0),
    ArrowLeft: () => lens.move(0, -1), ArrowRight: () => lens.move(0, 1),
    "[": () => lens.step(-1), "]": () => lens.step(1), s: lens.swap, "?": () => lens.help(),
    Escape: () => lens.go({ q: null, brush: null, qs: null, ks: null, box: null, only: null, edge: null, node: null }),
  };
  document.addEventListener("keydown", function (event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.id === "query") {
      event.preventDefault();
      lens.ask(event.target.value);
    }
    const focus = document.activeElement;
    const typing = focus && (focus.matches("input, textarea, select, [contenteditable]") || focus.closest(".ag-root"));
    if (typing || event.metaKey || event.ctrlKey || event.altKey) return;
    if (!keys[event.key] || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    keys[event.key]();
  });

  // Light or dark: the system's wish until somebody chooses.
  const wish = matchMedia("(prefers-color-scheme: dark)");
  lens.theme = function (chosen) {
    if (chosen) localStorage.setItem("sparselens-theme", chosen);
    const theme = localStorage.getItem("sparselens-theme") || (wish.matches ? "dark" : "light");
    const root = document.documentElement;
    if (root.dataset.theme !== theme) root.dataset.theme = theme;
    if (root.dataset.agThemeMode !== theme) root.dataset.agThemeMode = theme;
  };
  lens.theme();
  wish.addEventListener("change", () => lens.theme());
  document.addEventListener("click", function (event) {
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (action === "theme") lens.theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    if (action === "copy") lens.copyLink();
    if (action === "swap") lens.swap();
    if (action === "help") lens.help();
    if (action === "close") lens.help(false);
    if (action === "previous") lens.step(-1);
    if (action === "next") lens.step(1);
    if (action === "query") lens.ask(document.getElementById("query").value);
    if (action === "around") lens.around();
    const sample = event.target.closest("[data-sql]");
    if (sample) lens.ask(sample.dataset.sql);
  });

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    // The settled selection came back from the server: write it into the URL without a new history entry.
    settle: function (selection) {
      document.getElementById("page")?.classList.toggle("nothing", !selection || !selection.prompts.length);
      if (!selection) return skip();
      lens.prompts = selection.prompts;
      lens.shape = selection.shape;
      document.title = selection.title;
      if (selection.path === location.pathname && selection.search !== location.search && selection.asked === location.search)
        history.replaceState({}, "", selection.path + selection.search);
      lens.mark();
      return skip();
    },
    shown: function () {
      setTimeout(lens.mark, 0);
      return skip();
    },
    // Each panel names the fields it depends on; it is redrawn only when one of those changed.
    share: function (selection, ids, before) {
      return ids.map(function (id, i) {
        if (!selection) return skip();
        const part = {};
        for (const name of id.fields.split(",")) part[name] = selection.values[name] ?? null;
        const same = before[i] && JSON.stringify(before[i].part) === JSON.stringify(part) && before[i].seen === selection.seen;
        return same ? skip() : { part, seen: selection.seen };
      });
    },
    // The lists get their entries and show what is settled.
    follow: function (selection, lists, ids) {
      ids.forEach((id, i) => fill(document.querySelector('select[data-choose="' + id.list + '"]'), lists[i]));
      if (selection) settled = selection.values;
      for (const list of document.querySelectorAll("select[data-choose]")) {
        const value = settled[list.dataset.choose];
        if ((value || shown.has(list)) && list.value !== value) list.value = value ?? "";
      }
      return skip();
    },
  });
})();
