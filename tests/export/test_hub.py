"""`workbench push`, against a fake of the hub's endpoints on this machine; the real hub cannot be reached by tests."""

import base64
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from huggingface_hub import ModelCard

from export.assembly.hub import files_of, hub_card, push
from export.bundle.manifest import open_manifest, record
from tests.malformed import copied, put
from workbench.core.errors import UserError, system_error_message

RIGHT = "hf_" + "right"


class FakeHub(BaseHTTPRequestHandler):
    """Keeps what a commit holds; ONNX files go through large file storage, all others are in the commit itself."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        hub = self.server
        hub.paths.append(self.path)
        if self.headers.get("Authorization") != f"Bearer {RIGHT}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            return self.answer({"url": f"{hub.address}/{hub.created['organization']}/{hub.created['name']}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".onnx") else "regular",
                    "shouldIgnore": False,
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.address}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in self.path:
            hub.commits.append([json.loads(line) for line in body.splitlines()])
            return self.answer(
                {
                    "commitOid": "0" * 40,
                    "commitUrl": f"{hub.address}/somebody/tiny/commit/0",
                    "hookOutput": "",
                    "pullRequestUrl": None,
                }
            )
        return self.answer({"error": f"not there: {self.path}"}, 404)

    def do_PUT(self):
        if self.server.breaks:
            self.connection.close()
            return
        self.server.stored[self.path.rsplit("/", 1)[-1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({})

    def do_GET(self):
        if self.headers.get("Authorization") != f"Bearer {RIGHT}":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path.startswith("/api/models/"):
            name = self.path.removeprefix("/api/models/")
            return self.answer(
                {"id": name, "modelId": name, "private": self.server.private, "tags": [], "siblings": []}
            )
        return self.answer({"error": "not found"}, 404)

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.paths, server.commits, server.stored, server.private, server.breaks = [], [], {}, True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    import huggingface_hub.constants as constants
    import huggingface_hub.hf_api as hf_api

    api = hf_api.HfApi
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api(endpoint=server.address, token=RIGHT))
    yield server
    server.shutdown()


@pytest.fixture
def measured(exported, tmp_path):
    """A bundle with a measurement, as `workbench measure` records it."""
    folder = copied(exported, tmp_path / "bundle")
    system = {
        "name": "tiny int8",
        "precision": "int8",
        "wer": 2.104,
        "cer": 0.65,
        "latency_ms": {"p50": 1.0, "p95": 2.0},
        "size_mb": 1.0,
        "peak_rss_mb": 1.0,
    }
    corpus = {
        "name": "prompts-en",
        "split": "test",
        "clips": 119,
        "headline": "wer",
        "trained_on": True,
        "normalizers": {"en": "whisper-en/2"},
    }
    host = {"cpu": "a CPU"}
    record(folder, measurement={"corpus": corpus, "systems": [system], "host": host, "threads": 2})
    return folder


def test_a_bundle_arrives_whole_with_its_card(measured, hub):
    address = push(measured, "somebody/tiny", private=True, message="First")
    assert address.endswith("somebody/tiny")
    assert hub.created["name"] == "tiny"
    assert hub.created.get("private") or hub.created.get("visibility") == "private"
    header, *rows = hub.commits[0]
    assert header["value"]["summary"] == "First"
    plain = {r["value"]["path"]: base64.b64decode(r["value"]["content"]) for r in rows if r["key"] == "file"}
    large = {r["value"]["path"]: hub.stored[r["value"]["oid"]] for r in rows if r["key"] == "lfsFile"}
    arrived = plain | large
    assert set(arrived) == {*open_manifest(measured).content["files"], "bundle.json", "README.md"}
    for name in files_of(measured):
        assert arrived[name] == (measured / name).read_bytes()
    assert not [path for path in hub.paths if "delete" in path.lower()]


def test_the_card_holds_what_was_measured(measured, tmp_path):
    text = hub_card(measured)
    card = ModelCard(text)
    found = [(r.dataset_type, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [("prompts-en", "test", "wer", 2.1), ("prompts-en", "test", "cer", 0.65)]
    assert card.data.pipeline_tag == "automatic-speech-recognition"
    assert card.data.language == ["en"]
    assert yaml.safe_load(text.split("---")[1])["license"] == "other"  # its teacher is a test's
    (measured / "README.md").write_text(text)  # as a download from the hub has it
    open_manifest(measured, check=True)


def test_a_student_arrives_as_transformers_reads_it(student, hub, tmp_path):
    student = shutil.copytree(student, tmp_path / "student")
    (student / "notes.txt").write_text("mine")
    (student / "credentials.json").write_text("{}")
    push(student, "somebody/student")
    names = {row["value"]["path"] for row in hub.commits[0][1:]}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not {"notes.txt", "credentials.json"} & names
    assert "trained to read a clip at its own length" in hub_card(student)


def test_a_public_repository_is_not_taken_for_a_private_one(measured, hub):
    hub.private = False
    with pytest.raises(UserError, match="exists and is public"):
        push(measured, "somebody/tiny", private=True)
    assert not hub.commits


def test_an_upload_that_breaks_off_is_one_sentence(measured, hub, monkeypatch):
    hub.breaks = True
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None, raising=False)
    with pytest.raises(UserError, match="nothing was committed: run the command again"):
        push(measured, "somebody/tiny")
    assert not hub.commits


def test_refusals_are_one_sentence(measured, hub, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"expected OWNER/NAME"):
        push(measured, "not a name/at all/")
    with pytest.raises(UserError, match=r"tiny: expected OWNER/NAME"):
        push(measured, "tiny")
    with pytest.raises(UserError, match=r"neither bundle\.json nor config\.json"):
        push(tmp_path / "nothing", "somebody/tiny")
    import huggingface_hub.hf_api as hf_api

    api = hf_api.HfApi
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api(endpoint=hub.address, token="wrong"))  # noqa: S106
    with pytest.raises(UserError, match=r"status 401 .*log in with `hf auth login`"):
        push(measured, "somebody/tiny")
    assert not hub.commits
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: api(endpoint="http://127.0.0.1:9", token=RIGHT))
    with pytest.raises(Exception, match="refused") as unreachable:
        push(measured, "somebody/tiny")
    assert (
        system_error_message(unreachable.value)
        == "Connection refused; check the network, or use what is on this machine"
    )
    put(measured / "vocab.json", b"{}")  # the copy shares its files with the original
    with pytest.raises(UserError, match=r"vocab\.json"):
        push(measured, "somebody/tiny")
