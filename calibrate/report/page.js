"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function draw(theme) {
  for (const box of document.querySelectorAll("[data-figure]")) {
    const { data, layout } = figures[box.dataset.figure][theme];
    Plotly.react(box, data, layout, { displaylogo: false, responsive: true });
  }
}

const drawn = () => draw(dark.matches ? "dark" : "light");
if (document.querySelector("[data-figure]")) {
  drawn();
  dark.addEventListener("change", drawn);
  addEventListener("beforeprint", () => draw("light"));
  addEventListener("afterprint", drawn);
}
