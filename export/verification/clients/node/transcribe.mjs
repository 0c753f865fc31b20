// transformers.js in Node: load a bundle, then transcribe the clip of each line of JSON on stdin.
//   node transcribe.mjs BUNDLE DTYPE THREADS [ctc]
//   {"samples": base64 of float32 at 16 kHz, "language": "en", "most": 60}  ->  {"text": ..., "tokens": [...]}
import { createInterface } from "node:readline";
import path from "node:path";
import { AutoModelForCTC, AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration, env } from "@huggingface/transformers";

const [bundle, dtype, threads, kind] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(bundle);
const name = path.basename(bundle);
const session_options = { intraOpNumThreads: Number(threads), logSeverityLevel: 3 };
const ctc = kind === "ctc";
const model = await (ctc ? AutoModelForCTC : WhisperForConditionalGeneration).from_pretrained(name, { dtype, session_options });
const processor = await AutoProcessor.from_pretrained(name);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
say({ version: env.version });

for await (const line of createInterface({ input: process.stdin })) {
  const { samples, language, most } = JSON.parse(line);
  const bytes = Buffer.from(samples, "base64");
  const wave = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
  const inputs = await processor(wave);
  if (ctc) {
    const { logits } = await model(inputs);
    const frames = logits[0].tolist().map((row) => row.reduce((best, value, i) => (value > row[best] ? i : best), 0));
    const tokens = frames.filter((id, i) => id !== frames[i - 1] && id !== tokenizer.pad_token_id);
    say({ text: tokenizer.decode(frames, { skip_special_tokens: true }), tokens });
    continue;
  }
  const multilingual = model.generation_config.is_multilingual;
  const asked = multilingual ? { language, task: "transcribe" } : {};
  const ids = await model.generate({ ...inputs, ...asked, max_new_tokens: most });
  const tokens = ids.tolist()[0].map(Number);
  say({ text: tokenizer.decode(tokens, { skip_special_tokens: true }), tokens });
}
