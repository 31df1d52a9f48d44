// The graph of circuits: a click on a node selects the head, a click on an edge its row and the head that reads it.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const own = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const make = (...parts) => window.React.createElement(...parts);
  window.dash_clientside = window.dash_clientside || {};

  // Of heads that share what is read, the chosen one if it is among them, else the first.
  function head(layer, first, share) {
    if (layer === null || layer === undefined) return {};
    const now = Number(lens.get("head"));
    const same = lens.get("layer") === String(layer) && now >= first && now < first + share;
    return { layer, head: same ? now : first };
  }
  lens.swapCircuits = function () {
    const [a, b] = [lens.get("circuit_a"), lens.get("circuit_b")];
    return a && b && b !== "none" ? { circuit_a: b, circuit_b: a, task: null } : {};
  };
  // Mark the chosen edge in the table.
  lens.markEdges = function () {
    for (const link of document.querySelectorAll("[data-edge]"))
      if (link.dataset.edge === lens.get("edge")) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
  };
  own.EdgeLink = function (props) {
    const { sender, receiver, layer, head: first, share } = props.data;
    const edge = sender + "~" + receiver;
    const choose = () => lens.go({ edge, ...head(layer, first, share) });
    return make("button", { type: "button", className: "link", "data-edge": edge, onClick: choose, "aria-current": lens.get("edge") === edge ? "true" : undefined, title: "Show this edge" }, sender + " → " + receiver);
  };
  own.Measured = function (props) {
    const { value, data, colDef } = props;
    if (value === null || value === undefined) return null;
    const side = colDef.field.slice(-2);
    const end = (name) => data[colDef.field.slice(0, -2) + name + side];
    const [low, high] = [end("_low"), end("_high")];
    const shown = low === null || low === undefined ? "" : " [" + lens.number(low, 2) + ", " + lens.number(high, 2) + "]";
    return make("span", null, lens.number(value, 2), make("span", { className: "note" }, shown));
  };
  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    circuit: function (click) {
      const at = click && click.points && click.points[0] && click.points[0].customdata;
      if (at && at[0] === "edge") lens.go({ edge: at[1] + "~" + at[2], ...head(at[3], at[4], at[5]) });
      else if (at && at[3] !== null) lens.go({ layer: at[3], head: at[4] });
      else if (at) lens.go({ node: at[1] });
      return window.dash_clientside.no_update;
    },
  });
})();
