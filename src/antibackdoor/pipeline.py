"""The whole path of one run: load, poison (in experiments), defend, evaluate, record, report."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from antibackdoor import claiming, plugins, report, storage
from antibackdoor.attacks import ATTACKS, Attack, poison, triggered_test
from antibackdoor.config import DataConfig, PoisonConfig, RunConfig
from antibackdoor.data.sources import Loaded, load, subsample
from antibackdoor.deciding import Decided, decide, spared
from antibackdoor.defences import DEFENCES, Defence
from antibackdoor.defences.given import check_given, hand_over
from antibackdoor.errors import ConfigError, NonFiniteLossError
from antibackdoor.estimating import before_long
from antibackdoor.evaluation import evaluate
from antibackdoor.files import sha256_of
from antibackdoor.models import PRETRAINED, BuildModel, ModelSpec, builder_from
from antibackdoor.progress import SILENT, Progress
from antibackdoor.registry import parameters_of
from antibackdoor.result import Result
from antibackdoor.seeds import Seeds
from antibackdoor.training import Checkpoints, Runtime, Trainer, TrainPlan, logits_of
from antibackdoor.types import ImageSet, Json, Outcome, PoisonedSet, RunRecord

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


@dataclass(frozen=True, eq=False)
class Planted:
    """An attack on its data: the ready attack, the poisoned training set, the triggered test set."""

    attack: Attack
    train: PoisonedSet
    triggered: PoisonedSet | None


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

    Returns:
        The network, the isolation, the record.

    Raises:
        AntiBackdoorError: What was given cannot work; see ``errors``.
    """
    with contextlib.ExitStack() as held:
        return _run(config, held, out, scan_only, resume, overwrite, data, planted, model, progress)


def _run(
    config: RunConfig,
    held: contextlib.ExitStack,
    out: Path | None,
    scan_only: bool,
    resume: bool,
    overwrite: bool,
    data: Loaded | None,
    planted: Planted | None,
    model: str | nn.Module | Callable[[], nn.Module] | None,
    progress: Progress,
) -> Result:
    """Do what :func:`run` says; the lock of the folder is entered into ``held``."""
    clock = _Clock()
    if out is not None:
        claiming.refuse_other_run(out, resume=resume, overwrite=overwrite)
    defence = DEFENCES.build(config.defence.name, config.defence.params)
    check_given(defence, config, scan_only=scan_only)
    if config.attack is not None:
        ATTACKS.get(config.attack.name)  # An unknown name fails before the data are read.
    runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
    progress.say(f"device: {runtime.device}, {runtime.reason}")
    seeds = Seeds(config.seed)
    with clock.phase("load"):
        loaded = limited(data or load_data(config.data, progress), config.data, seeds)
    build_model, spec = network_of(config, loaded.train, model)
    plan = plan_of(config)
    # What attacks train begins anew, since they bring plans of their own.
    drawn_anew = build_model if config.weights is None else network_of(_anew(config), loaded.train)[0]
    with clock.phase("poison"):
        planted = planted or plant(config.attack, loaded, drawn_anew, runtime, seeds, progress)
    truth = planted.train if planted else None
    observed, clean, decided = truth.observed if truth else loaded.train, loaded.train, None
    if config.data.decisions is not None:
        decided = decide(observed, Path(config.data.decisions))
        progress.say(decided.sentence())
        observed, clean = decided.data, clean.select(decided.rows)
        truth = decided.poisoned(truth) if truth else None
    # A scan needs no accuracy, so it looks at every image in the same way.
    needs_part = loaded.test is None and not scan_only
    held_out = _held_out(observed, config.data.holdout, seeds) if needs_part else None
    given = hand_over(defence, config, clean, truth=truth, held_out=held_out, seeds=seeds, progress=progress)
    resolved = _resolve(config, spec, given.defence, planted)
    foreign = plugins.behind(given.defence, planted.attack if planted else None)
    checkpoints = None
    if out is not None:
        settings = resolved | {"scan_only": scan_only, "data content": digest(observed)}
        if decided is not None:
            settings["decisions"] = decided.digest
        if config.weights not in (None, PRETRAINED):
            settings["weights content"] = sha256_of(Path(str(config.weights)).read_bytes())
        if foreign:
            settings["plugins"] = dict(foreign)
        if given.trusted is not None:
            settings["trusted content"] = digest(given.trusted)
        finished = resume and (out / storage.RECORD).exists()
        checkpoints = _claim(out, held, settings, runtime, resume=resume, overwrite=overwrite)
        if finished:
            progress.say(f"{out}: this run is finished; nothing is trained again, its files are written anew")
    trainer = Trainer(runtime, seeds, held_out=held_out, checkpoints=checkpoints, progress=progress)
    if progress is not SILENT and not resume and config.train.compile in {"auto", "off"}:
        told = before_long(
            observed,
            build_model=build_model,
            plan=plan,
            defence=given.defence,
            runtime=runtime,
            scan_only=scan_only,
        )
        if told is not None:
            progress.say(told)
    method = given.defence.scan if scan_only else given.defence.run
    try:
        outcome = method(observed, build_model=build_model, fit=trainer, plan=plan, seeds=seeds)
    except NonFiniteLossError as error:
        raise NonFiniteLossError(f"{error} ({_what_was_kept(out)})") from None
    outcome = dataclasses.replace(outcome, isolation=spared(outcome.isolation, observed))
    for history in outcome.histories:
        clock.add(history.phase, float(history.seconds.sum()))
    trained = None if scan_only or outcome.model is None else outcome.model.eval()
    with clock.phase("evaluate"):
        metrics = evaluate(
            trained,
            runtime,
            test=loaded.test,
            triggered=planted.triggered if planted else None,
            target=planted.attack.single_target if planted else None,
            train=observed,
            held_out=held_out,
            isolation=outcome.isolation,
            truth=truth,
        )
        network = outcome.model if trained is None else trained
        writes = out is not None and runtime.rank == 0
        seen = logits_of(network, observed, runtime).argmax(1) if writes and network is not None else None
    record = RunRecord(
        config=resolved,
        seeds={"seed": config.seed},
        versions=versions() | {f"plugin {name}": content for name, content in foreign.items()},
        device=runtime.describe(),
        seconds=clock.seconds,
        metrics=metrics,
        verdict=outcome.isolation.verdict,
        evidence=(*outcome.isolation.evidence, *given.evidence, *_remarks(outcome, held_out, decided)),
        model=spec.to_json(),
        data=_describe(observed, loaded.test, held_out, decided) | ({"scan": True} if scan_only else {}),
    )
    if out is not None and runtime.rank == 0:
        storage.save_run(
            out,
            record=record,
            model=trained,
            data=observed,
            isolation=outcome.isolation,
            histories=outcome.histories,
            truth=truth,
            decisions=decided.decisions if decided else None,
            seen=seen,
        )
        report.write(out, observed.images.numpy())
    return Result(trained, outcome.isolation, record, outcome, observed, truth)


