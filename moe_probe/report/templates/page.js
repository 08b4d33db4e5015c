"use strict";
const all = (what, where) => [...(where || document).querySelectorAll(what)];

// tables: a click or Enter on a header sorts; a row and the row of details below it move together
const key = (row, place) => {
  const text = row.cells[place].textContent.trim();
  if (text === "–" || text === "") return null;
  const n = parseFloat(text.replace(/,/g, "").replace(/−/g, "-").replace(/^</, ""));
  return Number.isNaN(n) || /^\d+[-–]\D/.test(text) ? text : n;
};
const compare = (a, b) => typeof a === typeof b
  ? (typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true})) : typeof a === "number" ? -1 : 1;
for (const button of all("th button")) button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], place = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const units = all(":scope > tr:not(.more)", body).map(row => [key(row, place), row, row.nextElementSibling]);
  units.sort((x, y) => x[0] === null || y[0] === null ? (x[0] === null) - (y[0] === null) : sign * compare(x[0], y[0]));
  for (const [, row, next] of units) { body.append(row); if (next && next.classList.contains("more")) body.append(next); }
});

// filter boxes: rows without the words are hidden, and the count says so
for (const box of all("input.filter")) {
  box.parentElement.parentElement.hidden = false;
  const table = document.getElementById(box.getAttribute("aria-controls")), shown = box.parentElement.nextElementSibling;
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean), rows = all("tbody > tr", table);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    shown.textContent = words.length ? `${rows.filter(row => !row.hidden).length} of ${rows.length} rows` : "";
  });
}

// drawings: a mark's title is shown at once, beside the pointer
const tip = document.createElement("div");
tip.id = "tip"; tip.hidden = true; tip.setAttribute("role", "tooltip"); document.body.append(tip);
const show = event => {
  const mark = event.target.closest && event.target.closest("svg rect, svg path");
  const title = mark && mark.querySelector("title");
  if (title) { mark.dataset.tip = title.textContent; title.remove(); }
  if (!mark || !mark.dataset.tip) { tip.hidden = true; return; }
  tip.textContent = mark.dataset.tip; tip.hidden = false;
  const size = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - size.width - 8))}px`;
  tip.style.top = `${event.clientY + 18 + size.height > innerHeight ? event.clientY - size.height - 10 : event.clientY + 18}px`;
};
addEventListener("pointerover", show); addEventListener("pointerdown", show);
addEventListener("scroll", () => { tip.hidden = true; }, {passive: true});
addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });

// legends: one label alone
for (const button of all(".legend button")) button.addEventListener("click", () => {
  const plate = button.closest(".plate"), on = button.getAttribute("aria-pressed") !== "true";
  for (const other of all(".legend button", plate)) other.setAttribute("aria-pressed", String(on && other === button));
  for (const group of all("svg g[data-pick]", plate)) {
    const mine = group.dataset.pick === button.dataset.pick;
    group.classList.toggle("dim", on && !mine);
    if (on && mine) group.parentElement.append(group);
  }
});

// terms: their explanation is shown beside them; without this script it is shown at the bottom of the window
const place = term => {
  const box = term.getBoundingClientRect(), low = box.bottom > innerHeight * .7;
  term.style.setProperty("--x", `${Math.max(8, Math.min(box.left, innerWidth - Math.min(370, innerWidth - 24)))}px`);
  term.style.setProperty("--y", low ? "auto" : `${box.bottom + 2}px`);
  term.style.setProperty("--b", low ? `${innerHeight - box.top + 2}px` : "auto");
  term.classList.remove("off");
};
const termOf = event => event.target.closest && event.target.closest("a.term");
let touched = null;
for (const kind of ["pointerover", "focusin"]) addEventListener(kind, event => { const term = termOf(event); if (term) place(term); });
addEventListener("pointerdown", event => { touched = event.pointerType === "mouse" ? null : document.activeElement; });
addEventListener("click", event => {  // a finger's first touch shows the explanation, the second follows the link
  const term = termOf(event);
  if (term && event.detail && touched && touched !== term) { event.preventDefault(); term.focus(); }
});
addEventListener("scroll", () => { for (const term of all("a.term:hover, a.term:focus")) term.classList.add("off"); }, {passive: true});
addEventListener("keydown", event => { if (event.key === "Escape") for (const term of all("a.term:hover, a.term:focus")) term.classList.add("off"); });

// folds: all at once, and those around and in what a link points to
const folds = open => { for (const fold of all("details")) fold.open = open; };
for (const button of all("[data-folds]")) { button.parentElement.hidden = false; button.addEventListener("click", () => folds(button.dataset.folds === "open")); }
const reveal = () => {
  const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  for (let fold = target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  for (const fold of all(":scope > .evidence", target)) fold.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", reveal);
if (location.hash) reveal();

// text to copy
for (const button of all("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    const range = document.createRange(); range.selectNodeContents(text);
    getSelection().removeAllRanges(); getSelection().addRange(range);
    try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; } catch { button.textContent = "Selected: press Ctrl+C"; }
  });
}

// contents: mark the section in view
if ("IntersectionObserver" in window) {
  const links = new Map(all("nav ol ol a").map(link => [link.hash.slice(1), link]));
  const sections = all("main > section"), inView = new Set();
  const watch = new IntersectionObserver(entries => {
    for (const entry of entries) inView[entry.isIntersecting ? "add" : "delete"](entry.target);
    const first = sections.find(section => inView.has(section) && links.has(section.id));
    if (!first) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(first.id).setAttribute("aria-current", "true");
  }, {rootMargin: "-5% 0px -80% 0px"});
  for (const section of sections) watch.observe(section);
}
