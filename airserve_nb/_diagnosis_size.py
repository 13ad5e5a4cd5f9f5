"""Why batches have the size they have: each rule looks at the facts and says its sentence, or leaves it to the next one.

The order matters: what is asked first is what makes the later questions meaningless. Without batching there are no
sizes to explain; where all clients together are fewer than a batch holds, no setting of the server matters.
"""

from __future__ import annotations

from airserve_nb._diagnosis_case import Case, Finding, Rule, count, digits, in_ms, percent

__all__ = ["SIZE_RULES"]

FEWEST_CALLS = 3
"""From fewer batches nothing is concluded."""
MUCH = 0.2
"""Failed and repeated calls of predict that are more than this share are what makes batches small."""
MOST = 0.5
LARGER = 1.5
"""A batch that would be half as large again if something were otherwise is limited by that."""
NEARLY = 0.9
"""A pool that is used up to this share is used up; models that would be busy for more of the time are too few."""
REACHABLE = 0.25
"""A wait that fills a quarter of a batch could be made long enough; one that fills less would only cost time."""


def _off(case: Case) -> Finding | None:
    if case.limits.enabled:
        return None
    return Finding(
        "off", "Batching is turned off, so every request is a call of predict of its own.", {}, "batching"
    )


def _no_data(case: Case) -> Finding | None:
    facts = case.facts
    if facts.calls + facts.retries:
        return None
    figures = {"requests": float(facts.requests), "waiting": float(case.waiting)}
    if case.waiting:
        waits = f"{count(case.waiting, 'request')} {'waits' if case.waiting == 1 else 'wait'}"
        what = f"{waits} although no batch has ended lately: predict has not returned"
        return Finding("no_data", f"{what}, or the model is still being loaded.", figures, "predictor")
    if facts.requests:
        what = f"{count(facts.requests, 'request')} ended without reaching a batch"
        errors = "its error" if facts.requests == 1 else "their errors"
        return Finding("no_data", f"{what}, so look at {errors}.", figures, "concurrency")
    when = "yet" if facts.settled else "since the limits were changed"
    return Finding("no_data", f"No batch {when}, so send some requests.", figures, "concurrency")


def _failing(case: Case) -> Finding | None:
    facts = case.facts
    calls = facts.calls + facts.retries
    trouble = max(facts.retries, facts.failed)
    if trouble < FEWEST_CALLS or trouble <= MUCH * calls:
        return None
    what = f"{facts.failed} of {calls} calls of predict failed"
    again = f" and {facts.retries} tried parts of a failed batch again" if facts.retries else ""
    figures = {"calls": float(calls), "failed": float(facts.failed), "retries": float(facts.retries)}
    sentence = f"{what}{again}, which makes batches small and slow, so look at the errors in the log."
    return Finding("failing", sentence, figures, "predictor")


def _few_data(case: Case) -> Finding | None:
    facts = case.facts
    if facts.calls >= FEWEST_CALLS:
        return None
    since = "" if facts.settled else " since the limits were changed"
    what = f"Only {count(facts.calls, 'batch')}{since}"
    sentence = f"{what}, too few to tell what limits their size, so send more requests."
    return Finding("few_data", sentence, {"batches": float(facts.calls)}, "concurrency")


def _full(case: Case) -> Finding | None:
    facts, share = case.facts, case.facts.shares["full"]
    if share < max(facts.shares["timeout"], facts.shares["model_free"], 1e-9):
        return None
    figures = {"full_share": share, "waiting": facts.full_depth, "mean_size": facts.mean_size}
    more = f", with {digits(facts.full_depth)} more waiting," if facts.full_depth >= 1 else ","
    if facts.full_by_rows:
        limit = case.limits.max_batch_rows
        rows = "max_batch_rows" if limit is None else f"max_batch_rows={limit}"
        what = f"{percent(share)} of the requests rode in batches that were full by their {digits(facts.full_rows)} rows"
        sentence = f"{what}{more} so {rows} is the limit."
        return Finding("full_rows", sentence, {**figures, "rows": facts.full_rows}, "max_batch_rows")
    what = f"{percent(share)} of the requests rode in full batches"
    advice = (
        ": raise it to let more ride together"
        if facts.full_depth >= 1
        else ", and a larger one could hold more"
    )
    sentence = f"{what}{more} so max_batch_size={case.limits.max_batch_size} is the limit{advice}."
    return Finding("full", sentence, figures, "max_batch_size")


def _signatures(case: Case) -> Finding | None:
    facts = case.facts
    if facts.size_if_alike < LARGER * facts.mean_size:
        return None
    what = f"Beside a batch of {digits(facts.mean_size)} on average {digits(facts.others)} requests of other shapes or types waited"
    sentence = f"{what}, which can't be stacked with it, so inputs of one signature would ride together."
    figures = {"mean_size": facts.mean_size, "others": facts.others, "size_if_alike": facts.size_if_alike}
    return Finding("signatures", sentence, figures, "inputs")


