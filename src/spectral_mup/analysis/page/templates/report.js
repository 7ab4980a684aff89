"use strict";
// Tables: a click on a head sorts by its column, a second one the other way; cells without a number stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
    const keyed = [...body.rows].map(row => {
      const cell = row.cells[column], text = cell.textContent;
      return {row, text, number: cell.classList.contains("n") ? Number(cell.dataset.number ?? text.replace("\u2212", "-")) : NaN};
    });
    const numbers = keyed.some(k => !Number.isNaN(k.number));
    keyed.sort((a, b) => !numbers ? sign * a.text.localeCompare(b.text, "en") :
      Number.isNaN(a.number) ? (Number.isNaN(b.number) ? 0 : 1) : Number.isNaN(b.number) ? -1 : sign * (a.number - b.number));
    body.append(...keyed.map(k => k.row));
    heads.forEach(h => h.setAttribute("aria-sort", h === head ? (up ? "ascending" : "descending") : "none"));
  }));
}

// Losses over the learning rate: a panel a rule, drawn from the numbers above.
const NS = "http://www.w3.org/2000/svg", W = 460, H = 300, LEFT = 52, RIGHT = 12, TOP = 44, BOTTOM = 42;
const minus = text => String(text).replace("-", "\u2212");
function add(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return parent.appendChild(element);
}
function ticks(lo, hi, most) {
  const raw = (hi - lo) / most, ten = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].find(k => k * ten >= raw) * ten;
  const found = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + 1e-9; k++) found.push([k * step, Math.max(0, -Math.floor(Math.log10(step) + 1e-9))]);
  return found;
}
function panel(holder, data, rule) {
  const [x0, x1, best, high] = data.view, low = best - 0.06 * (high - best);
  const X = x => LEFT + (x - x0 + 0.3) / (x1 - x0 + 0.6) * (W - LEFT - RIGHT);
  const Y = y => TOP + 14 + (high - Math.min(y, high)) / (high - low) * (H - TOP - 14 - BOTTOM);
  const box = holder.appendChild(Object.assign(document.createElement("div"), {className: "chart", tabIndex: 0}));
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `Losses under ${rule.rule} over ${data.x}; arrow keys read them`);
  const svg = add(box, "svg", {viewBox: `0 0 ${W} ${H}`, "aria-hidden": "true"});
  add(svg, "text", {x: LEFT, y: 17, "font-weight": 600}, `${rule.rule}: ${rule.verdict}`);
  for (const [x, digits] of ticks(x0, x1, 8)) {
    add(svg, "path", {d: `M${X(x)} ${H - BOTTOM}v4`, stroke: "#555"});
    add(svg, "text", {x: X(x), y: H - BOTTOM + 17, "text-anchor": "middle"}, minus(x.toFixed(digits)));
  }
  for (const [y, digits] of ticks(low, high, 5)) {
    add(svg, "path", {d: `M${LEFT} ${Y(y)}H${W - RIGHT}`, stroke: "#e4e6ea"});
    add(svg, "text", {x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end"}, y.toFixed(digits));
  }
  add(svg, "path", {d: `M${LEFT} ${TOP}V${H - BOTTOM}H${W - RIGHT}`, stroke: "#555", fill: "none"});
  add(svg, "text", {x: (LEFT + W - RIGHT) / 2, y: H - 7, "text-anchor": "middle"}, data.x);
  const base = rule.sizes.find(s => s.size === data.base);
  if (base?.best) add(svg, "path", {d: `M${X(base.best[0])} ${TOP}V${H - BOTTOM}`, stroke: "#777", "stroke-dasharray": "4 3"});
  for (const s of rule.sizes) {
    const colour = data.colours[s.size], line = p => "M" + p.map(([x, y]) => `${X(x)} ${Y(y)}`).join("L");
    const seen = s.means.filter(([, y]) => y <= high);
    if (seen.length > 1) add(svg, "path", {d: line(seen), stroke: colour, fill: "none", "stroke-width": s.bowl.length ? 0.8 : 1.6});
    if (s.bowl.length) add(svg, "path", {d: line(s.bowl.filter(([, y]) => y <= high)), stroke: colour, fill: "none", "stroke-width": 2});
    for (const [x, seeds] of s.points) for (const [, y] of seeds) {
      if (y === null) add(svg, "path", {d: `M${X(x) - 3} ${TOP + 1}l6 6m0 -6l-6 6`, stroke: colour, "stroke-width": 1.5});
      else if (y > high) add(svg, "path", {d: `M${X(x) - 3} ${TOP + 14}l3 -4l3 4`, stroke: colour, fill: "none"});
      else add(svg, "circle", {cx: X(x), cy: Y(y), r: 2.4, fill: colour, "fill-opacity": 0.6});
    }
    if (s.best) add(svg, "circle", {cx: X(s.best[0]), cy: Y(s.best[1]), r: 5, fill: s.best[2] ? colour : "#fff", stroke: s.best[2] ? "#000" : colour});
  }
  const legend = add(svg, "text", {x: LEFT, y: 35}, `${data.axis}:`);
  for (const s of rule.sizes) {
    add(legend, "tspan", {fill: data.colours[s.size], dx: 9, "font-size": 15}, "\u25cf");
    add(legend, "tspan", {dx: 3}, String(s.size));
  }
  const cursor = add(svg, "path", {stroke: "#000", "stroke-width": 0.8, visibility: "hidden"});
  const tip = box.appendChild(Object.assign(document.createElement("div"), {className: "tip", hidden: true}));
  tip.setAttribute("role", "status");
  const lrs = [...new Set(rule.sizes.flatMap(s => s.points.map(([x]) => x)))].sort((a, b) => a - b);
  let at = null;
  function show(x) {
    at = x;
    cursor.setAttribute("d", `M${X(x)} ${TOP}V${H - BOTTOM}`);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(Object.assign(document.createElement("strong"), {textContent: `${data.value} ${Number((2 ** x).toPrecision(3))} (log2 ${minus(x)})`}));
    const table = tip.appendChild(document.createElement("table"));
    for (const s of rule.sizes) {
      const here = s.points.find(([lr]) => lr === x);
      if (!here) continue;
      const row = table.insertRow(), name = row.insertCell(), mean = s.means.find(([lr]) => lr === x);
      name.append(Object.assign(document.createElement("i"), {style: `background:${data.colours[s.size]}`}), `${data.axis} ${s.size}`);
      row.insertCell().textContent = mean ? mean[1].toFixed(4) : "diverged";
      row.insertCell().textContent = here[1].map(([seed, y]) => `seed ${seed}: ${y === null ? "diverged" : y.toFixed(4)}`).join(", ");
    }
    tip.hidden = false;
    const scale = box.clientWidth / W, right = X(x) * scale > box.clientWidth / 2;
    const room = right ? X(x) * scale - 8 - tip.offsetWidth : X(x) * scale + 8;
    tip.style.left = `${Math.max(2, Math.min(room, box.clientWidth - tip.offsetWidth - 2))}px`;
    tip.style.top = `${Math.max(2, (H - BOTTOM) * scale - tip.offsetHeight - 8)}px`;
  }
  function hide() { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); }
  const near = x => lrs.reduce((a, b) => Math.abs(X(b) - x) < Math.abs(X(a) - x) ? b : a);
  box.addEventListener("pointermove", e => lrs.length && show(near((e.clientX - box.getBoundingClientRect().left) / box.clientWidth * W)));
  box.addEventListener("pointerleave", hide);
  box.addEventListener("blur", hide);
  box.addEventListener("keydown", e => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (e.key === "Escape") hide();
    if (!step || !lrs.length) return;
    e.preventDefault();
    const i = at === null ? (step > 0 ? 0 : lrs.length - 1) : lrs.indexOf(at) + step;
    show(lrs[Math.max(0, Math.min(lrs.length - 1, i))]);
  });
}
const charts = JSON.parse(document.getElementById("charts").textContent);
for (const holder of document.querySelectorAll("[data-chart]")) {
  const data = charts[holder.dataset.chart];
  for (const rule of data.panels) panel(holder, data, rule);
}

// On paper nothing can be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.long)").forEach(d => { d.open = true; }));
