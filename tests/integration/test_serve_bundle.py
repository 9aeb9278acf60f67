"""A bundle behind the proxy."""

import httpx
from echo_server import echo_server
from serving import chat_body, running_with

from icdsel.choosing.selector import Selector
from icdsel.serve.choices import Plan
from icdsel.serve.http_upstream import HttpUpstream
from icdsel.serve.limits import Limits, Opened
from icdsel.serve.metrics import Metrics
from icdsel.serve.service import Service
from icdsel.vlm.server.key import ApiKey

CASES = {
    "policy": (None, "auto"),
    "nearest-both": (None, 2),  # it never stops, so it shows what the policy was trained to show
    "random": (1, 1),
    "zero-shot": (None, 0),
}


def test_a_bundle_is_served_as_its_selector_chooses(bundled):
    """The same as `icdsel infer`, which tests/unit/choosing compares the selector with."""
    chooser, limits, metrics = Selector.load(bundled.folder), Limits(seconds=20), Metrics()
    queries = list(bundled.session.split("validation"))[:4]
    with echo_server() as upstream:
        answering = HttpUpstream([upstream.url], ApiKey(""), limits.seconds, limits.at_once, metrics)
        service = Service(chooser, answering, metrics, Plan("policy", "auto"), limits, Opened())
        with running_with(service) as running, httpx.Client(base_url=running.url, timeout=20) as client:
            for selector, (shots, expected) in CASES.items():
                for query in queries:
                    asked = {"selector": selector} | ({} if shots is None else {"shots": shots})
                    body = chat_body(query.question, query.image.read_bytes(), icdsel=asked)
                    reply = client.post("/v1/chat/completions", json=body)
                    assert reply.status_code == 200, reply.text
                    choice = chooser.choose(query.image, query.question, expected, selector)
                    shown = ",".join(str(icd.question_id) for icd in choice.icds)
                    assert reply.headers["X-Icdsel-Icds"] == shown, selector
