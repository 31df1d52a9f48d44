// Draws what `drawing.py` made of components: elements, attributes and texts, never markup.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const before = new WeakMap(); // what each place shows
  const allowed = (name, value) => !/^on/i.test(name) && (!["href", "src"].includes(name) || /^\/(?!\/)/.test(value));

  function build(part) {
    if (part === null || part === undefined) return [];
    if (typeof part === "string") return [part];
    if (!Array.isArray(part)) return part.list.flatMap(build);
    const [tag, attributes, children] = part;
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "style") for (const [key, each] of Object.entries(value)) key.startsWith("--") ? element.style.setProperty(key, each) : (element.style[key] = each);
      else if (allowed(name, value)) element.setAttribute(name, value);
    }
    element.append(...build(children));
    return [element];
  }
  // What was open or had the focus is so again where the same thing is drawn with other numbers.
  const FOCUSED = "button, summary, a, [tabindex]";
  function draw(box, part) {
    const open = [...box.querySelectorAll("details")].map((each) => each.open);
    const focused = [...box.querySelectorAll(FOCUSED)].indexOf(document.activeElement);
    box.replaceChildren(...build(part));
    const details = [...box.querySelectorAll("details")];
    if (details.length === open.length) details.forEach((each, i) => (each.open = open[i]));
    if (focused >= 0) box.querySelectorAll(FOCUSED)[focused]?.focus({ preventScroll: true });
  }

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    trees: function (trees, ids) {
      ids.forEach(function (id, i) {
        const box = document.querySelector('[data-tree="' + id.tree + '"]');
        if (!box || (before.get(box) === trees[i] && box.childNodes.length)) return;
        before.set(box, trees[i]);
        draw(box, trees[i]);
      });
      lens.mark();
      return window.dash_clientside.no_update;
    },
  });
})();
