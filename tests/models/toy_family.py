"""A second family: an encoder-decoder of other parts and other names than Whisper's, with characters for tokens and 40 ms for a position."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from workbench.audio.decode import SAMPLE_RATE
from workbench.core.errors import UserError
from workbench.models.protocol import IGNORE_INDEX, Tokens, Transcript
from workbench.models.students import choose_layers

ALPHABET = "abcdefghijklmnopqrstuvwxyz '.,"
END, BEGIN, FIRST = 0, 1, 2
SIZE = FIRST + len(ALPHABET)
STEP = 640  # samples of a position


class Speller(nn.Module):
    """Ears: products along the time. Mouth: layers that attend to what was heard, and to the mean of what was written."""

    def __init__(self, width, ears, mouth):
        super().__init__()
        self.sizes = {"width": width, "ears": ears, "mouth": mouth}
        self.first_ear = nn.Linear(STEP, width)
        self.ears = nn.ModuleList(nn.Linear(width, width) for _ in range(ears))
        self.letters = nn.Embedding(SIZE, width)
        self.mouth = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(mouth))
        self.dropping = nn.Dropout(0.0)
        self.spell = nn.Linear(width, SIZE)

    def hear(self, features):
        x = self.first_ear(features.transpose(1, 2))
        for ear in self.ears:
            x = x + torch.tanh(ear(x))
        return x

    def say(self, states, inputs, mask):
        """Hidden state of each token. -> [clips, tokens, width], and those after the layer before the last"""
        x = self.letters(inputs)
        counts = torch.arange(1, x.shape[1] + 1, device=x.device)[None, :, None]
        x = x + x.cumsum(1) / counts
        before = x
        for layer in self.mouth:
            before = x
            scores = x @ states.transpose(1, 2)
            if mask is not None:
                scores = scores.masked_fill(~mask[:, None], -torch.inf)
            x = x + torch.tanh(layer(self.dropping(torch.cat([x, scores.softmax(-1) @ states], -1))))
        return x, before


class Toy:
    name = "toy"
    objective = "cross_entropy"
    blank = None
    window_seconds = 20.0
    samples_per_position = STEP
    eos_token_id = END
    suppress_tokens = (BEGIN,)
    begin_suppress_tokens = (END,)
    vocabulary = None
    trained_silence = None
    width = 24
    vocabulary_size = SIZE

    def __init__(self, folder):
        self.check(folder)
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())

    @classmethod
    def check(cls, folder):
        if not (folder / "model.safetensors").is_file():
            raise UserError(f"{folder}: no model.safetensors")

    @property
    def silence(self):
        return 0.4

    def load(self):
        model = Speller(**self.config["sizes"])
        model.load_state_dict(load_file(self.folder / "model.safetensors"))
        return model.eval()

    def save(self, model, folder):
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors"
        )
        (folder / "config.json").write_text(json.dumps({"model_type": "toy", "sizes": model.sizes}))

    def build_student(self, model, recipe):
        kept = choose_layers(recipe.decoder_layers, len(model.mouth), "decoder_layers")
        student = Speller(**{**model.sizes, "mouth": len(kept)})
        state = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("mouth.")}
        for i, number in enumerate(kept):
            state |= {f"mouth.{i}.{k}": v.clone() for k, v in model.mouth[number].state_dict().items()}
        student.load_state_dict(state)
        return student.eval()

    def check_pair(self, student, teacher, matched):
        if student.sizes["width"] != teacher.sizes["width"]:
            raise UserError("widths differ")

    def empty_copy(self, model):
        return Speller(**model.sizes)

    def positions(self, samples):
        return -(-samples // STEP)

    def samples(self, positions):
        return positions * STEP

    def attention_mask(self, samples, seconds):
        return None

    def predicted(self, tokens, attention_mask):
        return tokens.labels != IGNORE_INDEX

    def lacking(self, text):
        return []

    def same_tokens(self, other):
        return other.name == self.name

    def check_recipe(self, recipe):
        pass

    def check_origin(self, origin, where):
        assert origin.name == self.name

    def token_and_feature_files(self):
        return [p for p in self.folder.iterdir() if p.suffix in (".json", ".txt")]

    def pooling(self, model):
        return 1

    def input_seconds(self, waves):
        return min(max(map(len, waves)) / SAMPLE_RATE + self.silence, self.window_seconds)

    def features(self, waves, seconds, device="cpu"):
        padded = torch.zeros(len(waves), self.positions(round(seconds * SAMPLE_RATE)) * STEP)
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(wave[: padded.shape[1]])
        return self.spectrum(padded.to(device))

    @property
    def mels(self):
        return STEP

    def spectrum(self, padded, samples=None, heard=None):
        return padded.unflatten(1, (-1, STEP)).transpose(1, 2)

    def tokens(self, texts, languages):
        spelt = [[FIRST + ALPHABET.index(c) for c in text.lower() if c in ALPHABET] for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        inputs = pad([torch.tensor([BEGIN, *ids]) for ids in spelt], True, END)
        return Tokens(inputs, pad([torch.tensor([*ids, END]) for ids in spelt], True, IGNORE_INDEX))

    def encode(self, model, features, attention_mask=None, checkpointing=False):
        return model.hear(features)

    def hidden(self, model, states, tokens, labelled=None, attention_mask=None):
        said = model.say(states, tokens.inputs, attention_mask)[0]
        return said.flatten(0, 1)[tokens.labelled() if labelled is None else labelled]

    def logits(self, model, states, tokens, labelled=None, attention_mask=None, checkpointing=False, early_layer=None):
        rows = tokens.labelled() if labelled is None else labelled
        last, before = (x.flatten(0, 1)[rows] for x in model.say(states, tokens.inputs, attention_mask))
        return model.spell(last if early_layer is None else torch.cat([last, before]))

    def project(self, model, hidden):
        return model.spell(hidden).float()

    def incremental_decoder(self, model, states):
        written = []

        def step(tokens):
            written.append(tokens)
            return model.spell(model.say(states, torch.cat(written, 1), None)[0][:, -1]).float()

        return step

    def part_of(self, parameter):
        return "encoder" if parameter.startswith(("ears.", "first_ear.")) else "decoder"

    def decoder_depth(self, model):
        return len(model.mouth)

    @contextmanager
    def decoder_dropout(self, model, rate):
        model.dropping.p = rate
        model.dropping.train()
        yield
        model.dropping.p = 0.0
        model.dropping.eval()

    def full_vocabulary(self, model, whole):
        return nullcontext()

    def token_limit(self, seconds, language):
        return 12 + int(20 * seconds)

    @torch.no_grad()
    def transcribe(self, model, states, seconds, languages, beams=1, attention_mask=None):
        out = []
        for row, length, language in zip(states, seconds, languages, strict=True):
            step, token, ids = self.incremental_decoder(model, row[None]), BEGIN, []
            while len(ids) < self.token_limit(length, language):
                logits = step(torch.tensor([[token]], device=row.device))
                logits[:, list(self.suppress_tokens)] = -torch.inf
                if (token := int(logits.argmax())) == END:
                    break
                ids.append(token)
            out.append(Transcript("".join(ALPHABET[i - FIRST] for i in ids), 0.0))
        return out

    def decode(self, model, states, seconds, languages, attention_mask=None):
        return [found.text for found in self.transcribe(model, states, seconds, languages)]
