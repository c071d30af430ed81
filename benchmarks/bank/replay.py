r"""Judge recorded runs with the evidence of the defence `witnesses`; print the null, and a line a poisoned class.

    python benchmarks/bank/replay.py --data DIR --bank BANK [--only dev*] [--null] [--evidence-only]

Only the detector's part of a run is looked at. The evidence on every part of every class is measured once for a state
of the code and kept in BANK/evidence-DIGEST/, so that a decision on the whole bank takes seconds. `--null` prints the
Gumbel distributions that `defences/witnesses/calibration.py` holds, from the clean runs among those that are looked at.
Which parts of a class are looked at closely depends on it a little: after it has changed, the evidence is measured anew
(remove the folder). `--pack` writes the figures that `tests/defences/test_witnesses_bank.py` decides on. `--limits`
prints what would have been found in clean runs.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from record import PLUGINS, Loaded, prepared, source
from sklearn.metrics import roc_auc_score

from antibackdoor.api import load_plugin
from antibackdoor.defences.encoding import features_by, own_features
from antibackdoor.defences.witnesses import decide as deciding
from antibackdoor.defences.witnesses.decide import DOUBT, combined, of_origin_alone, p_values, refined, weigh
from antibackdoor.defences.witnesses.evidence import STATISTICS
from antibackdoor.defences.witnesses.limit import detection_limit
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.style import styles_of
from antibackdoor.defences.witnesses.views import Features
from antibackdoor.files import atomic_write_bytes
from antibackdoor.models import builder_from
from antibackdoor.models.encoders import DEFAULT_ENCODER, encoder_from
from antibackdoor.training import Runtime

# What the evidence depends on; the calibration and the rule are applied anew each time.
_EVIDENCE = ("evidence.py", "natural.py", "observe.py", "origin.py", "parts.py", "scene.py", "style.py", "views.py")


def digest() -> str:
    """Return a digest of the code that evidence depends on, comments and docstrings aside."""
    room, kept = Path(deciding.__file__).parent, []
    for name in _EVIDENCE:
        tree = ast.parse((room / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):  # texts on their own do nothing
                node.body = [one for one in body if not _is_text(one)] or [ast.Pass()]  # type: ignore[attr-defined]
        kept.append(ast.dump(tree))
    return hashlib.sha256("".join(kept).encode()).hexdigest()[:10]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def seen_of(
    path: Path, sources: dict[tuple[str, int | None], Loaded], root: Path, witness: str = DEFAULT_ENCODER
) -> tuple[dict, Seen, np.ndarray]:
    """Return a run's facts, what was seen in it, and which rows are poison, bool (N,)."""
    kept = np.load(path)
    facts = json.loads(str(kept["facts"]))
    run, runtime = facts["run"], Runtime.create("cpu")
    data = prepared(run, source(run, root, sources))[2].observed
    if not (data.labels.numpy() == kept["labels"]).all():
        raise SystemExit(f"{path.name}: the images cannot be drawn again as they were recorded")
    build_model, _ = builder_from(run.get("model", "wrn-10-1"), data)
    network, prefix = build_model(torch.Generator()), f"plain_weights_{len(kept['plain_passed'])}/"
    weights = {name.removeprefix(prefix): torch.from_numpy(kept[name]) for name in kept.files if prefix in name}
    network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    logs = np.nan_to_num(kept["plain_passed"].astype(np.float64), neginf=math.log(1e-6))
    everything = np.ones(len(data), dtype=bool)
    own = witness == "none"
    features = own_features(network.eval(), data, runtime) if own else kept["encoder"].astype(np.float32)
    seen = Seen(data, network.eval(), runtime, logs, features, styles_of(data.images), witness, everything)
    return facts, seen, kept["poison"]


def measured(
    path: Path, sources: dict[tuple[str, int | None], Loaded], root: Path, witness: str = DEFAULT_ENCODER
) -> dict:
    """Return the evidence on every part of every class of a run, and what the part truly is."""
    facts, seen, poison = seen_of(path, sources, root, witness)
    classes = []
    for weighed in weigh(seen, Features(seen)):
        views = weighed.strongest[0].views
        # Near-duplicates are not looked at, and share the fate of what they are copies of.
        rows, every = views.with_copies
        truth, foreign = poison[rows], views.foreign[every]
        parts = []
        for part, figures, _ in weighed.parts:
            one = {"figures": figures, "source": part.source}
            parts.append(one | against(truth, part.members[every], refined(part)[every]))
        found = {"label": views.label, "images": len(rows), "poison": int(truth.sum()), "parts": parts}
        if (origin := weighed.origin) is not None:
            one = {"figures": {"origin": origin.statistic}, "source": f"from class {origin.source}"}
            found["origin"] = one | against(truth, origin.members[every], origin.posterior[every])
        if truth.any() and not truth.all():
            found["auroc of foreign"] = float(roc_auc_score(truth, foreign))
        classes.append(found)
    return {"facts": facts, "images": len(poison), "classes": classes, "poison": int(poison.sum())}


