"""What is written to files."""

from workbench.core.files import write_text


def test_a_lone_surrogate_is_escaped(tmp_path):
    write_text(tmp_path / "card.md", "onnxruntime \ud800, größer")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == "onnxruntime \\ud800, größer"
