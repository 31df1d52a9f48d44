// Keeps figures as files: those that the server draws by their address, Plotly's with title and caption put around them.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const LINE = 15; // units from line to line of the caption
  const LETTER = 6; // width of one of its letters

  function download(address, name) {
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
  }

  // Plotly reads some markup in texts: none may come from a page's words.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function broken(text, letters) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      if (lines[lines.length - 1].length + word.length > letters) lines.push("");
      lines[lines.length - 1] += (lines[lines.length - 1] ? " " : "") + word;
    }
    return lines;
  }

  // The words of a panel: its title, then every note in it that is shown.
  function words(panel) {
    const notes = Array.from(panel.querySelectorAll(".note")).filter((each) => each.offsetParent !== null);
    const said = Array.from(new Set(notes.map((each) => each.textContent.trim()).filter(Boolean)));
    const runs = Array.from(document.querySelectorAll(".context input")).map((each) => each.value).filter(Boolean);
    return { title: panel.querySelector("h2")?.textContent || "Figure", caption: [...said, runs.join(" · ")].join(" ") };
  }

  lens.saveGraph = async function (panel, form) {
    const graph = panel.querySelector(".js-plotly-plot");
    if (!graph || !window.Plotly) return lens.say("There is no figure to save.");
    const { title, caption } = words(panel);
    const width = graph.offsetWidth;
    const lines = broken(caption, Math.floor((width - 24) / LETTER));
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const below = LINE * lines.length + 16;
    const height = graph.offsetHeight + 34 + below;
    const margin = { ...graph.layout.margin, t: (graph.layout.margin?.t || 10) + 34, b: (graph.layout.margin?.b || 46) + below };
    const note = {
      text: lines.map(plain).join("<br>"), xref: "paper", yref: "paper", x: 0, y: 0, yshift: -(graph.layout.margin?.b || 46),
      xanchor: "left", yanchor: "top", align: "left", showarrow: false, font: { size: 11, color: colour("--ink-3") },
    };
    const layout = {
      ...graph.layout, width, height, margin, autosize: false, paper_bgcolor: colour("--surface"),
      title: { text: plain(title), x: 0, xref: "paper", y: 1, yref: "container", yanchor: "top", pad: { t: 14 }, font: { size: 15, color: colour("--ink") } },
      annotations: [...(graph.layout.annotations || []), note],
    };
    const address = await window.Plotly.toImage({ data: graph.data, layout }, { format: form, width, height, scale: form === "png" ? 2 : 1 });
    download(address, title.replace(/[^A-Za-z0-9]+/g, "-").toLowerCase() + "." + form);
  };

  document.addEventListener("click", function (event) {
    const button = event.target.closest("[data-save]");
    if (!button) return;
    const [kind, form] = button.dataset.save.split(".");
    if (kind === "graph") lens.saveGraph(button.closest(".panel"), form);
    else {
      const params = new URLSearchParams(location.search);
      params.delete("sql");
      const theme = document.documentElement.dataset.mantineColorScheme === "dark" ? "dark" : "light";
      download("/view/figure/" + kind + "." + form + "?" + params.toString() + "&theme=" + theme, "");
    }
  });
})();