def against(truth: np.ndarray, members: np.ndarray, posterior: np.ndarray) -> dict:
    """Return how a part and its posterior meet what is poison in a class."""
    flagged = posterior > 0.5
    one = {"size": int(members.sum()), "flagged": int(flagged.sum()), "false": int((flagged & ~truth).sum())}
    if truth.any():
        one |= {"purity": float(truth[members].mean()), "recall": float(flagged[truth].mean())}
        if not truth.all():
            one["auroc"] = float(roc_auc_score(truth, posterior))
    return one


def gumbel(values: list[float]) -> str:
    """Return location and scale of a fit by the median and the 95 % or 99 % quantile, whichever gives more scale."""
    median, *high = np.quantile(values, [0.5, 0.95, 0.99])
    reach = [-math.log(-math.log(level)) for level in (0.5, 0.95, 0.99)]
    scale = max((value - median) / (at - reach[0]) for value, at in zip(high, reach[1:], strict=True))
    place = median - scale * reach[0]
    return f"n {len(values)}, place {place:.3f}, scale {scale:.3f}, max {max(values):.2f}"


def null(runs: dict[str, dict]) -> None:
    """Print the distribution of the largest value of a class, over classes of clean runs."""
    classes = [one for run in runs.values() if not run["poison"] for one in run["classes"]]
    clean = [one["parts"] for one in classes]
    print(f"clean runs {sum(not run['poison'] for run in runs.values())}, classes {len(clean)}")
    for name in STATISTICS:
        print(f"{name}: {gumbel([max(part['figures'][name] for part in parts) for parts in clean])}")
    print(f"combined: {gumbel([max(combined(part['figures']) for part in parts) for parts in clean])}")
    print(f"origin: {gumbel([one['origin']['figures']['origin'] for one in classes if 'origin' in one])}")


def statistics(one: dict) -> tuple[float, float]:
    """Return the two statistics of a class."""
    largest = max(combined(part["figures"]) for part in one["parts"])
    return largest, one["origin"]["figures"]["origin"] if "origin" in one else 0.0


def decided(run: dict, alpha: float) -> tuple[dict[int, dict], dict[int, float]]:
    """Return what speaks of every class, and the class's adjusted p-value."""
    pairs = {one["label"]: statistics(one) for one in run["classes"]}
    _, adjusted = p_values(list(pairs.values()))
    best = {}
    for one, p_value in zip(run["classes"], adjusted, strict=True):
        part = max(one["parts"], key=lambda part: combined(part["figures"]))
        alone = p_value <= alpha and of_origin_alone(*pairs[one["label"]], alpha / len(pairs))
        best[one["label"]] = one["origin"] if alone else part
    return best, dict(zip(pairs, adjusted, strict=True))


def packed(runs: dict[str, dict]) -> dict[str, dict]:
    """Return what a decision needs of each run and no more: figures to three decimals, truth, and success."""
    kept = {}
    for name, run in runs.items():
        classes = []
        for one in run["classes"]:
            parts = [
                {"figures": {key: round(value, 3) for key, value in part["figures"].items()}} for part in one["parts"]
            ]
            classes.append({"label": one["label"], "poison": one["poison"], "parts": parts})
            if "origin" in one:
                classes[-1]["origin"] = round(one["origin"]["figures"]["origin"], 3)
        kept[name] = {"poison": run["poison"], "success": run["facts"]["success"], "classes": classes}
    return kept


