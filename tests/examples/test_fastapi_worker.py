"""The worker of the examples on a real, tiny pipeline, asked over HTTP."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import Any

import av
import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from examples.fastapi_worker import Worker, make_app
from tests.scope_runtime.test_profile import make_profile
from tests.tiny import CALL

ORDER = {"prompt": "a red circle moving left", "seed": 1}
Serve = Callable[..., TestClient]


@pytest.fixture
def serve(pipe: Any) -> Any:
    workers = []

    def start(wait: float = 0.0) -> TestClient:
        worker = Worker(pipe, make_profile(pipe), {"max_sequence_length": CALL["max_sequence_length"]}, 8, wait)
        workers.append(worker)
        return TestClient(make_app(worker))

    yield start
    for worker in workers:
        worker.scope.close()


def counts(client: TestClient) -> dict[tuple[str, ...], float]:
    """The metrics as Prometheus reads them: value by name and labels."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def check_clip(answer: Any) -> None:
    """That the answer is a clip that the profile was used for."""
    assert answer.status_code == 200, answer.text
    assert float(answer.headers["X-Scope-Speedup"]) > 1
    assert "X-Scope-Mismatch" not in answer.headers
    with av.open(io.BytesIO(answer.content)) as container:
        assert sum(1 for _ in container.decode(video=0)) == CALL["num_frames"]


def test_a_mismatch_is_a_header_of_an_exact_answer(serve: Serve) -> None:
    client = serve()
    answer = client.post("/generate", json=ORDER | {"call": {"guidance_scale": 4.5}})
    assert answer.status_code == 200
    assert "guidance_scale is 4.5, calibrated for 3.0" in answer.headers["X-Scope-Mismatch"]
    assert counts(client)["scope_generations_total", "exact"] == 1


@pytest.mark.parametrize(("wait", "status"), [(0.0, 503), (60.0, 200)])
def test_a_request_beside_another_is_told_to_come_again_or_waits(
    serve: Serve, pipe: Any, monkeypatch: pytest.MonkeyPatch, wait: float, status: int
) -> None:
    client = serve(wait)
    began, go_on = threading.Event(), threading.Event()
    decode = pipe.vae.decode

    def held(*arguments: Any, **options: Any) -> Any:
        began.set()
        assert go_on.wait(60)
        return decode(*arguments, **options)

    monkeypatch.setattr(pipe.vae, "decode", held)
    answers: dict[str, Any] = {}

    def post(name: str) -> None:
        answers[name] = client.post("/generate", json=ORDER)

    first, second = (threading.Thread(target=post, args=(name,)) for name in ("first", "second"))
    first.start()
    assert began.wait(60)
    second.start()
    if status == 503:
        second.join(60)
        assert answers["second"].headers["Retry-After"] == "5"
        assert "another generation is running" in answers["second"].json()["detail"]
        assert counts(client)["scope_refused_total", "busy"] == 1  # metrics are answered meanwhile
    go_on.set()
    first.join(60)
    second.join(60)
    check_clip(answers["first"])
    assert answers["second"].status_code == status
    found = counts(client)
    clips = 2 if status == 200 else 1
    assert found["scope_generations_total", "calibrated"] == found["scope_generation_seconds_count",] == clips
    assert found["scope_block_evaluations_total", "stock"] > found["scope_block_evaluations_total", "made"] > 0


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"prompt": "a", "call": {"output_type": 1}}, "call.output_type is not known here"),
        ({"prompt": "a", "call": {"height": 17}}, "`height` and `width` have to be divisible by 16"),
        ({"prompt": ""}, "at least 1 character"),
    ],
)
def test_an_order_that_cannot_be_run_is_refused_by_name(serve: Serve, order: dict[str, Any], said: str) -> None:
    answer = serve().post("/generate", json=order)
    assert answer.status_code == 422
    assert said in str(answer.json()["detail"])
