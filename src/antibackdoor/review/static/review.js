// The page: groups of images, what is selected, what is decided.

import { START, ask, readAddress, writeAddress } from "./address.js";
import { ClassChoice, Keys, Zoom } from "./dialogs.js";
import { listen } from "./keyboard.js";
import { DONE, count, element, groupHead, mark, tallyWords, tile } from "./tiles.js";

const PAGE = 120;
const BY_DECISION = ["undecided", "keep", "drop", "relabel", "unsure"];
const byId = (id) => document.getElementById(id);

let view = { ...START };
let items = new Map(); // row -> item, of what is on the page
let groups = new Map(); // key -> group, of what is on the page
let selected = new Set(); // rows
let current = null; // row
let pages = { total: 0, size: PAGE };
let loads = 0;
let saving = Promise.resolve();
let decidedHere = false;
let toastTimer = 0;

// ---- asking the server

function question(extra = {}) {
  const asked = { by: view.by, show: view.show, text: view.text, order: view.order, offset: view.offset, ...extra };
  return new URLSearchParams(asked).toString();
}

// One group on its own; where there are no groups, all images are one.
function single() {
  return view.group !== null || view.by === "none";
}

async function load({ keepPlace = false } = {}) {
  const mine = ++loads;
  const board = byId("board");
  const place = window.scrollY;
  board.setAttribute("aria-busy", "true");
  try {
    const group = view.group ?? 0;
    const wanted = single() ? { group, limit: PAGE } : {};
    const found = await ask(`api/${single() ? "images" : "groups"}?${question(wanted)}`);
    // A group that is open keeps its head.
    const head = single() && view.by !== "none" ? await ask(`api/groups?${question({ group, offset: 0 })}`) : null;
    if (mine !== loads) return;
    draw(found, head?.groups[0] ?? null);
    window.scrollTo(0, keepPlace ? place : 0);
  } catch (error) {
    if (mine === loads) board.replaceChildren(element("p", { class: "empty" }, error.message));
  }
  if (mine === loads) board.setAttribute("aria-busy", "false");
}

// ---- drawing

function draw(found, head) {
  items = new Map();
  groups = new Map();
  selected = new Set();
  decidedHere = false;
  const sections = [];
  if (single()) {
    const group = head ?? { key: view.group ?? 0, label: null, pictured: false, ordinary: [], tally: found.tally };
    if (found.total) sections.push(section({ ...group, items: found.items, tally: found.tally }, found.total));
    pages = { total: found.total, size: PAGE };
  } else {
    for (const group of found.groups) sections.push(section(group, group.tally.images));
    pages = { total: found.total, size: found.page };
  }
  const nothing = element("p", { class: "empty" }, "No image is like that. Change what is shown, or the search.");
  byId("board").replaceChildren(...(sections.length ? sections : [nothing]));
  if (!items.has(current)) current = items.keys().next().value ?? null;
  drawPager();
  drawSelection();
}

function section(group, total) {
  groups.set(group.key, group);
  const made = element("section", { class: "group", "data-key": group.key });
  made.append(groupHead(group, view.by, (decision) => decideGroup(group.key, decision)));
  const list = element("ul", { class: "tiles" });
  for (const item of group.items) {
    items.set(item.row, { ...item, group: group.key });
    list.append(element("li", {}, tile(item, group.label === null)));
  }
  made.append(list);
  if (view.group !== null) {
    made.prepend(element("button", { type: "button", class: "back", onclick: () => go({ group: null, offset: 0 }) }, "← all groups"));
  } else if (total > group.items.length && view.by !== "none") {
    const words = `Show all ${total.toLocaleString("en")}`;
    made.append(element("button", { type: "button", class: "more", onclick: () => go({ group: group.key, offset: 0 }) }, words));
  }
  return made;
}

function drawPager() {
  const { total, size } = pages;
  byId("pager").hidden = total <= size && view.offset === 0;
  const last = Math.min(view.offset + size, total);
  const first = Math.min(view.offset + 1, last);
  const noun = single() ? "image" : "group";
  byId("place").textContent = `${first.toLocaleString("en")}–${last.toLocaleString("en")} of ${count(total, noun)}`;
  byId("previous").disabled = view.offset === 0;
  byId("next").disabled = last >= total;
}

