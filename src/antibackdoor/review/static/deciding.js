// Decisions: shown at once, saved in order, put back where saving fails.

import { ask } from "./address.js";
import { change, drawSelection, drawState, load, reactions, tell } from "./board.js";
import { neighbour, page } from "./state.js";
import { DONE, count } from "./tiles.js";

let saving = Promise.resolve();

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
  return decision === "relabel" ? reactions.chooseClass(`Relabel ${words}`) : "";
}

export async function decide(rows, decision) {
  if (!rows.length) return;
  const label = await labelFor(decision, rows.length === 1 ? page.items.get(rows[0]).id : count(rows.length, "image"));
  if (label === null) return;
  for (const row of rows) change(row, decision, label);
  page.decidedHere = true;
  if (reactions.zoom.open) reactions.zoom.step(1);
  else if (rows.length === 1) reactions.focusOn(neighbour(rows[0], 1) ?? rows[0]);
  page.selected.clear();
  drawSelection();
  if (rows.length > 1) tell(`${count(rows.length, "image")} ${DONE[decision] ?? "cleared"}`);
  await save("api/decide", { rows, decision, label });
}

export async function decideGroup(key, decision) {
  const group = page.groups.get(key);
  if (!group) return;
  const label = await labelFor(decision, `all ${count(group.tally.images, "image")} of the group`);
  if (label === null) return;
  const query = { by: page.view.by, group: key, show: page.view.show, text: page.view.text };
  const state = await save("api/decide", { query, decision, label });
  if (!state) return;
  tell(`${count(state.changed, "image")} ${DONE[decision] ?? "cleared"}`);
  for (const item of page.items.values()) if (item.group === key) change(item.row, decision, label);
  page.decidedHere = true;
  if (group.tally.images > group.items.length) await load({ keepPlace: true });
}

export async function undo() {
  const state = await save("api/undo", {});
  if (!state) return;
  tell(state.changed ? `Undone: ${count(state.changed, "image")}` : "There is nothing to undo.");
  const here = state.items.filter((item) => page.items.has(item.row));
  if (here.length < state.changed) return load({ keepPlace: true });
  for (const item of here) change(item.row, item.decision || "clear", item.to);
  if (here.length === 1) reactions.focusOn(here[0].row);
}
