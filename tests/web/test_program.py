"""The API: the example of docs/serve.md is run against a real server, and what nobody may do is tried."""

from __future__ import annotations

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
    assert re.search(r"^2\.5 s: captions \[.*\], segments \['dog'", printed, re.MULTILINE)
    assert json.loads(Path(names["coco"]).read_bytes())["annotations"]
    names["client"].close()


def test_the_recipes_are_told_with_their_licenses(client: Any) -> None:
    recipes = client.predict(api_name="/recipes")
    assert recipes[0]["name"] == "tiny"
    assert recipes[0]["loaded"]
    assert {model["license"] for model in recipes[0]["models"]} == {"Apache-2.0"}


def test_the_two_endpoints_and_their_parameters_are_what_the_docs_promise(client: Any) -> None:
    points = client.view_api(return_format="dict")["named_endpoints"]
    assert set(points) == {"/segment", "/recipes"}
    parameters = points["/segment"]["parameters"]
    assert [p["parameter_name"] for p in parameters] == ["video", "sound", "recipe", "vocabulary", "threshold"]
    assert [p["parameter_has_default"] for p in parameters] == [False, True, True, True, True]


def test_a_picture_with_its_sound_and_a_vocabulary(client: Any, tmp_path: Path, tone: Path) -> None:
    import numpy as np
    from PIL import Image as Pictures

    picture = tmp_path / "room.png"
    Pictures.fromarray(np.full((48, 64, 3), 128, dtype=np.uint8)).save(picture)
    given = {"video": gradio_client.handle_file(str(picture)), "sound": gradio_client.handle_file(str(tone))}
    result, *_ = client.predict(**given, vocabulary="dog, bell", threshold=0.5, api_name="/segment")
    assert len(result["frames"]) == 2
    assert all(frame["captions"] for frame in result["frames"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "huge"}, "this page has no recipe 'huge'; it has tiny"),
        ({"threshold": 3}, "a threshold lies between 0 and 1, not at 3"),
        ({"vocabulary": "x" * 100}, "give at most 50 things"),
    ],
)
def test_a_wrong_wish_is_one_sentence(client: Any, scene: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=re.escape(sentence)):
        client.predict(video=gradio_client.handle_file(str(scene)), **changes, api_name="/segment")


def test_clips_that_are_too_long_or_broken(client: Any, long_clip: Path, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"^long.mp4 lasts 10 s and this page takes at most 8 s"):
        client.predict(video=gradio_client.handle_file(str(long_clip)), api_name="/segment")
    (tmp_path / "broken.mp4").write_bytes(b"no video " * 50)
    with pytest.raises(Exception, match=r"^broken.mp4 cannot be read"):
        client.predict(video=gradio_client.handle_file(str(tmp_path / "broken.mp4")), api_name="/segment")


def test_too_large_a_file_is_refused_with_a_sentence(server: Server, tmp_path: Path) -> None:
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(2 << 20))
    refused = upload(server, big)
    assert refused.status_code == 413
    assert refused.text == "the file is larger than the 1 MB that this page takes; cut or scale it down\n"
    assert not list((server.folder / "uploads").rglob("big*"))


def test_files_that_were_not_uploaded_can_neither_be_fetched_nor_named(server: Server, scene: Path) -> None:
    recipe = ROOT / "pipelines" / "tiny.yaml"
    for path in ("/etc/passwd", recipe, scene, server.folder / "lock", f"{server.folder}/uploads/../lock"):
        assert httpx.get(f"{server.address}/gradio_api/file={path}").status_code == 404
        named = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        assert call(server, [named, None, "tiny", "", None]).status_code == 403
    address = {"path": f"{server.address}/config", "meta": {"_type": "gradio.FileData"}}
    assert call(server, [address, None, "tiny", "", None]).status_code == 403


def test_behind_the_guard_gradio_itself_refuses_them_too(server: Server) -> None:
    """A second lock: mounted blocks take any path for an upload unless they are told that they were launched."""
    from openavs.web.guard import RequestFilter

    check = RequestFilter._check_names
    try:
        RequestFilter._check_names = lambda self, body: None  # type: ignore[method-assign]
        named = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
        event = call(server, [named, None, "tiny", "", None]).json()["event_id"]
        assert "event: error" in answer(server, event)
    finally:
        RequestFilter._check_names = check  # type: ignore[method-assign]


