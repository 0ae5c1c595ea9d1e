"""Run in an engine's environment: a real `AsyncLLM` in the origin's library. Prints what was seen as JSON."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys

from fastapi import FastAPI


async def main(engine: str, model: str) -> None:
    """The origin's own imports and calls, around one answer."""
    from aphrodite.endpoints.openai.serving_optimization import (
        OptimizationMiddleware,
        setup_optimization_serving,
    )
    from aphrodite.engine.server_side_optimizer import OptimizationConfig, ServerSideOptimizer

    arguments = importlib.import_module(f"{engine}.engine.arg_utils").AsyncEngineArgs
    package = importlib.import_module(engine)
    client = importlib.import_module(f"{engine}.v1.engine.async_llm").AsyncLLM.from_engine_args(
        arguments(model=model, max_model_len=512, max_num_seqs=8, enforce_eager=True)
    )
    config = OptimizationConfig(tuning_interval_sec=0.5, enable_torch_compile=False)
    optimizer = ServerSideOptimizer(
        engine_client=client, model_config=client.model_config, optimization_config=config
    )
    await optimizer.start_optimization()
    app = FastAPI()
    mixin = await setup_optimization_serving(app, client)
    middleware = OptimizationMiddleware(mixin)
    seen: list[int] = []

    async def answer(chosen: object, request: dict[str, object]) -> int:
        params = package.SamplingParams(max_tokens=400, ignore_eos=True)
        tokens = 0
        async for output in client.generate(str(request["prompt"]), params, "r1"):
            tokens = len(output.outputs[0].token_ids)
            if tokens % 100 == 50:
                await asyncio.sleep(0)
                decision = await optimizer.measure_now()
                seen.append(decision.metrics.active_requests or 0)
        return tokens

    tokens = await middleware.process_request(client, {"prompt": "def read("}, answer)
    metrics = (await optimizer.measure_now()).metrics
    paths = [getattr(route, "path", "") for route in app.routes]
    said = {
        "tokens": tokens,
        "running": seen,
        "capacity": metrics.capacity_requests,
        "after": metrics.active_requests,
        "routes": [path for path in paths if "optimization" in path],
        "requests": (await mixin.get_performance_report())["total_requests"],
    }
    sys.stdout.write(f"SEEN {json.dumps(said)}\n")
    await mixin.optimizer.close()
    await optimizer.close()
    client.shutdown()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
