// What each key does; `acts` holds the functions that the page gives.

const DECISIONS = { k: "keep", d: "drop", r: "relabel", u: "unsure", x: "clear" };
const ARROWS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];

export function listen(acts) {
  document.addEventListener("keydown", (event) => {
    if (!acts.asking() && handle(event, acts)) event.preventDefault();
  });
}

function handle(event, acts) {
  const typing = event.target.matches?.("input[type=search], input[type=text], select");
  const { key } = event;
  if (typing) {
    if (key === "Escape") event.target.blur();
    return false;
  }
  if ((event.ctrlKey || event.metaKey) && key.toLowerCase() === "z" && !event.shiftKey) {
    acts.undo();
    return true;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return false;
  const decision = DECISIONS[key.toLowerCase()];
  if (decision) {
    if (event.shiftKey && !acts.zoom.open) acts.decideGroup(decision);
    else acts.decide(decision);
    return true;
  }
  return acts.zoom.open ? inZoom(key, acts.zoom) : onBoard(event, acts);
}

function inZoom(key, zoom) {
  const does = { ArrowLeft: () => zoom.step(-1), ArrowRight: () => zoom.step(1), h: () => zoom.toggle(), z: () => zoom.dialog.close() };
  does[key]?.();
  return key in does;
}

function onBoard(event, acts) {
  const { key, target } = event;
  const onTile = target.matches?.(".tile");
  if (ARROWS.includes(key) && !onTile) {
    if (target !== document.body) return false; // such as the slider
    acts.move(0);
    return true;
  }
  const does = {
    ArrowLeft: () => acts.move(-1),
    ArrowRight: () => acts.move(1),
    ArrowUp: () => acts.climb(-1),
    ArrowDown: () => acts.climb(1),
    z: acts.enlarge,
    a: acts.selectGroup,
    g: acts.openGroup,
    n: () => acts.turn(1),
    p: () => acts.turn(-1),
    "/": acts.search,
    "?": acts.help,
    Escape: acts.back,
  };
  if (onTile) {
    does.Enter = acts.enlarge;
    does[" "] = () => acts.select(Number(target.dataset.row), event.shiftKey);
  }
  does[key]?.();
  return key in does;
}
