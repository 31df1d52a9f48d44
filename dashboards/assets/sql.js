// The SQL field: colours under the text, names that fit what is typed, queries kept in this browser.
// Whatever is shown is put in with textContent only.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const skip = () => window.dash_clientside.no_update;
  const WORDS = "all and any as asc asof avg between by case cast count cross cube date desc describe distinct else end except exclude exists explain false filter following from full group having in inner intersect interval is join lateral left like ilike limit list max median min natural not null nulls on or order outer over partition positional preceding qualify quantile range recursive replace right rollup row rows sample select semi anti sum summarize table then true try_cast unbounded union unnest using values when where window with".split(" ");
  const known = new Set(WORDS);
  const TOKEN = /(--[^\n]*|\/\*[\s\S]*?(?:\*\/|$))|('(?:[^']|'')*'?)|("(?:[^"]|"")*"?)|(\b\d[\d_.]*(?:e[+-]?\d+)?\b)|([A-Za-z_]\w*)/g;
  const KEY = "sparselens-queries";
  const MOST = 8;
  const state = { names: [], at: 0, from: 0 };
  const field = () => document.getElementById("query");

  // Act when an element is there: data that comes with a layout is told of before it is drawn.
  function when(id, act, tries) {
    if (document.getElementById(id)) act();
    else if ((tries ?? 60) > 0) setTimeout(() => when(id, act, (tries ?? 60) - 1), 50);
  }
  // A new question: the columns of the old one's chart mean nothing to it.
  lens.ask = (sql) => lens.go({ sql: sql.trim(), cx: null, cy: null });

  // ---- colours -------------------------------------------------------------------------------------
  const names = () => state.names;
  lens.colourQuery = function () {
    const box = document.getElementById("query-colours");
    const text = field() ? field().value : "";
    if (!box) return;
    const paper = document.createDocumentFragment();
    const own = new Set(names());
    let done = 0;
    for (const found of text.matchAll(TOKEN)) {
      const [word, comment, string, quoted, digits, name] = found;
      const kind = comment ? "comment" : string ? "string" : digits ? "number" : quoted ? "name" : known.has(name.toLowerCase()) ? "word" : own.has(name) ? "name" : "";
      if (!kind) continue;
      paper.append(text.slice(done, found.index), lens.make("span", "sql-" + kind, word));
      done = found.index + word.length;
    }
    paper.append(text.slice(done) + "\n");
    box.replaceChildren(paper);
    box.scrollTop = field() ? field().scrollTop : 0;
  };

  // ---- names that fit ------------------------------------------------------------------------------
  const list = () => document.getElementById("query-names");
  function close() {
    if (list()) list().hidden = true;
  }
  function offer() {
    const box = field();
    const typed = box.value.slice(0, box.selectionStart).match(/[A-Za-z_]\w*$/);
    const rest = /^\w/.test(box.value.slice(box.selectionStart));
    if (!typed || typed[0].length < 2 || rest) return close();
    const start = typed[0].toLowerCase();
    const fitting = [...names(), ...WORDS].filter((name) => name.toLowerCase().startsWith(start) && name.length > start.length).slice(0, MOST);
    if (!fitting.length) return close();
    state.at = -1;
    state.from = typed[0].length;
    list().replaceChildren(...fitting.map((name) => {
      const item = lens.make("li", "", name);
      item.setAttribute("role", "option");
      return item;
    }));
    list().hidden = false;
  }
  function choose(step) {
    const items = [...list().children];
    state.at = (state.at + step + items.length) % items.length;
    items.forEach((item, i) => item.setAttribute("aria-selected", String(i === state.at)));
  }
  // Write at the caret in place of `over` characters before it, so that undo takes it back.
  function write(text, over) {
    const box = field();
    if (!box) return;
    box.focus();
    if (over) box.setSelectionRange(box.selectionStart - over, box.selectionStart);
    document.execCommand("insertText", false, text);
    close();
  }
  document.addEventListener("keydown", function (event) {
    if (event.target.id !== "query" || !list() || list().hidden) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") choose(event.key === "ArrowDown" ? 1 : state.at < 0 ? 0 : -1);
    else if (event.key === "Escape") close();
    else if ((event.key === "Enter" && !event.ctrlKey && !event.metaKey || event.key === "Tab") && state.at >= 0) write(list().children[state.at].textContent, state.from);
    else return;
    event.preventDefault();
  });
  document.addEventListener("input", function (event) {
    if (event.target.id !== "query") return;
    lens.colourQuery();
    offer();
  });
  document.addEventListener("scroll", (event) => event.target.id === "query" && lens.colourQuery(), true);
  document.addEventListener("focusout", (event) => event.target.id === "query" && setTimeout(close, 150));

  // ---- the tables -----------------------------------------------------------------------------------
  function named(name) {
    const button = lens.make("button", "link", name);
    button.type = "button";
    button.dataset.write = name;
    return button;
  }
  function columns(table) {
    const list = lens.make("dl");
    for (const [name, kind, unit, meaning] of table.columns) {
      const term = lens.make("dt");
      term.append(named(name), " ", lens.make("small", "", kind));
      list.append(term, lens.make("dd", "", meaning + (unit ? " (" + unit + ")" : "")));
    }
    return list;
  }
  lens.drawTables = function (tables) {
    const box = document.getElementById("tables");
    if (!box || !tables) return;
    state.names = [...new Set(tables.flatMap((table) => [table.name, ...table.columns.map((column) => column[0])]))];
    box.replaceChildren(...tables.map(function (table) {
      const one = lens.make("details");
      const head = lens.make("summary");
      head.append(lens.make("code", "", table.name), lens.make("span", "note", " " + table.columns.length + " columns"));
      one.append(head);
      one.addEventListener("toggle", function () {
        if (!one.open || one.children.length > 1) return;
        const said = lens.make("p", "note");
        said.append(named(table.name), " " + table.meaning);
        one.append(said, columns(table));
      });
      return one;
    }));
  };

  // ---- saved queries: in this browser alone, the trace is never written --------------------------------
  function kept() {
    try {
      const found = JSON.parse(localStorage.getItem(KEY) || "[]");
      return Array.isArray(found) ? found.filter((each) => each && typeof each.name === "string" && typeof each.sql === "string") : [];
    } catch {
      return [];
    }
  }
  function keep(queries) {
    localStorage.setItem(KEY, JSON.stringify(queries));
    lens.savedQueries();
  }
  lens.savedQueries = function () {
    const box = document.getElementById("saved-queries");
    if (!box) return;
    const rows = kept().map(function (query, i) {
      const row = lens.make("div", "saved");
      const open = lens.make("button", "sample", query.name);
      Object.assign(open, { type: "button", title: query.sql });
      open.dataset.sql = query.sql;
      const forget = lens.make("button", "action", "×");
      Object.assign(forget, { type: "button", title: "Forget " + query.name });
      forget.setAttribute("aria-label", "Forget " + query.name);
      forget.dataset.forget = i;
      row.append(open, forget);
      return row;
    });
    box.replaceChildren(...(rows.length ? rows : [lens.make("p", "note", "none yet")]));
  };
  document.addEventListener("click", function (event) {
    const at = (what) => event.target.closest("[data-" + what + "]");
    if (at("write")) write(at("write").dataset.write, 0);
    const item = event.target.closest("#query-names li");
    if (item) write(item.textContent, state.from);
    if (at("forget")) keep(kept().filter((_, i) => i !== Number(at("forget").dataset.forget)));
    if (at("action")?.dataset.action === "save-query" && field() && field().value.trim()) {
      const sql = field().value.trim();
      const name = window.prompt("Name of the query", sql.replace(/\s+/g, " ").slice(0, 60));
      if (name) keep([...kept().filter((each) => each.name !== name), { name, sql }]);
    }
  });

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    written: function (sql, tables) {
      when("tables", () => document.getElementById("tables").children.length || lens.drawTables(tables));
      when("query-colours", () => setTimeout(lens.colourQuery, 0));
      when("saved-queries", lens.savedQueries);
      return skip();
    },
    resultHeads: function (grid) {
      if (grid) when("grid", () => lens.drawGrid(grid));
      return skip();
    },
  });
})();