def prepare_poison(config: RunConfig, progress: Progress = SILENT) -> Planted:
    """Load and poison as a configuration says, without training on the result.

    Raises:
        ConfigError: The configuration names no attack, or an unknown one.
        PoisonError: The data cannot carry it.
    """
    runtime = Runtime.create(config.device, config.train.precision, config.train.compile)
    seeds = Seeds(config.seed)
    loaded = limited(load_data(config.data, progress), config.data, seeds)
    build_model, _ = network_of(_anew(config), loaded.train)
    planted = plant(config.attack, loaded, build_model, runtime, seeds, progress)
    if planted is None:
        raise ConfigError("attack: missing; give its name, such as attack.name=badnets")
    return planted


def load_data(config: DataConfig, progress: Progress) -> Loaded:
    """Load what the data section names."""
    return load(
        config.source,
        test=config.test,
        image_size=config.image_size,
        skip_bad=config.skip_bad,
        progress=progress,
    )


def plant(
    config: PoisonConfig | None,
    loaded: Loaded,
    build_model: BuildModel,
    runtime: Runtime,
    seeds: Seeds,
    progress: Progress = SILENT,
) -> Planted | None:
    """Poison the training set as the attack section says, and put the trigger on the test set.

    Raises:
        ConfigError: Unknown attack or hyper-parameter.
        PoisonError: The data cannot carry the attack.
    """
    if config is None:
        return None
    params = dict(config.params)
    for name in ("target", "source"):
        if params.get(name) is not None:
            params[name] = class_index(loaded.train.classes, params[name], f"attack.{name}")
    streams = Seeds(seeds.seed if config.seed is None else config.seed)
    trainer = Trainer(runtime, streams.child("surrogate"), progress=progress)
    attack = ATTACKS.build(config.name, params).prepare(
        loaded.train, build_model=build_model, fit=trainer, seeds=streams.child("attack")
    )
    poisoned = poison(
        loaded.train,
        attack,
        rate=config.rate,
        rate_of=config.rate_of,
        generator=streams.generator("poison"),
    )
    triggered = triggered_test(loaded.test, attack) if loaded.test is not None else None
    return Planted(attack, poisoned, triggered)


def class_index(classes: tuple[str, ...], given: object, setting: str) -> int:
    """Return the index of a class given by name, or by its index in sorted order.

    Raises:
        ConfigError: No class has that name or index.
    """
    text = str(given)
    if text in classes:
        return classes.index(text)
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    raise ConfigError(f"{setting}: {text!r} is not a class; known: {shown}, or 0..{len(classes) - 1}")


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that compute, and a hash of this package's code."""
    names = ("antibackdoor", "torch", "numpy", "scikit-learn", "pillow", "accelerate", "safetensors")
    found = {name: version(name) for name in names}
    return {"python": platform.python_version(), **found, "antibackdoor code": _code_digest()}


