// The three dialogs: one image enlarged, the choice of a class, the list of keys.

import { DONE, element } from "./tiles.js";

const MOST_CLASSES = 200;
const byId = (id) => document.getElementById(id);

export class Zoom {
  // `walk(step)` goes to another image and returns it; `decide(decision)` is about the one that is shown.
  constructor(walk, decide) {
    this.dialog = byId("zoom");
    this.item = null;
    this.walk = walk;
    byId("zoom-close").addEventListener("click", () => this.dialog.close());
    byId("zoom-previous").addEventListener("click", () => this.step(-1));
    byId("zoom-next").addEventListener("click", () => this.step(1));
    byId("zoom-differs").addEventListener("change", () => this.draw());
    for (const button of this.dialog.querySelectorAll("[data-zoom]")) {
      button.addEventListener("click", () => decide(button.dataset.zoom));
    }
  }

  get open() {
    return this.dialog.open;
  }

  show(item) {
    this.item = item;
    this.draw();
    if (!this.open) this.dialog.showModal();
  }

  step(by) {
    const item = this.walk(by);
    if (item) this.show(item);
  }

  toggle() {
    byId("zoom-differs").checked = !byId("zoom-differs").checked;
    this.draw();
  }

  draw() {
    const { item } = this;
    if (!item) return;
    const image = byId("zoom-image");
    const address = `${byId("zoom-differs").checked ? "differs" : "image"}/${item.row}`;
    if (image.getAttribute("src") !== address) image.setAttribute("src", address);
    image.alt = item.there ? `Image ${item.id}` : "The image is gone";
    byId("zoom-id").textContent = item.id;
    const decided = item.decision === "relabel" ? `relabelled to ${item.to}` : DONE[item.decision] ?? "not yet";
    const facts = [["Label", item.label], ["Score", item.score], ["Flagged", item.flagged ? "yes" : "no"], ["Decided", decided]];
    if (item.seen) facts.splice(1, 0, ["Network sees", item.seen]);
    byId("zoom-facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }
}

export class ClassChoice {
  constructor() {
    this.dialog = byId("relabel");
    this.text = byId("relabel-text");
    this.classes = [];
    this.done = null;
    this.text.addEventListener("input", () => this.draw());
    byId("relabel-close").addEventListener("click", () => this.dialog.close());
    byId("relabel-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const found = this.matching();
      if (found.length) this.choose(found[0]);
    });
    this.dialog.addEventListener("close", () => {
      this.done?.(null);
      this.done = null;
    });
  }

  get open() {
    return this.dialog.open;
  }

  // Returns a promise of the class, or of null where none was chosen.
  ask(title) {
    byId("relabel-title").textContent = title;
    this.text.value = "";
    this.draw();
    this.dialog.showModal();
    this.text.focus();
    return new Promise((resolve) => {
      this.done = resolve;
    });
  }

  choose(name) {
    this.done?.(name);
    this.done = null;
    this.dialog.close();
  }

  matching() {
    const wanted = this.text.value.trim().toLowerCase();
    const rank = (name) => (name.toLowerCase() === wanted ? 0 : name.toLowerCase().startsWith(wanted) ? 1 : 2);
    return this.classes.filter((name) => name.toLowerCase().includes(wanted)).sort((a, b) => rank(a) - rank(b));
  }

  draw() {
    const found = this.matching();
    const rows = found.slice(0, MOST_CLASSES).map((name, place) =>
      element("li", place === 0 && this.text.value ? { class: "first" } : {}, element("button", { type: "button", onclick: () => this.choose(name) }, name)),
    );
    if (!found.length) rows.push(element("li", {}, "no such class"));
    if (found.length > MOST_CLASSES) rows.push(element("li", {}, `and ${found.length - MOST_CLASSES} more; type to find them`));
    byId("relabel-list").replaceChildren(...rows);
  }
}

export class Keys {
  constructor() {
    this.dialog = byId("keys");
    byId("keys-close").addEventListener("click", () => this.dialog.close());
  }

  get open() {
    return this.dialog.open;
  }

  show() {
    this.dialog.showModal();
  }
}
