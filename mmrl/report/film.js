// Clips as strips of frames, and under them what is true and what every completion answered.
const inSeconds = (value) => `${Number(value.toFixed(2))} s`;
const ordinal = (n) => n + (["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] || "th");

// Columns of a strip over a time axis that ends at `end`: a frame is as wide as the time until the next, so that it stands above its own
// seconds. null where a frame would be too narrow: then all are equally wide, and only their labels tell the time.
function columnsInTime(at, end) {
  const gaps = at.slice(1).map((time, index) => time - at[index]);
  const usual = gaps.length ? [...gaps].sort((a, b) => a - b)[gaps.length >> 1] : end - at[0];
  const widths = [...gaps, Math.min(usual, end - at.at(-1))];
  if (Math.min(...widths) < 0.5 * (end / at.length)) return null;
  return { before: at[0], widths, after: end - at.at(-1) - widths.at(-1) };
}

function frameButton(film, index, stills, card) {
  const at = film.at[index];
  const name = `frame ${film.inside?.[index] ? "inside" : ""}`;
  const button = html("button", { type: "button", class: name, "aria-label": stills[index].caption }, html("img", { src: PAGE.pictures[film.frames[index]], alt: "" }), html("span", {}, inSeconds(at)));
  button.addEventListener("click", () => enlarge(stills, index));
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && markTime(button, card, at));
  button.addEventListener("pointerleave", (event) => markTime(button, card, null));
  return button;
}

// The same moment in every row of the card's time axis.
function markTime(inside, card, at) {
  for (const line of inside.closest(".stage")?.querySelectorAll(".moment") ?? []) {
    line.setAttribute("visibility", at === null ? "hidden" : "visible");
    if (at !== null) line.setAttribute("x1", percent(at, card)), line.setAttribute("x2", percent(at, card));
  }
}

// One clip. `number` is its place among several, from 1; null for a clip that is alone.
function filmStrip(film, number, card) {
  const shown = film.frames.length, name = number ? `Clip ${number} · ` : "";
  const stills = film.frames.map((position, index) => ({ position, caption: `${name}frame at ${inSeconds(film.at[index])}` }));
  const strip = html("div", { class: "strip" }, ...film.frames.map((_, index) => frameButton(film, index, stills, card)));
  const cells = card.truth?.kind === "grounding" && !number ? columnsInTime(film.at, card.truth.end) : null;
  if (cells) {
    const parts = [cells.before, ...cells.widths, cells.after].filter((width, index, all) => width > 1e-9 || (index > 0 && index < all.length - 1));
    strip.style.gridTemplateColumns = parts.map((width) => `minmax(0, ${width.toFixed(4)}fr)`).join(" ");
    const first = cells.before > 1e-9 ? 2 : 1;
    [...strip.children].forEach((button, index) => (button.style.gridColumnStart = first + index));
  }
  const truly = card.truth?.kind === "jigsaw" ? card.truth.order.indexOf(String(number)) : -1;
  const caption = html("p", { class: "caption" }, number ? html("b", {}, `Clip ${number}`) : null, html("span", {}, shown < film.of ? `${shown} of ${film.of} frames` : `${shown} frame${shown > 1 ? "s" : ""}`), truly >= 0 ? html("span", {}, `truly ${ordinal(truly + 1)}`) : null);
  return { caption, strip };
}

function filmViews(films, card) {
  if (films.length === 1) {
    const { caption, strip } = filmStrip(films[0], null, card);
    return [caption, strip];
  }
  const clips = films.map((film, index) => {
    const { caption, strip } = filmStrip(film, index + 1, card);
    return html("div", { class: "clip" }, caption, strip);
  });
  return [html("div", { class: "clips" }, ...clips)];
}

// --- answers ------------------------------------------------------------------------------------------------------
const percent = (at, card) => `${(100 * Math.min(1, Math.max(0, at / card.truth.end))).toFixed(3)}%`;
const spanText = ([start, end]) => `${Number(start.toFixed(2))}–${inSeconds(end)}`;

function bar([start, end], card, attributes) {
  const left = parseFloat(percent(start, card)), right = parseFloat(percent(end, card));
  const width = Math.max(0.6, right - left); // a span outside of the clip is a sliver at its edge
  return svg("rect", { x: `${Math.min(left, 100 - width)}%`, width: `${width}%`, ...attributes });
}

const moment = () => svg("line", { class: "moment", y1: 0, y2: "100%", visibility: "hidden" });

// A row of the axis: the true spans as ground, and over them the span of one answer, green as far as it is right.
function spanRow(card, answer) {
  const track = svg("svg", { class: `track-row ${answer?.invalid ? "invalid" : ""}`, height: 16 }, svg("rect", { class: "track", y: 6, width: "100%", height: 4, rx: 2 }));
  for (const span of card.truth.spans) track.append(bar(span, card, answer ? { class: "truth-ground", y: 0, height: 16 } : { class: "truth", y: 3, height: 10, rx: 3 }));
  if (answer?.span) {
    const predicted = bar(answer.span, card, { class: "predicted", y: 4, height: 8, rx: 2 });
    predicted.style.fill = `color-mix(in srgb, var(--good) ${Math.round(100 * answer.tiou)}%, var(--bad))`;
    track.append(predicted);
  }
  track.append(moment());
  return track;
}

function timeTicks(card) {
  const end = card.truth.end, rough = end / 6, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((size) => size >= rough * 0.999);
  const ticks = svg("svg", { class: "ticks", height: 20, "aria-hidden": "true" });
  for (let n = 0; n * step <= end * 1.0001; n++) {
    const at = n * step, x = percent(at, card);
    const anchor = n === 0 ? "start" : at > 0.96 * end ? "end" : "middle";
    ticks.append(svg("line", { x1: x, x2: x, y1: 0, y2: 5 }), svg("text", { x, y: 17, "text-anchor": anchor }, inSeconds(at)));
  }
  ticks.append(moment());
  return ticks;
}

// Counts or clip numbers, those of an answer marked by whether they are right; without `items`, the true ones.
function itemRow(truth, items) {
  const wanted = truth.counts ?? [...truth.order];
  const marked = (items ?? wanted).map((item, index) => html("span", { class: `item ${!items ? "" : item === wanted[index] ? "right" : "wrong"}` }, truth.names?.[index] ? `${truth.names[index]} ` : "", html("b", {}, item)));
  return html("div", { class: "items" }, ...marked);
}

// What an answer says in a few words: [what must be seen, what may give way on a narrow screen].
function inWords(truth, answer) {
  if (answer.invalid) return [answer.invalid, ""];
  if (truth.kind === "grounding") return [`tIoU ${answer.tiou.toFixed(2)}`, spanText(answer.span)];
  if (truth.kind === "counting") return [`${answer.counts.filter((count, index) => count === truth.counts[index]).length} of ${truth.counts.length}`, "right"];
  return [`${answer.right} of ${truth.order.length}`, "in place"];
}

function trueRow(card) {
  const truth = card.truth;
  const middle = truth.kind === "grounding" ? spanRow(card, null) : itemRow(truth);
  const says = truth.kind === "grounding" ? html("span", {}, truth.spans.map(spanText).join(", ")) : html("span", { class: "long" }, truth.kind === "jigsaw" ? "first to last" : "");
  return [html("span", { class: "who" }, "true"), middle, html("span", { class: "says" }, says)];
}

function answerRow(card, { who, index, answer }) {
  const truth = card.truth, [short, long] = inWords(truth, answer);
  const middle = truth.kind === "grounding" ? spanRow(card, answer) : answer.invalid ? null : itemRow(truth, answer.counts ?? [...answer.order]);
  const says = html("span", { class: `says ${answer.invalid ? "invalid" : ""}` }, html("b", {}, short), long ? html("span", { class: "long" }, long) : null);
  const cells = [html("span", { class: "who" }, who), middle, says].filter((cell) => cell);
  if (index !== undefined) for (const cell of cells) cell.setAttribute("data-index", index);
  return cells;
}

// Strips and answers of a card in one grid. `attempts`: [{who, index, answer}]. null for a task without clips or such an answer.
function stage(card, attempts) {
  if (!card.films && !card.truth) return null;
  const timed = card.truth?.kind === "grounding" ? "timed" : "";
  const rows = card.truth ? [...trueRow(card), ...attempts.filter((attempt) => attempt.answer).flatMap((attempt) => answerRow(card, attempt))] : [];
  if (timed) rows.push(html("span", { class: "who" }), timeTicks(card), html("span"));
  return html("div", { class: "film" }, html("div", { class: `stage ${timed}` }, ...filmViews(card.films ?? [], card), ...rows));
}

function answerChip(truth, answer) {
  if (!truth || !answer) return null;
  if (answer.invalid) return chip(`invalid answer: ${answer.invalid}`, "warn");
  return html("span", { class: "pair part" }, inWords(truth, answer).join(" "));
}
