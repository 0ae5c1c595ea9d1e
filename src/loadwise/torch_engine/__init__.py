"""Continuous batching over transformers models, small and readable; knows nothing above it.

    loaded = load(Path("model"))
    limits = Limits(places=8, waiting=32, context_tokens=loaded.context_tokens)
    engine = Engine(Runner(loaded, limits.places, limits.context_tokens), limits, loaded.eos_token_ids, now)
    engine.submit(prompt_ids, Sampling(max_tokens=16))
    while engine.busy:
        outputs = engine.step()

`scheduler`, `sequence`, `statistics`, `engine` and `thread` need no torch; `loading`, `cache`, `step`,
`sampler` and `runner` do and are imported by name.
"""
