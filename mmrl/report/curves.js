// Small multiples. A chart is an SVG with its own fixed coordinates, scaled by the page, so nothing is redrawn on resize.
const WIDTH = 400, HEIGHT = 210, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 24;
const drawn = []; // one {redraw, mark} per chart

// Gaussian mean around each point: centred, so that a rising curve is not drawn late. Gaps (null) stay gaps and count nothing.
function smoothed(values) {
  const width = values.length / 30;
  if (width < 0.5) return values;
  const reach = Math.ceil(2.5 * width);
  const weights = Array.from({ length: reach + 1 }, (_, distance) => Math.exp(-0.5 * (distance / width) ** 2));
  return values.map((value, index) => {
    if (value === null) return null;
    let sum = 0, total = 0;
    for (let other = Math.max(0, index - reach); other <= Math.min(values.length - 1, index + reach); other++) {
      if (values[other] === null) continue;
      sum += weights[Math.abs(other - index)] * values[other];
      total += weights[Math.abs(other - index)];
    }
    return sum / total;
  });
}

function ticks(low, high, count) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const marks = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-6; index++) marks.push(index * step);
  return marks;
}

// Lines through the points, broken at null; a point with null on both sides becomes a dot-long line.
function linePath(xs, ys) {
  let path = "", open = false;
  ys.forEach((y, index) => {
    if (y === null) {
      open = false;
    } else {
      path += (open ? "L" : "M") + xs[index].toFixed(1) + " " + y.toFixed(1);
      if (!open && (index + 1 === ys.length || ys[index + 1] === null)) path += "h0.01";
      open = true;
    }
  });
  return path;
}

// Areas between two curves, one closed piece for each stretch without null.
function bandPath(xs, lows, highs) {
  let path = "", begin = 0;
  for (let index = 0; index <= xs.length; index++) {
    if (index < xs.length && lows[index] !== null && highs[index] !== null) continue;
    if (index > begin) {
      const there = xs.slice(begin, index).map((x, i) => x.toFixed(1) + " " + highs[begin + i].toFixed(1));
      const back = xs.slice(begin, index).map((x, i) => x.toFixed(1) + " " + lows[begin + i].toFixed(1)).reverse();
      path += "M" + there.concat(back).join("L") + "Z";
    }
    begin = index + 1;
  }
  return path;
}

// Each curve's values on top of those below it, null counted as nothing.
function stacked(curves) {
  const base = new Map();
  return curves.map((curve) => {
    const low = curve.steps.map((step) => base.get(step) || 0);
    const high = curve.steps.map((step, index) => low[index] + (curve.values[index] || 0));
    curve.steps.forEach((step, index) => base.set(step, high[index]));
    return { ...curve, low, high };
  });
}

function valueRange(chart, curves) {
  const seen = curves.flatMap((curve) => [curve.values, curve.low || [], curve.high || []].flat()).filter((value) => value !== null);
  let low = Math.min(...seen), high = Math.max(...seen);
  if (chart.unit === "%") return [0, high > 0.5 ? Math.max(1, high) : Math.max(high * 1.1, 0.01)];
  if (chart.stacked || (low >= 0 && low < 0.5 * high)) low = Math.min(low, 0);
  if (high === low) [low, high] = [low - (Math.abs(low) || 1) * 0.5, high + (Math.abs(high) || 1) * 0.5];
  return [low, high + (high - low) * 0.05];
}

