"""The routes of OpenAI's API that a transcription server has."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Annotated, TypeVar

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from export.edge import AudioError, BundleError, Hotwords, LanguageModel, Recognizer, Segment, read_hotwords
from export.edge.audio import SAMPLE_RATE, Wave
from export.edge.recognizer import LONGEST
from export.edge.vad import SpeechSpan
from export.serving.answer import answer, delta_event, done_event, event
from export.serving.audio import read_recording
from export.serving.errors import STATUS_CODES, ApiError, bad_value
from export.serving.gate import TRANSCRIPTIONS, Gate
from export.serving.memory import Place
from export.serving.metrics import Metrics
from export.serving.options import ServerOptions
from export.serving.pool import Pool
from export.serving.request import REPEATED, TranscriptionRequest, check_fields, check_model, checked
from workbench import __version__
from workbench.core.errors import UserError

STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
SUBTITLE_SECONDS = 7.0  # longest cue of subtitles, so that it can be read
log = logging.getLogger("workbench")
T = TypeVar("T")


def build(recognizers: Sequence[Recognizer], options: ServerOptions) -> FastAPI:
    """The application; its `state.pool` is to be closed when the server ends.

    Args:
        recognizers: one for each worker, of the same bundle and precision.
        options: what the server is started with.

    Raises:
        UserError: `beams`, the file of hotwords, the language model or `min_logprob` cannot be used.
    """
    one = recognizers[0]
    names = (one.manifest.name, *options.aliases)
    created = int((one.manifest.folder / "bundle.json").stat().st_mtime)
    default_hotwords, lm = _default_hotwords(one, options), _language_model(one, options)
    try:
        one.check_beams(options.beams)
        if options.min_logprob is not None:
            one.check_min_logprob(options.min_logprob)
    except BundleError as error:
        raise UserError(str(error)) from None
    pool = Pool(recognizers, options.max_queue, options.max_seconds)
    metrics = Metrics(pool)
    # no interactive pages: they load scripts from the network
    app = FastAPI(
        title="distill-workbench", version=__version__, docs_url=None, redoc_url=None,
        middleware=[Middleware(Gate, pool=pool, metrics=metrics, options=options)],
    )  # fmt: skip
    app.state.pool = pool

    @app.post(TRANSCRIPTIONS)
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File(description="The recording")],
        model: Annotated[str, Form(description="The model's name, as GET /v1/models lists it")],
        language: Annotated[str, Form(description="ISO 639-1 code, or auto")] = "",
        prompt: Annotated[str, Form(description="Not supported")] = "",
        response_format: Annotated[str, Form(description="json, verbose_json, text, srt or vtt")] = "json",
        temperature: Annotated[float, Form(description="0")] = 0.0,
        stream: Annotated[bool, Form(description="Server-sent events")] = False,
        chunking_strategy: Annotated[str, Form(description="auto")] = "",
        hotwords: Annotated[
            str, Form(description="Names and terms to expect, between commas; not in OpenAI's API")
        ] = "",
        granularities: Annotated[list[str] | None, Form(alias=REPEATED, description="word, segment")] = None,
    ) -> Response:
        check_fields([name for name, _ in (await request.form()).multi_items()])
        check_model(model, names)
        asked = await asyncio.to_thread(  # hotwords take a moment
            checked, one, options, language=language, prompt=prompt, response_format=response_format, temperature=temperature,
            stream=stream, chunking_strategy=chunking_strategy, granularities=granularities or (), hotwords=hotwords, default_hotwords=default_hotwords,
        )  # fmt: skip
        place: Place = request.state.place

        async def answered() -> Response:
            wave = await pool.decode(place, read_recording, file.file, file.filename or "", options.max_seconds)
            seconds = len(wave) / SAMPLE_RATE
            found = transcribe(pool, place, wave, asked, options, lm)
            if asked.stream:
                events = _events(found, seconds, metrics)
                return StreamingResponse(events, media_type="text/event-stream", headers=STREAM_HEADERS)
            segments = [segment async for segment in found if segment.transcript.text]
            metrics.audio_seconds.inc(seconds)
            return answer(segments, asked, seconds)

        return await _unless_gone(request, answered()) or Response(status_code=499)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model(name, created) for name in names]})

    @app.get("/v1/models/{name:path}")
    async def model_of(name: str) -> JSONResponse:
        check_model(name, names)
        return JSONResponse(_model(name, created))

    @app.get("/health")
    async def health() -> JSONResponse:
        body = {
            "status": "shutting down" if pool.closing else "ok", "version": __version__, "model": names[0], "precision": one.precision,
            "workers": {"number": pool.workers, "busy": pool.running}, "queue": {"length": pool.queued, "max": pool.max_queue},
        }  # fmt: skip
        return JSONResponse(body, 503 if pool.closing else 200)

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    _report_errors(app, metrics)
    return app


def _default_hotwords(recognizer: Recognizer, options: ServerOptions) -> Hotwords | None:
    """Those of requests that name none."""
    if options.hotwords is None:
        return None
    try:
        return recognizer.new_hotwords(read_hotwords(options.hotwords), options.hotwords_score)
    except BundleError as error:
        raise UserError(str(error)) from None


def _language_model(recognizer: Recognizer, options: ServerOptions) -> LanguageModel | None:
    """The server's, which its workers share."""
    try:
        return recognizer.new_language_model(options.lm, options.lm_weights) if options.lm else None
    except BundleError as error:
        raise UserError(str(error)) from None


