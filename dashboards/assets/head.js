// The Head page: panels further down are filled when they come into view; commands are copied by a button.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  window.dash_clientside = window.dash_clientside || {};
  const near = new IntersectionObserver(
    function (entries) {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        near.unobserve(entry.target);
        window.dash_clientside.set_props(entry.target.dataset.seen, { data: true });
      }
    },
    { rootMargin: "300px" },
  );

  document.addEventListener("click", async function (event) {
    const button = event.target.closest("[data-copy]");
    const text = button && document.getElementById(button.dataset.copy)?.textContent;
    if (!text) return;
    try {
      await navigator.clipboard.writeText(text);
      lens.say("Command copied");
    } catch {
      window.prompt("Copy this command", text);
    }
  });

  window.dash_clientside.sparselens = Object.assign(window.dash_clientside.sparselens || {}, {
    headTitle: (data) => (data && data.part.layer !== null && data.part.head !== null ? "L" + data.part.layer + "H" + data.part.head : "Head"),
    // Watched from when the panels above are drawn: an empty page is so short that all of it is in view.
    watch: function (...above) {
      if (above.every((children) => children !== null && children !== undefined))
        setTimeout(function () {
          for (const place of document.querySelectorAll("[data-seen]:not(.watched)")) {
            place.classList.add("watched");
            near.observe(place);
          }
        }, 100);
      return window.dash_clientside.no_update;
    },
  });
})();
