import { RATE, decode, isSilent, pieces, record } from "./audio.js";

const MOST_MINUTES = 60;
const MOST_MEGABYTES = 500;
const $ = (id) => document.getElementById(id);
const tell = (id, message = "") => { $(id).textContent = message; $(id).hidden = !message; };
const megabytes = (bytes) => Math.round(bytes / 1e6);

let site, worker, wave, stopRecording, busy = false, asking = false, loaded = false, taken = 0;
let canRecord = true;
let part; // of the recording, [number, of how many]

async function open() {
  const answer = await fetch("site.json");
  if (!answer.ok) throw new Error(`site.json: ${answer.status}`);
  site = await answer.json();
  $("about").textContent = `Model: ${site.name} in ${site.precision}. The first transcription downloads ${megabytes(site.bytes)} MB.`;
  fillLanguages();
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    canRecord = false;
    $("record-note").textContent = "needs a page served over https, or from this computer";
  }
  refresh();
  $("device-field").hidden = !(await navigator.gpu?.requestAdapter().catch(() => null));
  $("unstarted").hidden = true;
  $("form").hidden = false;
}

function fillLanguages() {
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const sorted = site.languages.map((code) => [names.of(code), code]).sort(([a], [b]) => a.localeCompare(b));
  $("language").append(...sorted.map(([name, code]) => new Option(name, code)));
  const wanted = [navigator.language.split("-")[0], "en"].find((code) => site.languages.includes(code));
  if (wanted) $("language").value = wanted;
  $("language-field").hidden = sorted.length < 2;
}

const refresh = () => {
  $("start").disabled = busy || !wave || asking || Boolean(stopRecording);
  $("device").disabled = busy;
  $("file").disabled = busy || Boolean(stopRecording);
  $("record").disabled = busy || !canRecord;
};

async function take(blob, problem) {
  for (const id of ["file-problem", "record-problem", "start-problem"]) tell(id);
  const number = ++taken; // another file may be chosen while this one is decoded
  wave = undefined;
  $("result").hidden = true; // it is another recording's
  refresh();
  if (blob.size > MOST_MEGABYTES * 1e6) tell(problem, `This file has ${megabytes(blob.size)} MB; this page takes up to ${MOST_MEGABYTES} MB.`);
  else try {
    const decoded = await decode(blob);
    if (number !== taken) return;
    if (decoded.length > MOST_MINUTES * 60 * RATE) tell(problem, `This recording is ${Math.round(decoded.length / RATE / 60)} minutes long; this page takes up to ${MOST_MINUTES} minutes.`);
    else if (decoded.length < RATE / 10) tell(problem, "This recording is shorter than a tenth of a second.");
    else wave = decoded;
  } catch {
    if (number !== taken) return;
    tell(problem, "Your browser cannot read this as sound. Try a WAV, MP3, Ogg or MP4 file.");
  }
  URL.revokeObjectURL($("player").src);
  $("player").hidden = !wave;
  if (wave) $("player").src = URL.createObjectURL(blob);
  $("status").textContent = wave ? `${(wave.length / RATE).toFixed(1)} seconds of sound are ready.` : "";
  refresh();
}

