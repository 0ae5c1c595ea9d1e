"""`python -m loadwise.testing`: the stub upstream alone."""

from __future__ import annotations

import argparse
import asyncio

from loadwise.testing.upstream import Behaviour, StubUpstream


async def _serve(options: argparse.Namespace) -> None:
    behaviour = Behaviour(
        tokens=options.tokens, first_delay_s=options.first_delay_s, token_delay_s=options.token_delay_s
    )
    stub = StubUpstream(behaviour, keep=1)
    await stub.start(port=options.port)
    await asyncio.Event().wait()


def main() -> None:
    """Serves until interrupted."""
    parser = argparse.ArgumentParser(description="A stub OpenAI-compatible server.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--first-delay-s", type=float, default=0.0)
    parser.add_argument("--token-delay-s", type=float, default=0.0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
