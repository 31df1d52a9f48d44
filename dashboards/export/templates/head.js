// Arrow keys lead to the page before and after, Escape to all heads.
(function () {
  "use strict";
  document.addEventListener("keydown", function (event) {
    if (event.metaKey || event.ctrlKey || event.altKey) return;
    const link = { ArrowLeft: "[rel=prev]", ArrowRight: "[rel=next]", Escape: ".brand" }[event.key];
    const found = link && document.querySelector(link);
    if (found) found.click();
  });
})();
