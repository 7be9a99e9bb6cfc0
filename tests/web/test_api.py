"""The API: runs the example of docs/serve.md on a real server and tries what must be refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.web.conftest import Server, wait_for

gradio_client: Any = pytest.importorskip("gradio_client", reason="Gradio is not installed; make test-web installs it")
httpx: Any = pytest.importorskip("httpx", reason="httpx comes with Gradio; make test-web installs it")
pytestmark = pytest.mark.slow


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Any:
    made = gradio_client.Client(server.address, verbose=False, download_files=str(tmp_path / "got"))
    yield made
    made.close()


def upload(server: Server, path: Path, name: str | None = None) -> Any:
    with path.open("rb") as file:
        return httpx.post(f"{server.address}/gradio_api/upload", files={"files": (name or path.name, file)}, timeout=30)


def call(server: Server, data: list[Any]) -> Any:
    return httpx.post(f"{server.address}/gradio_api/call/segment", json={"data": data}, timeout=30)


def answer(server: Server, event: str) -> str:
    return str(httpx.get(f"{server.address}/gradio_api/call/segment/{event}", timeout=60).text)


def test_the_example_of_the_docs_runs(
    server: Server, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "video.mp4").write_bytes(scene.read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example.replace("http://127.0.0.1:7860", server.address), names)
    printed = capsys.readouterr().out
    assert re.search(r"^2\.5 s: captions \[.*\], segments \[.*'drum'", printed, re.MULTILINE)
    assert json.loads(Path(names["coco"]).read_bytes())["annotations"]
    names["client"].close()


def test_recipes_are_listed_with_their_licenses(client: Any) -> None:
    recipes = client.predict(api_name="/recipes")
    assert recipes[0]["name"] == "tiny"
    assert recipes[0]["loaded"]
    assert {model["license"] for model in recipes[0]["models"]} == {"Apache-2.0"}


def test_endpoints_and_parameters_are_those_of_the_docs(client: Any) -> None:
    points = client.view_api(return_format="dict")["named_endpoints"]
    assert set(points) == {"/segment", "/recipes"}
    parameters = points["/segment"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == ["video", "audio", "recipe", "vocabulary", "threshold"]
    assert [p["parameter_has_default"] for p in parameters] == [False, True, True, True, True]


def test_an_image_with_its_audio_and_a_vocabulary(client: Any, tmp_path: Path, tone: Path) -> None:
    import numpy as np
    from PIL import Image

    image = tmp_path / "room.png"
    Image.fromarray(np.full((48, 64, 3), 128, dtype=np.uint8)).save(image)
    given = {"video": gradio_client.handle_file(str(image)), "audio": gradio_client.handle_file(str(tone))}
    result, *_ = client.predict(**given, vocabulary="dog, bell", threshold=0.5, api_name="/segment")
    assert len(result["frames"]) == 2
    assert all(frame["captions"] for frame in result["frames"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "huge"}, "unknown recipe 'huge'; this page offers tiny"),
        ({"threshold": 3}, "a threshold is a number between 0 and 1, not 3"),
        ({"vocabulary": "x" * 100}, "give at most 50 words"),
    ],
)
def test_an_invalid_request_is_one_sentence(client: Any, scene: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        client.predict(video=gradio_client.handle_file(str(scene)), **changes, api_name="/segment")


def test_long_and_broken_clips_are_refused(client: Any, long_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"^long.mp4 is 10 s long and the limit is 8 s"):
        client.predict(video=gradio_client.handle_file(str(long_clip)), api_name="/segment")
    (tmp_path / "broken.mp4").write_bytes(b"no video " * 50)
    with pytest.raises(Exception, match=r"^broken.mp4 cannot be read"):
        client.predict(video=gradio_client.handle_file(str(tmp_path / "broken.mp4")), api_name="/segment")


def test_a_large_file_is_refused_with_a_sentence(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(2 << 20))
    refused = upload(server, big)
    assert refused.status_code == 413
    assert refused.text == "the file is larger than the limit of 1 MB; cut it or scale it down\n"
    assert not list((server.folder / "uploads").rglob("big*"))


def test_only_uploads_can_be_fetched_or_named(server: Server, scene: Path) -> None:
    recipe = ROOT / "pipelines" / "tiny.yaml"
    paths = ("/etc/passwd", recipe, scene, server.folder / "lock", f"{server.folder}/uploads/../lock")
    for path in (*paths, f"{server.address}/config", "https://example.org/a.mp4"):
        assert httpx.get(f"{server.address}/gradio_api/file={path}").status_code == 404
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        text = answer(server, call(server, [named, None, "tiny", "", None]).json()["event_id"])
        assert "event: error" in text and "a file has to be uploaded to this page first" in text


def test_gradio_itself_refuses_other_files_as_well(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted blocks accept any path as an upload unless they are marked as launched."""
    monkeypatch.setattr("openavs.web.app.is_file_in", lambda *_: True)
    named = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    event = call(server, [named, None, "tiny", "", None]).json()["event_id"]
    assert "event: error" in answer(server, event)


