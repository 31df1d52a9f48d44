// Keeps figures as files: those that the server draws by their address, Plotly's with title and caption put around them.
(function () {
  "use strict";
  const lens = (window.sparselens = window.sparselens || {});
  const APART = 14; // units between the axis and the caption
  const LINE = 15; // units from line to line of the caption
  const SHARP = 2; // pixels of a PNG to a unit
  const LETTER = 6; // width of one of its letters

  function download(address, name) {
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
  }

  // Plotly reads some markup in texts: none may come from a page's words.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  // Lines of at most so many letters; a longer word, a policy's call, is broken wherever it is.
  function broken(text, letters) {
    const lines = [""];
    for (const word of text.split(/\s+/)) {
      for (let at = 0; at < word.length; at += letters) {
        const part = word.slice(at, at + letters);
        if (lines[lines.length - 1].length + part.length >= letters) lines.push("");
        lines[lines.length - 1] += (lines[lines.length - 1] && !at ? " " : "") + part;
      }
    }
    return lines.filter(Boolean);
  }

  // An SVG as PNG. Plotly does this by a blob: address, which the Content-Security-Policy does not allow for images.
  function painted(address, width, height) {
    return new Promise(function (done, fail) {
      const image = new Image();
      image.onload = function () {
        const canvas = document.createElement("canvas");
        canvas.width = SHARP * width;
        canvas.height = SHARP * height;
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        done(canvas.toDataURL("image/png"));
      };
      image.onerror = () => fail(new Error("the figure cannot be painted"));
      image.src = address;
    });
  }

  // The words around a graph: the title of its figure or panel; its notes, those of the panel, and what is compared.
  function words(root, panel) {
    const notes = Array.from(panel.querySelectorAll(".note")).filter(function (each) {
      const figure = each.closest("figure");
      return each.offsetParent !== null && !each.closest("header") && (!figure || figure === root);
    });
    const said = new Set(notes.map((each) => each.textContent.trim()).filter(Boolean));
    const runs = Array.from(document.querySelectorAll(".context .picker"), function (each) {
      const value = each.querySelector("select")?.selectedOptions[0]?.textContent;
      return value ? (each.querySelector(".badge, .label")?.textContent || "") + ": " + value : "";
    });
    const name = panel.querySelector("h2")?.textContent || "Figure";
    for (const each of root.querySelectorAll("[data-caption]")) said.add(each.dataset.caption);
    const own = root.querySelector("figcaption")?.firstChild?.textContent || "";
    const told = [...said, ...runs.filter(Boolean)].map((each) => (/[.:!?]$/.test(each) ? each : each + "."));
    return { title: own ? name + ": " + own : name, caption: told.join(" ") };
  }

  lens.saveGraph = async function (button, form) {
    const panel = button.closest(".panel");
    const root = button.closest("figure") || panel;
    const graph = root.querySelector(".js-plotly-plot");
    if (!graph || !window.Plotly) return lens.say("There is no figure to save.");
    const { title, caption } = words(root, panel);
    const width = graph.offsetWidth;
    const lines = broken(caption, Math.floor((width - 24) / LETTER));
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const below = LINE * lines.length + APART + 16;
    const height = graph.offsetHeight + 34 + below;
    const margin = { ...graph.layout.margin, t: (graph.layout.margin?.t || 10) + 34, b: (graph.layout.margin?.b || 46) + below };
    const note = {
      text: lines.map(plain).join("<br>"), xref: "paper", yref: "paper", x: 0, y: 0, yshift: -(graph.layout.margin?.b || 46) - APART,
      xanchor: "left", yanchor: "top", align: "left", showarrow: false, font: { size: 11, color: colour("--ink-3") },
    };
    const layout = {
      ...graph.layout, width, height, margin, autosize: false, paper_bgcolor: colour("--surface"),
      title: { text: plain(title), x: 0, xref: "paper", y: 1, yref: "container", yanchor: "top", pad: { t: 14 }, font: { size: 15, color: colour("--ink") } },
      annotations: [...(graph.layout.annotations || []), note],
    };
    const drawn = await window.Plotly.toImage({ data: graph.data, layout }, { format: "svg", width, height });
    const name = title.replace(/[^A-Za-z0-9]+/g, "-").toLowerCase() + "." + form;
    download(form === "svg" ? drawn : await painted(drawn, width, height), name);
  };

  document.addEventListener("click", function (event) {
    const button = event.target.closest("[data-save]");
    if (!button) return;
    const [kind, form] = button.dataset.save.split(".");
    if (kind === "graph") lens.saveGraph(button, form);
    else {
      const params = new URLSearchParams(location.search);
      params.delete("sql");
      const theme = document.documentElement.dataset.theme === "dark" ? "dark" : "light";
      download("/view/figure/" + kind + "." + form + "?" + params.toString() + "&theme=" + theme, "");
    }
  });
})();
