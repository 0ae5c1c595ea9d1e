"""One request's story in sentences, for who asks what happened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loadwise.ports import JsonObject


def told(story: JsonObject) -> str:
    """The story in sentences."""
    lines = [f"Request {story['request_id']}", *_which(story)]
    for attempt in story["attempts"]:
        lines += ["", *_attempt_told(attempt)]
    for refusal in story["refusals"]:
        retry = refusal["retry_after_s"]
        later = "" if retry is None else f"; it was told to come back after {retry:g} s"
        lines += ["", f"{refusal['time']}  refused with {refusal['status']} ({refusal['code']}){later}."]
    for said in story["feedback"]:
        lines.append(f"{said['time']}  {said['source']} scored the answer {said['score']:g}.")
    return "\n".join(lines)


def _which(story: JsonObject) -> Iterator[str]:
    """Which request is meant, where several carried the id."""
    carried = story["carried_by"]
    if len(carried) > 1:
        yield f"{len(carried)} requests carried this id; this is number {story['number']}:"
        for number, each in enumerate(carried, 1):
            yield f"  {number}. {each['time']}  {each['tenant'] or 'tenant not known'}"


def _attempt_told(attempt: JsonObject) -> Iterator[str]:
    facts, load, choice = attempt["facts"], attempt["load"], attempt["choice"]
    score = "unknown" if load["load_score"] is None else f"{load['load_score']:.2f}"
    asked = f"{facts['tenant']} asked {facts['model']} ({facts['endpoint']})"
    yield f"{attempt['time']}  {asked} with {_prompt(facts)}."
    yield f"Load {score}, strategy {load['strategy'] or 'none'}; in flight: {_flying(load['in_flight'])}."
    if choice["member"] is None:
        yield f"Nobody could answer: {choice['message']}"
        return
    yield f"{choice['member']} was chosen: {choice['reason']}, with propensity {choice['propensity']:.3f}."
    for each in choice["candidates"]:
        quality = "unknown" if each["quality"] is None else f"{each['quality']:.2f}"
        health = each["health"] or "not known"
        yield f"  {each['member']:<20} propensity {each['propensity']:.3f}  quality {quality}  {health}"
    for name, change in attempt["changes"].items():
        yield f"{name} was set to {change['value']} ({change['because']})."
    if not attempt["changes"]:
        yield "Nothing of the request was changed."
    yield _ending_told(attempt["ended"], choice)


def _flying(counts: Mapping[str, int]) -> str:
    """Requests by member; of members without any only one per pool is journaled, so none is named."""
    if not counts:
        return "not known"
    return ", ".join(f"{name} {count}" for name, count in counts.items() if count) or "nothing"


def _prompt(facts: JsonObject) -> str:
    exact, bound = facts["prompt_tokens"], facts["prompt_tokens_bound"]
    if exact is not None:
        return f"a prompt of {exact} tokens"
    if bound is None:
        return "a prompt of unknown length"
    expected = facts["prompt_tokens_expected"]
    at_most = f"at most {bound}"
    return f"a prompt of {at_most if expected is None else f'about {expected} ({at_most})'} tokens"


def _ending_told(ended: JsonObject | None, choice: JsonObject) -> str:
    if ended is None:
        return "How it ended is not known."
    within = {True: "within objectives", False: "outside objectives", None: "objectives not measured"}
    parts = [f"It {ended['ending']} after {_seconds(ended['total_s'])}, {within[ended['within_objectives']]}"]
    parts.append(
        f"first token after {_seconds(ended['time_to_first_token_s'])} "
        f"(expected {_seconds(choice['expected_time_to_first_token_s'])})"
    )
    parts.append(f"{ended['output_tokens'] or 'an unknown number of'} tokens")
    return "; ".join(parts) + ".\n" + _stages_told(ended["stages"])


def _stages_told(stages: JsonObject) -> str:
    """Where the time went; what could not be told apart says so."""
    told = [f"{stage.removesuffix('_s')} {_seconds(value)}" for stage, value in stages.items()]
    return f"Of its time: {', '.join(told)} (the queue's is estimated where its engine does not tell it)."


def _seconds(value: float | None) -> str:
    return "an unknown time" if value is None else f"{value:.3f} s"
