// What is drawn of the images: the groups of a page, or one group, and where one is.

import { ask } from "./address.js";
import { page, single } from "./state.js";
import { count, element, groupHead, mark, tallyWords, tile } from "./tiles.js";

const PAGE = 120;
const byId = (id) => document.getElementById(id);

// Set by the page: `go(changes)` shows something else, `decideGroup(key, decision)` decides about a group.
export const reactions = {};

let loads = 0;
let toastTimer = 0;

function question(extra = {}) {
  const asked = { by: page.view.by, show: page.view.show, text: page.view.text, order: page.view.order, offset: page.view.offset, ...extra };
  return new URLSearchParams(asked).toString();
}

export async function load({ keepPlace = false } = {}) {
  const mine = ++loads;
  const board = byId("board");
  const place = window.scrollY;
  board.setAttribute("aria-busy", "true");
  try {
    const group = page.view.group ?? 0;
    const wanted = single() ? { group, limit: PAGE } : {};
    const found = await ask(`api/${single() ? "images" : "groups"}?${question(wanted)}`);
    // A group that is open keeps its head.
    const head = single() && page.view.by !== "none" ? await ask(`api/groups?${question({ group, offset: 0 })}`) : null;
    if (mine !== loads) return;
    draw(found, head?.groups[0] ?? null);
    window.scrollTo(0, keepPlace ? place : 0);
  } catch (error) {
    if (mine === loads) board.replaceChildren(element("p", { class: "empty" }, error.message));
  }
  if (mine === loads) board.setAttribute("aria-busy", "false");
}

function draw(found, head) {
  page.items = new Map();
  page.groups = new Map();
  page.selected = new Set();
  page.decidedHere = false;
  const sections = [];
  if (single()) {
    const group = head ?? { key: page.view.group ?? 0, label: null, pictured: false, ordinary: [], tally: found.tally };
    if (found.total) sections.push(section({ ...group, items: found.items, tally: found.tally }, found.total));
    page.extent = { total: found.total, size: PAGE };
  } else {
    for (const group of found.groups) sections.push(section(group, group.tally.images));
    page.extent = { total: found.total, size: found.page };
  }
  if (!sections.length) {
    if (page.view.group !== null) sections.push(backButton());
    sections.push(element("p", { class: "empty" }, "No image is like that. Change what is shown, or the search."));
  }
  byId("board").replaceChildren(...sections);
  if (!page.items.has(page.current)) page.current = page.items.keys().next().value ?? null;
  drawPager();
  drawSelection();
}

function backButton() {
  return element("button", { type: "button", class: "back", onclick: () => reactions.go({ group: null, offset: 0 }) }, "← all groups");
}

function section(group, total) {
  page.groups.set(group.key, group);
  const made = element("section", { class: "group", "data-key": group.key });
  made.append(groupHead(group, page.view.by, (decision) => reactions.decideGroup(group.key, decision)));
  const list = element("ul", { class: "tiles" });
  for (const item of group.items) {
    page.items.set(item.row, { ...item, group: group.key });
    list.append(element("li", {}, tile(item, group.label === null)));
  }
  made.append(list);
  if (page.view.group !== null) {
    made.prepend(backButton());
  } else if (total > group.items.length && page.view.by !== "none") {
    const words = `Show all ${total.toLocaleString("en")}`;
    made.append(element("button", { type: "button", class: "more", onclick: () => reactions.go({ group: group.key, offset: 0 }) }, words));
  }
  return made;
}

function drawPager() {
  const { total, size } = page.extent;
  byId("pager").hidden = total <= size && page.view.offset === 0;
  const last = Math.min(page.view.offset + size, total);
  const first = Math.min(page.view.offset + 1, last);
  const noun = single() ? "image" : "group";
  byId("place").textContent = `${first.toLocaleString("en")}–${last.toLocaleString("en")} of ${count(total, noun)}`;
  byId("previous").disabled = page.view.offset === 0;
  byId("next").disabled = last >= total;
}

export function drawSelection() {
  for (const made of document.querySelectorAll(".tile")) {
    made.setAttribute("aria-pressed", String(page.selected.has(Number(made.dataset.row))));
  }
  byId("actions").hidden = page.selected.size === 0;
  byId("selected").textContent = `${count(page.selected.size, "image")} selected`;
  byId("enlarge").hidden = page.selected.size !== 1;
}

export function drawState(state) {
  const { tally } = state;
  const done = tally.images - tally.undecided;
  byId("tally").textContent = `${done.toLocaleString("en")} of ${count(tally.images, "image")} decided`;
  byId("tally").title = tallyWords(tally);
  byId("bar").max = Math.max(1, tally.images);
  byId("bar").value = done;
  byId("undo").disabled = state.undoable === 0;
}

export function tileOf(row) {
  return document.querySelector(`.tile[data-row="${row}"]`);
}

export function change(row, decision, label) {
  const item = page.items.get(row);
  if (!item) return;
  const group = page.groups.get(item.group);
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

export function tell(words, error = false) {
  const toast = byId("toast");
  toast.textContent = words;
  toast.className = error ? "toast error" : "toast";
  toast.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (toast.hidden = true), error ? 10000 : 2600);
}
