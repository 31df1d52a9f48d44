// The scatter plot of heads: a click selects the head, a dragged rectangle goes into the URL.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  // The plot tells of a rectangle again when it is drawn anew, up to rounding.
  function same(box) {
    const now = (lens.get("box") || "").split("~").map(Number);
    return now.length === 4 && box.every((value, i) => Math.abs(value - now[i]) <= 1e-3 * Math.abs(box[i | 1] - box[i & ~1]));
  }
  const written = (value) => String(Number(value.toPrecision(6)));

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    point: function (click) {
      const at = click && click.points && click.points[0] && click.points[0].customdata;
      if (at) lens.go({ layer: at[0], head: at[1] });
      return window.dash_clientside.no_update;
    },
    // A click into one of the small figures by layer selects the layer.
    layer: function () {
      const fired = window.dash_clientside.callback_context.triggered[0];
      const at = fired && fired.value && fired.value.points && fired.value.points[0];
      if (at) lens.go({ layer: at.x });
      return window.dash_clientside.no_update;
    },
    brush: function (brush) {
      const range = brush && brush.range;
      if (range && range.x && range.y) {
        const sorted = (pair) => [...pair].sort((one, two) => one - two);
        const box = [...sorted(range.x), ...sorted(range.y)];
        if (!same(box)) lens.go({ box: box.map(written).join("~") });
      } else if (brush === null && lens.get("box")) lens.go({ box: null });
      return window.dash_clientside.no_update;
    },
  });
})();