@cache
def _code_digest() -> str:
    """Return a hash of this package's files of code: between two releases the version says nothing."""
    folder, total = Path(__file__).parent, hashlib.blake2b(digest_size=6)
    for path in sorted(folder.rglob("*.py")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


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


def network_of(
    config: RunConfig, data: ImageSet, model: str | nn.Module | Callable[[], nn.Module] | None = None
) -> tuple[BuildModel, ModelSpec]:
    """Return the builder of the network that a configuration asks for, and its spec; see ``models.builder_from``.

    Args:
        config: Of the run.
        data: The images to train on, or a sample of them.
        model: A network or a factory in place of ``config.model``.
    """
    return builder_from(model or config.model, data, weights=config.weights, input_size=config.input_size)


def _anew(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"weights": None})


def plan_of(config: RunConfig) -> TrainPlan:
    """Return the plan of ordinary training that a configuration asks for."""
    tunes = config.weights is not None
    return TrainPlan(**config.train.resolved(tunes=tunes), tunes=tunes)


def limited(loaded: Loaded, config: DataConfig, seeds: Seeds) -> Loaded:
    """Draw as many images as the data section asks for, evenly over the classes."""
    train, test = loaded.train, loaded.test
    if config.limit is not None and config.limit < len(train):
        train = subsample(train, config.limit, seeds.generator("limit train"))
    if test is not None and config.limit_test is not None and config.limit_test < len(test):
        test = subsample(test, config.limit_test, seeds.generator("limit test"))
    return Loaded(train, test)


def _held_out(data: ImageSet, share: float, seeds: Seeds) -> Tensor | None:
    count = max(data.num_classes, round(share * len(data)))
    if share == 0 or count > len(data) - data.num_classes:
        return None
    generator = seeds.generator("split")
    mask = torch.zeros(len(data), dtype=torch.bool)
    for label in range(data.num_classes):
        rows = (data.labels == label).nonzero().squeeze(1)
        take = min(len(rows) - 1, max(1, round(share * len(rows))))
        mask[rows[torch.randperm(len(rows), generator=generator)[:take]]] = True
    return mask


def _resolve(config: RunConfig, spec: ModelSpec, defence: Defence, planted: Planted | None) -> dict[str, Json]:
    values = config.recorded()
    values["model"] = spec.name
    values["defence"] = {"name": config.defence.name, **_plain(parameters_of(defence))}
    if config.attack is not None and planted is not None:
        own: dict[str, Json] = {
            "name": config.attack.name,
            "rate": config.attack.rate,
            "rate_of": config.attack.rate_of,
        }
        values["attack"] = {**own, "seed": config.attack.seed, **_plain(parameters_of(planted.attack))}
    return values


def _plain(params: dict[str, object]) -> dict[str, Json]:
    simple = (str, int, float, bool, type(None))
    return {
        key: value if isinstance(value, simple) else list(value) if isinstance(value, tuple) else str(value)
        for key, value in params.items()
    }


def _remarks(outcome: Outcome, held_out: Tensor | None, decided: Decided | None) -> list[str]:
    remarks = [f"Training ended early: {h.stopped}." for h in outcome.histories if h.stopped]
    if decided is not None:
        remarks.append(decided.sentence())
    if held_out is not None:
        remarks.append(
            f"{int(held_out.sum())} images were held out to measure accuracy. This part comes from the same source and "
            "may be poisoned too."
        )
    return remarks


def digest(data: ImageSet) -> str:
    """Return a hash of pixels and labels: a run must not be continued on data that changed."""
    total = hashlib.blake2b(digest_size=16)
    for part in (data.images, data.labels):
        for rows in part.split(4096):
            total.update(rows.contiguous().numpy().tobytes())
    return total.hexdigest()


def _describe(
    data: ImageSet, test: ImageSet | None, held_out: Tensor | None, decided: Decided | None
) -> dict[str, Json]:
    channels, height, width = data.shape
    return {
        "name": data.name,
        "images": len(data),
        "test_images": 0 if test is None else len(test),
        "held_out": 0 if held_out is None else int(held_out.sum()),
        "classes": list(data.classes),
        "channels": channels,
        "height": height,
        "width": width,
        "white": data.white,
        "skipped": list(data.skipped),
        "decisions": None if decided is None else decided.to_json(),
    }


class _Clock:
    """Wall-clock seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 3)

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)


class _Phase:
    def __init__(self, clock: _Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, time.perf_counter() - self._started)