def test_uploaded_svg_files_are_not_shown_inline(server: Server, tmp_path: Path) -> None:
    """They may contain scripts, which would run in the origin of the page."""
    image = tmp_path / "a.svg"
    image.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    path = upload(server, image).json()[0]
    answer(
        server,
        call(server, [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]).json()["event_id"],
    )
    served = httpx.get(f"{server.address}/gradio_api/file={path}")
    assert served.status_code == 200
    assert served.headers["content-disposition"].startswith("attachment")


def test_only_names_of_this_machine_reach_a_local_server(server: Server) -> None:
    for host, status in (("localhost:7860", 200), ("127.0.0.1", 200), ("[::1]:7860", 200), ("attacker.example", 400)):
        assert httpx.get(server.address, headers={"host": host}).status_code == status, host


def test_malformed_bodies_are_refused(server: Server) -> None:
    for body in (b"", b"{", b"[" * 100_000, b"[]"):
        assert httpx.post(f"{server.address}/gradio_api/queue/join", content=body).status_code in (400, 422)


def test_a_hostile_file_name_does_not_become_markup(server: Server, scene: Path) -> None:
    path = upload(server, scene, "<img src=x onerror=alert(1)>.mp4").json()[0]
    event = call(server, [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", 0.16]).json()
    text = answer(server, event["event_id"])
    assert "event: complete" in text
    assert "<img" not in text


def test_the_files_of_a_session_are_removed_when_it_ends(server: Server, scene: Path, tmp_path: Path) -> None:
    before = set(server.sessions())
    client = gradio_client.Client(server.address, verbose=False, download_files=str(tmp_path))
    client.predict(video=gradio_client.handle_file(str(scene)), api_name="/segment")
    (own,) = set(server.sessions()) - before
    client.close()
    wait_for(lambda: not own.exists())


def test_addresses_of_results_cannot_be_guessed(server: Server) -> None:
    assert httpx.get(f"{server.address}/results/{'x' * 32}/1/overlay.mp4").status_code == 404


def test_requests_beyond_the_queue_are_refused(server: Server, scene: Path) -> None:
    path = upload(server, scene).json()[0]
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
    states, events = [], []
    for _ in range(12):  # four may wait
        asked = call(server, data)
        states.append(asked.status_code)
        if asked.status_code == 200:
            events.append(asked.json()["event_id"])
    assert 503 in states
    assert {*states} == {200, 503}
    started = time.monotonic()
    assert all("event: complete" in answer(server, event) for event in events)
    assert time.monotonic() - started < 60


def test_queued_functions_cannot_be_called_without_the_queue(server: Server, scene: Path) -> None:
    path = upload(server, scene).json()[0]
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
    functions = httpx.get(f"{server.address}/config").json()["dependencies"]
    waiting = [one["id"] for one in functions if one["queue"] is not False]
    assert len(waiting) >= 4
    for number in waiting:
        asked = {"data": data, "fn_index": number, "session_hash": "direct"}
        answer = httpx.post(f"{server.address}/gradio_api/run/predict", json=asked, timeout=30)
        assert answer.status_code == 404 and "join the queue" in answer.text, number
    for path in ("run/segment", "run/predict/", "api/predict", "api/segment", "run/recipes"):
        assert httpx.post(f"{server.address}/gradio_api/{path}", json={"data": data}).status_code == 404


def test_incomplete_uploads_leave_no_files(server: Server) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    uploads = server.folder / "uploads"

    def left() -> list[str]:
        open_files = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                open_files.append(os.path.realpath(f"/proc/self/fd/{number}"))
        files = [path.name for path in uploads.iterdir() if path.is_file()]
        return [*files, *(name for name in open_files if name.startswith(f"{uploads}{os.sep}"))]

    def size(path: Path) -> int:
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            return path.stat().st_size if path.is_file() else 0
        return 0

    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 500000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    for _ in range(10):
        with socket.create_connection((host, int(port))) as visitor:
            visitor.sendall((head + part).encode() + bytes(100_000))
            wait_for(lambda: any(size(path) for path in uploads.iterdir()))
    wait_for(lambda: not left(), 10)
    body = part.encode() + bytes(1000)  # without the boundary at its end
    headers = {"content-type": "multipart/form-data; boundary=b"}
    httpx.post(f"{server.address}/gradio_api/upload", content=body, headers=headers, timeout=30)
    wait_for(lambda: not left(), 10)


def test_all_uploads_together_are_limited(server: Server, scene: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.web.server.DiskQuota.used", lambda self: 50 << 20)
    refused = upload(server, scene)
    assert refused.status_code == 507
    assert refused.text == "the limit of 50 MB for the files of all users is reached; try again later\n"


def test_pages_of_other_origins_cannot_upload_or_call(server: Server, scene: Path) -> None:
    with scene.open("rb") as file:
        other_origin = {"origin": "http://attacker.example"}
        sent = httpx.post(f"{server.address}/gradio_api/upload", files={"files": file}, headers=other_origin)
    assert sent.status_code == 403
    asked = httpx.post(f"{server.address}/gradio_api/call/recipes", json={"data": []}, headers=other_origin)
    assert asked.status_code == 403
    own = {"origin": server.address}
    assert httpx.post(f"{server.address}/gradio_api/call/recipes", json={"data": []}, headers=own).status_code == 200


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((0, value) for value in (None, 3, "a.mp4", [], {}, {"path": None}, {"path": 3}, {"url": "x"})),
        *((1, value) for value in (3, "a.wav", [], {"path": None})),
        *((2, value) for value in (3, [], {}, True)),
        *((3, value) for value in (3, [1], {"a": 1})),
        *((4, value) for value in ("0.5", [], {}, True, "x")),
    ],
)
def test_api_inputs_of_a_wrong_type_are_answered(
    server: Server, scene: Path, capfd: pytest.CaptureFixture[str], place: int, value: Any
) -> None:
    path = upload(server, scene).json()[0]
    data: list[Any] = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
    data[place] = value
    text = answer(server, call(server, data).json()["event_id"])
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    if "event: error" in text:
        error = json.loads(text.partition("data: ")[2])["error"]
        assert isinstance(error, str) and len(error) > 20 and "\n" not in error
    else:
        assert place in (2, 3) and "event: complete" in text


def test_page_inputs_of_a_wrong_type_are_answered(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    functions = httpx.get(f"{server.address}/config").json()["dependencies"]
    for one in [one for one in functions if one["backend_fn"]]:
        for data in ([], [None] * len(one["inputs"]), [3] * len(one["inputs"]), [{"path": None}] * len(one["inputs"])):
            asked = {"data": data, "fn_index": one["id"], "session_hash": "mistyped"}
            joined = httpx.post(f"{server.address}/gradio_api/queue/join", json=asked, timeout=30)
            assert joined.status_code in (200, 400, 422), joined.text
            assert joined.status_code == 200 or joined.json()["detail"]
            if joined.status_code == 200:
                address = f"{server.address}/gradio_api/queue/data?session_hash=mistyped"
                messages = [json.loads(line[6:]) for line in httpx.get(address, timeout=60).text.split("\n") if line]
                (done,) = [message for message in messages if message["msg"] == "process_completed"]
                assert done["success"] or done["output"]["error"], (one["api_name"], data)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
