// What the page is made of: every text goes in as text, so that a name is never read as markup.

export const DONE = { keep: "kept", drop: "dropped", relabel: "relabelled", unsure: "unsure" };

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function count(number, noun) {
  return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
}

export function tallyWords(tally) {
  const parts = Object.entries(DONE).filter(([name]) => tally[name]).map(([name, word]) => `${tally[name].toLocaleString("en")} ${word}`);
  const flagged = tally.flagged ? `, ${tally.flagged.toLocaleString("en")} flagged` : "";
  return `${count(tally.images, "image")}${flagged}${parts.length ? " · " + parts.join(", ") : ""}`;
}

export function picture(address, alt) {
  return element("img", { src: address, alt, loading: "lazy", decoding: "async", draggable: "false" });
}

// A tile shows one image, with its label where its neighbours may have another; `mark` brings it up to date.
export function tile(item, labelled) {
  const shown = item.there
    ? picture(`thumb/${item.row}`, "")
    : element("span", { class: "gone" }, "image is gone");
  const made = element(
    "button",
    { type: "button", class: "tile", "data-row": item.row, "aria-pressed": "false" },
    shown,
    element("span", { class: "text" }, labelled ? `${item.label} ${item.score}` : item.score),
  );
  if (item.flagged) made.append(element("span", { class: "mark", title: "flagged" }));
  mark(made, item);
  return made;
}

export function mark(made, item) {
  made.className = `tile ${item.decision}`;
  made.querySelector(".badge")?.remove();
  const word = item.decision === "relabel" ? `→ ${item.to}` : DONE[item.decision];
  if (word) made.append(element("span", { class: "badge" }, word));
  const flagged = item.flagged ? ", flagged" : "";
  made.title = `${item.id}\n${item.label}, score ${item.score}${flagged}`;
  made.setAttribute("aria-label", `${item.id}, labelled ${item.label}, score ${item.score}${flagged}${word ? ", " + word : ""}`);
}

function portrait(address, words) {
  return element("figure", {}, picture(address, words), element("figcaption", {}, words));
}

// The head of a group: its name, what was decided, what its images have in common, and ordinary ones beside them.
export function groupHead(group, by, decideAll) {
  const name = group.key < 0 ? "Not grouped" : group.label === null ? "All images" : group.label;
  const likeness = by === "likeness" && group.key >= 0 ? ` · group ${group.key + 1}` : "";
  const buttons = ["keep", "drop", "relabel", "unsure"].map((name) =>
    element("button", { type: "button", onclick: () => decideAll(name) }, name[0].toUpperCase() + name.slice(1)),
  );
  const words = element(
    "div",
    { class: "words" },
    element("h2", {}, element("bdi", {}, name), likeness),
    group.verdict ? element("p", {}, "This class: ", element("b", {}, group.verdict)) : null,
    group.finding ? element("p", { class: "finding" }, group.finding) : null,
    element("p", { class: "tally" }, tallyWords(group.tally)),
    element("div", { class: "all" }, element("span", {}, "Whole group:"), ...buttons),
  );
  const pictures = element("div", { class: "pictures" });
  if (group.pictured) {
    const address = `group/${by}/${group.key}`;
    pictures.append(
      portrait(`${address}/mean`, group.tally.flagged ? "mean of suspects" : "mean of the group"),
      portrait(`${address}/ordinary`, "ordinary mean"),
      portrait(`${address}/differs`, "what differs"),
    );
  }
  if (group.ordinary.length) {
    const strip = element("div", { class: "strip" }, ...group.ordinary.map((row) => picture(`thumb/${row}`, "")));
    pictures.append(element("figure", { class: "ordinary" }, strip, element("figcaption", {}, `ordinary images: ${group.label}`)));
  }
  if (group.seen) {
    const strip = element("div", { class: "strip" }, ...group.seen.rows.map((row) => picture(`thumb/${row}`, "")));
    const words = `ordinary images: ${group.seen.label}, which the network sees in ${group.seen.count.toLocaleString("en")} of ${count(group.seen.of, "image")}`;
    pictures.append(element("figure", { class: "ordinary seen" }, strip, element("figcaption", {}, words)));
  }
  return element("div", { class: "head" }, words, pictures);
}