function drawChart(chart) {
  const curves = chart.stacked ? stacked(chart.curves) : chart.curves;
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const first = steps[0], last = steps.at(-1);
  const [low, high] = valueRange(chart, curves);
  const x = (step) => LEFT + (last > first ? (step - first) / (last - first) : 0.5) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const ys = (values) => values.map((value) => (value === null ? null : y(value)));

  const plot = svg("g");
  const cursor = svg("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const dots = svg("g");
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": chart.title }, axes(chart, x, y, [first, last], [low, high]), plot, cursor, dots);

  function redraw(smooth) {
    plot.replaceChildren();
    curves.forEach((curve, index) => {
      const xs = curve.steps.map(x), color = `c${index % 8}`;
      const soft = smooth && !curve.markers;
      const drawnValues = (values) => ys(soft ? smoothed(values) : values);
      if (curve.low) plot.append(svg("path", { class: `${chart.stacked ? "area" : "band"} ${color}`, d: bandPath(xs, drawnValues(curve.low), drawnValues(curve.high)) }));
      if (chart.stacked) return;
      if (soft) plot.append(svg("path", { class: `line raw ${color}`, d: linePath(xs, ys(curve.values)) }));
      plot.append(svg("path", { class: `line ${color}`, d: linePath(xs, drawnValues(curve.values)) }));
      if (curve.markers) curve.values.forEach((value, i) => value !== null && plot.append(svg("circle", { class: `dot ${color}`, cx: xs[i], cy: y(value), r: 3 })));
    });
  }
  function mark(step) {
    dots.replaceChildren();
    cursor.setAttribute("visibility", step === null || step < first || step > last ? "hidden" : "visible");
    if (step === null) return;
    cursor.setAttribute("x1", x(step));
    cursor.setAttribute("x2", x(step));
    curves.forEach((curve, index) => {
      const value = (chart.stacked ? curve.high : curve.values)[curve.steps.indexOf(step)];
      if (value !== null && value !== undefined) dots.append(svg("circle", { class: `dot c${index % 8}`, cx: x(step), cy: y(value), r: 3.5 }));
    });
  }
  drawn.push({ redraw, mark });
  picture.addEventListener("pointermove", (event) => readOut(event, picture, chart, curves, steps, x));
  picture.addEventListener("pointerleave", () => { hideTip(); drawn.forEach((other) => other.mark(null)); });
  redraw(document.getElementById("smooth").checked);
  const title = html("figcaption", {}, html("span", { class: "name" }, chart.title), legendOf(chart, curves));
  return html("figure", { class: "chart" }, title, picture);
}

function axes(chart, x, y, [first, last], [low, high]) {
  const group = svg("g", { class: "axes" });
  for (const value of ticks(low, high, 4)) {
    group.append(svg("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    const label = chart.unit === "%" ? plain(100 * value) + " %" : shortNumber(value);
    group.append(svg("text", { x: LEFT - 6, y: y(value) + 3.5, "text-anchor": "end" }, label));
  }
  const marks = last > first ? ticks(first, last, 5).filter(Number.isInteger) : [first];
  for (const step of marks) group.append(svg("text", { x: x(step), y: HEIGHT - 7, "text-anchor": "middle" }, shortNumber(step)));
  return group;
}

function legendOf(chart, curves) {
  if (curves.length === 1) return null;
  return html("span", { class: "keys" }, ...curves.map((curve, index) => html("span", { class: `key c${index % 8}` }, html("i"), curve.label)));
}

function readOut(event, picture, chart, curves, steps, x) {
  const box = picture.getBoundingClientRect();
  const at = ((event.clientX - box.left) / box.width) * WIDTH;
  const step = steps.reduce((best, other) => (Math.abs(x(other) - at) < Math.abs(x(best) - at) ? other : best));
  drawn.forEach((other) => other.mark(step));
  const lines = curves.map((curve, index) => {
    const place = curve.steps.indexOf(step);
    if (place < 0) return null;
    const band = curve.low && !chart.stacked && curve.low[place] !== null ? ` (${withUnit(curve.low[place], chart.unit)} to ${withUnit(curve.high[place], chart.unit)})` : "";
    return html("div", { class: `key c${index % 8}` }, html("i"), `${curve.label} `, html("b", {}, withUnit(curve.values[place], chart.unit)), band);
  });
  const total = chart.stacked ? html("div", {}, "together ", html("b", {}, withUnit(Math.max(...curves.map((curve) => curve.high[curve.steps.indexOf(step)] ?? 0)), chart.unit))) : null;
  showTip(event.clientX, event.clientY, ...[html("div", { class: "tip-title" }, `step ${step}`), ...lines, total].filter(Boolean));
}

if (document.getElementById("charts")) {
  document.getElementById("charts").append(...PAGE.charts.map(drawChart));
  document.getElementById("more-charts")?.append(...PAGE.more_charts.map(drawChart));
  document.getElementById("smooth").addEventListener("change", (event) => drawn.forEach((chart) => chart.redraw(event.target.checked)));
}
