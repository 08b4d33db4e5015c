const make = (name, text, kind) => { const e = document.createElement(name); if (text !== undefined) e.textContent = text; if (kind) e.className = kind; return e; };
// the policy forbids style attributes in the page, not what this script sets
for (const bar of document.querySelectorAll("[data-width]")) bar.style.width = bar.dataset.width + "%";
for (const chip of document.querySelectorAll("[data-tint]")) chip.style.setProperty("--tint", chip.dataset.tint);
for (const article of document.querySelectorAll("article")) {
  const data = JSON.parse(article.querySelector("script").textContent);
  const spans = [...article.querySelectorAll(".reading span")], list = article.querySelector(".units");
  const buttons = new Map(), groups = [], tokensOf = spans.map(s => s.dataset.i.split(" ").map(Number)), covers = [];
  tokensOf.forEach((tokens, k) => tokens.forEach(i => (covers[i] ||= []).push(k)));
  const shade = unit => {
    for (const s of spans) { s.classList.remove("s1", "s2", "s3", "s4"); s.title = ""; }
    const top = new Map();
    for (const [i, level, value] of unit.on) for (const k of covers[i] || []) if (!(top.get(k)?.[0] > level)) top.set(k, [level, value]);
    for (const [k, [level, value]] of top) { spans[k].classList.add("s" + level); spans[k].title = value; }
    for (const b of article.querySelectorAll(".chip")) b.setAttribute("aria-pressed", b.dataset.key === unit.key);
    for (const [key, b] of buttons) b.setAttribute("aria-pressed", key === unit.key);
    article.querySelector(".by").textContent = unit.key + (unit.group.startsWith("Features") ? " " + unit.title.slice(unit.title.indexOf(" ")) : unit.topic ? " (" + unit.topic + ")" : "");
  };
  let group = null;
  for (const unit of data.units) {
    if (group !== unit.group) { group = unit.group; const h = make("h3", group); groups.push([h, []]); list.append(h); }
    const b = make("button", unit.title, "unit"); b.type = "button";
    if (unit.topic) { b.append(" · "); b.append(make("em", unit.topic)); }
    b.title = unit.full; b.append(make("small", unit.facts)); b.addEventListener("click", () => shade(unit));
    buttons.set(unit.key, b); groups.at(-1)[1].push(b); list.append(b);
    if (unit.key === data.shade) shade(unit);
  }
  for (const b of article.querySelectorAll(".chip")) b.addEventListener("click", () => shade(data.units.find(u => u.key === b.dataset.key)));
  article.querySelector("input").addEventListener("input", event => {
    const word = event.target.value.trim().toLowerCase();
    for (const [head, own] of groups) {
      let any = false;
      for (const b of own) { const fits = !word || (head.textContent + " " + b.textContent).toLowerCase().includes(word); b.hidden = !fits; b.style.display = fits ? "" : "none"; any ||= fits; }
      head.style.display = any ? "" : "none";
    }
  });
  const detail = article.querySelector(".token");
  spans.forEach((span, k) => span.addEventListener("click", () => {
    for (const s of spans) s.classList.toggle("picked", s === span);
    detail.replaceChildren(...tokensOf[k].flatMap(about));
  }));
  const about = i => {
    const here = data.units.filter(u => u.group.startsWith("Features")).map(u => [u, u.on.find(x => x[0] === i)]).filter(x => x[1]).sort((a, b) => b[1][2] - a[1][2]);
    const table = make("table");
    const row = (a, b) => { const r = make("tr"); r.append(make("th", a), make("td", b)); table.append(r); };
    row("experts", data.layers.map((layer, p) => { const x = data.experts[i][p], out = []; for (let k = 0; k < x.length; k += 2) out.push(x[k] + " (" + x[k + 1].toFixed(2) + ")"); return layer + ": " + (out.join(", ") || "none"); }).join("  ·  "));
    for (const [unit, on] of here.slice(0, 8)) row(on[2].toFixed(2), unit.title + (unit.topic ? " · " + unit.topic : ""));
    if (!here.length) row("features", "none fires");
    const head = make("h2", "Token " + i + " ");
    head.append(make("bdi", "“" + data.tokens[i] + "”"));
    return [head, table];
  };
}
