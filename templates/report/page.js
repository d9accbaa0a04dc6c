"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const names = Object.keys(data.policies);
let shown = data.first;

const last = (rows, time) => {  // the last row that begins at or before `time`
  let low = 0, high = rows.length - 1, found = null;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (rows[middle][0] <= time) { found = rows[middle]; low = middle + 1; } else { high = middle - 1; }
  }
  return found;
};
const short = value => value >= 1e6 ? (value / 1e6).toPrecision(4) + " M"
  : value >= 1e4 ? (value / 1e3).toPrecision(4) + " k" : String(Math.round(value));
const clock = seconds => {
  const minutes = Math.floor(seconds / 60);
  return Math.floor(minutes / 60) + " h " + String(minutes % 60).padStart(2, "0") + " min";
};
const text = (tag, words) => { const made = document.createElement(tag); made.textContent = words; return made; };

function show(name) {
  shown = name;
  document.querySelectorAll("[data-shows]").forEach(part => { part.hidden = part.dataset.shows !== name; });
  document.querySelectorAll("[data-show]").forEach(button =>
    button.setAttribute("aria-pressed", button.dataset.show === name));
}

function cross(time) {
  document.querySelectorAll("svg[data-time] .cross").forEach(line => {
    line.style.display = time === null ? "none" : "block";
    if (time !== null) {
      const x = data.left + (data.right - data.left) * time / data.end;
      line.setAttribute("x1", x); line.setAttribute("x2", x);
    }
  });
}

function tell(time, event) {
  const held = last(data.counts, time), layout = last(data.policies[shown].layouts, time);
  const used = layout && layout[1] ? `${layout[1]} × ${layout[2]} of ${held ? held[1] : 0}` : `none of ${held ? held[1] : 0}`;
  const table = document.createElement("table");
  for (const name of names) {
    const curve = data.policies[name].curve, at = time / data.end * (curve.length - 1);
    const low = Math.floor(at), high = Math.min(low + 1, curve.length - 1);
    const row = table.insertRow(), label = row.insertCell();
    const dot = text("span", ""); dot.className = "dot"; dot.style.background = `var(--${name})`;
    label.append(dot, name);
    row.insertCell().textContent = short(curve[low] + (curve[high] - curve[low]) * (at - low));
  }
  tip.replaceChildren(text("b", clock(time)), document.createElement("br"), `${shown}: ${used}`, table);
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 16, innerWidth - box.width - 12)) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 16, innerHeight - box.height - 12)) + "px";
}

document.querySelectorAll("svg[data-time]").forEach(svg => {
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * data.width;
    const time = (x - data.left) / (data.right - data.left) * data.end;
    if (time < 0 || time > data.end) { cross(null); tip.style.display = "none"; return; }
    cross(time);
    tell(time, event);
  });
  svg.addEventListener("pointerleave", () => { cross(null); tip.style.display = "none"; });
});
document.querySelectorAll("[data-show]").forEach(button =>
  button.addEventListener("click", () => show(button.dataset.show)));
document.querySelectorAll("tr[data-at]").forEach(row => {
  row.addEventListener("pointerenter", () => cross(Number(row.dataset.at)));
  row.addEventListener("pointerleave", () => cross(null));
});
const filter = document.getElementById("filter");
if (filter) {
  filter.hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    document.querySelectorAll("tr[data-at]").forEach(row => {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  });
}
document.querySelectorAll(".buttons").forEach(bar => { bar.hidden = false; });
show(shown);