def judge(name: str, run: dict, alpha: float) -> dict:
    """Print what is decided on a run and what was seen of poisoned classes; return the figures."""
    best, adjusted = decided(run, alpha)
    accused = [label for label, p in adjusted.items() if p <= alpha]
    truth = [one["label"] for one in run["classes"] if one["poison"]]
    flagged = sum(best[label]["flagged"] for label in accused)
    false = sum(best[label]["false"] for label in accused)
    doubtful = [label for label, p in adjusted.items() if alpha < p <= DOUBT * alpha]
    words = f"poisoned {accused}" if accused else f"undecided {doubtful}" if doubtful else "no sign"
    facts = run["facts"]["run"]
    kinds = "+".join(one["name"] for one in facts.get("attacks", [])) or facts.get("trouble", "clean")
    success = " ".join(f"{value:.2f}" for value in run["facts"]["success"]) or "-"
    recall = f"{(flagged - false) / run['poison']:.3f}" if run["poison"] else "-"
    rate = false / max(1, run["images"] - run["poison"])
    print(
        f"{name} {facts['data']} {kinds}: detector's success {success}, truth {truth}; {words}, least p "
        f"{min(adjusted.values(), default=1):.2g}, recall {recall}, false flags {rate:.4f}"
    )
    for one in run["classes"]:
        if one["poison"]:
            part = best[one["label"]]
            figures = ", ".join(f"{key} {value:.2f}" for key, value in part["figures"].items())
            largest, of_origin = statistics(one)
            print(
                f"    class {one['label']}, {one['poison']} of {one['images']}: statistic "
                f"{largest:.1f}, origin {of_origin:.1f} ({part['source']} of {part['size']}: {figures}), purity "
                f"{part.get('purity', math.nan):.2f}, refined: AUROC {part.get('auroc', math.nan):.3f}, recall "
                f"{part.get('recall', math.nan):.3f}, false {part['false']}; foreign AUROC "
                f"{one.get('auroc of foreign', math.nan):.2f}"
            )
    return {"accused": accused, "truth": truth, "false": rate}


def limits(paths: list[Path], root: Path, alpha: float, witness: str) -> None:
    """Print what would have been found in clean runs, and how long that takes the processor."""
    sources: dict[tuple[str, int | None], Loaded] = {}
    for path in paths:
        facts, seen, poison = seen_of(path, sources, root, witness)
        if poison.any():
            continue
        encoder = None if witness == "none" else encoder_from(witness, seen.runtime.device)
        started = time.process_time()
        found = detection_limit(seen, partial(features_by, encoder, seen.network, runtime=seen.runtime), alpha)
        shares = (
            ", ".join(f"{kind} {share}" for kind, share in found.found.items()) if found else "no class can have any"
        )
        size = f"{len(poison)} images of {seen.data.num_classes} classes"
        seconds = time.process_time() - started
        print(f"{path.name.split('.')[0]} {facts['run']['data']}, {size}: {shares}; {seconds:.1f} s", flush=True)


def main() -> None:
    """Go through the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names")
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--witness", choices=[DEFAULT_ENCODER, "none"], default=DEFAULT_ENCODER)
    parser.add_argument("--null", action="store_true")
    parser.add_argument("--evidence-only", action="store_true", help="measure what is not measured yet, judge nothing")
    parser.add_argument("--kept-only", action="store_true", help="judge what is measured already")
    parser.add_argument("--pack", type=Path, help="file for the figures of these runs, which the tests decide on")
    parser.add_argument("--limits", action="store_true", help="print the detection limits of clean runs alone")
    arguments = parser.parse_args()
    for plugin in PLUGINS:
        load_plugin(plugin)
    paths = sorted({path for only in arguments.only for path in arguments.bank.glob(f"{only}.detector.npz")})
    if arguments.limits:
        limits(paths, arguments.data, arguments.alpha, arguments.witness)
        return
    sources: dict[tuple[str, int | None], Loaded] = {}
    strict = "-none" if arguments.witness == "none" else ""
    folder = arguments.bank / f"evidence-{digest()}{strict}"
    folder.mkdir(exist_ok=True)
    runs: dict[str, dict] = {}
    for path in paths:
        name = path.name.split(".")[0]
        kept = folder / f"{name}.json"
        if not kept.exists():
            if arguments.kept_only:
                continue
            atomic_write_bytes(kept, json.dumps(measured(path, sources, arguments.data, arguments.witness)).encode())
        runs[name] = json.loads(kept.read_text(encoding="utf-8"))
    if arguments.evidence_only:
        return
    if arguments.pack is not None:
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(one)}" for name, one in packed(runs).items())
        atomic_write_bytes(arguments.pack, f"{{\n{lines}\n}}\n".encode())
        return
    if arguments.null:
        null(runs)
        return
    clean, wrong = 0, 0
    for name, run in runs.items():
        figures = judge(name, run, arguments.alpha)
        if not run["poison"]:
            clean, wrong = clean + 1, wrong + bool(figures["accused"])
    print(f"{len(runs)} runs, {clean} clean, {wrong} of them called poisoned; evidence of {folder.name}")


if __name__ == "__main__":
    main()
