// Cell renderers of the tables. React puts values in as text, never as markup.
(function () {
  "use strict";
  const own = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
  const make = (...parts) => window.React.createElement(...parts);

  own.HeadLink = function (props) {
    const { layer, head } = props.data;
    if (layer === null || layer === undefined || head === null || head === undefined) return null;
    const name = "L" + layer + "H" + head;
    const go = JSON.stringify({ layer, head });
    const here = ["/", "/heads", "/circuits"].includes(location.pathname);
    const chosen = here && window.sparselens.get("layer") === String(layer) && window.sparselens.get("head") === String(head);
    const target = here ? { "data-cell": name } : { "data-page": "/head" };
    return make("button", { type: "button", className: "link", "data-go": go, "aria-current": chosen ? "true" : undefined, title: here ? "Select " + name : "Open " + name, ...target }, name);
  };
  own.PickHead = function (props) {
    const name = props.data.head_name;
    return make("button", { type: "button", className: "pick", role: "checkbox", "data-pick": name, "aria-checked": String(window.sparselens.isPicked(name)), "aria-label": "Give " + name + " back", title: "Pick " + name + ", to be given back" });
  };
  own.TokenLink = function (props) {
    const { pos, text } = props.data;
    const word = (text ?? "").replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥") || "∅";
    return make("button", { type: "button", className: "link", "data-go": JSON.stringify({ q: pos }), title: "Show it in the text" }, pos + " " + word);
  };
  own.FeatureLink = function (props) {
    const { feature } = props.data;
    const chosen = window.sparselens.get("feature") === String(feature);
    return make("button", { type: "button", className: "link", "data-go": JSON.stringify({ feature }), "aria-current": chosen ? "true" : undefined, title: "Show feature " + feature }, String(feature));
  };
  own.Number = (props) => make("span", null, window.sparselens.number(props.value));
  own.Plain = function (props) {
    const value = props.value;
    if (value === null || value === undefined) return make("span", { className: "null" }, "NULL");
    if (typeof value === "number" && !Number.isInteger(value)) return make("span", { title: String(value) }, String(Number(value.toPrecision(6))));
    return make("span", null, String(value));
  };
  own.UseRun = function (props) {
    const { run_id, comparable, role, name } = props.data;
    if (!comparable) return null;
    const button = (field, label) =>
      make("button", {
        type: "button", className: "badge" + (role === label ? " on" : ""), "data-go": JSON.stringify({ [field]: run_id }),
        "aria-label": "Use " + name + " as " + label, "aria-pressed": role === label,
      }, label);
    return make("span", { className: "use" }, button("a", "A"), " ", button("b", "B"));
  };
})();