def _max_ongoing(case: Case) -> Finding | None:
    facts, allowed = case.facts, case.max_ongoing_requests
    steady = facts.steady_in_flight
    held_back = steady is not None and case.concurrency is not None and case.concurrency >= LARGER * steady
    if allowed is not None and allowed < 2 * case.limits.max_batch_size and not held_back:
        pool = allowed * facts.replicas
        # Where clients send no more, they are what limits.
        held_back = case.concurrency is None or case.concurrency > pool
        held_back &= min(facts.in_flight_mean, case.in_flight or 0) >= NEARLY * pool
        held_back &= case.alternate(allowed)
    if not held_back:
        return None
    inside = facts.in_flight_peak / facts.replicas if allowed is None else float(allowed)
    name = "max_ongoing_requests" if allowed is None else f"max_ongoing_requests={allowed}"
    clients = "" if case.concurrency is None else f" of the {case.concurrency} that are sent at a time"
    one = digits(inside) == "1"
    what = f"Only {digits(inside)} request{'' if one else 's'}{clients} get{'s' if one else ''} into a replica at once, and batches can't grow beyond that"
    sentence = f"{what}, so raise {name} well above twice max_batch_size={case.limits.max_batch_size}."
    figures = {"inside": inside, "in_flight_peak": float(facts.in_flight_peak), "mean_size": facts.mean_size}
    return Finding("max_ongoing", sentence, figures, "max_ongoing_requests")


def _few_clients(case: Case) -> Finding | None:
    facts, clients, size = case.facts, case.in_flight, case.limits.max_batch_size
    if clients is None or clients >= size or not case.alternate(clients / facts.replicas):
        return None
    among = f" on {facts.replicas} replicas" if facts.replicas > 1 else ""
    what = f"Never {'was' if clients == 1 else 'were'} more than {count(clients, 'request')} under way at once{among}"
    sentence = f"{what}, so no batch can reach max_batch_size={size} unless clients send more at a time."
    figures = {"in_flight": float(clients), "mean_size": facts.mean_size, "replicas": float(facts.replicas)}
    return Finding("few_clients", sentence, figures, "concurrency")


def _split(case: Case) -> Finding | None:
    facts, size = case.facts, case.limits.max_batch_size
    if facts.replicas == 1 or facts.mean_size >= size / LARGER:
        return None
    clients = case.in_flight
    figures = {"replicas": float(facts.replicas), "mean_size": facts.mean_size}
    advice = "fewer replicas or more load would make batches larger"
    if clients is not None and case.alternate(clients / facts.replicas):
        each = clients / facts.replicas
        what = (
            f"{clients} requests under way are divided among {facts.replicas} replicas, {digits(each)} each"
        )
        return Finding("split", f"{what}, so {advice}.", {**figures, "in_flight": float(clients)}, "replicas")
    wait_s = case.limits.batch_wait_timeout_s
    together = min(float(size), 1 + facts.rate * wait_s)
    spare = facts.utilisation * facts.replicas < NEARLY * (facts.replicas - 1)
    if facts.shares["timeout"] < MOST or not spare or together < LARGER * facts.mean_size:
        return None
    what = f"Each of {facts.replicas} replicas sees its part of the {digits(facts.rate)} requests/s and gathers {digits(facts.mean_size)} in its wait of {in_ms(wait_s)}"
    figures |= {"rate_per_s": facts.rate, "size_on_one": together}
    return Finding(
        "split", f"{what}, where one alone would gather {digits(together)}, so {advice}.", figures, "replicas"
    )


def _untold(case: Case) -> Finding | None:
    if any(case.facts.shares.values()):
        return None
    sentence = "The server does not tell why its batches left, so what limits their size is not known."
    return Finding("unknown", sentence, {"mean_size": case.facts.mean_size})


def _idle_model(case: Case) -> Finding | None:
    """Explain batches that left an idle model's queue because their wait was over."""
    facts, share, wait_s = case.facts, case.facts.shares["timeout"], case.limits.batch_wait_timeout_s
    if share < facts.shares["model_free"]:
        return None
    figures = {"timeout_share": share, "mean_size": facts.mean_size, "rate_per_s": facts.rate}
    if wait_s == 0:
        what = f"The model was idle when {percent(share)} of the requests came, and with batch_wait_timeout_s=0 they leave at once"
        sentence = (
            f"{what}, {digits(facts.mean_size)} at a time, where a wait would gather more and cost latency."
        )
        return Finding("no_wait", sentence, figures, "batch_wait_timeout_s")
    size, rate = case.limits.max_batch_size, case.rate_a_replica
    gap_s, filling_s = (1 / rate, (size - 1) / rate) if rate > 0 else (0.0, 0.0)
    figures |= {"gap_ms": gap_s * 1e3, "filling_ms": filling_s * 1e3, "wait_ms": wait_s * 1e3}
    if rate * wait_s < REACHABLE * (size - 1):
        what = f"A request comes every {in_ms(gap_s)} to a replica, too slowly to fill {size} in the wait of {in_ms(wait_s)}"
        sentence = f"{what}, so batches hold {digits(facts.mean_size)}, and only more load or a wait of {in_ms(filling_s)} would fill them."
        return Finding("slow_arrivals", sentence, figures, "concurrency")
    what = (
        f"The wait of {in_ms(wait_s)} was over before the batch was full for {percent(share)} of the requests"
    )
    sentence = f"{what}, so batches hold {digits(facts.mean_size)} of {size}, and a longer batch_wait_timeout_s would gather more."
    return Finding("wait_elapsed", sentence, figures, "batch_wait_timeout_s")


def _model_busy(case: Case) -> Finding:
    facts = case.facts
    share = facts.shares["model_free"]
    what = f"The model was busy when {percent(share)} of the requests came, so batches hold what arrives meanwhile"
    sentence = f"{what}, {digits(facts.mean_size)} on average, which is as large as this load allows."
    figures = {"model_free_share": share, "mean_size": facts.mean_size, "utilisation": facts.utilisation}
    return Finding("model_busy", sentence, figures)


SIZE_RULES: tuple[Rule, ...] = (
    *(_off, _no_data, _failing, _few_data, _full, _signatures, _max_ongoing),
    *(_few_clients, _split, _untold, _idle_model, _model_busy),
)
