"""What a run is made of, built in the order in which it can fail: data, policy, optimizer,
reference, and the checkpoint that it goes on from."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch

from ecliptica import objectives, rewards
from ecliptica.data import offline
from ecliptica.data.offline import Data, Offline
from ecliptica.data.templates import stop_ids
from ecliptica.files import check_writable
from ecliptica.objectives import kl
from ecliptica.online import prompts
from ecliptica.online.actor import Actor
from ecliptica.online.rollouts import Rollouts
from ecliptica.planning import gpus
from ecliptica.policy import CRITIC, Reference
from ecliptica.recipe import Config
from ecliptica.rewards.contract import Scene
from ecliptica.running.checkpoints import Checkpoints, state_of
from ecliptica.running.ranks import Ranks
from ecliptica.running.run_directory import RunDirectory
from ecliptica.running.signals import Signals
from ecliptica.schema import Encoded
from ecliptica.training import reference
from ecliptica.training.log import Log
from ecliptica.training.reference_cache import Maker, ReferenceCache
from ecliptica.training.schedules import Schedule
from ecliptica.training.step import Learner, as_evaluated
from model.devices import pick_device
from model.errors import InputError
from model.llama import Llama

BYTES_A_PARAMETER = 12  # of a checkpoint: a float32 and AdamW's two moments


@dataclass(frozen=True)
class Run:
    """All that the loop works with."""

    config: Config
    ranks: Ranks
    directory: RunDirectory
    device: str
    data: Data
    source: Offline | Rollouts  # of batches; any that offers the same will do
    learner: Learner
    schedule: Schedule
    checkpoints: Checkpoints
    log: Log
    start: int  # the first step of this process

    @property
    def name(self) -> str:
        """What errors and messages call it: its directory."""
        return str(self.directory.path)

    @property
    def reference_runs(self) -> bool:
        """Whether each step runs the reference forward, rather than reading what it once said."""
        frozen = self.learner.reference
        return frozen is not None and not isinstance(frozen, ReferenceCache)


def check(config: Config) -> None:
    """What can be wrong before anything is read: objective, device, places. Raises InputError."""
    objective = objectives.get(config.objective)
    if objective.needs(config.objective).values and not config.lora.rank:
        raise InputError(
            f"lora.rank: {config.objective.name} has its critic in an adapter beside the policy's; "
            "expected > 0, got 0"
        )
    pick_device(config.training.device)
    if config.training.cache_dir:
        check_writable(config.training.cache_dir, "training.cache_dir", directory=True)


@contextmanager
def prepared(
    config: Config, directory: RunDirectory, ranks: Ranks, signals: Signals
) -> Iterator[Run]:
    """The Run of a claimed directory, at its start or where an earlier start of it left off.

    Collective. Raises InputError for what the user can mend, Stopped if a signal asks to stop.
    """
    # The data first: most of what can be wrong is in it, and it is read in seconds.
    data, source = ranks.together(read, config)
    stamp = {"ablation": True} if kl.is_ablation(config.objective) else {}
    with Log(directory.path, source.steps, stamp, ranks.main) as log:
        for line in data.lines:
            log.say(line)
        if stamp:
            log.say("ABLATION: the KL of this run is lifted or is not a KL; every output says so")
        place = Place(config, directory, ranks, signals, log)
        place.pause()
        yield build(place, data, source)


def read(config: Config) -> tuple[Data, Offline | Rollouts]:
    """What the run reads, and the source of its batches: preferences on disk, or prompts."""
    if objectives.learns_from_rollouts(config.objective):
        data, questions = prompts.load(config)
        return data, Rollouts(questions, config)
    responses = objectives.get(config.objective).RESPONSES
    data = offline.load(config.model.path, config.data, responses)
    return data, Offline(data.examples, config.training)


@dataclass(frozen=True)
class Place:
    """Where a run is built: whose it is, and who is told."""

    config: Config
    directory: RunDirectory
    ranks: Ranks
    signals: Signals
    log: Log

    def pause(self) -> None:
        """Between two pieces of the preparation: Stopped on every rank if a signal asks for it."""
        self.signals.check(str(self.directory.path))


def build(place: Place, data: Data, source: Offline | Rollouts) -> Run:
    """Policy, optimizer, reference and checkpoint of a run whose data is read. Collective."""
    config, ranks, log = place.config, place.ranks, place.log
    device = pick_device(config.training.device)

    # The policy, in the state that training starts from, and what moves it.
    policy = reference.starting_model(config, device, ranks, trained=True).train()
    optimizer = adamw(policy, config, device)
    log.say(_summary(config, policy, source, data, device, ranks))
    ranks.on_main(check_room, place.directory, policy)

    # The reference is of that state too, so it is made before any checkpoint is read.
    frozen = frozen_reference(place, policy, device, source, data.held_out)
    learner = Learner(
        policy=policy,
        reference=frozen,
        objective=objectives.get(config.objective),
        settings=config.objective,
        optimizer=optimizer,
        clip_norm=config.training.clip_norm,
        critic=CRITIC if objectives.get(config.objective).needs(config.objective).values else None,
    )
    if isinstance(source, Rollouts):
        learner, source = with_actor(learner, source, config, data, device)

    # Where an earlier start of this run left off, if there was one.
    path = place.directory.path
    checkpoints = Checkpoints(path, config.training.keep_checkpoints, ranks, log.say)
    start = resume(checkpoints, policy, optimizer, log)
    ranks.on_main(place.directory.take_back, start)
    log.start(start)
    if start:
        log.say(f"{path}: resumed after step {start} of {source.steps}")
    gpus.forget_peak(device)
    place.pause()
    return Run(
        config=config,
        ranks=ranks,
        directory=place.directory,
        device=device,
        data=data,
        source=source,
        learner=learner,
        schedule=Schedule(config.training, source.steps),
        checkpoints=checkpoints,
        log=log,
        start=start,
    )


def with_actor(
    learner: Learner, source: Rollouts, config: Config, data: Data, device: str
) -> tuple[Learner, Rollouts]:
    """The learner and the source of a run on rollouts, at one temperature.

    The actor has the reference in every rollout; the learner only if its loss computes with it.
    """
    needs = learner.objective.needs(config.objective)
    scene = Scene(learner.policy, config.model.path, data.tokenizer, data.template)
    actor = Actor(
        policy=learner.policy,
        reference=learner.reference,
        critic=learner.critic,
        objective=learner.objective,
        score=rewards.scorer(config.reward, scene),
        rollout=config.rollout,
        tokenizer=data.tokenizer,
        stop_ids=frozenset(stop_ids(data.template, data.tokenizer)),
        device=device,
        evaluated=partial(as_evaluated, learner.policy),
    )
    learner = replace(
        learner,
        reference=learner.reference if needs.frozen_model else None,
        temperature=config.rollout.temperature,
    )
    return learner, replace(source, actor=actor)


def frozen_reference(
    place: Place, policy: Llama, device: str, source: Offline | Rollouts, held_out: list[Encoded]
) -> Reference | None:
    """The run's reference; None if its objective needs none."""
    config = place.config
    online = objectives.learns_from_rollouts(config.objective)
    if not online and not objectives.get(config.objective).needs(config.objective).frozen_model:
        return None
    place.pause()
    maker = Maker(
        model=policy,
        device=device,
        ranks=place.ranks,
        micro=config.training.micro_preferences,
        say=place.log.say,
        pause=place.pause,
    )
    return reference.build(config, maker, source, held_out)


