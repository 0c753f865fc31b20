"""onnxruntime's sessions and values: how graphs are opened, where they compute, and outputs that stay on the device."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from ..bundle.fields import MAX_TOKENS
from ..bundle.manifest import BundleError, Manifest, check_graph

Provider = str | tuple[str, Mapping[str, object]]  # of onnxruntime, its name, or that and its options
# inputs and outputs that each graph must have
CALLED = {
    "frontend": ({"waves"}, {"input_features"}),
    "encoder": ({"input_features"}, {"n_layer_cross_k", "n_layer_cross_v"}),
    "step": ({"input_ids", "offset", "cache_k.0", "cross_k.0"}, {"logits", "next_k.0"}),
}
# clips differ in length, and an exhaustive search would be repeated for every length of a convolution; fp32 is not computed in TF32: use fp16 for speed
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
_PRINTING = threading.Lock()
ON_CUDA = ("CUDAExecutionProvider", "TensorrtExecutionProvider")


def session_options(threads: int | None, spin: bool = False) -> ort.SessionOptions:
    """How a session uses the cores.

    Args:
        threads: all cores by default.
        spin: let threads wait for work without sleeping while a graph runs.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, and reported once
    # three sessions share the cores: a pool that spins after its graph is done slows the next graph by a third
    how = ("session.force_spinning_stop", "1") if spin else ("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*how)
    if threads:
        options.intra_op_num_threads = threads
    return options


def open_sessions(
    graphs: dict[str, Path], options: ort.SessionOptions, providers: Sequence[Provider], cuda_graphs: bool
) -> dict[str, ort.InferenceSession]:
    """The graphs' sessions; raises BundleError where a provider is missing or does not start."""
    first, given = with_cuda_options(providers[0])
    if first not in (known := ort.get_available_providers()):
        raise BundleError(
            f"onnxruntime {ort.__version__} here has no {first}, it has {', '.join(known)}; for a GPU: pip install 'onnxruntime-gpu[cuda,cudnn]'"
        )
    if first in ON_CUDA:
        with printed_as_warnings():
            ort.preload_dlls()  # CUDA's libraries as pip installs them; otherwise only the system's are found
    if cuda_graphs and first != "CUDAExecutionProvider":
        raise BundleError(f"CUDA graphs need the CUDA provider, but {first} was requested")
    captured = [(first, {**given, "enable_cuda_graph": "1"}), *providers[1:]]
    opened: dict[str, ort.InferenceSession] = {}
    # the largest first: memory that loading it took is free for the others, which keeps the peak low
    for part in sorted(graphs, key=lambda part: -graphs[part].stat().st_size):
        opened[part] = open_session(graphs[part], options, captured if cuda_graphs and part == "step" else providers)
    # onnxruntime silently drops a provider that fails to start
    if any(session.get_providers()[0] != first for session in opened.values()):
        raise BundleError(f"{first} is installed but does not start; what onnxruntime has written on stderr says why")
    return opened


def with_cuda_options(provider: Provider) -> tuple[str, dict[str, object]]:
    """A provider's name and options, with our defaults for CUDA's."""
    name, given = (provider, {}) if isinstance(provider, str) else provider
    return name, {**CUDA_OPTIONS, **given} if name == "CUDAExecutionProvider" else dict(given)


def open_session(path: Path, options: ort.SessionOptions, providers: Sequence[Provider]) -> ort.InferenceSession:
    """A graph's session; raises BundleError where it holds what must not be run, or onnxruntime cannot load it."""
    check_graph(path)
    wanted = [with_cuda_options(provider) for provider in providers]
    on_cpu = all(name == "CPUExecutionProvider" for name, _ in wanted)
    with (
        as_bundle_errors(f"{path}: onnxruntime {ort.__version__} cannot load it"),
        nullcontext() if on_cpu else printed_as_warnings(),
    ):
        return ort.InferenceSession(str(path), options, providers=wanted)


@contextmanager
def printed_as_warnings() -> Iterator[None]:
    """Redirect to stderr what onnxruntime prints about a missing library or a provider that does not start; one thread at a time."""
    with _PRINTING, redirect_stdout(sys.stderr):
        yield


def check_sessions(opened: Mapping[str, ort.InferenceSession], graphs: dict[str, Path], manifest: Manifest) -> None:
    """Raise BundleError where a graph lacks inputs or outputs that it needs, or the decoder has too few tokens."""
    for part, (inputs, outputs) in CALLED.items():
        known = {i.name for i in opened[part].get_inputs()}, {o.name for o in opened[part].get_outputs()}
        if missing := sorted((inputs - known[0]) | (outputs - known[1])):
            raise BundleError(f"{graphs[part]}: has no {', '.join(missing)}; export the bundle again")
    shape = next(o.shape for o in opened["step"].get_outputs() if o.name == "logits")
    tokens = manifest.content["tokens"]
    highest = max(tokens["end"], *(max(prompt) for prompt in tokens["prompts"].values()))
    if len(shape) != 2 or not isinstance(shape[1], int) or not highest < shape[1] <= MAX_TOKENS:
        raise BundleError(
            f"{graphs['step']}: its logits have shape {shape}; expected [batch, {highest + 1} to {MAX_TOKENS}], since bundle.json names token {highest}"
        )


@contextmanager
def as_bundle_errors(what: str) -> Iterator[None]:
    """Turn onnxruntime's errors, which have no common base, into BundleError of one line."""
    try:
        yield
    except BundleError:
        raise
    except Exception as error:
        raise BundleError(f"{what} ({' '.join(str(error).split())[:500]})") from error


def as_value(array: npt.NDArray[np.generic], device: str = "cpu") -> ort.OrtValue:
    """An array as onnxruntime's value, on a device."""
    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


def device_of(session: ort.InferenceSession) -> str:
    """Where a session computes: `cuda` or `cpu`."""
    return "cuda" if session.get_providers()[0] in ON_CUDA else "cpu"


def run_on_device(
    session: ort.InferenceSession, given: Mapping[str, ort.OrtValue], names: Sequence[str],
    places: Sequence[ort.OrtValue] | None = None,
) -> list[ort.OrtValue]:  # fmt: skip
    """Run a graph; its outputs stay where they are computed, or are written to `places`. OrtValues in, OrtValues out."""
    with as_bundle_errors(f"the graph from {', '.join(given)} to {', '.join(names)} does not run"):
        binding = session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        for i, name in enumerate(names):
            if places is None:
                binding.bind_output(name, device_of(session))
            else:
                binding.bind_ortvalue_output(name, places[i])
        session.run_with_iobinding(binding)
        return list(places if places is not None else binding.get_outputs())
