"use strict";
// Draws the figures, whose data is in the element "data", and the chosen metric of all runs.
const DATA = JSON.parse(document.getElementById("data").textContent);
const CONFIG = {
  responsive: true,
  displaylogo: false,
  displayModeBar: window.innerWidth < 600 ? false : "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d"],
};
const drawn = [];

function draw(id, figure) {
  const place = document.getElementById(id);
  drawn.push(Plotly.newPlot(place, figure.data, figure.layout, CONFIG));
}

for (const [id, figure] of Object.entries(DATA.figures)) draw(id, figure);

const choice = document.getElementById("metric");
if (choice) {
  const show = () => {
    const key = choice.value;
    const lines = DATA.explorer.lines.filter((line) => key in line.values).map((line) => {
      const [x, y] = line.values[key];
      const style = { color: line.colour, dash: line.dash, width: 2 };
      const mode = x.length < 60 ? "lines+markers" : "lines";
      return { type: "scatter", mode, name: line.name, x, y, line: style, marker: { size: 5 } };
    });
    const layout = structuredClone(DATA.explorer.layout);
    layout.yaxis.title.text = DATA.explorer.labels[key];
    return Plotly.react(document.getElementById("explorer"), lines, layout, CONFIG);
  };
  choice.addEventListener("change", show);
  drawn.push(show());
}

Promise.all(drawn).then(() => { document.documentElement.dataset.ready = "1"; });