function drawSelection() {
  for (const made of document.querySelectorAll(".tile")) {
    made.setAttribute("aria-pressed", String(selected.has(Number(made.dataset.row))));
  }
  byId("actions").hidden = selected.size === 0;
  byId("selected").textContent = `${count(selected.size, "image")} selected`;
  byId("enlarge").hidden = selected.size !== 1;
}

function drawState(state) {
  const { tally } = state;
  const done = tally.images - tally.undecided;
  byId("tally").textContent = `${done.toLocaleString("en")} of ${count(tally.images, "image")} decided`;
  byId("tally").title = tallyWords(tally);
  byId("bar").max = Math.max(1, tally.images);
  byId("bar").value = done;
  byId("undo").disabled = state.undoable === 0;
}

function tileOf(row) {
  return document.querySelector(`.tile[data-row="${row}"]`);
}

function change(row, decision, label) {
  const item = items.get(row);
  if (!item) return;
  const group = groups.get(item.group);
  const same = decision === "relabel" && label === item.label;
  const before = item.decision || "undecided";
  item.decision = decision === "clear" ? "" : same ? "keep" : decision;
  item.to = item.decision === "relabel" ? label : "";
  group.tally[before] -= 1;
  group.tally[item.decision || "undecided"] += 1;
  const made = tileOf(row);
  mark(made, item);
  made.closest(".group").querySelector(".tally").textContent = tallyWords(group.tally);
}

function tell(words, error = false) {
  const toast = byId("toast");
  toast.textContent = words;
  toast.className = error ? "toast error" : "toast";
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.hidden = true), error ? 10000 : 2600);
}

// ---- deciding: shown at once, saved in order, put back where saving fails

function save(address, body) {
  saving = saving.then(async () => {
    try {
      const state = await ask(address, body);
      drawState(state);
      return state;
    } catch (error) {
      tell(`Not saved: ${error.message}`, true);
      await load({ keepPlace: true });
      return null;
    }
  });
  return saving;
}

async function labelFor(decision, words) {
  return decision === "relabel" ? classChoice.ask(`Relabel ${words}`) : "";
}

async function decide(rows, decision) {
  if (!rows.length) return;
  const label = await labelFor(decision, rows.length === 1 ? items.get(rows[0]).id : count(rows.length, "image"));
  if (label === null) return;
  for (const row of rows) change(row, decision, label);
  decidedHere = true;
  if (zoom.open) zoom.step(1);
  else if (rows.length === 1) focusOn(neighbour(rows[0], 1) ?? rows[0]);
  unselect();
  if (rows.length > 1) tell(`${count(rows.length, "image")} ${DONE[decision] ?? "cleared"}`);
  await save("api/decide", { rows, decision, label });
}

async function decideGroup(key, decision) {
  const group = groups.get(key);
  if (!group) return;
  const label = await labelFor(decision, `all ${count(group.tally.images, "image")} of the group`);
  if (label === null) return;
  const query = { by: view.by, group: key, show: view.show, text: view.text };
  const state = await save("api/decide", { query, decision, label });
  if (!state) return;
  tell(`${count(state.changed, "image")} ${DONE[decision] ?? "cleared"}`);
  for (const item of items.values()) if (item.group === key) change(item.row, decision, label);
  decidedHere = true;
  if (group.tally.images > group.items.length) await load({ keepPlace: true });
}

async function undo() {
  const state = await save("api/undo", {});
  if (!state) return;
  tell(state.changed ? `Undone: ${count(state.changed, "image")}` : "There is nothing to undo.");
  const here = state.items.filter((item) => items.has(item.row));
  if (here.length < state.changed) return load({ keepPlace: true });
  for (const item of here) change(item.row, item.decision || "clear", item.to);
  if (here.length === 1) focusOn(here[0].row);
}

// ---- going about

