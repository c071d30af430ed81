// The page: where one is, what is selected, and what each part of it does.

import { ask, readAddress, writeAddress } from "./address.js";
import { drawSelection, drawState, load, reactions, tell, tileOf } from "./board.js";
import { decide, decideGroup, undo } from "./deciding.js";
import { ClassChoice, Keys, Zoom } from "./dialogs.js";
import { listen } from "./keyboard.js";
import { UNKNOWN, neighbour, page, single, targets } from "./state.js";
import { count, element } from "./tiles.js";

const BY_DECISION = ["undecided", "keep", "drop", "relabel", "unsure"];
const byId = (id) => document.getElementById(id);

const classChoice = new ClassChoice();
const keys = new Keys();
const zoom = new Zoom(
  (step) => {
    const row = neighbour(page.current, step);
    if (row !== null) focusOn(row);
    return page.items.get(page.current) ?? null;
  },
  (decision) => decide([page.current], decision),
);

Object.assign(reactions, { go, focusOn, decideGroup, zoom, chooseClass: (words) => classChoice.ask(words) });

function enlarge(row) {
  if (row === null) return;
  unselect();
  page.current = row;
  zoom.show(page.items.get(row));
}

function go(changes, { replace = false } = {}) {
  page.view = { ...page.view, ...changes };
  if (Object.keys(changes).some((name) => name !== "offset")) page.extent = { ...UNKNOWN };
  writeAddress(page.view, replace);
  drawFilters();
  load();
}

function drawFilters() {
  const form = byId("filters");
  for (const name of ["by", "show", "order", "text"]) if (form.elements[name].value !== page.view[name]) form.elements[name].value = page.view[name];
}

function turn(by) {
  const { total, size } = page.extent;
  // What was decided is gone from a list of what is not: the next ones have moved up.
  const stays = by > 0 && single() && page.decidedHere && BY_DECISION.includes(page.view.show);
  const left = stays ? [...page.items.values()].filter((item) => (item.decision || "undecided") === page.view.show).length : size;
  const offset = Math.max(0, page.view.offset + (by > 0 ? left : -size));
  if (by > 0 && page.view.offset + size >= total) return;
  if (offset !== page.view.offset || stays) go({ offset });
}

function focusOn(row) {
  if (row === null) return;
  page.current = row;
  const made = tileOf(row);
  made?.focus({ preventScroll: true });
  made?.scrollIntoView({ block: "nearest" });
}

// Up and down: the nearest tile in the next line, across groups.
function vertical(step) {
  const from = tileOf(page.current)?.getBoundingClientRect();
  if (!from) return;
  let best = null;
  for (const made of document.querySelectorAll(".tile")) {
    const at = made.getBoundingClientRect();
    const down = (at.top - from.top) * step;
    if (down < from.height / 2) continue;
    const cost = down * 4 + Math.abs(at.left - from.left);
    if (best === null || cost < best.cost) best = { cost, row: Number(made.dataset.row) };
  }
  if (best) focusOn(best.row);
}

function select(row, upTo) {
  if (upTo && page.current !== null) {
    const rows = [...page.items.keys()];
    const [first, last] = [rows.indexOf(page.current), rows.indexOf(row)].sort((a, b) => a - b);
    for (const between of rows.slice(first, last + 1)) page.selected.add(between);
  } else if (!page.selected.delete(row)) page.selected.add(row);
  page.current = row;
  drawSelection();
}

function selectGroup() {
  const { group } = page.items.get(page.current) ?? {};
  for (const item of page.items.values()) if (item.group === group) page.selected.add(item.row);
  drawSelection();
}

function openGroup() {
  if (page.view.group !== null) go({ group: null, offset: 0 });
  else if (page.current !== null) go({ group: page.items.get(page.current).group, offset: 0 });
}

function back() {
  if (page.selected.size) unselect();
  else if (page.view.group !== null) go({ group: null, offset: 0 });
}

function unselect() {
  page.selected.clear();
  drawSelection();
}

function listenToKeys() {
  listen({
    asking: () => classChoice.open || keys.open,
    zoom,
    undo,
    decide: (decision) => decide(zoom.open ? [page.current] : targets(), decision),
    decideGroup: (decision) => decideGroup(page.items.get(page.current)?.group, decision),
    move: (step) => focusOn(step ? neighbour(page.current, step) : page.current),
    climb: vertical,
    enlarge: () => enlarge(page.current),
    select,
    selectGroup,
    openGroup,
    turn,
    search: () => byId("filters").elements.text.focus(),
    help: () => keys.show(),
    back,
  });
}

function wire() {
  listenToKeys();
  const board = byId("board");
  board.addEventListener("click", (event) => {
    const made = event.target.closest(".tile");
    if (made && event.detail < 2) select(Number(made.dataset.row), event.shiftKey);
  });
  board.addEventListener("dblclick", (event) => {
    const made = event.target.closest(".tile");
    if (made) enlarge(Number(made.dataset.row));
  });
  board.addEventListener("focusin", (event) => {
    if (event.target.matches(".tile") && !event.target.matches(":active")) page.current = Number(event.target.dataset.row);
  });
  for (const button of document.querySelectorAll("[data-decide]")) {
    button.addEventListener("click", () => decide(targets(), button.dataset.decide));
  }
  byId("enlarge").addEventListener("click", () => enlarge([...page.selected][0]));
  byId("unselect").addEventListener("click", unselect);
  byId("undo").addEventListener("click", undo);
  byId("help").addEventListener("click", () => keys.show());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("size").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--tile", `${event.target.value}px`);
  });
  wireFilters();
  zoom.dialog.addEventListener("close", () => focusOn(page.current));
  window.addEventListener("popstate", () => {
    page.view = readAddress();
    page.extent = { ...UNKNOWN };
    drawFilters();
    load();
  });
}

function wireFilters() {
  const form = byId("filters");
  let waiting = 0;
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["by", "show", "order"]) {
    form.elements[name].addEventListener("change", (event) => {
      clearTimeout(waiting); // for a text that was just typed, and goes along
      go({ [name]: event.target.value, text: form.elements.text.value, offset: 0, ...(name === "by" ? { group: null } : {}) });
    });
  }
  form.elements.text.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ text: event.target.value, offset: 0 }, { replace: true }), 200);
  });
}

async function start() {
  wire();
  page.view = readAddress();
  drawFilters();
  try {
    const run = await ask("api/run");
    document.title = `Review: ${run.name}`;
    byId("name").textContent = run.name;
    byId("verdict").textContent = run.verdict;
    byId("counts").textContent = `· ${count(run.flagged, "suspect")} and ${run.near.toLocaleString("en")} near of ${count(run.images, "image")}`;
    classChoice.classes = run.classes;
    byId("evidence").hidden = !run.evidence.length;
    byId("sentences").replaceChildren(...run.evidence.map((sentence) => element("li", {}, sentence)));
    document.body.classList.toggle("pixels", Math.max(run.width, run.height) < 100);
    const notes = [];
    if (run.gone) notes.push(`${count(run.gone, "image")} of the run are gone and have no picture.`);
    if (run.changed) notes.push(`${count(run.changed, "image")} are not those that the run saw: they were changed since.`);
    byId("notice").textContent = notes.join(" ");
    byId("notice").hidden = !notes.length;
    drawState(run);
    await load();
  } catch (error) {
    tell(error.message, true);
  }
}

start();