// A worker obeys the page's Content-Security-Policy only if it starts from a blob.
function startWorker() {
  const code = `import ${JSON.stringify(new URL("worker.js", location.href).href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })), { type: "module" });
  return answer("ready");
}

function stopWorker() {
  worker?.terminate();
  worker = undefined;
  loaded = false;
}

// The worker's next message of a kind. After an error the runtime cannot be started again in the same worker.
function answer(kind) {
  return new Promise((resolve, reject) => {
    const fail = (message) => {
      reject(Object.assign(new Error(message), { whileLoading: !loaded }));
      stopWorker();
    };
    worker.onmessage = ({ data }) => {
      if (data.kind === "loading") showLoading(data.loaded);
      if (data.kind === "loaded" && !loaded) {
        loaded = true;
        showPart();
      }
      if (data.kind === kind) resolve(data);
      if (data.kind === "error") fail(data.message);
    };
    worker.onerror = (event) => {
      event.preventDefault();
      fail(event.message);
    };
  });
}

function showLoading(bytes) {
  if (loaded) return;
  $("progress").max = site.bytes;
  $("progress").value = bytes;
  $("amount").textContent = `${megabytes(bytes)} of ${megabytes(site.bytes)} MB`;
}

function showPart() {
  const [number, of] = part;
  $("amount").textContent = "";
  $("status").textContent = of > 1 ? `Transcribing part ${number} of ${of}` : "Transcribing";
  $("progress").max = of;
  $("progress").value = number - 1;
  if (of === 1) $("progress").removeAttribute("value"); // nobody knows how far it is
}

async function transcribe() {
  const parts = pieces(wave);
  const language = site.languages.length ? $("language").value : "";
  const texts = [];
  let seconds = 0;
  for (const id of ["text", "time"]) $(id).textContent = "";
  $("result").hidden = true;
  $("progress").hidden = false;
  if (!loaded) $("status").textContent = "Loading the model";
  if (!worker) await startWorker();
  for (const [i, samples] of parts.entries()) {
    if (isSilent(samples)) continue; // where nothing is said, the model may invent text
    part = [i + 1, parts.length];
    if (loaded) showPart();
    const found = answer("text");
    worker.postMessage({ wave: samples, language, most: tokenLimit(samples.length / RATE, language), device: $("device").value, ctc: site.ctc });
    const { text, seconds: more } = await found;
    texts.push(text);
    seconds += more;
    $("text").textContent = texts.join(" ").trim();
    $("result").hidden = false;
  }
  if (!texts.join("").trim()) $("text").textContent = "(no speech found)";
  $("result").hidden = false;
  $("time").textContent = `${(wave.length / RATE).toFixed(1)} s of sound transcribed in ${seconds.toFixed(1)} s`;
  $("status").textContent = "Done";
}

// The same limit as in the other runtimes; languages that are spelled in bytes need more tokens.
function tokenLimit(seconds, language) {
  const { tokens_at_least, tokens_per_second, tokens_per_second_of, most_tokens } = site.decoding;
  const rate = tokens_per_second_of?.[language] ?? tokens_per_second;
  return Math.min(tokens_at_least + Math.trunc(rate * seconds), most_tokens);
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy || !wave) return;
  busy = true;
  tell("start-problem");
  refresh();
  try {
    await transcribe();
  } catch (error) {
    console.error(error);
    $("status").textContent = "";
    tell("start-problem", error.whileLoading
      ? "The model could not be loaded. Check your connection, close other tabs if memory is short, and try again."
      : "The transcription failed, perhaps for want of memory. Try a shorter recording, or reload the page.");
  }
  $("progress").hidden = true;
  $("amount").textContent = "";
  busy = false;
  refresh();
});

$("file").addEventListener("change", () => $("file").files[0] && take($("file").files[0], "file-problem"));

$("device").addEventListener("change", () => {
  stopWorker(); // the next one loads the model for the other device
  $("device-note").hidden = $("device").value !== "webgpu";
});

$("record").addEventListener("click", async () => {
  if (stopRecording) return stopRecording();
  tell("record-problem");
  asking = true;
  refresh();
  $("record").disabled = true; // until the visitor has answered the browser's question
  try {
    stopRecording = await record((blob) => {
      stopRecording = undefined;
      $("record").textContent = "Record again";
      $("file").value = "";
      take(blob, "record-problem");
    });
    $("record").textContent = "Stop recording";
    $("status").textContent = "Recording; it stops by itself after 30 seconds.";
  } catch (error) {
    tell("record-problem", error.name === "NotAllowedError"
      ? "The browser was not allowed to use the microphone. Allow it in the address bar, then try again."
      : "No microphone was found. Connect one, or choose a file.");
  }
  asking = false;
  refresh();
});

$("copy").addEventListener("click", async () => {
  tell("copy-problem");
  try {
    await navigator.clipboard.writeText($("text").textContent);
    $("status").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("text"));
    tell("copy-problem", "The browser did not allow copying. The text is selected: press Ctrl+C or Cmd+C.");
  }
});

open().catch((error) => {
  console.error(error);
  $("unstarted").textContent = "The page could not read its settings (site.json). Reload it; if that does not help, its folder on the server is incomplete.";
});
