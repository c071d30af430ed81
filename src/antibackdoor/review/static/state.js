// What the page knows; the modules share this one object.

import { START } from "./address.js";

export const UNKNOWN = { total: 0, size: 1 }; // until what is asked for has come, there is no page to turn

export const page = {
  view: { ...START }, // what is asked for
  items: new Map(), // row -> item, of what is on the page, in its order
  groups: new Map(), // key -> group, of what is on the page
  selected: new Set(), // rows
  current: null, // the row that the keys are about
  extent: { ...UNKNOWN }, // of the pages
  decidedHere: false, // something was decided since the page was loaded
};

// One group on its own; where there are no groups, all images are one.
export function single() {
  return page.view.group !== null || page.view.by === "none";
}

export function neighbour(row, step) {
  const rows = [...page.items.keys()];
  return rows[rows.indexOf(row) + step] ?? null;
}

// The rows that a decision is about.
export function targets() {
  if (page.selected.size) return [...page.selected];
  return page.current === null ? [] : [page.current];
}
