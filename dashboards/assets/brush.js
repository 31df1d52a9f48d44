// Compare: dragging over the text, Shift + click and Shift + arrows choose a range of tokens, `brush` in the URL.
// The heads and keys are then of the rows that predict these tokens, so token 0, which no row predicts, is left out.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const PAUSE = 160; // ms after the last key before the numbers are asked for
  const FAR = 10; // tokens that an arrow up or down moves
  const now = { tokens: [], anchor: null, active: null, shown: "", timer: null };

  const text = () => document.querySelector(".compare #text");
  const read = function () {
    const match = /^(\d+)-(\d+)$/.exec(lens.get("brush") || "");
    return match && lens.get("over") !== "all" ? [Number(match[1]), Number(match[2])] : null;
  };

  // Put a range into the URL; positions are tokens, both ends included.
  function choose(from, to, replace) {
    const start = Math.max(1, Math.min(from, to));
    const stop = Math.max(from, to) + 1;
    if (stop > start) lens.go({ brush: start + "-" + stop, q: null, over: null }, null, replace);
  }

  function tint(range) {
    const shown = range ? range.join("-") : "";
    const box = text();
    if (!box || (now.shown === shown && now.box === box)) return;
    now.shown = shown;
    now.box = box;
    box.classList.toggle("brushed", range !== null);
    now.tokens.forEach((token, pos) => token.classList.toggle("in", range !== null && pos >= range[0] && pos < range[1]));
    if (range && now.tokens[range[0]] && !box.querySelector(".token.chosen")) into(box, now.tokens[range[0]]);
  }

  // Bring a token into the text's own scroll area, without moving the page.
  function into(box, token) {
    const above = token.getBoundingClientRect().top - box.getBoundingClientRect().top;
    if (above < 0 || above > box.clientHeight - 24) box.scrollTop += above - box.clientHeight / 2;
  }

  lens.markBrush = function (tokens) {
    if (!text()) return;
    if (now.tokens !== tokens) now.shown = null;
    now.tokens = tokens;
    const range = read();
    if (range && (now.anchor === null || Math.min(now.anchor, now.active) !== range[0] || Math.max(now.anchor, now.active) + 1 !== range[1]))
      [now.anchor, now.active] = [range[0], range[1] - 1];
    if (!range) now.anchor = now.active = null;
    tint(range);
  };

  const tokenAt = (node) => (node && node.nodeType === Node.TEXT_NODE ? node.parentElement : node)?.closest?.(".compare #text .token");
  document.addEventListener("pointerup", function (event) {
    const chosen = getSelection();
    if (event.altKey || event.shiftKey || !chosen || chosen.isCollapsed || !text()?.contains(chosen.anchorNode)) return;
    const range = chosen.getRangeAt(0);
    const touched = now.tokens.filter((token) => range.intersectsNode(token));
    const ends = [tokenAt(chosen.anchorNode), tokenAt(chosen.focusNode)];
    chosen.removeAllRanges();
    // A range that ends before a token's first letter only touches it.
    const inside = touched.filter((token) => !(token.firstChild === range.endContainer && range.endOffset === 0));
    if (inside.length < 2 || (ends[0] && ends[0] === ends[1])) return;
    choose(Number(inside[0].dataset.pos), Number(inside[inside.length - 1].dataset.pos));
  });
  document.addEventListener("mousedown", function (event) {
    if (event.shiftKey && event.target.closest?.(".compare #text .token")) event.preventDefault(); // no native selection
  });
  document.addEventListener("click", function (event) {
    const token = event.shiftKey && event.button === 0 && event.target.closest?.(".compare #text .token");
    if (!token) return;
    event.stopPropagation();
    const pos = Number(token.dataset.pos);
    const q = lens.get("q");
    if (now.anchor === null) now.anchor = q !== null ? Number(q) + 1 : pos;
    now.active = pos;
    choose(now.anchor, pos);
  }, true);

  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -FAR, ArrowDown: FAR };
  document.addEventListener("keydown", function (event) {
    const focus = document.activeElement;
    if (!event.shiftKey || !(event.key in steps) || !text() || !now.tokens.length || event.ctrlKey || event.metaKey || event.altKey) return;
    if (focus && (focus.matches("input, textarea, select, [contenteditable]") || focus.closest(".ag-root"))) return;
    event.preventDefault();
    event.stopPropagation();
    const last = now.tokens.length - 1;
    const q = lens.get("q");
    if (now.anchor === null) now.anchor = now.active = q !== null ? Number(q) + 1 : 1;
    else now.active = Math.min(Math.max(now.active + steps[event.key], 1), last);
    const [from, to] = [Math.min(now.anchor, now.active), Math.max(now.anchor, now.active)];
    tint([Math.max(1, from), to + 1]);
    if (now.tokens[now.active]) into(text(), now.tokens[now.active]);
    clearTimeout(now.timer);
    now.timer = setTimeout(() => choose(from, to, read() !== null), PAUSE);
  }, true);
})();
