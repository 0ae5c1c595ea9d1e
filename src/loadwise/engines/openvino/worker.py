"""The child: one thread that reads requests, steps the pipeline, and writes what came of it."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any

from loadwise.engines.openvino.precision import PRECISIONS, native
from loadwise.engines.openvino.wire import (
    GOES_ON,
    LOST,
    REACHED_LENGTH,
    STOPPED,
    Cancel,
    Event,
    Failed,
    Frames,
    Load,
    Ready,
    Request,
    Step,
    Submit,
    frame,
)
from loadwise.ports import SamplingParams

# Tokens per block of the CPU device's paged attention.
BLOCK_TOKENS = 32
# Tokens of one step: a long prompt is read in pieces of this size, between the others' tokens.
BATCHED_TOKENS = 256
WARM_UP_TOKENS = 16


class Sequence:
    """One sequence in the pipeline."""

    __slots__ = ("handle", "length", "submit")

    def __init__(self, submit: Submit, handle: Any) -> None:
        self.submit = submit
        self.handle = handle
        self.length = len(submit.prompt_ids)


class Worker:
    """Runs the sequences it is sent until its input ends."""

    def __init__(self, pipeline: Pipeline, max_running: int, source: int, sink: int) -> None:
        self._pipeline = pipeline
        self._max_running = max_running
        self._source = source
        self._sink = sink
        self._frames: Frames[Request] = Frames(Request)
        self._waiting: deque[Submit] = deque()
        self._running: dict[int, Sequence] = {}
        # A cancelled sequence holds its part of the cache until the next step.
        self._cancelled = False

    def run(self) -> None:
        """Returns when the server closes the pipe."""
        while self._receive():
            self._turn()

    def _turn(self) -> None:
        self._admit()
        if self._running or self._cancelled:
            self._write(self._step())

    def _receive(self) -> bool:
        """Reads what is there, waiting for it only when nothing runs; False at the end of input."""
        idle = not self._running and not self._waiting
        while select.select([self._source], [], [], None if idle else 0)[0]:
            data = os.read(self._source, 1 << 20)
            if not data:
                return False
            for message in self._frames.feed(data):
                self._take(message)
            idle = False
        return True

    def _take(self, message: Request) -> None:
        if isinstance(message, Submit):
            self._waiting.append(message)
        elif isinstance(message, Cancel):
            sequence = self._running.pop(message.key, None)
            if sequence is not None:
                sequence.handle.cancel()
                self._cancelled = True
            else:
                self._waiting = deque(item for item in self._waiting if item.key != message.key)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._max_running:
            submit = self._waiting.popleft()
            self._running[submit.key] = Sequence(submit, self._pipeline.add(submit))

    def _step(self) -> Step:
        self._pipeline.step()
        self._cancelled = False
        events = [event for sequence in self._running.values() if (event := self._pipeline.read(sequence))]
        for event in events:
            if event.ending != GOES_ON:
                del self._running[event.key]
        held = sum(sequence.length for sequence in self._running.values())
        return Step(events, len(self._running), len(self._waiting), held)

    def _write(self, message: object) -> None:
        data = memoryview(frame(message))
        while data:
            data = data[os.write(self._sink, data) :]


class Pipeline:
    """OpenVINO GenAI's continuous batching as the worker sees it."""

    def __init__(self, load: Load) -> None:
        import numpy as np
        import openvino
        import openvino_genai

        self._genai = openvino_genai
        self._tensor, self._array, self._integer = openvino.Tensor, np.array, np.int64
        # The cache's numbers have two bytes unless they are asked to be whole.
        asked = load.properties or PRECISIONS[native()].properties
        share = 2 if asked["KV_CACHE_PRECISION"] == "f32" else 1
        blocks = kv_blocks(Path(load.folder), load.kv_cache_bytes // share, load.context_tokens)
        self.cache_tokens = blocks * BLOCK_TOKENS
        properties: dict[str, Any] = dict(asked)
        if load.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = load.threads
        self._pipe = openvino_genai.ContinuousBatchingPipeline(
            load.folder, self._scheduling(load, blocks), "CPU", properties
        )
        reason = openvino_genai.py_openvino_genai.GenerationFinishReason
        self._endings = {reason.NONE: GOES_ON, reason.STOP: STOPPED, reason.LENGTH: REACHED_LENGTH}
        self._lost = openvino_genai.py_openvino_genai.GenerationStatus.IGNORED

    @property
    def cache_bytes(self) -> int:
        """Bytes of the key/value cache as allocated so far; it grows with use."""
        return int(self._pipe.get_metrics().kv_cache_size_in_bytes)

    def warm_up(self, sequences: int) -> None:
        """Runs a few tokens, so that the first request does not pay for kernels made at first use."""
        sampling = SamplingParams(max_tokens=WARM_UP_TOKENS, temperature=0.0)
        prompts = [tuple(range(place, place + WARM_UP_TOKENS)) for place in range(sequences)]
        handles = [self.add(Submit(place, prompt, (), sampling)) for place, prompt in enumerate(prompts)]
        while self._pipe.has_non_finished_requests():
            self._pipe.step()
        for handle in handles:
            handle.read_all()

    def add(self, submit: Submit) -> Any:
        """Queues a sequence and returns its handle."""
        # [1, prompt]
        prompt = self._tensor(self._array([submit.prompt_ids], dtype=self._integer))
        return self._pipe.add_request(submit.key, prompt, self._config(submit))

    def step(self) -> None:
        """One token for every running sequence, or a piece of a prompt."""
        self._pipe.step()

    def read(self, sequence: Sequence) -> Event | None:
        """A sequence's new tokens without the token that stopped it, or None."""
        handle, submit = sequence.handle, sequence.submit
        if not handle.can_read():
            return Event(submit.key, (), None, LOST) if handle.get_status() == self._lost else None
        output = next(iter(handle.read().values()))
        ids = tuple(output.generated_ids)
        sequence.length += len(ids)
        ending = self._endings.get(output.finish_reason, LOST)
        logprobs = None if submit.sampling.logprobs is None else tuple(output.generated_log_probs)
        if ending == STOPPED and ids and ids[-1] in submit.stop_ids:
            ids, logprobs = ids[:-1], None if logprobs is None else logprobs[:-1]
        return Event(submit.key, ids, logprobs, ending)

    def _scheduling(self, load: Load, blocks: int) -> Any:
        config = self._genai.SchedulerConfig()
        config.num_kv_blocks = blocks
        config.max_num_seqs = load.max_running
        config.max_num_batched_tokens = max(BATCHED_TOKENS, load.max_running)
        config.dynamic_split_fuse = True
        config.enable_prefix_caching = True
        return config

    def _config(self, submit: Submit) -> Any:
        sampling, config = submit.sampling, self._genai.GenerationConfig()
        config.max_new_tokens = sampling.max_tokens
        config.min_new_tokens = sampling.min_tokens
        config.apply_chat_template = False
        # The pipeline's own ignore_eos would also ignore the client's stop ids.
        config.ignore_eos = not submit.stop_ids
        config.stop_token_ids = set(submit.stop_ids)
        config.presence_penalty = sampling.presence_penalty
        config.frequency_penalty = sampling.frequency_penalty
        config.repetition_penalty = sampling.repetition_penalty
        config.logprobs = 0 if sampling.logprobs is None else 1
        config.do_sample = sampling.temperature > 0
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            config.min_p = sampling.min_p
            if sampling.top_k:
                config.top_k = sampling.top_k
            seed = int.from_bytes(os.urandom(8)) if sampling.seed is None else sampling.seed
            config.rng_seed = seed % 2**64
        return config


def kv_blocks(folder: Path, budget_bytes: int, context_tokens: int) -> int:
    """Blocks of key/value cache within the budget, but at least what one full context needs."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    # Keys and values, two bytes each.
    token_bytes = 2 * 2 * config["num_hidden_layers"] * kv_heads * head_size
    needed = -(-context_tokens // BLOCK_TOKENS) + 1
    return int(max(budget_bytes // (token_bytes * BLOCK_TOKENS), needed))


def _first(source: int) -> Load:
    frames: Frames[Request] = Frames(Request)
    while data := os.read(source, 1 << 16):
        for message in frames.feed(data):
            if isinstance(message, Load):
                return message
    raise SystemExit(0)


def main() -> None:
    """Serves one model folder over standard input and output; library chatter goes to standard error."""
    # The server decides when to end; a terminal's interrupt reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sink = os.dup(1)
    os.dup2(2, 1)
    try:
        load = _first(0)
        pipeline = Pipeline(load)
        pipeline.warm_up(min(load.max_running, 8))
        os.write(sink, frame(Ready(pipeline.cache_bytes, pipeline.cache_tokens)))
        Worker(pipeline, load.max_running, 0, sink).run()
    except BrokenPipeError:
        sys.exit(0)
    except (RuntimeError, ValueError, OSError, ImportError, KeyError) as error:
        os.write(sink, frame(Failed(f"{type(error).__name__}: {error}"[:2000])))
        sys.exit(1)


if __name__ == "__main__":
    main()
