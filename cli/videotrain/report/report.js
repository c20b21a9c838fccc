"use strict";
const figures = JSON.parse(document.getElementById("figures").textContent);
const root = document.documentElement;
const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const color = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
const faint = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, "0");
const config = { displaylogo: false, displayModeBar: false };
const NARROW = 700;

// A figure has the width of its place and a height of its own, and its place has that height, too: what Plotly does to
// heights when a window changes its size would push the figure over what stands below it.
function react(id, traces, layout) {
  const place = document.getElementById(id);
  place.style.height = `${layout.height}px`;
  layout.width = place.clientWidth;
  Plotly.react(id, traces, layout, config);
}

function base(height) {
  const axis = { gridcolor: color("line"), zerolinecolor: color("line"), linecolor: color("line"), tickcolor: color("line") };
  return {
    axis,
    layout: {
      height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest", showlegend: false,
      font: { color: color("dim"), family: getComputedStyle(document.body).fontFamily, size: 12 },
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
    },
  };
}

function line(points, name, style, more) {
  return Object.assign({ type: "scatter", mode: "lines", x: points.x, y: points.y, name, line: style }, more);
}

function changeLines(curve) {
  const marks = curve.changes.slice(1);
  const shapes = marks.map(([, step]) => ({
    type: "line", xref: "x", yref: "paper", x0: step - 0.5, x1: step - 0.5, y0: 0, y1: 1,
    line: { color: color("dim"), width: 1, dash: "dot" },
  }));
  for (const branch of curve.lost) {
    shapes.push({ type: "rect", xref: "x", yref: "paper", x0: branch.x[0] - 0.5, x1: branch.x[branch.x.length - 1] + 0.5,
      y0: 0, y1: 1, line: { width: 0 }, fillcolor: faint(color("lost"), 0.14), layer: "below" });
  }
  const room = marks.length <= 12;
  const annotations = room ? marks.map(([number, step]) => ({
    x: step - 0.5, xref: "x", y: 1, yref: "paper", yanchor: "bottom", showarrow: false, text: `${number}`,
    font: { size: 11, color: color("dim") },
  })) : [];
  return { shapes, annotations };
}

function curveTraces(curve) {
  const loss = "step %{x}<br>loss %{y:.4g}<extra>%{fullData.name}</extra>";
  const rate = "step %{x}<br>%{y:.3g} samples/s<extra>%{fullData.name}</extra>";
  const traces = [
    line(curve.loss, "loss", { color: faint(color("accent"), 0.35), width: 1 }, { hovertemplate: loss }),
    line(curve.smooth, "mean", { color: color("accent"), width: 2.5 }, { hovertemplate: loss }),
  ];
  for (const branch of curve.lost) {
    const style = { color: color("lost"), width: 1.5, dash: "dash" };
    traces.push(line(branch, "lost", style, { mode: branch.x.length > 1 ? "lines" : "markers",
      marker: { color: color("lost"), size: 6 }, hovertemplate: loss }));
  }
  for (const part of curve.throughput) {
    const hue = color(`w${part.generation % 8}`);
    const name = `generation ${part.generation}, ${part.workers} workers`;
    const few = part.x.length < 3;
    traces.push(line(part, name, { color: hue, width: 2 }, { xaxis: "x2", yaxis: "y2",
      mode: few ? "lines+markers" : "lines", marker: { color: hue, size: 5 }, hovertemplate: rate }));
  }
  return traces;
}

function drawCurve(curve, index) {
  const narrow = document.getElementById(`curve-${index}`).clientWidth < NARROW;
  const { axis, layout } = base(narrow ? 560 : 320);
  const low = Math.min(...curve.loss.y), high = Math.max(...curve.loss.y);
  const log = low > 0 && high / low > 20;
  Object.assign(layout, changeLines(curve), {
    margin: { l: 56, r: 16, t: 26, b: 40 },
    xaxis: { ...axis, domain: narrow ? [0, 1] : [0, 0.47], anchor: "y", title: { text: "step" }, rangemode: "tozero" },
    yaxis: { ...axis, domain: narrow ? [0.6, 1] : [0, 1], title: { text: "loss" }, type: log ? "log" : "linear" },
    xaxis2: { ...axis, domain: narrow ? [0, 1] : [0.55, 1], title: { text: "step" }, anchor: "y2", matches: "x" },
    yaxis2: { ...axis, domain: narrow ? [0, 0.4] : [0, 1], title: { text: "samples per second" }, rangemode: "tozero", anchor: "x2" },
  });
  react(`curve-${index}`, curveTraces(curve), layout);
}

