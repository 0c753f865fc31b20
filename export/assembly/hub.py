"""A bundle or a student on the Hugging Face hub: the model card that the hub reads, and the upload."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.assembly.origin import published_name
from export.bundle.card import card
from export.bundle.ctc import runtimes_of
from export.bundle.manifest import open_manifest
from export.edge.bundle.content import Content, MeasuredCorpus
from export.edge.bundle.fields import CTC
from workbench.config.recipe import load_recipe
from workbench.core.errors import UserError, first_line
from workbench.core.files import read_object
from workbench.models import check_folder
from workbench.models.resolve import BUILT_IN
from workbench.run.folder import CHECKPOINT_FILE

FEATURES = "processor_config.json"  # which transformers 5 writes
BASE_MODELS = {"whisper-base": "openai/whisper-base", "whisper-tiny.en": "openai/whisper-tiny.en"}  # the built-in ones
REMEDIES = {  # by status
    401: "log in with `hf auth login`, with a token that may write",
    403: "log in with `hf auth login`, with a token that may write",
    404: "check OWNER/NAME, and that the branch of --revision exists",
}
MAX_LANGUAGES = 10  # beyond it the card names none: the list would say nothing of quality


def push(folder: Path, repository: str, private: bool = False, revision: str | None = None, message: str = "") -> str:
    """Upload a bundle, or a student's folder, as one commit; returns the address of the repository.

    The files keep their names, and README.md, the card that the hub shows, is added. Nothing in the repository is deleted.

    Args:
        folder: a bundle, whose files are checked first, or a transformers checkpoint.
        repository: OWNER/NAME on the hub; made if it does not exist.
        private: whether a new repository is private.
        revision: the branch; main by default.
        message: of the commit.

    Raises:
        UserError: the folder is neither, or damaged, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    if repository.count("/") != 1:
        raise UserError(f"{repository}: expected OWNER/NAME")
    text, names = hub_card(folder), files_of(folder)
    operations = [CommitOperationAdd(name, str(folder / name)) for name in names]
    operations.append(CommitOperationAdd("README.md", text.encode("utf-8")))
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise UserError(f"{repository}: exists and is public; make it private on the hub, or leave --private out")
        api.create_commit(
            address.repo_id, operations, commit_message=message or f"Upload {folder.resolve().name}", revision=revision
        )
    except HFValidationError as error:
        raise UserError(f"{repository}: {first_line(error)}; expected OWNER/NAME") from None
    except OfflineModeIsEnabled:
        raise UserError(f"{repository}: HF_HUB_OFFLINE is set; unset it to upload") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = REMEDIES.get(status, "try again later")
        raise UserError(f"{repository}: the hub refuses with status {status} ({first_line(error)}); {remedy}") from None
    except RuntimeError as error:  # how an upload that breaks off is reported
        why = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        raise UserError(
            f"{repository}: {first_line(error)}{why}; nothing was committed: run the command again"
        ) from None
    return str(address)


def files_of(folder: Path) -> list[str]:
    """What is uploaded of a folder, by relative name; raises UserError if it is neither a bundle nor a checkpoint, or damaged."""
    if (folder / "bundle.json").is_file():
        return sorted([*open_manifest(folder, check=True).content["files"], "bundle.json"])
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds neither bundle.json nor config.json; expected a bundle or a student")
    check_folder(folder)
    names = [path.name for path in folder.iterdir() if path.is_file()]  # what else lies there stays there
    return sorted(name for name in names if name == FEATURES or CHECKPOINT_FILE.fullmatch(name))


def hub_card(folder: Path) -> str:
    """README.md for the hub: front matter with what was measured, then the model card."""
    if (folder / "bundle.json").is_file():
        content = open_manifest(folder).content
        return f"---\n{_front_matter(content)}\n---\n\n{card(content)}"
    return _checkpoint_card(folder)


def _front_matter(content: Content) -> str:
    """The hub's metadata of a bundle, as YAML."""
    measurement = content.get("measurement")
    measured: list[MeasuredCorpus] = [measurement, *measurement.get("other_corpora", [])] if measurement else []
    teacher = str(((content.get("run") or {}).get("teacher") or {}).get("name") or "")
    results = [
        _result(corpus, system["precision"], rate, float(system[rate]))
        for corpus in measured
        for system in corpus["systems"]
        for rate in ("wer", "cer")
        if rate in system
    ]
    languages = sorted(content["tokens"]["prompts"])
    spoken = sorted({code for corpus in measured for code in corpus["corpus"].get("normalizers", {})}) or languages
    ctc = content["family"] == CTC
    in_browsers = ["transformers.js"] if not ctc or "transformers_js" in runtimes_of(content) else []
    tags = ["ctc" if ctc else "whisper", "onnx", "onnxruntime", *in_browsers]
    return _yaml(content["name"], teacher, spoken, tags, "onnx", results)


def _result(corpus: MeasuredCorpus, precision: str, rate: str, value: float) -> dict[str, Any]:
    return {
        "dataset_type": corpus["corpus"]["name"],
        "dataset_name": f"{corpus['corpus']['name']}, {corpus['corpus']['clips']} clips",
        "dataset_split": corpus["corpus"]["split"],
        "metric_type": rate,
        "metric_name": f"{rate.upper()}, {precision}",
        "metric_value": round(value, 2),
    }


def _yaml(
    name: str, teacher: str, languages: list[str], tags: list[str], library: str, results: list[dict[str, Any]]
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = BASE_MODELS.get(teacher, teacher if teacher.count("/") == 1 else None)
    data = ModelCardData(
        model_name=name,
        base_model=base,
        language=languages if len(languages) <= MAX_LANGUAGES else None,
        license=_licence(teacher),
        library_name=library,
        pipeline_tag="automatic-speech-recognition",
        tags=[*tags, "knowledge-distillation", "distill-workbench"],
        eval_results=[EvalResult(task_type="automatic-speech-recognition", **one) for one in results] or None,
    )
    return str(data.to_yaml()).strip()


def _licence(teacher: str) -> str:
    """The hub's name of a known teacher's licence, which its student inherits."""
    return BUILT_IN[teacher].licence.lower() if teacher in BUILT_IN else "other"


def _checkpoint_card(folder: Path) -> str:
    """The card of a student that transformers loads."""
    run = folder.resolve().parent
    made = (run / "recipe.yaml").is_file() and (run / "scores.json").is_file()
    scores: Mapping[str, Any] = read_object(run / "scores.json", "a run's scores") if made else {}
    teacher = published_name(load_recipe(run / "recipe.yaml").teacher) if made else ""
    name = run.name if made else folder.resolve().name
    settings = folder / "workbench.json"
    adaptive = settings.is_file() and read_object(settings, "a student's settings").get("length") == "true"
    lines = [
        f"# {name}",
        f"Speech recognition, Whisper family{f'; a student of `{teacher}`' if teacher else ''}, made with distill-workbench.",
    ]
    if adaptive:
        lines.append(
            "It was trained to read a clip at its own length plus a little silence (`workbench.json`). transformers loads it and pads clips to "
            "30 s, at which it still transcribes; the speed comes from its export: `workbench export`."
        )
    if (validation := scores.get("validation")) and validation.get("wer") is not None:
        lines.append(f"Validation WER after training: {validation['wer']} %.")
    lines.append("The weights derive from the teacher's, and so does their licence: keep its notice.")
    return f"---\n{_yaml(name, teacher, [], ['whisper'], 'transformers', [])}\n---\n\n" + "\n\n".join(lines) + "\n"
