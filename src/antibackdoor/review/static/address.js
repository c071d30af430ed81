// What is shown stands in the address after "#", so that "back" and a reload work.

export const START = { by: "likeness", show: "review", text: "", order: "score", group: null, offset: 0 };

export function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const view = { ...START };
  for (const name of ["by", "show", "text", "order"]) if (asked.has(name)) view[name] = asked.get(name);
  const group = Number.parseInt(asked.get("group") ?? "", 10);
  view.group = Number.isNaN(group) ? null : group;
  view.offset = Math.max(0, Number.parseInt(asked.get("offset") ?? "0", 10) || 0);
  return view;
}

export function writeAddress(view, replace) {
  const parts = Object.entries(view).filter(([name, value]) => value !== START[name]);
  const address = `#${new URLSearchParams(parts)}`;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

// Of the server; what it refuses is an error with its words.
export async function ask(address, body) {
  const options = body === undefined ? {} : { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer; was the command ended? Nothing more is saved.");
  }
  const values = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(values.error ?? `The server answered ${answer.status}.`);
  return values;
}
