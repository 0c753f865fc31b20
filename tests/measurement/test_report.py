"""The report's page, whatever the transcripts, names and manifests hold."""

import json

from export.measurement.report import write_html
from tests.conftest import ROOT

REPORT = ROOT / "docs" / "results" / "quickstart" / "report.json"
EVIL = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


def test_what_comes_from_outside_is_text(tmp_path):
    report = json.loads(REPORT.read_text())
    names = [system["name"] for system in report["systems"]]
    for part in (report, *report["other_corpora"]):
        part["corpus"] |= {"name": EVIL, "split": EVIL, "normalizers": {"en": EVIL}}
        for system in part["systems"]:
            system["name"] += EVIL
        part["clips"] = part["clips"][:3]
        for clip in part["clips"]:
            clip |= {"id": EVIL, "reference": f"one {EVIL}"}
            clip["hypotheses"] = {name + EVIL: f"two {EVIL}" for name in names}
            clip["stages_ms"] = {name + EVIL: clip["stages_ms"][name] for name in names}
    report["host"] |= {"cpu": EVIL, "cpu_flags": [EVIL], "versions": {EVIL: EVIL}}
    for found in (report.get("robustness", {}).get("systems"), report.get("training")):
        for name in list(found or {}):
            found[name + EVIL] = found.pop(name)
    write_html(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "one &lt;img" in page
    assert "<img src=x" not in page
    assert "<script>alert" not in page
