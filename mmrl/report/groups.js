// Group cards, their filter, and the colour of tokens.
const AT_ONCE = 10;

function chip(text, name) {
  return html("span", { class: `chip ${name || ""}` }, text);
}

function successChip(success) {
  const words = { solved: "✓ solved", failed: "✗ not solved", unknown: "not scored" };
  const partly = success !== null && success > 0 && success < 1 ? ` (${shortNumber(success)})` : "";
  return chip(words[outcome(success)] + partly, outcome(success));
}

// --- tokens -------------------------------------------------------------------------------------------------------
const signals = new Map(PAGE.signals.map((signal) => [signal.key, signal]));
const scales = new Map();

// The value that gets the full colour: the 98th percentile of the signal's size over the page, so that one outlier does not pale the rest.
function fullColour(key) {
  if (!scales.has(key)) {
    const sizes = [];
    for (const group of PAGE.groups) for (const rollout of group.rollouts) for (const value of rollout.signals[key] || []) if (value !== null) sizes.push(Math.abs(value));
    sizes.sort((a, b) => a - b);
    scales.set(key, sizes[Math.floor(0.98 * (sizes.length - 1))] || 1);
  }
  return scales.get(key);
}

function paint(spans, rollout, key) {
  const signal = signals.get(key);
  const values = signal ? rollout.signals[key] : null;
  spans.forEach((span, index) => {
    const value = values ? values[index] : null;
    span.className = values && value === null ? "token missing" : "token";
    if (value === null) return span.style.removeProperty("background-color");
    const share = Math.min(1, Math.abs(value) / fullColour(key));
    const hue = signal.scale !== "signed" ? "amber" : value < 0 ? "blue" : "red";
    const shown = (signal.scale === "low" && value > 0) || (signal.scale === "high" && value < 0) ? 0 : share;
    span.style.backgroundColor = `color-mix(in srgb, var(--${hue}) ${Math.round(78 * shown)}%, transparent)`;
  });
}

function tokenText(rollout) {
  const spans = rollout.tokens.map((token, index) => html("span", { class: "token", "data-token": index }, token));
  const box = html("div", { class: "text", tabindex: "0" }, ...spans);
  box.addEventListener("pointerover", (event) => {
    const index = event.target.dataset?.token;
    if (index === undefined) return hideTip();
    const lines = PAGE.signals.filter((signal) => rollout.signals[signal.key]).map((signal) => html("div", {}, `${signal.label} `, html("b", {}, shortNumber(rollout.signals[signal.key][index]))));
    showTip(event.clientX, event.clientY, html("div", { class: "tip-title" }, `token ${Number(index) + 1} of ${spans.length} `, html("code", {}, JSON.stringify(rollout.tokens[index]))), ...lines);
  });
  box.addEventListener("pointerleave", hideTip);
  return { box, spans };
}

// --- cards --------------------------------------------------------------------------------------------------------
const painters = []; // one per rollout on the page: (signal key) -> repaint

function rolloutRow(group, rollout) {
  const chips = html("div", { class: "chips" }, html("b", { class: "index" }, `#${rollout.index}`), successChip(rollout.success));
  chips.append(html("span", { class: "pair" }, "reward ", html("b", {}, shortNumber(rollout.reward))));
  chips.append(html("span", { class: `pair ${rollout.advantage < 0 ? "minus" : rollout.advantage > 0 ? "plus" : ""}` }, "advantage ", html("b", {}, rollout.advantage === null ? "–" : signed(rollout.advantage))));
  for (const [name, value] of Object.entries(rollout.parts)) chips.append(html("span", { class: "pair part" }, `${name} `, html("b", {}, shortNumber(value))));
  chips.append(chip(rollout.finish === "length" ? "cut at the limit" : rollout.finish, rollout.finish === "length" ? "warn" : ""));
  if (rollout.arm !== "plain") chips.append(chip(`arm ${rollout.arm}`, "arm"));
  if (rollout.tokens.length) chips.append(html("span", { class: "pair" }, `${rollout.tokens.length} tokens`));

  const told = answerChip(group.truth, rollout.answer);
  if (told) chips.append(told);

  const body = html("div", { class: "body" }, chips);
  if (rollout.tokens.length) {
    const { box, spans } = tokenText(rollout);
    body.append(box);
    const repaint = (key) => paint(spans, rollout, key);
    painters.push(repaint);
    repaint(document.getElementById("signal").value);
  } else {
    body.append(html("div", { class: "text", tabindex: "0" }, rollout.text ?? ""));
  }
  if (rollout.prompt !== undefined) body.append(html("details", {}, html("summary", {}, "its own prompt"), html("pre", {}, rollout.prompt)));
  if (rollout.view) body.append(html("details", {}, html("summary", {}, `its own view: ${rollout.view.name}`), viewOf(rollout.view)));
  if (rollout.films) body.append(html("details", {}, html("summary", {}, "its own frames"), stage({ films: rollout.films }, [])));
  const images = rollout.images ?? group.images;
  const own = group.maze ? mazeView(group.maze, images[0], [rollout], `path of rollout ${rollout.index}`) : rollout.images?.length ? html("div", { class: "pictures" }, ...rollout.images.map(photo)) : null;
  return html("li", { class: `rollout ${outcome(rollout.success)} ${own ? "" : "bare"}`, "data-index": rollout.index }, own, body);
}

// The pictures that completions were scored under besides their own.
function viewOf(view) {
  return view.films ? stage({ films: view.films }, []) : html("div", { class: `pictures many-${Math.min(view.images.length, 2)}` }, ...view.images.map(photo));
}

