"""Kills a process that writes its history, again and again, and tells what the next start finds.

`python crashing.py FOLDER KILLS SEED` prints one JSON object. Children are forked from this process, which
never starts a thread itself, so that each begins within milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

from loadwise.clock import SystemClock
from loadwise.decision.facts import Ending, Outcome, RequestFacts
from loadwise.decision.rollout import RolloutReason
from loadwise.optimizer.config_store import ConfigStore
from loadwise.optimizer.continuity import PREFIX, Continuity
from loadwise.optimizer.experiments import Experiments
from loadwise.settings import OptimizationConfig
from loadwise.telemetry.journal import records
from loadwise.telemetry.journal.events import Refused
from loadwise.telemetry.journal.journal import Journal, Limits
from loadwise.telemetry.journal.reader import Reader
from loadwise.telemetry.journal.replay import replay
from loadwise.telemetry.journal.store import Store

LIMITS = Limits(max_bytes=2 * 1024**2)
# Longer than the writer waits, so that most children die with something on disk and something not yet.
LONGEST_S = 1.0
PROOF = OptimizationConfig(
    experiment={"block_share": 0.5, "block_sec": 3600.0, "burn_in_sec": 0.0, "conversation_share": 0.0},
    rollout={"mode": "ramp"},
)


def write(folder: Path, told: int, kill: int) -> None:
    """Journals events and applies configurations until the process is killed, telling each before."""
    clock = SystemClock()
    journal = Journal(folder / "journal", clock, LIMITS)
    journal.open()
    configurations = ConfigStore(folder, OptimizationConfig())
    version = configurations.load()[1]
    experiments, continuity = proof_of(folder, clock)
    number = 0
    while True:
        number += 1
        name = f"{kill}-{number}"
        journal.take(Refused(RequestFacts(request_id=name), 429, "queue_full", 1.0, clock.monotonic_s()))
        os.write(told, f"r {name} {time.time()}\n".encode())
        prove(experiments, name, clock)
        journal.keep(continuity.news({}, clock.monotonic_s()))
        os.write(told, f"b {answers_of(experiments)} {time.time()}\n".encode())
        if number % 20 == 0:
            version += 1
            configurations.save(OptimizationConfig(metrics_history_size=version), version)
            os.write(told, f"c {version} {time.time()}\n".encode())
        time.sleep(0.001)


def proof_of(folder: Path, clock: SystemClock) -> tuple[Experiments, Continuity]:
    """The experiments that a start goes on with."""
    experiments = Experiments(PROOF, clock)
    continuity = Continuity(experiments)
    with Reader(folder / "journal") as reader:
        continuity.take_up(reader.kept_under(PREFIX), clock.monotonic_s())
    if continuity.set_aside:
        raise SystemExit(f"What experiments kept could not be read: {continuity.set_aside}")
    return experiments, continuity


def prove(experiments: Experiments, name: str, clock: SystemClock) -> None:
    """One request is assigned and ends; the first one sees the rollout taken back."""
    now_s = clock.monotonic_s()
    assignment = experiments.assign("auto", RequestFacts(request_id=name), now_s)
    outcome = Outcome(
        request_id=name, member_id="m", replica_id="m/0", ending=Ending.SUCCEEDED, finished_s=now_s
    )
    experiments.note(assignment, outcome, within=True, quality=None)
    for course in experiments.rollouts._courses.values():
        harm = RolloutReason.MORE_ERRORS
        course.rollout = replace(course.rollout, share=0.0, harm=harm, reason=harm)


def answers_of(experiments: Experiments) -> int:
    """All answers that the blocks know of."""
    blocks = experiments.switchback
    return sum(blocks.kept(number).answers for number in blocks.blocks())


def killed(folder: Path, kill: int, seconds: float) -> tuple[list[list[str]], float]:
    """What a child told before it was killed, and when that was."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            write(folder, writing, kill)
        finally:
            os._exit(1)
    os.close(writing)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    died_s = time.time()
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as file:
        lines = file.read().decode().splitlines()
    if not os.WIFSIGNALED(status):
        raise SystemExit(f"The child ended by itself after {len(lines)} lines.")
    return [line.split() for line in lines], died_s


def found_of(folder: Path) -> tuple[set[str], bool]:
    """The request ids that a start finds, and whether all of them can be read and decided again."""
    with Reader(folder / "journal") as reader:
        names = {
            row.request_id
            for batch in reader.batches()
            for row in batch.rows
            if isinstance(row, records.TurnedAway)
        }
        again = replay(reader.batches())
    return names, again.exact and not again.gaps


def check_proof(folder: Path, before: int) -> int:
    """How many answers blocks know of: none is forgotten, and what was taken back stays so."""
    experiments, _ = proof_of(folder, SystemClock())
    found = answers_of(experiments)
    if found < before:
        raise SystemExit(f"{before} answers were counted, {found} were found.")
    if any(each["harm"] is None for each in experiments.rollouts.as_json(0.0)):
        raise SystemExit("A rollout that was taken back began anew.")
    return found


def main(folder: Path, kills: int, seed: int) -> None:
    """Prints the worst of all kills."""
    random, base = Random(seed), OptimizationConfig()
    lost_s = start_s = 0.0
    kept = told_count = proved = 0
    for kill in range(kills):
        told, died_s = killed(folder, kill, random.uniform(0.0, LONGEST_S))
        began_s = time.monotonic()
        with closing(Store.open(folder / "journal", LIMITS.max_bytes)):
            start_s = max(start_s, time.monotonic() - began_s)
        names, whole = found_of(folder)
        if not whole:
            raise SystemExit("Rows of a killed process could not be read.")
        requests = {name: float(at) for kind, name, at in told if kind == "r"}
        missing = [at for name, at in requests.items() if name not in names]
        lost_s = max([lost_s, *(died_s - at for at in missing)])
        kept, told_count = kept + len(requests) - len(missing), told_count + len(requests)
        proved = check_proof(folder, proved)
        unseen = [float(at) for kind, count, at in told if kind == "b" and int(count) > proved]
        lost_s = max([lost_s, *(died_s - at for at in unseen)])
        config, version = ConfigStore(folder, base).load()
        applied = max([int(name) for kind, name, _ in told if kind == "c"], default=0)
        if version < applied or (version > 1 and config.metrics_history_size != version):
            raise SystemExit(f"Version {applied} was applied, version {version} was found.")
    found = {
        "kills": kills, "told": told_count, "kept": kept, "proved": proved, "lost_s": lost_s,
        "start_s": start_s,
    }  # fmt: skip
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