def check_room(directory: RunDirectory, policy: Llama) -> None:
    """Before the work, not after it: whether one more checkpoint fits beside what is there."""
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    need, free = BYTES_A_PARAMETER * trained, shutil.disk_usage(directory.path).free
    if need > free:
        raise InputError(
            f"run.dir: {directory.path}: a checkpoint needs {need / 2**20:,.1f} MiB, "
            f"{free / 2**20:,.1f} MiB are free; make room or choose another run.dir"
        )


def adamw(policy: Llama, config: Config, device: str) -> torch.optim.Optimizer:
    """AdamW over what is trained; fused on CUDA."""
    return torch.optim.AdamW(
        [p for p in policy.parameters() if p.requires_grad],
        lr=config.training.lr,
        weight_decay=config.training.weight_decay,
        fused=torch.device(device).type == "cuda" or None,
    )


def resume(
    checkpoints: Checkpoints, policy: Llama, optimizer: torch.optim.Optimizer, log: Log
) -> int:
    """Fill policy and optimizer from the newest whole checkpoint; return the step to go on with."""
    manifest = checkpoints.resume(state_of(policy, optimizer))
    if manifest is None:
        return 0
    log.first = manifest["first"]
    return manifest["step"]


def _summary(
    config: Config, policy: Llama, source: Offline | Rollouts, data: Data, device: str, ranks: Ranks
) -> str:
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    processes = f", {ranks.world} processes" if ranks.world > 1 else ""
    return (
        f"{trained:,} trained parameters, {source.steps} steps of {source.a_step}, "
        f"template {data.template.name}, {device}{processes}"
    )
