// 16-bit PCM WAV at 16 kHz to samples in [-1, 1]; channels are averaged.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "bundle.hpp"

inline std::vector<float> read_wav(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path.string() + ": no such file");
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto number = [&](size_t at, size_t width) {
    uint32_t value = 0;  // little-endian
    for (size_t i = 0; i < width; ++i) value |= static_cast<uint32_t>(static_cast<unsigned char>(bytes[at + i])) << (8 * i);
    return value;
  };
  const auto is = [&](size_t at, const char* tag) { return std::memcmp(bytes.data() + at, tag, 4) == 0; };
  const std::string advice = "; convert it, for example: ffmpeg -i IN -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav";
  if (bytes.size() < 12 || !is(0, "RIFF") || !is(8, "WAVE")) throw Error(path.string() + ": not a WAV file" + advice);

  uint32_t channels = 0;
  std::vector<float> samples;
  for (size_t at = 12; at + 8 <= bytes.size();) {
    const size_t begin = at + 8, size = std::min<size_t>(number(at + 4, 4), bytes.size() - begin);
    if (is(at, "fmt ") && size >= 16) {
      const auto coding = number(begin, 2), rate = number(begin + 4, 4), bits = number(begin + 14, 2);
      channels = number(begin + 2, 2);
      if ((coding != 1 && coding != 0xFFFE) || bits != 16 || rate != 16000 || channels == 0)
        throw Error(path.string() + ": " + std::to_string(bits) + " bits at " + std::to_string(rate) +
                    " Hz; expected 16-bit PCM at 16000 Hz" + advice);
    } else if (is(at, "data") && channels) {
      for (size_t i = begin; i + 2 * channels <= begin + size; i += 2 * channels) {
        float sum = 0;
        for (uint32_t c = 0; c < channels; ++c) sum += static_cast<int16_t>(number(i + 2 * c, 2));
        samples.push_back(sum / 32768.0f / static_cast<float>(channels));
      }
    }
    at = begin + size + size % 2;
  }
  if (samples.empty()) throw Error(path.string() + ": holds no samples");
  return samples;
}
