"use strict";
// Everything of the run is put into the page with textContent or setAttribute, never as markup.
const PAGE = JSON.parse(document.getElementById("page").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const html = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// 0.00012 -> "1.2e-4", 1234567 -> "1.23M", 0.5 -> "0.5"; null (NaN in the run) -> "–".
function shortNumber(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("-", "−").replace("e-", "e−");
  for (const [limit, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (size >= limit) return plain(value / (unit === "k" ? 1e3 : limit)) + unit;
  }
  return plain(value);
}
const plain = (value) => String(Number(value.toPrecision(3))).replace("-", "−");
const signed = (value) => (value > 0 ? "+" : "") + shortNumber(value);
const withUnit = (value, unit) => {
  if (value === null || value === undefined) return "–";
  if (unit === "%") return plain(Number((100 * value).toFixed(1))) + " %";
  return shortNumber(value) + (unit ? " " + unit : "");
};

const tip = document.getElementById("tip");
function showTip(x, y, ...children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth - 8 ? x - 14 - box.width : x + 14;
  tip.style.left = Math.max(8, Math.min(left, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(y + 14, innerHeight - box.height - 8)) + "px";
}
function hideTip() {
  tip.hidden = true;
}
addEventListener("scroll", hideTip, { passive: true });
