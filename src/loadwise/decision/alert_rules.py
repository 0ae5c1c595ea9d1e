"""Alert rules as a table: what is wrong, whom it concerns, what to do, and how to undo what we did.

Tickets wait for a person, pages call one: only for burning objectives, a silent member that still
serves, a loop or sensors that stand still, and a configuration that was taken back.
"""

from __future__ import annotations

from typing import Final

from loadwise.decision import burn, findings
from loadwise.decision.alert_facts import Rule, Severity

STOP: Final = (
    "POST /v1/optimization/stop: requests then pass untouched to the default member; "
    "POST /v1/optimization/start takes that back."
)
# An error that serving survived is told for so long.
FAULT_SHOWN_S: Final = 300.0
NOTHING_CHANGED: Final = "The optimizer changed nothing here; there is nothing to undo."

RULES: Final = (
    Rule(
        name="high_error_rate",
        severity=Severity.TICKET,
        find=findings.errors,
        limit=lambda policy: policy.error_rate_alert,
        message="{value:.1%} of recent requests failed (limit {limit:.0%}).",
        remedy="Look at the members' error rates in /v1/optimization/ensemble and at the engines' logs.",
        undo=STOP,
        for_s=15.0,
        within_s=90.0,
    ),
    Rule(
        name="excessive_latency",
        severity=Severity.TICKET,
        find=findings.latency,
        limit=lambda policy: policy.latency_alert_ms,
        message="Answers took {value:.0f} ms on average (limit {limit:.0f} ms).",
        remedy="Compare with the share within objectives: long answers take long. If that is low, add "
        "capacity or let faster members answer.",
        undo=STOP,
        for_s=60.0,
        within_s=180.0,
    ),
    Rule(
        name="low_optimization_effectiveness",
        severity=Severity.TICKET,
        find=findings.improvement,
        limit=lambda policy: policy.improvement_alert,
        message="Optimisation gained {value:.1%} of requests within objectives (limit {limit:.0%}).",
        remedy="Check that a faster member is active and that its quality is known.",
        undo=STOP,
        for_s=60.0,
        clear_s=600.0,
        within_s=120.0,
        # What it gained is compared with one limit: a lower one would not be easier to reach.
        keeps=1.0,
    ),
    Rule(
        name="ensemble_degradation",
        severity=Severity.TICKET,
        find=findings.members_out,
        limit=lambda _: 0.0,
        message="{value:.0f} members or replicas are out of rotation.",
        remedy="They are probed and return by themselves; see their error rates and the engines' logs.",
        undo="A member returns with its first successful probe; to send it traffic at once, name it as "
        "the model, or " + STOP,
        for_s=5.0,
        within_s=60.0,
    ),
    Rule(
        name="compilation_failure",
        severity=Severity.TICKET,
        find=findings.builds,
        limit=lambda _: 0.0,
        message="The last build of {subject} failed; the original serves.",
        remedy="compilation_stats in /v1/optimization/status say why; repeat with "
        "POST /v1/optimization/force_recompile?model_id={subject}.",
        undo='The original serves already. POST /v1/optimization/configure {{"enable_torch_compile": false}} '
        "ends further builds.",
        within_s=30.0,
    ),
    Rule(
        name="objectives_burning",
        severity=Severity.PAGE,
        find=findings.burning,
        limit=lambda _: burn.FAST.factor,
        message="{subject} misses its objectives {value:.1f} times as fast as its budget allows.",
        remedy="See which member is slow or fails in /v1/optimization/ensemble; add capacity, or lower the "
        "load. The gateway's own share is in loadwise_decision_seconds.",
        undo=STOP,
        # In the first seconds of a burst those that came too soon to be placed well are half of all.
        for_s=60.0,
        within_s=600.0,
    ),
    Rule(
        name="objectives_spent",
        severity=Severity.TICKET,
        find=findings.spent,
        limit=lambda _: burn.SPENT.factor,
        message="{subject} missed its objectives {value:.1f} times as often as its budget allows, over three "
        "days or since the start.",
        remedy="Add capacity, choose faster members, or set objectives that the members can meet.",
        undo=STOP,
        within_s=86_400.0,
    ),
    Rule(
        name="queue_saturation",
        severity=Severity.TICKET,
        find=findings.queue,
        limit=lambda policy: policy.queue_alert,
        message="The queue of pool {subject} is at {value:.0%} of what it should ever be.",
        remedy="Add replicas to the pool, or ask less of it: ceilings, fewer clients, smaller models.",
        undo=STOP,
        for_s=60.0,
        within_s=90.0,
    ),
    Rule(
        name="stale_engine_metrics",
        severity=Severity.TICKET,
        find=findings.stale,
        limit=lambda policy: policy.stale_after_s,
        message="Replica {subject} was last read {value:.0f} s ago (limit {limit:.0f} s).",
        remedy="Ask its /metrics from this machine; loop.faults in /v1/optimization/status has the error.",
        undo="Its figures count as absent. " + NOTHING_CHANGED,
        within_s=60.0,
    ),
    Rule(
        name="sensors_stale",
        severity=Severity.PAGE,
        find=findings.blind,
        limit=lambda policy: policy.stale_page_s,
        message="No replica of pool {subject} could be read for {value:.0f} s.",
        remedy="Ask the engines' /metrics from this machine. Decisions rest on other figures meanwhile.",
        undo=STOP,
        within_s=90.0,
    ),
    Rule(
        name="loop_stale",
        severity=Severity.PAGE,
        find=findings.loop,
        limit=lambda policy: policy.stale_page_s,
        message="The control loop decided nothing for {value:.0f} s; the safe strategy is in force.",
        remedy="loop.faults in /v1/optimization/status names the part; POST /v1/optimization/stop and "
        "/start begin the loop anew.",
        undo=STOP,
        within_s=90.0,
    ),
    Rule(
        name="silent_member",
        severity=Severity.TICKET,
        find=findings.silent,
        limit=lambda policy: policy.silent_alert_s,
        message="{subject} has requests and gave no token for {value:.0f} s.",
        remedy="Its engine may hang while it says it is healthy: look at its log, restart it.",
        undo="Where another can answer it is taken out of rotation, probed, and returns by itself; to send "
        "it traffic at once, name it as the model, or " + STOP,
        within_s=45.0,
    ),
    Rule(
        name="silent_replica",
        severity=Severity.TICKET,
        find=findings.silent_beside_others,
        limit=lambda policy: policy.silent_alert_s,
        message="Replica {subject} has requests and gave no token for {value:.0f} s.",
        remedy="Its engine may hang while it says it is healthy: look at that replica's log, restart it.",
        undo="While another of its member speaks it is left out, probed, and returns by itself. " + STOP,
        within_s=45.0,
    ),
    Rule(
        name="silent_member_serving",
        severity=Severity.PAGE,
        find=findings.silent_and_serving,
        limit=lambda policy: policy.silent_page_s,
        message="{subject} gave no token for {value:.0f} s and still gets requests.",
        remedy="It could not be taken out: it is the only one, as many as may be are out, or all are silent. "
        "Restart its engine now. Until then name another member as the model, or as default_member.",
        undo=STOP,
        within_s=45.0,
    ),
    Rule(
        name="configuration_rolled_back",
        severity=Severity.PAGE,
        find=findings.rolled_back,
        limit=lambda policy: policy.rollback_shown_s,
        message="Configuration {subject} was taken back: fewer requests met their objectives under it.",
        remedy="configuration in /v1/optimization/status has what was measured under each version.",
        undo="POST /v1/optimization/configure with the same values again: an operator who does so pins them.",
        within_s=60.0,
        keeps=1.0,
    ),
    Rule(
        name="rollout_taken_back",
        severity=Severity.PAGE,
        find=findings.rollouts_back,
        limit=lambda policy: policy.rollback_shown_s,
        message="The rollout of optimisation on {subject} was taken back: it did harm.",
        remedy="rollouts in /v1/optimization/status name the harm; see the members' errors there.",
        undo="Nothing is optimised there now. Change any setting of rollout to begin it anew.",
        within_s=60.0,
        keeps=1.0,
    ),
    Rule(
        name="optimizer_fault",
        severity=Severity.TICKET,
        find=findings.faults,
        limit=lambda _: FAULT_SHOWN_S,
        message="{subject} failed {value:.0f} s ago; serving went on without it.",
        remedy="loop.faults in /v1/optimization/status and the log name the error.",
        undo=STOP,
        within_s=30.0,
        keeps=1.0,
    ),
    Rule(
        name="journal_losing",
        severity=Severity.TICKET,
        find=findings.journal_lost,
        limit=lambda _: FAULT_SHOWN_S,
        message="The journal lost events {value:.0f} s ago: its queue was full, or its disk takes none.",
        remedy="journal in /v1/optimization/status says how many and why: free its disk, or raise "
        "journal.queue_size. What was lost cannot be explained or replayed.",
        undo=NOTHING_CHANGED,
        within_s=30.0,
        keeps=1.0,
    ),
    Rule(
        name="monitoring_failed",
        severity=Severity.TICKET,
        find=findings.monitoring,
        limit=lambda _: 0.0,
        message="The monitoring system could not be read for {value:.0f} s; the last good figures count for "
        "30 s, then the safe strategy.",
        remedy="See loop.faults in /v1/optimization/status for its error.",
        undo=NOTHING_CHANGED,
        for_s=5.0,
        within_s=30.0,
    ),
)  # fmt: skip