def test_a_hostile_file_name_stays_a_name(server: Server, scene: Path) -> None:
    path = upload(server, scene, "<img src=x onerror=alert(1)>.mp4").json()[0]
    event = call(server, [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", 0.16]).json()
    said = answer(server, event["event_id"])
    assert "event: complete" in said
    assert "<img" not in said


def test_the_files_of_a_visit_go_when_it_ends(server: Server, scene: Path, tmp_path: Path) -> None:
    before = set(server.visits())  # some are about to end, some wait for their time to be over
    visitor = gradio_client.Client(server.address, verbose=False, download_files=str(tmp_path))
    visitor.predict(video=gradio_client.handle_file(str(scene)), api_name="/segment")
    (own,) = set(server.visits()) - before
    visitor.close()
    wait_for(lambda: not own.exists())


def test_nothing_of_a_visit_can_be_guessed(server: Server) -> None:
    assert httpx.get(f"{server.address}/results/{'x' * 32}/overlay.mp4").status_code == 404


def test_a_full_queue_turns_visitors_away(server: Server, scene: Path) -> None:
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


def test_nothing_that_waits_can_be_asked_past_the_queue(server: Server, scene: Path) -> None:
    path = upload(server, scene).json()[0]
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
    functions = httpx.get(f"{server.address}/config").json()["dependencies"]
    waiting = [one["id"] for one in functions if one["queue"] is not False]
    assert len(waiting) >= 4
    for number in waiting:
        asked = {"data": data, "fn_index": number, "session_hash": "past"}
        answer = httpx.post(f"{server.address}/gradio_api/run/predict", json=asked, timeout=30)
        assert answer.status_code == 404 and "join the queue" in answer.text, number
    for path in ("run/segment", "run/predict/", "api/predict", "api/segment", "run/recipes"):
        assert httpx.post(f"{server.address}/gradio_api/{path}", json={"data": data}).status_code == 404


def test_uploads_that_are_broken_off_leave_nothing(server: Server) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    uploads = server.folder / "uploads"

    def left() -> list[str]:
        open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
        files = [path.name for path in uploads.iterdir() if path.is_file()]
        return [*files, *(name for name in open_files if name.startswith(f"{uploads}{os.sep}"))]

    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 500000\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    for _ in range(10):
        with socket.create_connection((host, int(port))) as visitor:
            visitor.sendall((head + part).encode() + bytes(100_000))
            wait_for(lambda: any(path.is_file() and path.stat().st_size for path in uploads.iterdir()))
    wait_for(lambda: not left(), 10)
    body = part.encode() + bytes(1000)  # whole, and without the boundary at its end
    headers = {"content-type": "multipart/form-data; boundary=b"}
    httpx.post(f"{server.address}/gradio_api/upload", content=body, headers=headers, timeout=30)
    wait_for(lambda: not left(), 10)


def test_uploads_of_all_visitors_together_are_bounded(
    server: Server, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openavs.web.room.DiskQuota.used", lambda self: 50 << 20)
    refused = upload(server, scene)
    assert refused.status_code == 507
    assert refused.text == ("the files of all visitors take the 50 MB that this server has for them; try again later\n")


def test_pages_elsewhere_can_neither_upload_nor_ask(server: Server, scene: Path) -> None:
    with scene.open("rb") as file:
        elsewhere = {"origin": "http://attacker.example"}
        sent = httpx.post(f"{server.address}/gradio_api/upload", files={"files": file}, headers=elsewhere)
    assert sent.status_code == 403
    asked = httpx.post(f"{server.address}/gradio_api/call/recipes", json={"data": []}, headers=elsewhere)
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
def test_inputs_of_a_wrong_type_are_answered_with_a_sentence(
    server: Server, scene: Path, capfd: pytest.CaptureFixture[str], place: int, value: Any
) -> None:
    path = upload(server, scene).json()[0]
    data: list[Any] = [{"path": path, "meta": {"_type": "gradio.FileData"}}, None, "tiny", "", None]
    data[place] = value
    said = answer(server, call(server, data).json()["event_id"])
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
    if "event: error" in said:
        error = json.loads(said.partition("data: ")[2])["error"]
        assert isinstance(error, str) and len(error) > 20 and "\n" not in error
    else:
        assert place in (2, 3) and "event: complete" in said  # words are words, whatever they were sent as


def test_inputs_of_the_page_of_a_wrong_type(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
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
