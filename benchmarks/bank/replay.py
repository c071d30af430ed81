r"""Judge recorded runs with the evidence of the defence `witnesses`; print the null, and a line a poisoned class.

    python benchmarks/bank/replay.py --data DIR --bank BANK [--only dev*] [--null]

Only the detector's part of a run is looked at. `--null` prints the Gumbel distributions that
`defences/witnesses/calibration.py` holds, from the clean runs that are looked at: name them by `--only 'dev-c*'`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from record import HERE, Loaded, prepared, source
from sklearn.metrics import roc_auc_score

from antibackdoor.api import load_plugin
from antibackdoor.defences.witnesses.calibration import NULLS
from antibackdoor.defences.witnesses.decide import Accusation, decide
from antibackdoor.defences.witnesses.evidence import STATISTICS
from antibackdoor.defences.witnesses.observe import Seen
from antibackdoor.defences.witnesses.parts import parts_of, views_of
from antibackdoor.models import builder_from
from antibackdoor.training import Runtime


def seen_of(path: Path, sources: dict[str, Loaded], root: Path) -> tuple[dict, Seen, np.ndarray]:
    """Return a run's facts, what was seen in it, and which rows are poison, bool (N,)."""
    kept = np.load(path)
    facts = json.loads(str(kept["facts"]))
    run, runtime = facts["run"], Runtime.create("cpu")
    if run["data"] not in sources:
        sources[run["data"]] = source(run["data"], root)
    data = prepared(run, sources[run["data"]])[2].observed
    if not (data.labels.numpy() == kept["labels"]).all():
        raise SystemExit(f"{path.name}: the images cannot be drawn again as they were recorded")
    build_model, _ = builder_from(run.get("model", "wrn-10-1"), data)
    network, prefix = build_model(torch.Generator()), "plain_weights_10/"
    weights = {name.removeprefix(prefix): torch.from_numpy(kept[name]) for name in kept.files if prefix in name}
    network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    logs = np.nan_to_num(kept["plain_passed"].astype(np.float64), neginf=math.log(1e-6))
    everything = np.ones(len(data), dtype=bool)
    seen = Seen(
        data, network.eval(), runtime, logs, kept["encoder"].astype(np.float32), "efficientnet-lite0", everything
    )
    return facts, seen, kept["poison"]


def described(one: Accusation, poison: np.ndarray) -> str:
    """Return what was seen of a poisoned class; poison is bool (n,), of its images."""
    inside = one.part.members
    areas = {
        part.view: max(area, 1 - area)
        for part in parts_of(one.part.views)
        for area in [roc_auc_score(poison, part.inside)]
    }
    return (
        f"class {one.part.views.label}: statistic {one.statistic:.1f}, cut by {one.part.view}, purity "
        f"{poison[inside].mean():.2f}, recall {inside[poison].mean():.2f}; AUROC of each cut "
        + ", ".join(f"{view} {area:.2f}" for view, area in areas.items())
    )


def gumbel(values: list[float]) -> str:
    """Return location, scale and largest of a fit by mean and spread."""
    scale = float(np.std(values)) * math.sqrt(6) / math.pi
    place = np.mean(values) - np.euler_gamma * scale
    return f"n {len(values)}, place {place:.3f}, scale {scale:.3f}, max {max(values):.2f}"


def main() -> None:
    """Go through the bank."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bank", type=Path, required=True)
    parser.add_argument("--only", default="*", help="pattern of names")
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--null", action="store_true")
    arguments = parser.parse_args()
    load_plugin(HERE.parent / "unseen.py")
    sources: dict[str, Loaded] = {}
    nulls: dict[str, list[float]] = {name: [] for name in (*STATISTICS, "combined")}
    for path in sorted(arguments.bank.glob(f"{arguments.only}.detector.npz")):
        facts, seen, poison = seen_of(path, sources, arguments.data)
        if arguments.null:
            for parts in map(parts_of, views_of(seen)):
                figures = [{name: measure(seen, part) for name, measure in STATISTICS.items()} for part in parts]
                for name in STATISTICS:
                    nulls[name].append(max(one[name] for one in figures))
                sums = [sum(-math.log(NULLS[name].p_value(value)) for name, value in one.items()) for one in figures]
                nulls["combined"].append(max(sums))
            continue
        decision = decide(seen, arguments.alpha)
        accused = Counter(one.part.views.label for one in decision.poisoned)
        doubtful = [one.part.views.label for one in decision.doubtful]
        flagged, clean = decision.suspects, ~poison
        words = f"poisoned {sorted(accused)}" if accused else f"undecided {doubtful}" if doubtful else "no sign"
        recall = f"{flagged[poison].mean():.3f}" if poison.any() else "-"
        success = " ".join(f"{value:.2f}" for value in facts["success"]) or "-"
        truth = sorted(set(seen.labels[poison].tolist()))
        kinds = "+".join(one["name"] for one in facts["run"].get("attacks", [])) or facts["run"].get("trouble", "clean")
        print(
            f"{path.name.split('.')[0]} {facts['run']['data']} {kinds}: detector's success {success}, truth {truth}; "
            f"{words}, least p {decision.accusations[0].adjusted:.2g}, recall {recall}, "
            f"false flags {flagged[clean].mean():.4f}",
            flush=True,
        )
        for one in decision.accusations:
            truth_of = poison[one.part.views.rows]
            if truth_of.any():
                print(f"    {described(one, truth_of)}", flush=True)
    if arguments.null:
        for name, values in nulls.items():
            print(f"{name}: {gumbel(values)}")


if __name__ == "__main__":
    main()
