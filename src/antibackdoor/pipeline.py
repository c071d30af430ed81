"""The whole path of one run: load, poison (in experiments), defend, evaluate, record, report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from antibackdoor import claiming, recording, report, storage
from antibackdoor.attacks import ATTACKS
from antibackdoor.config import RunConfig
from antibackdoor.data.sources import Loaded
from antibackdoor.deciding import spared
from antibackdoor.defences import DEFENCES, Defence
from antibackdoor.defences.against import AGAINST, Against, Statistics, against_from
from antibackdoor.defences.requirements import check_requirements
from antibackdoor.errors import ConfigError, NonFiniteLossError
from antibackdoor.estimating import before_long
from antibackdoor.evaluation import evaluate
from antibackdoor.files import sha256_of
from antibackdoor.models import PRETRAINED
from antibackdoor.preparing import (
    Planted,
    class_index,
    limited,
    load_data,
    network_of,
    plan_of,
    plant,
    prepare_poison,
)
from antibackdoor.progress import SILENT, Progress
from antibackdoor.recording import digest, versions
from antibackdoor.result import Result
from antibackdoor.run_setup import Call, Prepared, prepare
from antibackdoor.tracking import Tracking, check_trackers
from antibackdoor.training import Checkpoints, Runtime, Trainer, logits_of
from antibackdoor.types import ImageSet, Json, Outcome, RunRecord

__all__ = [
    "Planted",
    "Result",
    "class_index",
    "digest",
    "limited",
    "load_data",
    "network_of",
    "plan_of",
    "plant",
    "prepare_poison",
    "run",
    "versions",
]


def run(
    config: RunConfig,
    *,
    out: Path | None = None,
    scan_only: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    data: Loaded | None = None,
    planted: Planted | None = None,
    model: str | nn.Module | Callable[[], nn.Module] | None = None,
    progress: Progress = SILENT,
    track: Sequence[str] = (),
) -> Result:
    """Do everything that a configuration says.

    Args:
        config: What to do.
        out: Folder for the files of the run; None writes none.
        scan_only: Score and flag, train no network for use.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        data: Images already loaded, in place of ``config.data.source``.
        planted: What :func:`plant` made of these images by ``config.attack``, in place of planting it again.
        model: A network or a factory in place of ``config.model``.
        progress: Shows the work.
        track: Names of trackers to tell losses, accuracies and figures; see ``tracking``.

    Returns:
        The network, the isolation, the record.

    Raises:
        AntiBackdoorError: What was given cannot work; see ``errors``.
    """
    call = Call(config, out, scan_only, resume, overwrite, progress, tuple(track))
    with contextlib.ExitStack() as held:
        return _run(call, held, data, planted, model)


def _run(
    call: Call,
    held: contextlib.ExitStack,
    data: Loaded | None,
    planted: Planted | None,
    model: str | nn.Module | Callable[[], nn.Module] | None,
) -> Result:
    """Do what :func:`run` says; the lock of the folder is entered into ``held``."""
    clock = recording.Clock()
    defence = _check(call)
    ready = prepare(call, defence, clock, data, planted, model)
    resolved = recording.resolve(call.config, ready.spec, ready.resolved.defence, ready.attack)
    checkpoints = _open(call, held, ready, resolved)
    tracking = _tracking(call, held, ready, resolved)
    trainer = Trainer(
        ready.runtime,
        ready.seeds,
        held_out=ready.held_out,
        checkpoints=checkpoints,
        progress=call.progress,
        track=tracking.epoch if tracking else None,
    )
    outcome = _train(call, ready, trainer)
    for history in outcome.histories:
        clock.add(history.phase, float(history.seconds.sum()))
    result = _record(call, ready, outcome, resolved, clock)
    if tracking is not None:
        tracking.finish(result.record.metrics)
    return result


def _check(call: Call) -> Defence:
    """Refuse what cannot work before any data are read, and return the defence."""
    check_trackers(call.track, call.out)
    if call.out is not None:
        claiming.refuse_other_run(call.out, resume=call.resume, overwrite=call.overwrite)
    chosen = call.config.defence
    defence = against_from(chosen.params) if chosen.name == AGAINST else DEFENCES.build(chosen.name, chosen.params)
    check_requirements(defence, call.config, scan_only=call.scan_only)
    if isinstance(defence, Against) and not call.scan_only:
        raise ConfigError("--against compares a batch and trains no network: use `antibackdoor scan`")
    if call.config.attack is not None:
        ATTACKS.get(call.config.attack.name)
    return defence


def _open(call: Call, held: contextlib.ExitStack, ready: Prepared, resolved: dict[str, Json]) -> Checkpoints | None:
    """Claim the folder of the run, if it has one, and return its checkpoints."""
    if call.out is None:
        return None
    settings = resolved | {"scan_only": call.scan_only, "data content": digest(ready.observed)}
    if ready.decided is not None:
        settings["decisions"] = ready.decided.digest
    if call.config.weights not in (None, PRETRAINED):
        settings["weights content"] = sha256_of(Path(str(call.config.weights)).read_bytes())
    if ready.foreign:
        settings["plugins"] = dict(ready.foreign)
    if ready.resolved.trusted is not None:
        settings["trusted content"] = digest(ready.resolved.trusted)
    finished = call.resume and (call.out / storage.RECORD).exists()
    checkpoints = _claim(call.out, held, settings, ready.runtime, resume=call.resume, overwrite=call.overwrite)
    if finished:
        call.progress.say(f"{call.out}: this run is finished; nothing is trained again, its files are written anew")
    return checkpoints


def _tracking(call: Call, held: contextlib.ExitStack, ready: Prepared, resolved: dict[str, Json]) -> Tracking | None:
    """Start the trackers that were asked for, by the first process; they are closed in the end, whatever happens."""
    if not call.track or call.out is None or ready.runtime.rank != 0:
        return None
    tracking = Tracking(call.track, call.out, resolved, fresh=call.overwrite, progress=call.progress)
    held.callback(tracking.close)
    return tracking


def _train(call: Call, ready: Prepared, trainer: Trainer) -> Outcome:
    """Say how long it may take, and let the defence work."""
    defence = ready.resolved.defence
    trains = not isinstance(defence, Against)
    if trains and call.progress is not SILENT and not call.resume and call.config.train.compile in {"auto", "off"}:
        told = before_long(
            ready.observed,
            build_model=ready.build_model,
            plan=ready.plan,
            defence=defence,
            runtime=ready.runtime,
            scan_only=call.scan_only,
        )
        if told is not None:
            call.progress.say(told)
    method = defence.scan if call.scan_only else defence.run
    try:
        outcome = method(ready.observed, build_model=ready.build_model, fit=trainer, plan=ready.plan, seeds=ready.seeds)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error} ({_what_was_kept(call.out)})") from None
    return dataclasses.replace(outcome, isolation=spared(outcome.isolation, ready.observed))


def _record(call: Call, ready: Prepared, outcome: Outcome, resolved: dict[str, Json], clock: recording.Clock) -> Result:
    """Evaluate, and write what came of it."""
    trained = None if call.scan_only or outcome.model is None else outcome.model.eval()
    observed, truth, decided, held_out = ready.observed, ready.truth, ready.decided, ready.held_out
    with clock.phase("evaluate"):
        metrics = evaluate(
            trained,
            ready.runtime,
            test=ready.test,
            triggered=ready.planted.triggered if ready.planted else None,
            target=ready.attack.single_target if ready.attack else None,
            train=observed,
            held_out=held_out,
            isolation=outcome.isolation,
            truth=truth,
        )
        network = outcome.model if trained is None else trained
        writes = call.out is not None and ready.runtime.rank == 0
        seen = logits_of(network, observed, ready.runtime).argmax(1) if writes and network is not None else None
    said = (*outcome.isolation.evidence, *ready.resolved.evidence, *recording.remarks(outcome, held_out, decided))
    described = recording.describe(observed, ready.test, held_out, decided)
    if ready.groups is not None:
        column = str(call.config.data.group_by)
        described["groups"] = recording.by_group(column, ready.groups, observed, outcome.isolation)
    if outcome.isolation.findings:
        described["findings"] = [one.to_json(observed.classes) for one in outcome.isolation.findings]
    described |= outcome.described
    record = RunRecord(
        config=resolved,
        seeds={"seed": call.config.seed},
        versions=versions() | {f"plugin {name}": content for name, content in ready.foreign.items()},
        device=ready.runtime.describe(),
        seconds=clock.seconds,
        metrics=metrics,
        verdict=outcome.isolation.verdict,
        evidence=said,
        model=ready.spec.to_json(),
        data=described | ({"scan": True} if call.scan_only else {}),
    )
    if call.out is not None and ready.runtime.rank == 0:
        storage.save_run(
            call.out,
            record=record,
            model=trained,
            data=observed,
            isolation=outcome.isolation,
            histories=outcome.histories,
            truth=truth,
            decisions=decided.decisions if decided else None,
            seen=seen,
            statistics=_statistics(outcome, observed),
        )
        report.write(call.out, observed.images.numpy())
    return Result(trained, outcome.isolation, record, outcome, observed, truth)


def _statistics(outcome: Outcome, data: ImageSet) -> Statistics | None:
    """Return what a later batch is compared with: that of the images which are not flagged."""
    if outcome.encoded is None:
        return None
    return Statistics.of(data, outcome.encoded, (~outcome.isolation.flagged).nonzero().flatten().numpy())


def _claim(
    out: Path,
    held: contextlib.ExitStack,
    settings: dict[str, Json],
    runtime: Runtime,
    *,
    resume: bool,
    overwrite: bool,
) -> Checkpoints:
    """Make the folder that of a run with these settings, by the first process, and return its checkpoints."""
    if runtime.rank == 0:
        held.enter_context(claiming.hold(out))
        claiming.claim(out, settings, resume=resume, overwrite=overwrite)
    runtime.wait()
    return Checkpoints(out / "checkpoints", resume=resume, writes=runtime.rank == 0)


def _what_was_kept(out: Path | None) -> str:
    if out is not None and (out / "checkpoints").exists():
        return f"the last good checkpoint is in {out / 'checkpoints'}"
    return "nothing was kept"