function bars(kind, alpha, drawn) {
  const found = drawn.bars.filter((bar) => bar.kind === kind);
  const hues = found.map((bar) => kind === "lost" ? color("lost") : faint(color(`w${bar.generation % 8}`), alpha));
  const seconds = (bar) => ((bar.to - bar.from) / 1000).toFixed(1);
  return {
    type: "bar", orientation: "h", y: found.map((bar) => bar.row), base: found.map((bar) => bar.from),
    x: found.map((bar) => bar.to - bar.from), marker: { color: hues, line: { width: 0 } },
    text: found.map((bar) => kind === "work" ? String(bar.generation) : ""), textposition: "inside", insidetextanchor: "middle",
    textfont: { color: "#ffffff", size: 12 }, constraintext: "none", textangle: 0, width: 0.62,
    hovertext: found.map((bar) => `generation ${bar.generation}, ${bar.stage} (${bar.reason})<br>${kind}: ${seconds(bar)} s`),
    hovertemplate: "%{y}<br>%{hovertext}<extra></extra>",
  };
}

// Each label in the lowest row in which nothing stands at its place.
function timelineMarks(drawn, width) {
  const shapes = [], annotations = [], ends = [];
  const from = Math.min(...drawn.bars.map((bar) => bar.from)), to = Math.max(...drawn.bars.map((bar) => bar.to));
  let stage = null;
  for (const change of drawn.changes) {
    const newStage = change.stage !== stage;
    stage = change.stage;
    shapes.push({ type: "line", xref: "x", yref: "paper", x0: change.at, x1: change.at, y0: 0, y1: 1,
      line: { color: color(newStage ? "ink" : "dim"), width: 1, dash: newStage ? "solid" : "dot" }, opacity: 0.5 });
    const words = newStage ? change.stage : change.reason, long = 8 + 7 * words.length;
    const at = (change.at - from) / Math.max(1, to - from) * width;
    const start = Math.max(0, Math.min(at, width - long));
    let row = ends.findIndex((end) => end <= start);
    if (row < 0) row = ends.length;
    if (row >= 8) continue;
    ends[row] = start + long;
    annotations.push({ x: change.at, xref: "x", y: 1, yref: "paper", yanchor: "bottom", xanchor: "left", yshift: 2 + 15 * row,
      xshift: start - at, showarrow: false, text: newStage ? `<b>${change.stage}</b>` : change.reason,
      font: { size: 11, color: color(newStage ? "ink" : "dim") } });
  }
  return { shapes, annotations, rows: ends.length };
}

function drawTimeline(drawn) {
  const side = { l: 64, r: 16 };
  const { rows, ...marks } = timelineMarks(drawn, document.getElementById("timeline").clientWidth - side.l - side.r);
  const top = 14 + 15 * rows;
  const { axis, layout } = base(top + 68 + drawn.rows.length * Math.max(12, Math.min(34, 560 / drawn.rows.length)));
  Object.assign(layout, marks, {
    barmode: "overlay", margin: { ...side, t: top, b: 46 },
    xaxis: { ...axis, type: "date", nticks: 6 },
    yaxis: { ...axis, type: "category", categoryorder: "array", categoryarray: [...drawn.rows].reverse(), fixedrange: true },
  });
  react("timeline", [bars("starting", 0.35, drawn), bars("work", 1, drawn), bars("lost", 1, drawn)], layout);
}

function drawChart(chart, index) {
  const { axis, layout } = base(300);
  const titled = (name) => ({ ...axis, title: { text: name || "" }, automargin: true });
  Object.assign(layout, { margin: { l: 64, r: 16, t: 16, b: 46 }, showlegend: (chart.lines || []).length > 1,
    xaxis: titled(chart.x), yaxis: titled(chart.y) });
  const hue = (i) => i ? color(`w${i % 8}`) : color("accent");
  const traces = chart.bars
    ? [{ type: "bar", orientation: "h", y: chart.bars[0], x: chart.bars[1], marker: { color: color("accent") } }]
    : chart.lines.map((each, i) => line(each, each.name, { color: hue(i), width: 2.5 },
      { mode: each.x.length < 40 ? "lines+markers" : "lines" }));
  react(`chart-${index}`, traces, layout);
}

function draw() {
  (figures.charts || []).forEach(drawChart);
  figures.curves.forEach(drawCurve);
  if (figures.timeline) drawTimeline(figures.timeline);
}

function setTheme(dark) {
  root.dataset.theme = dark ? "dark" : "light";
  draw();
}

document.getElementById("theme").addEventListener("click", () => setTheme(root.dataset.theme !== "dark"));
let asked = 0;
window.addEventListener("resize", () => {
  clearTimeout(asked);
  asked = setTimeout(draw, 60);
});
prefersDark.addEventListener("change", (event) => setTheme(event.matches));
setTheme(prefersDark.matches);
