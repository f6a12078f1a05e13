"use strict";
const listing = JSON.parse(document.getElementById("listing").textContent);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function probabilities(values, classes) {
  const list = element("div", undefined, "probabilities");
  const order = values.map((value, index) => [value, index]).sort((a, b) => b[0] - a[0]);
  for (const [value, index] of order) {
    const bar = element("meter");
    bar.max = 1;
    bar.value = value;
    bar.setAttribute("aria-hidden", "true");
    list.append(element("span", classes[index]), element("span", value.toFixed(3)), bar);
  }
  return list;
}

function describe([clip, , , values], classes) {
  const item = element("li"), words = element("div");
  const facts = Object.hasOwn(listing.clips, clip) ? listing.clips[clip] : {};
  if (Object.hasOwn(listing.pictures, clip)) {
    const picture = element("img");
    picture.src = listing.pictures[clip];
    picture.alt = "face in clip " + clip;
    item.append(picture);
  }
  words.append(element("strong", clip));
  if (facts.speaker) words.append(element("div", "speaker " + facts.speaker, "quiet"));
  if (facts.text) words.append(element("div", "\u201c" + facts.text + "\u201d"));
  words.append(probabilities(values, classes));
  item.append(words);
  return item;
}

function show(button) {
  const number = Number(button.dataset.system), row = Number(button.dataset.row), column = Number(button.dataset.column);
  const system = listing.systems[number], panel = document.getElementById("clips-" + number);
  const isOpen = button.getAttribute("aria-expanded") === "true";
  for (const other of document.querySelectorAll(`.cell[data-system="${number}"]`)) other.setAttribute("aria-expanded", "false");
  panel.replaceChildren();
  panel.hidden = isOpen;
  if (isOpen) return;
  button.setAttribute("aria-expanded", "true");
  const found = system.cells.filter((cell) => cell[1] === row && cell[2] === column), count = system.counts[row][column];
  const shown = found.length < count ? `the ${found.length} most confident of ${count} clips` : `${count} ${count === 1 ? "clip" : "clips"}`;
  panel.append(element("strong", `${system.classes[row]}, predicted as ${system.classes[column]}: ${shown}`));
  const list = element("ul");
  for (const cell of found) list.append(describe(cell, system.classes));
  panel.append(list);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".cell");
  if (button) show(button);
});
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
