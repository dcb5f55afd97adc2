"use strict";
const token = document.currentScript.dataset.token;
const COUNT = 24;
const byId = (id) => document.getElementById(id);
let photos = [], selected = new Set(), pending = new Set(), focused = 0, classes = [], images = 0;
let waiting = 0, changes = 0, busy = Promise.resolve();

async function ask(path, body) {
  const given = { headers: { "X-Token": token, "Content-Type": "application/json" } };
  if (body !== undefined) Object.assign(given, { method: "POST", body: JSON.stringify(body) });
  let answer;
  try {
    answer = await fetch(path, given);
  } catch {
    throw new Error("The program has stopped. What is shown as labelled is kept: run `pipeline label` again.");
  }
  const told = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(told.error || `Refused (${answer.status}).`);
  return told;
}

// one thing after the other, so that no two answers cross
function inTurn(work) {
  busy = busy.then(work).then(() => { byId("message").textContent = ""; })
    .catch((error) => { byId("message").textContent = error.message; });
  return busy;
}

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const source = (row, large) => `photo/${row}?token=${encodeURIComponent(token)}${large ? "&large" : ""}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;

function drawPhotos() {
  const list = byId("photos");
  list.replaceChildren(...photos.map((photo, place) => {
    const guess = photo.guess ? `${photo.guess} ${percent(photo.probability)}` : "no guess yet";
    const item = made("li", "", { role: "option", tabindex: place === focused ? 0 : -1,
      "aria-selected": selected.has(photo.row), "aria-busy": pending.has(photo.row), title: photo.path });
    item.append(made("img", "", { src: source(photo.row), alt: `photo ${photo.name}, guessed: ${guess}`, loading: "lazy" }),
      made("span", guess), made("small", photo.chosen === "random" ? "drawn at random" : photo.name));
    item.addEventListener("click", () => { focused = place; toggle(photo.row); });
    item.addEventListener("dblclick", () => enlarge(photo));
    return item;
  }));
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-multiselectable", "true");
  byId("empty").hidden = photos.length > 0;
}

function moveTo(place) {
  focused = Math.max(0, Math.min(place, photos.length - 1));
  byId("photos").querySelectorAll("li").forEach((item, number) => { item.tabIndex = number === focused ? 0 : -1; });
  byId("photos").children[focused]?.focus();
}

function toggle(row) {
  selected.has(row) ? selected.delete(row) : selected.add(row);
  drawPhotos();
  moveTo(focused);
}

// those on their way to the disk are answered already: the next key is for the next photo
const chosenRows = () => (selected.size ? photos.filter((photo) => selected.has(photo.row)) : photos.slice(focused, focused + 1))
  .map((photo) => photo.row).filter((row) => !pending.has(row));

function drawClasses() {
  byId("classes").replaceChildren(...classes.map((name, number) => {
    const button = made("button", name);
    if (number < 9) button.prepend(made("kbd", String(number + 1)), " ");
    button.addEventListener("click", () => give(name));
    return button;
  }));
}

function tellProgress(answered) {
  byId("progress").textContent = `${answered} of ${images} photos answered`;
}

// the panel takes longer than the next key, which does not wait for it: it is asked for when there is a moment
function refreshSoon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => refresh().catch((error) => { byId("message").textContent = error.message; }), 400);
}

async function refresh() {
  const before = changes, state = await ask("state");
  images = state.images;
  if (before === changes) {
    classes = state.classes;
    drawClasses();
    tellProgress(state.answered);
  } else refreshSoon();  // the next key was quicker
  byId("table").textContent = state.table;
  const found = state.estimate;
  byId("estimate").textContent = found.accuracy === null
    ? `Told from 10 answers on photos drawn at random (${found.n} so far; ${percent(state.share)} of those shown are).`
    : `${percent(found.accuracy)}, with 95 % confidence ${percent(found.low)} to ${percent(found.high)}, on ${found.n} photos `
      + `drawn at random${found.halved_by ? `; ${found.halved_by} more of them would halve that range` : ""}.`;
  drawCurve(state.curve);
  byId("counts").replaceChildren(...state.classes.map((name) => {
    const row = made("tr"), cell = made("td"), edit = made("button", "rename", { "aria-label": `rename ${name}` });
    edit.addEventListener("click", () => rename(name));
    cell.append(edit);
    row.append(made("td", name), made("td", String(state.counts[name]), { class: "number" }), cell);
    return row;
  }));
  byId("doubts").replaceChildren(...state.doubts.map((doubt) => {
    const item = made("li"), button = made("button");
    button.append(made("img", "", { src: source(doubt.row), alt: "" }),
      made("span", `${doubt.label}? rather ${doubt.likelier} (${percent(doubt.probability)})`));
    button.addEventListener("click", () => show([{ row: doubt.row, path: doubt.path, name: doubt.path, chosen: "asked",
      guess: doubt.likelier, probability: doubt.probability }]));
    item.append(button);
    return item;
  }));
}

function drawCurve(points) {
  const curve = byId("curve"), most = Math.max(1, ...points.map((point) => point[0]));
  const space = "http://www.w3.org/2000/svg";
  const at = (point) => `${30 + 185 * point[0] / most},${78 - 70 * point[1]}`;
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("points", points.map(at).join(" "));
  const told = [["1", 2, 12], ["0", 2, 80], [String(most), 190, 90]].map(([text, x, y]) => {
    const words = document.createElementNS(space, "text");
    words.textContent = text; words.setAttribute("x", x); words.setAttribute("y", y);
    return words;
  });
  curve.replaceChildren(...(points.length ? [line, ...told] : []));
}

function show(found) {
  photos = found; selected.clear(); pending.clear(); focused = 0;
  drawPhotos(); moveTo(0);
}

function redraw(before = photos) {
  const row = before[focused]?.row, there = photos.findIndex((photo) => photo.row === row);
  const free = photos.findIndex((photo) => !pending.has(photo.row));
  focused = there >= 0 && !pending.has(row) ? there : Math.max(0, free);
  drawPhotos(); moveTo(focused);
}

async function fill() {
  const there = new Set(photos.map((photo) => photo.row)), before = photos;
  const more = (await ask(`next?count=${COUNT}`)).filter((photo) => !there.has(photo.row));
  photos = [...photos, ...more].slice(0, COUNT);
  redraw(before);
}

function keep(rows, label, chosen) {
  if (!rows.length) return busy;
  rows.forEach((row) => pending.add(row));
  selected.clear();
  redraw();
  return inTurn(async () => {
    try {
      const left = photos.filter((photo) => !rows.includes(photo.row)), before = photos;
      const told = await ask("answer", { rows, label, chosen, shown: left.map((photo) => photo.row) });
      photos = told.shown;  // with the guesses of the head that knows the answer
      changes += 1;
      rows.forEach((row) => pending.delete(row));
      redraw(before);
      tellProgress(told.answered);
      if (photos.length < COUNT / 2) await fill();
      refreshSoon();
    } catch (error) {
      rows.forEach((row) => pending.delete(row));
      redraw();
      throw error;
    }
  });
}

const give = (label, chosen = "asked") => keep(chosenRows(), label, chosen);

function accept() {
  const rows = chosenRows(), guess = photos.find((photo) => photo.row === rows[0])?.guess;
  if (guess) keep(photos.filter((photo) => rows.includes(photo.row) && photo.guess === guess).map((photo) => photo.row), guess,
    "asked");
}

function alike() {
  if (photos.length) inTurn(async () => {
    show(await ask(`next?count=${COUNT}&like=${photos[focused].row}`));
    photos.forEach((photo) => selected.add(photo.row));
    drawPhotos(); moveTo(0);
  });
}

function enlarge(photo) {
  if (!photo) return;
  const viewer = byId("viewer"), image = viewer.querySelector("img");
  image.src = source(photo.row, true); image.alt = `photo ${photo.name}`;
  viewer.showModal();
}

async function changed(what, body) {
  await ask(what, body);
  changes += 1; photos = [];
  await fill();
  await refresh();
}

function rename(old) {
  const name = prompt(`New name of “${old}” (that of another class merges them)`, old);
  if (name && name !== old) inTurn(() => changed("rename", { old, new: name }));
}

const actions = {
  accept, alike, all: () => { photos.forEach((photo) => selected.add(photo.row)); drawPhotos(); moveTo(focused); },
  large: () => enlarge(photos[focused]), skip: () => give("", "skipped"), other: () => give("", "other"),
  undo: () => inTurn(() => changed("undo", {})),
  fresh: () => inTurn(async () => { photos = []; await fill(); }),
};
const keys = { Enter: "accept", a: "all", g: "alike", l: "large", s: "skip", o: "other", u: "undo", f: "fresh" };
for (const [name, act] of Object.entries(actions)) byId(name).addEventListener("click", act);

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, button, summary") && event.key !== "Escape" || event.ctrlKey || event.metaKey
    || event.altKey || byId("viewer").open) return;
  const across = Math.max(1, Math.round(byId("photos").clientWidth / (byId("photos").children[0]?.clientWidth + 10 || 1)));
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (step) moveTo(focused + step);
  else if (event.key === " ") photos.length && toggle(photos[focused].row);
  else if (/^[1-9]$/.test(event.key) && classes[event.key - 1] !== undefined) give(classes[event.key - 1]);
  else if (event.key === "n") byId("name").focus();
  else if (keys[event.key]) actions[keys[event.key]]();
  else return;
  event.preventDefault();
});

byId("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("name").value.trim();
  byId("name").value = "";
  if (name && !classes.includes(name)) inTurn(async () => {
    await ask("classes", { name });
    changes += 1;
    await refresh();
    moveTo(focused);
  });
});
byId("viewer").querySelector("button").addEventListener("click", () => byId("viewer").close());
byId("train").addEventListener("click", () => inTurn(async () => {
  byId("trained").textContent = "training…";
  try {
    const run = await ask("train", {});
    byId("trained").textContent = `${run.name}: ${percent(run.accuracy)} on ${run.n} ${run.split} photos. The same by `
      + `commands: ${run.commands.join("; ")}`;
  } catch (error) { byId("trained").textContent = ""; throw error; }
}));
inTurn(async () => { await fill(); await refresh(); });