function groupCard(group) {
  const solved = group.rollouts.filter((rollout) => rollout.success >= 1).length;
  const known = group.rollouts.filter((rollout) => rollout.reward !== null).map((rollout) => rollout.reward);
  const mean = known.length ? known.reduce((sum, reward) => sum + reward, 0) / known.length : null;
  const head = html("header", {}, html("h3", {}, html("span", { class: "step" }, `step ${group.step}`), group.task),
    html("div", { class: "chips" }, chip(`${solved} of ${group.rollouts.length} solved`, solved === group.rollouts.length ? "solved" : solved ? "partly" : "failed"), html("span", { class: "pair" }, "mean reward ", html("b", {}, shortNumber(mean)))));
  const side = html("div", { class: "side" }, taskView(group, group.rollouts));
  if (group.view) side.append(html("div", { class: "view" }, html("p", { class: "solution" }, "view ", html("code", {}, group.view.name)), viewOf(group.view)));
  side.append(html("p", { class: "solution" }, "solution ", html("code", {}, group.solution)));
  side.append(html("details", {}, html("summary", {}, "prompt"), html("pre", {}, group.prompt)));
  const list = html("ol", { class: "list" }, ...group.rollouts.map((rollout) => rolloutRow(group, rollout)));
  const answers = group.rollouts.map((rollout) => ({ who: `#${rollout.index}`, index: rollout.index, answer: rollout.answer }));
  const card = html("article", { class: "group" }, head, stage(group, answers), html("div", { class: "columns" }, side, list));
  // Pointing at a rollout brings its path out of the bundle, its answer out of the others.
  const focus = (index) => card.querySelectorAll(".side .path, .stage [data-index]").forEach((mark) => mark.classList.toggle("dim", index !== null && mark.dataset.index !== index));
  list.addEventListener("pointerover", (event) => focus(event.target.closest("li")?.dataset.index ?? null));
  list.addEventListener("pointerleave", () => focus(null));
  return card;
}

function exampleCard(example) {
  const attempts = example.attempts.map((attempt) => {
    const view = example.maze ? mazeView(example.maze, example.images[0], [attempt], `path at step ${attempt.step}`) : null;
    return html("div", { class: `attempt ${outcome(attempt.success)}` }, html("div", { class: "chips" }, html("b", {}, `step ${attempt.step}`), successChip(attempt.success)), view, html("div", { class: "text", tabindex: "0" }, attempt.text));
  });
  const shared = example.maze && example.maze.on_picture ? null : example.images.length ? html("div", { class: "pictures" }, ...example.images.map(photo)) : null;
  const answers = example.attempts.map((attempt) => ({ who: `step ${attempt.step}`, answer: attempt.answer }));
  return html("article", { class: "example" }, html("h3", {}, example.task), shared, stage(example, answers), html("div", { class: "attempts" }, ...attempts), html("p", { class: "solution" }, "solution ", html("code", {}, example.solution)));
}

// --- filter -------------------------------------------------------------------------------------------------------
const control = (name) => document.getElementById(name);
let matching = [], shown = 0;

const outcomeOf = (group) => {
  const solved = group.rollouts.filter((rollout) => rollout.success >= 1).length;
  return solved === 0 ? "none" : solved === group.rollouts.length ? "all" : "some";
};
const textOf = (group) => {
  group.haystack ??= [group.task, group.prompt, group.solution, ...group.rollouts.map((rollout) => `${rollout.arm}\n${rollout.text ?? rollout.tokens.join("")}`)].join("\n").toLowerCase();
  return group.haystack;
};

function showMore() {
  control("groups").append(...matching.slice(shown, shown + AT_ONCE).map(groupCard));
  shown = Math.min(shown + AT_ONCE, matching.length);
  const left = matching.length - shown;
  control("more-groups").hidden = left === 0;
  control("more-groups").textContent = `Show ${Math.min(left, AT_ONCE)} more of ${left}`;
  const all = PAGE.groups.length;
  control("count").textContent = matching.length === all ? `${all} groups in this page` : `${matching.length} of ${all} groups match`;
}

function applyFilter() {
  const step = control("filter-step").value, success = control("filter-success").value, text = control("filter-text").value.trim().toLowerCase();
  matching = PAGE.groups.filter((group) => (step === "" || group.step === Number(step)) && (success === "" || outcomeOf(group) === success) && (text === "" || textOf(group).includes(text)));
  painters.length = 0;
  control("groups").replaceChildren();
  shown = 0;
  showMore();
}

function applySignal() {
  const key = control("signal").value, signal = signals.get(key);
  painters.forEach((repaint) => repaint(key));
  if (!signal) return control("legend").replaceChildren();
  const full = fullColour(key);
  const most = `≥ ${shortNumber(full)}`, least = `≤ ${shortNumber(-full)}`;
  const ends = { low: ["0", least], high: ["0", most], signed: [least, most] }[signal.scale];
  control("legend").replaceChildren(html("span", {}, ends[0]), html("i", { class: `ramp ${signal.scale === "signed" ? "signed" : ""}` }), html("span", {}, ends[1]));
}

control("example-cards")?.append(...PAGE.examples.map(exampleCard));
if (control("groups")) {
  const steps = [...new Set(PAGE.groups.map((group) => group.step))];
  control("filter-step").append(html("option", { value: "" }, "all"), ...steps.map((step) => html("option", { value: step }, String(step))));
  control("signal").append(...PAGE.signals.map((signal) => html("option", { value: signal.key }, signal.label)), html("option", { value: "" }, "nothing"));
  control("filter-step").addEventListener("change", applyFilter);
  control("filter-success").addEventListener("change", applyFilter);
  control("filter-text").addEventListener("input", applyFilter);
  control("signal").addEventListener("change", applySignal);
  control("more-groups").addEventListener("click", showMore);
  applyFilter();
  applySignal();
}
