// Loads the model and transcribes pieces of up to 30 s, beside the page, which so never freezes.
import { AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration, env, pipeline } from "./library/transformers.min.js";

const here = (path) => new URL(path, import.meta.url).href;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL(here("models/")).pathname; // the library takes a whole address for one of another host,
env.fetch = async (url, options) => counted(await fetch(here(url), options)); // and a worker from a blob cannot complete a path by itself
env.useBrowserCache = false; // it would keep an earlier model of the same address; the browser's HTTP cache asks the server
env.backends.onnx.wasm.wasmPaths = here("library/");
// several threads need a page that is isolated from other sites, by two headers of its server
env.backends.onnx.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;

// The library's own progress_callback is not used: it requests every file twice.
let bytes = 0;
function counted(response) {
  if (!response.ok) return response;
  const count = new TransformStream({
    transform(chunk, controller) {
      bytes += chunk.length;
      postMessage({ kind: "loading", loaded: bytes });
      controller.enqueue(chunk);
    },
  });
  return new Response(response.body.pipeThrough(count), response);
}

// A function of a wave, the language that was chosen and the most tokens, which gives the text.
async function load(device, ctc) {
  const runtime = await env.fetch("library/ort-wasm-simd-threaded.asyncify.wasm");
  env.backends.onnx.wasm.wasmBinary = await runtime.arrayBuffer();
  // packed graphs have the names of fp32, whatever their precision
  if (ctc) {
    const recognise = await pipeline("automatic-speech-recognition", "model", { dtype: "fp32", device });
    return async (wave) => (await recognise(wave)).text;
  }
  const model = await WhisperForConditionalGeneration.from_pretrained("model", { dtype: "fp32", device });
  const processor = await AutoProcessor.from_pretrained("model");
  const tokenizer = await AutoTokenizer.from_pretrained("model");
  return async (wave, language, most) => {
    const asked = language ? { language, task: "transcribe" } : {};
    const ids = await model.generate({ ...(await processor(wave)), ...asked, max_new_tokens: most });
    return tokenizer.decode(ids.tolist()[0].map(Number), { skip_special_tokens: true }).trim();
  };
}

let loading;
async function transcribe({ wave, language, most, device, ctc }) {
  loading ??= load(device, ctc);
  const recognise = await loading;
  postMessage({ kind: "loaded" });
  const started = performance.now();
  const text = await recognise(wave, language, most);
  return { text, seconds: (performance.now() - started) / 1000 };
}

self.onmessage = async ({ data }) => {
  try {
    postMessage({ kind: "text", ...(await transcribe(data)) });
  } catch (error) {
    postMessage({ kind: "error", message: String(error.message ?? error) });
  }
};
postMessage({ kind: "ready" });
