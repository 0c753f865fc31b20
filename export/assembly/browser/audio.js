// Sound as the model wants it: one channel at 16 kHz, in pieces of up to 30 s.
export const RATE = 16_000;
const LONGEST = 30 * RATE;

export async function decode(blob) {
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer()); // resamples, too
  const wave = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    const samples = sound.getChannelData(channel);
    for (let i = 0; i < wave.length; i++) wave[i] += samples[i] / sound.numberOfChannels;
  }
  return wave;
}

// Cut where it is quietest between 20 and 30 s, most likely between two words.
export function pieces(wave) {
  const cuts = [0];
  while (wave.length - cuts.at(-1) > LONGEST) cuts.push(quietest(wave, cuts.at(-1) + (2 * LONGEST) / 3, cuts.at(-1) + LONGEST));
  return cuts.map((start, i) => wave.slice(start, cuts[i + 1] ?? wave.length));
}

function quietest(wave, from, to) {
  const width = RATE / 5;
  let best = to, least = Infinity;
  for (let start = from; start + width <= to; start += width / 4) {
    let energy = 0;
    for (let i = start; i < start + width; i++) energy += wave[i] * wave[i];
    if (energy < least) [least, best] = [energy, start + width / 2];
  }
  return best;
}

export const isSilent = (wave) => wave.every((sample) => Math.abs(sample) < 1e-4);

// Record until `stop` is called or 30 s are over.
export async function record(whenDone) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const heard = [];
  recorder.ondataavailable = ({ data }) => heard.push(data);
  const stop = () => recorder.state === "recording" && recorder.stop();
  const timer = setTimeout(stop, 30_000);
  recorder.onstop = () => {
    clearTimeout(timer);
    for (const track of stream.getTracks()) track.stop();
    whenDone(new Blob(heard, { type: recorder.mimeType }));
  };
  recorder.start();
  return stop;
}