async def transcribe(
    pool: Pool,
    place: Place,
    wave: Wave,
    asked: TranscriptionRequest,
    options: ServerOptions,
    lm: LanguageModel | None = None,
) -> AsyncIterator[Segment]:
    """Segments of a recording as they are transcribed: one if it fits the model's window, else one for each stretch of speech.

    Raises:
        ApiError: the server is closing.
        BundleError: the bundle has no speech detector, which a long recording needs.
    """
    longest = SUBTITLE_SECONDS if asked.format in ("srt", "vtt") else LONGEST
    seconds, how = len(wave) / SAMPLE_RATE, (asked.language, options.beams, asked.words)
    hotwords, least = asked.hotwords, options.min_logprob
    if seconds <= (pool.window if longest == LONGEST else longest):
        said = await pool.turn(place, Recognizer.transcribe, wave, *how, hotwords=hotwords, lm=lm, min_logprob=least)
        yield Segment(0.0, seconds, said)
        return
    spans: list[SpeechSpan] = await pool.turn(place, Recognizer.speech_spans, wave, longest)
    for span in spans:
        yield await pool.turn(place, Recognizer.transcribe_span, wave, span, *how, hotwords, lm, least)


async def _unless_gone(request: Request, work: Coroutine[None, None, T]) -> T | None:
    """The result of some work, or None as soon as the client closes the connection: then its place in the queue is free again."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.wait((task, watch))  # so that a place is not given up before its work has been told


async def _events(found: AsyncIterator[Segment], seconds: float, metrics: Metrics) -> AsyncIterator[str]:
    """A transcript as server-sent events; an error ends it, because the status has been sent."""
    segments: list[Segment] = []
    try:
        async for segment in found:
            if segment.transcript.text:
                yield delta_event(segment, first=not segments)
                segments.append(segment)
    except Exception as error:  # noqa: BLE001  told to the client, and logged if it is a bug
        known = _as_api_error(error)
        metrics.errors.labels(known.code).inc()
        yield event(known.body)
        return
    metrics.audio_seconds.inc(seconds)
    yield done_event(segments, seconds)


def _model(name: str, created: int) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": "distill-workbench"}


def _as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; a bug is logged and not described to the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AudioError | BundleError):
        return ApiError(400, str(error), "cannot_transcribe", "file")
    log.error("a bug in the workbench; please report it", exc_info=error)
    return ApiError(500, "The server failed; its log says why.", "internal_error")


def _report_errors(app: FastAPI, metrics: Metrics) -> None:
    """Give every error OpenAI's form, and count it."""

    def answered(error: ApiError) -> JSONResponse:
        metrics.errors.labels(error.code).inc()
        return error.response()

    async def of_others(_: Request, error: Exception) -> JSONResponse:
        return answered(_as_api_error(error))

    async def of_values(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101  for mypy
        first = error.errors()[0]
        field = str(first["loc"][-1])
        if first["type"] == "missing":
            return answered(ApiError(400, f"{field!r} is missing.", "missing_parameter", field))
        return answered(bad_value(field, f"{field}: {first['msg']}."))

    async def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101  for mypy
        return answered(
            ApiError(error.status_code, str(error.detail), STATUS_CODES.get(error.status_code, "invalid_request"))
        )

    for kind in (ApiError, AudioError, BundleError, Exception):
        app.add_exception_handler(kind, of_others)
    app.add_exception_handler(RequestValidationError, of_values)
    app.add_exception_handler(HTTPException, of_http)
