"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const make = (tag, text, more = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    return Object.assign(element, more);
  };
  const percent = (prob) => `${(100 * prob).toFixed(prob > 0.995 && prob < 1 ? 1 : 0)} %`;
  const right = (image) => image.label === image.prediction;

  function card(image) {
    const item = make("li");
    const alt = `${image.label}, predicted as ${image.prediction}: ${image.name}`;
    item.append(make("img", undefined, { src: image.src, alt, loading: "lazy", title: image.name }));
    item.append(make("b", `${image.prediction} ${percent(image.prob)}`, { className: right(image) ? "" : "no" }));
    item.append(make("span", right(image) ? image.name.split("/").pop() : `is ${image.label}`));
    return item;
  }

  // images behind a cell of the confusion matrix
  const dialog = find("dialog");
  document.querySelectorAll(".cell").forEach((cell) => cell.addEventListener("click", () => {
    const { label, prediction } = cell.dataset;
    const found = data.images.filter((image) => image.label === label && image.prediction === prediction);
    const all = parseInt(cell.textContent, 10);
    find("dialog-title").textContent = `${label} predicted as ${prediction}`;
    find("dialog-note").textContent = found.length < all ? `${found.length} of ${all} images are in this file.` : `${all} image${all === 1 ? "" : "s"}`;
    find("dialog-grid").replaceChildren(...found.map(card));
    dialog.showModal();
  }));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  // gallery
  const orders = {
    wrong: data.images.filter((image) => !right(image)).sort((a, b) => b.prob - a.prob),
    right: data.images.filter(right).sort((a, b) => a.prob - b.prob),
    sure: data.images.filter(right).sort((a, b) => b.prob - a.prob),
  };
  const STEP = 48;
  let order = "wrong", count = STEP;
  function show() {
    const images = orders[order], shown = Math.min(count, images.length);
    find("grid").replaceChildren(...images.slice(0, shown).map(card));
    find("shown").textContent = images.length ? `${shown} of ${images.length}` : "None.";
    find("more").hidden = shown >= images.length;
    document.querySelectorAll("[data-show]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.show === order)));
  }
  document.querySelectorAll("[data-show]").forEach((button) => button.addEventListener("click", () => { order = button.dataset.show; count = STEP; show(); }));
  find("more").addEventListener("click", () => { count += STEP; show(); });
  if (!orders.wrong.length) order = "right";
  show();

  // map of the features
  if (!data.map) return;
  const plane = find("plane"), tip = find("tip"), points = data.map.points;
  const SVG = "http://www.w3.org/2000/svg";
  const groups = {
    label: [...new Set(points.map((point) => point.label))].sort(),
    split: [...new Set(points.map((point) => point.split))],
    right: [true, false, null],
  };
  const words = { true: "right", false: "wrong", null: "not scored", "": "unlabelled" };
  const hue = (index, size) => `hsl(${Math.round(360 * index / Math.max(size, 1) + 212) % 360} 68% ${index % 2 ? 60 : 48}%)`;
  const colour = (by, value) => by === "right" ? { true: "#3b82f6", false: "#e4572e", null: "#9aa3af" }[String(value)] : hue(groups[by].indexOf(value), groups[by].length);
  const dots = points.map((point, index) => {
    const dot = document.createElementNS(SVG, "circle");
    dot.setAttribute("r", "5");
    dot.addEventListener("mouseenter", () => tell(index));
    dot.addEventListener("mouseleave", () => { tip.hidden = true; dot.classList.remove("at"); });
    plane.append(dot);
    return dot;
  });
  function draw() {
    const kind = find("projection").value, by = find("colour").value;
    points.forEach((point, index) => {
      const [x, y] = point.at[kind];
      dots[index].setAttribute("cx", 20 + 760 * x);
      dots[index].setAttribute("cy", 500 - 480 * y);
      dots[index].setAttribute("fill", colour(by, point[by]));
    });
    const present = groups[by].filter((value) => points.some((point) => point[by] === value));
    find("key").replaceChildren(...present.map((value) => {
      const item = make("li"), spot = make("i");
      spot.style.background = colour(by, value);
      item.append(spot, String(words[String(value)] ?? value));
      return item;
    }));
  }
  let current = -1;
  function tell(index) {
    if (current >= 0) dots[current].classList.remove("at");
    current = index;
    const point = points[index], dot = dots[index], scale = plane.clientWidth / 800;
    dot.classList.add("at");
    const text = [point.label || "unlabelled", point.split, point.prediction && (point.right ? "right" : `predicted as ${point.prediction}`)].filter(Boolean).join(" · ");
    tip.replaceChildren();
    const source = point.image === null ? point.src : data.images[point.image].src;
    if (source) tip.append(make("img", undefined, { src: source, alt: "" }));
    tip.append(make("div", text), make("div", point.name.split("/").pop()));
    const x = dot.getAttribute("cx") * scale, y = dot.getAttribute("cy") * scale;
    tip.style.left = `${Math.min(Math.max(0, x + 12), plane.clientWidth - 130)}px`;
    tip.style.top = `${y + 12}px`;
    tip.hidden = false;
    find("told").textContent = `${point.name}: ${text}`;
  }
  plane.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    tell((current + step + points.length) % points.length);
  });
  plane.addEventListener("blur", () => { tip.hidden = true; });
  find("projection").addEventListener("change", draw);
  find("colour").addEventListener("change", draw);
  draw();
})();