function go(changes, { replace = false } = {}) {
  view = { ...view, ...changes };
  writeAddress(view, replace);
  drawFilters();
  load();
}

function drawFilters() {
  const form = byId("filters");
  for (const name of ["by", "show", "order", "text"]) if (form.elements[name].value !== view[name]) form.elements[name].value = view[name];
}

function turn(by) {
  const { total, size } = pages;
  // What was decided is gone from a list of what is not: the next ones have moved up.
  const stays = by > 0 && single() && decidedHere && BY_DECISION.includes(view.show);
  const left = stays ? [...items.values()].filter((item) => (item.decision || "undecided") === view.show).length : size;
  const offset = Math.max(0, view.offset + (by > 0 ? left : -size));
  if (by > 0 && view.offset + size >= total) return;
  if (offset !== view.offset || stays) go({ offset });
}

function neighbour(row, step) {
  const rows = [...items.keys()];
  return rows[rows.indexOf(row) + step] ?? null;
}

function focusOn(row) {
  if (row === null) return;
  current = row;
  const made = tileOf(row);
  made?.focus({ preventScroll: true });
  made?.scrollIntoView({ block: "nearest" });
}

// Up and down: the nearest tile in the next line, across groups.
function vertical(step) {
  const from = tileOf(current)?.getBoundingClientRect();
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
  if (upTo && current !== null) {
    const rows = [...items.keys()];
    const [first, last] = [rows.indexOf(current), rows.indexOf(row)].sort((a, b) => a - b);
    for (const between of rows.slice(first, last + 1)) selected.add(between);
  } else if (!selected.delete(row)) selected.add(row);
  current = row;
  drawSelection();
}

function targets() {
  return selected.size ? [...selected] : current === null ? [] : [current];
}

// ---- wiring

const classChoice = new ClassChoice();
const keys = new Keys();
const zoom = new Zoom(
  (step) => {
    const row = neighbour(current, step);
    if (row !== null) focusOn(row);
    return items.get(current) ?? null;
  },
  (decision) => decide([current], decision),
);

function enlarge(row) {
  if (row === null) return;
  unselect();
  current = row;
  zoom.show(items.get(row));
}

function selectGroup() {
  const { group } = items.get(current) ?? {};
  for (const item of items.values()) if (item.group === group) selected.add(item.row);
  drawSelection();
}

function openGroup() {
  if (view.group !== null) go({ group: null, offset: 0 });
  else if (current !== null) go({ group: items.get(current).group, offset: 0 });
}

function back() {
  if (selected.size) unselect();
  else if (view.group !== null) go({ group: null, offset: 0 });
}

function unselect() {
  selected.clear();
  drawSelection();
}

function listenToKeys() {
  listen({
    asking: () => classChoice.open || keys.open,
    zoom,
    undo,
    decide: (decision) => decide(zoom.open ? [current] : targets(), decision),
    decideGroup: (decision) => decideGroup(items.get(current)?.group, decision),
    move: (step) => focusOn(step ? neighbour(current, step) : current),
    climb: vertical,
    enlarge: () => enlarge(current),
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
    if (event.target.matches(".tile") && !event.target.matches(":active")) current = Number(event.target.dataset.row);
  });
  for (const button of document.querySelectorAll("[data-decide]")) {
    button.addEventListener("click", () => decide(targets(), button.dataset.decide));
  }
  byId("enlarge").addEventListener("click", () => enlarge([...selected][0]));
  byId("unselect").addEventListener("click", unselect);
  byId("undo").addEventListener("click", undo);
  byId("help").addEventListener("click", () => keys.show());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("size").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--tile", `${event.target.value}px`);
  });
  wireFilters();
  zoom.dialog.addEventListener("close", () => focusOn(current));
  window.addEventListener("popstate", () => {
    view = readAddress();
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
      go({ [name]: event.target.value, offset: 0, ...(name === "by" ? { group: null } : {}) });
    });
  }
  form.elements.text.addEventListener("input", (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => go({ text: event.target.value, offset: 0 }, { replace: true }), 200);
  });
}

async function start() {
  wire();
  view = readAddress();
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
