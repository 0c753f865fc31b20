"""The header: figures of this very bundle, from its manifest or the report beside it, and what is shown without a student."""

import dataclasses
import json
import shutil

import httpx
import pytest

import demo.app as app
from demo.app import build
from demo.limits import DemoLimits
from demo.measured import header, measured, report_pages
from demo.systems import Systems
from export.bundle.manifest import open_manifest
from workbench.core.errors import UserError

EVIL = "<img src=x>"


@pytest.fixture
def beside(exported, tmp_path):
    """A copy of the bundle, and a writer of the report beside it."""
    bundle = tmp_path / "bundle"
    shutil.copytree(exported, bundle)
    manifest = open_manifest(bundle)
    graphs = {path: manifest.content["files"][path] for path in manifest.content["precisions"]["int8"].values()}

    def write(**changes):
        row = {
            "precision": "int8", "graphs_sha256": graphs, "wer": 2.1, "wer_ci": [0.87, 3.83], "headline": "wer", "size_mb": 77.0,
            "latency_ms": {"p50": 68.0, "p95": 408.0}, "speedup": 14.7, "wer_difference": {"points": -1.26, "ci": [-2.89, 0.51]}, **changes,
        }  # fmt: skip
        corpus = row.pop("corpus", {"name": f"prompts-en {EVIL}", "split": "test", "clips": 119})
        (tmp_path / "report.json").write_text(
            json.dumps({"systems": [row], "corpus": corpus, "host": {"cpu": "a CPU"}})
        )
        (tmp_path / "report.html").write_text("<title>report</title><script>1</script>")
        return bundle

    return write


def test_a_damaged_measurement_in_the_manifest_is_not_used(exported):
    manifest = open_manifest(exported)
    row = {"precision": "int8", "wer": 2.1, "wer_ci": [1.0]}
    content = {**manifest.content, "measurement": {"systems": [row], "corpus": {}, "host": {"cpu": "a CPU"}}}
    assert measured(dataclasses.replace(manifest, content=content), "int8") is None


def open_systems(bundle, exported):
    return Systems.open([bundle], str(exported), "int8", 1)


def test_the_report_beside_a_bundle_is_shown_and_escaped(beside, exported):
    systems = open_systems(beside(), exported)
    shown = header(systems, EVIL, EVIL)
    for figure in (
        "14.7 x",
        "68 ms",
        "2.10 %",
        "0.87 to 3.83",
        "-1.26 points",
        "-2.89 to +0.51",
        "119 clips",
        'href="report/0"',
    ):
        assert figure in shown, figure
    assert EVIL not in shown
    systems.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"graphs_sha256": {"onnx/encoder_model_quantized.onnx": "0"}},
        {"precision": "fp32"},
        {"wer": None},
        {"latency_ms": []},
        {"corpus": {}},
        {"wer_ci": [1.0]},
        {"wer_ci": 5},
        {"wer_difference": {"ci": [-1.0, 1.0]}},
        {"wer_difference": "none"},
    ],
)
def test_a_report_about_other_graphs_or_a_damaged_one_is_not_used(beside, exported, changes):
    bundle = beside(**changes)
    assert measured(open_manifest(bundle), "int8") is None
    systems = open_systems(bundle, exported)
    assert "not measured yet" in header(systems, "x")
    assert report_pages(systems) == []
    systems.close()


def test_a_report_reaches_nothing_not_even_the_page(beside, exported):
    from starlette.applications import Starlette
    from starlette.testclient import TestClient

    from demo.browser_security import BrowserSecurity
    from demo.corpus.audio import CorpusAudio

    bundle = beside()
    served = TestClient(BrowserSecurity(Starlette(), [bundle.parent / "report.html"], CorpusAudio([])))
    answer: httpx.Response = served.get("/report/0")
    assert answer.text.startswith("<title>report")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")  # a script could send the visitor elsewhere
    assert "script-src" not in policy
    assert served.get("/report/1").status_code == 404


def test_what_gradios_template_wants_from_elsewhere_is_taken_out():
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse
    from starlette.routing import Route
    from starlette.testclient import TestClient

    from demo.browser_security import BrowserSecurity
    from demo.corpus.audio import CorpusAudio

    template = """<html><head><link rel="preconnect" href="https://fonts.googleapis.com" />
        <link
            rel="preconnect" href="https://fonts.gstatic.com" crossorigin="anonymous" />
        <script
            src="https://cdnjs.cloudflare.com/iframeResizer.js" async></script>
        <script src="//cdn.example/x.js"></script><link rel="stylesheet" href="./a.css"><script type="module" src="./a.js"></script>
        <script>var s = "https://example.org/";</script></head><body>é</body></html>"""
    app = Starlette(routes=[Route("/", lambda _: HTMLResponse(template))])
    answer = TestClient(BrowserSecurity(app, [], CorpusAudio([]))).get("/")
    assert not any(host in answer.text for host in ("googleapis", "gstatic", "cdnjs", "cdn.example"))
    assert "./a.css" in answer.text
    assert "./a.js" in answer.text
    assert 'var s = "https://example.org/"' in answer.text
    assert answer.text.count("<script nonce=") == 3  # the module, the inline one, the page's own
    assert answer.text.endswith("é</body></html>")
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_without_a_bundle_the_teacher_is_shown_beside_itself(exported, monkeypatch):
    shown = []
    monkeypatch.setattr(app, "launch", lambda page, *_: shown.append(page))
    monkeypatch.setattr(app, "build", lambda *given: shown.append(given) or build(*given))
    app.serve([], str(exported), "prompts-en", None, "127.0.0.1", 1, 1, None, DemoLimits())
    (systems, _, _, corpus, note, _), _ = shown
    assert list(systems.recognizers) == ["tiny (teacher, fp32)", "tiny (int8)"]
    assert corpus == "prompts-en"
    assert "beside itself" in note
    assert "not what distillation does" in header(systems, corpus, note)
    with pytest.raises(UserError, match=r"has no w8 graphs.*--precision fp32,w8"):
        app.serve([], str(exported), "prompts-en", "w8", "127.0.0.1", 1, 1)
