// Pictures, and paths drawn over mazes. Coordinates: 28 units a cell, as in the pictures.
const CELL = 28;
const ASIDE = { up: [-1, 0], down: [1, 0], left: [0, -1], right: [0, 1] };

const center = ([row, column], shift) => [(column + 0.5) * CELL + shift, (row + 0.5) * CELL + shift];
const outcome = (success) => (success === null ? "unknown" : success >= 1 ? "solved" : "failed");

// A picture that a click enlarges, to be mapped over the positions of pictures that belong together.
function photo(position, index, all) {
  const button = html("button", { type: "button", class: "photo", "aria-label": "enlarge" }, html("img", { src: PAGE.pictures[position], alt: "" }));
  button.addEventListener("click", () => enlarge(all.map((one, n) => ({ position: one, caption: all.length > 1 ? `picture ${n + 1} of ${all.length}` : "" })), index));
  return button;
}

// --- one picture, large -------------------------------------------------------------------------------------------
const viewer = html("dialog", { class: "viewer" });
document.body.append(viewer);
let turn = () => {};

// Shows stills[index], [{position, caption}]; the arrow keys and buttons go to its neighbours.
function enlarge(stills, index) {
  const image = html("img", { alt: "" }), caption = html("span", { "aria-live": "polite" });
  const button = (text, label, act) => {
    const made = html("button", { type: "button", "aria-label": label }, text);
    made.addEventListener("click", act);
    return made;
  };
  const back = button("‹", "previous", () => turn(-1)), on = button("›", "next", () => turn(1));
  turn = (by) => {
    index = Math.min(stills.length - 1, Math.max(0, index + by));
    image.setAttribute("src", PAGE.pictures[stills[index].position]);
    caption.textContent = stills[index].caption;
    back.disabled = index === 0;
    on.disabled = index === stills.length - 1;
  };
  turn(0);
  viewer.replaceChildren(image, html("p", {}, ...(stills.length > 1 ? [back, on] : []), caption, button("✕", "close", () => viewer.close())));
  viewer.showModal();
}
viewer.addEventListener("keydown", (event) => turn({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0));
viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());

// One path: the legal part solid, the first illegal step dashed into the wall and crossed. `shift` keeps several paths apart.
function pathOf(walk, shift, label) {
  const points = walk.path.map((cell) => center(cell, shift));
  const group = svg("g", { class: `path ${outcome(walk.success)}`, "data-index": label });
  const line = points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
  group.append(svg("path", { class: "halo", d: `M${line}h0.01` }), svg("path", { class: "legal", d: `M${line}h0.01` }));
  const [endX, endY] = points.at(-1);
  if (walk.bump) {
    const [down, right] = ASIDE[walk.bump];
    const x = endX + right * CELL * 0.5, y = endY + down * CELL * 0.5, r = 4;
    group.append(svg("path", { class: "illegal", d: `M${endX} ${endY}L${x} ${y}` }));
    const cross = `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`;
    group.append(svg("path", { class: "cross-halo", d: cross }), svg("path", { class: "cross", d: cross }));
  } else {
    group.append(svg("circle", { class: "end", cx: endX, cy: endY, r: 4 }));
  }
  return group;
}

// The maze drawn from its openings, where there is no picture that the cells can be found on.
function drawnMaze(maze) {
  const open = new Set(maze.openings.flatMap(([a, b]) => [`${a}|${b}`, `${b}|${a}`]));
  let walls = "";
  for (let row = 0; row < maze.rows; row++) {
    for (let column = 0; column < maze.cols; column++) {
      const x = column * CELL, y = row * CELL, here = `${row},${column}`;
      if (!open.has(`${here}|${row},${column + 1}`)) walls += `M${x + CELL} ${y}v${CELL}`;
      if (!open.has(`${here}|${row + 1},${column}`)) walls += `M${x} ${y + CELL}h${CELL}`;
      if (row === 0) walls += `M${x} ${y}h${CELL}`;
      if (column === 0) walls += `M${x} ${y}v${CELL}`;
    }
  }
  const tile = ([row, column], name) => svg("rect", { class: name, x: column * CELL + 3, y: row * CELL + 3, width: CELL - 6, height: CELL - 6, rx: 5 });
  return svg("g", { class: "drawn" }, tile(maze.start, "start"), tile(maze.goal, "goal"), svg("path", { class: "walls", d: walls }));
}

// The maze with the walks of `walks` on it: [{path, bump, success, index}].
function mazeView(maze, position, walks, label) {
  const width = maze.cols * CELL, height = maze.rows * CELL;
  const ground = maze.on_picture && position !== undefined ? svg("image", { href: PAGE.pictures[position], width, height }) : drawnMaze(maze);
  const shown = walks.filter((walk) => walk.path);
  const spread = Math.min(2.4, 12 / Math.max(1, shown.length - 1));
  const paths = shown.map((walk, index) => pathOf(walk, (index - (shown.length - 1) / 2) * spread, walk.index));
  return svg("svg", { class: "maze", viewBox: `-2 -2 ${width + 4} ${height + 4}`, role: "img", "aria-label": label }, ground, ...paths);
}

// What a task shows: the maze with its paths, or its pictures and frames in a row.
function taskView(card, walks) {
  const pictures = card.images.map(photo);
  if (!card.maze) return pictures.length ? html("div", { class: `pictures many-${Math.min(pictures.length, 2)}` }, ...pictures) : null;
  const view = mazeView(card.maze, card.images[0], walks, `maze of ${card.task} with ${walks.length} paths`);
  const beside = pictures.slice(card.maze.on_picture ? 1 : 0);
  return html("div", { class: "pictures" }, view, ...beside);
}
