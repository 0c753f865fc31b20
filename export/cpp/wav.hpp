// PCM WAV at 16 kHz to samples in [-1, 1]: integers of 8 to 32 bits or floats of 32 or 64, any number of channels, as edge/audio/wav.py reads it.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "bundle.hpp"

class WavFile {
 public:
  explicit WavFile(const std::filesystem::path& path) : path_(path) {
    check_regular(path, MOST_BYTES, "");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error(path.string() + ": cannot be read");
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    parse();
  }

  // The channels' average, or the loudest channel if they cancel out (left = -right).
  std::vector<float> mono() const {
    std::vector<float> average(frames_);
    std::vector<double> levels(channels_);
    double level = 0;
    for (size_t i = 0; i < frames_; ++i) {
      double sum = 0;
      for (size_t c = 0; c < channels_; ++c) {
        const double value = sample(i, c);
        if (!std::isfinite(static_cast<float>(value)))
          throw Error(path_.string() + ": contains NaN or infinite samples, the first at " +
                      std::to_string(static_cast<double>(i) / RATE) + " s; repair or convert it");
        sum += value;
        levels[c] += value * value;
      }
      average[i] = static_cast<float>(sum / static_cast<double>(channels_));
      level += static_cast<double>(average[i]) * average[i];
    }
    const auto loudest = std::max_element(levels.begin(), levels.end());
    if (channels_ > 1 && level < CANCELS * CANCELS * *loudest)
      for (size_t i = 0; i < frames_; ++i)
        average[i] = static_cast<float>(sample(i, static_cast<size_t>(loudest - levels.begin())));
    return average;
  }

 private:
  static constexpr uint64_t RATE = 16000, PCM = 1, FLOAT = 3, EXTENSIBLE = 0xFFFE, UNKNOWN = 0xFFFFFFFF;
  static constexpr uint64_t MOST_BYTES = uint64_t{1} << 30;  // nine hours of 16-bit audio; at most 30 s are transcribed
  static constexpr double CANCELS = 0.01;

  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(path_.string() + ": " + why + "; convert it, for example: ffmpeg -i IN -ac 1 -ar 16000 -c:a pcm_s16le OUT.wav");
  }

  bool is(size_t at, const char* tag) const { return at + 4 <= bytes_.size() && !std::memcmp(bytes_.data() + at, tag, 4); }

  uint64_t number(size_t at, size_t width) const {  // little-endian
    uint64_t value = 0;
    for (size_t i = 0; i < width; ++i) value |= static_cast<uint64_t>(static_cast<unsigned char>(bytes_[at + i])) << (8 * i);
    return value;
  }

  bool begins_chunk(size_t at) const {
    if (is(at, "fmt ")) return true;
    return at + 4 <= bytes_.size() &&
           std::all_of(bytes_.data() + at, bytes_.data() + at + 4, [](unsigned char c) { return std::isalnum(c); });
  }

  void parse() {
    if ((!is(0, "RIFF") && !is(0, "RF64")) || !is(8, "WAVE")) refuse("not a WAV file");
    uint64_t long_size = UNKNOWN;  // of the samples, in RF64
    for (size_t at = 12; at + 8 <= bytes_.size();) {
      const size_t begin = at + 8, there = bytes_.size() - begin;
      uint64_t size = number(at + 4, 4);
      if (is(at, "ds64") && size >= 16 && there >= 16) long_size = number(begin + 8, 8);
      if (is(at, "fmt ") && size >= 16 && there >= 16) read_format(begin, std::min<uint64_t>(size, there));
      if (is(at, "data")) {
        if (!channels_) refuse("its data chunk precedes its format chunk");
        if (size == UNKNOWN) size = long_size;
        // a writer that cannot seek back to its header leaves 0 or the largest number there
        if (size == 0 && !is(begin, "LIST") && !is(begin, "id3 ") && !is(begin, "bext") && !is(begin, "iXML")) size = UNKNOWN;
        const size_t frame = width_ * channels_;
        frames_ = std::min<uint64_t>(size, there) / frame;
        start_ = begin;
        if (!frames_) throw Error(path_.string() + ": contains no samples");
        if (size != UNKNOWN && size >= there + frame)
          std::cerr << path_.string() << ": is truncated, " << static_cast<double>(frames_) / RATE << " of "
                    << static_cast<double>(size / frame) / RATE << " s are present" << std::endl;
        return;
      }
      if (size > there) break;
      at = begin + size;
      if (size % 2 && !begins_chunk(at)) ++at;  // some writers omit the padding byte
    }
    throw Error(path_.string() + ": contains no samples");
  }

  void read_format(size_t at, uint64_t size) {
    code_ = number(at, 2);
    if (code_ == EXTENSIBLE && size >= 26) code_ = number(at + 24, 2);
    channels_ = number(at + 2, 2);
    const auto rate = number(at + 4, 4), align = number(at + 12, 2), bits = number(at + 14, 2);
    if (!channels_) refuse("it has 0 channels");
    width_ = align && align % channels_ == 0 ? align / channels_ : (bits + 7) / 8;
    if (bits > 8 * width_) width_ = (bits + 7) / 8;
    const bool known = (code_ == PCM && width_ >= 1 && width_ <= 4) || (code_ == FLOAT && (width_ == 4 || width_ == 8));
    if (!known || rate != RATE)
      refuse(std::to_string(bits) + " bits, format code " + std::to_string(code_) + ", at " + std::to_string(rate) +
             " Hz; expected PCM at 16000 Hz");
  }

  double sample(size_t frame, size_t channel) const {
    const size_t at = start_ + (frame * channels_ + channel) * width_;
    const auto raw = number(at, width_);
    if (code_ == FLOAT && width_ == 8) {
      double value;
      std::memcpy(&value, &raw, sizeof value);
      return value;
    }
    if (code_ == FLOAT) {
      const auto low = static_cast<uint32_t>(raw);
      float value;
      std::memcpy(&value, &low, sizeof value);
      return value;
    }
    if (width_ == 1) return (static_cast<double>(raw) - 128) / 128;  // the only width that is unsigned
    return static_cast<int32_t>(static_cast<uint32_t>(raw << (32 - 8 * width_))) / 2147483648.0;  // as the high bytes
  }

  std::filesystem::path path_;
  std::vector<char> bytes_;
  uint64_t code_ = 0;
  size_t channels_ = 0, width_ = 0, start_ = 0, frames_ = 0;
};

inline std::vector<float> read_wav(const std::filesystem::path& path) { return WavFile(path).mono(); }
