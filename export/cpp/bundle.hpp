// What a bundle's bundle.json says, and text of its tokens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline nlohmann::json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw Error(path.string() + ": no such file; expected the folder that `workbench export` wrote");
  auto content = nlohmann::json::parse(file, nullptr, false);
  if (content.is_discarded()) throw Error(path.string() + ": not valid JSON; copy the bundle again");
  return content;
}

class Bundle {
 public:
  explicit Bundle(const std::filesystem::path& folder)
      : folder_(folder), content_(read_json(folder / "bundle.json")) {
    const auto format = content_.is_object() ? content_.value("format", 0) : 0;
    if (format != 2)
      throw Error((folder / "bundle.json").string() + ": field 'format' is " + std::to_string(format) +
                  "; this program reads format 2");
  }

  std::string first_precision() const { return content_.at("precisions").begin().key(); }

  std::filesystem::path graph(const std::string& part, const std::string& precision) const {
    const auto& known = content_.at("precisions");
    if (!known.contains(precision)) {
      std::string names;
      for (const auto& one : known.items()) names += (names.empty() ? "" : ", ") + one.key();
      throw Error(folder_.string() + ": no precision '" + precision + "'; it has " + names);
    }
    return path(known.at(precision).at(part).get<std::string>());
  }

  // A file that the manifest names; one outside the bundle is refused.
  std::filesystem::path path(const std::string& name) const {
    const auto inside = std::filesystem::path(name).lexically_normal();
    if (inside.is_absolute() || inside.empty() || *inside.begin() == "..")
      throw Error((folder_ / "bundle.json").string() + ": '" + name + "' points outside the bundle");
    return folder_ / inside;
  }

  std::vector<int64_t> prompt(const std::string& language) const {
    const auto& prompts = content_.at("tokens").at("prompts");
    if (!prompts.contains(language)) throw Error(folder_.string() + ": does not know language '" + language + "'");
    return prompts.at(language).get<std::vector<int64_t>>();
  }

  // Words that were added to the tokenizer, by id; vocab.json does not have them.
  std::map<size_t, std::string> added() const {
    std::map<size_t, std::string> words;
    const auto& tokens = content_.at("tokens");
    if (tokens.contains("added"))
      for (const auto& entry : tokens.at("added").items())
        words[std::stoul(entry.key())] = entry.value().get<std::string>();
    return words;
  }

  int64_t end() const { return content_.at("tokens").at("end").get<int64_t>(); }
  double window() const { return content_.at("window_seconds").get<double>(); }

  // Seconds that the model hears of a clip: with a margin of silence after it, or all of the window.
  double heard(double seconds) const {
    if (content_.at("length") == "padded") return window();
    return std::min(seconds + content_.at("margin_seconds").get<double>(), window());
  }

  // Most tokens that a transcript of a clip in a language may have.
  size_t token_limit(double seconds, const std::string& language) const {
    const auto& caps = content_.at("decoding");
    double rate = caps.at("tokens_per_second").get<double>();
    if (caps.contains("tokens_per_second_of")) rate = caps.at("tokens_per_second_of").value(language, rate);
    const int most = caps.at("tokens_at_least").get<int>() + static_cast<int>(rate * seconds);
    return static_cast<size_t>(std::min(most, caps.at("most_tokens").get<int>()));
  }

 private:
  std::filesystem::path folder_;
  nlohmann::json content_;
};

// Byte-level BPE: every character of a token's name stands for one byte, itself where that is printable, else shifted.
class Detokenizer {
 public:
  Detokenizer(const std::filesystem::path& vocabulary, const std::map<size_t, std::string>& added) {
    std::map<uint32_t, char> bytes;
    uint32_t shifted = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      bytes[printable ? byte : shifted++] = static_cast<char>(byte);
    }
    const auto entries = read_json(vocabulary);
    for (const auto& entry : entries.items()) {
      std::string piece;
      bool plain = true;
      for (size_t at = 0; at < entry.key().size() && plain;) {
        const auto found = bytes.find(character(entry.key(), at));
        plain = found != bytes.end();
        if (plain) piece += found->second;
      }
      const auto id = entry.value().get<size_t>();
      if (id >= pieces_.size()) pieces_.resize(id + 1);
      if (plain) pieces_[id] = piece;  // a special token says nothing
    }
    for (const auto& [id, word] : added) {
      if (id >= pieces_.size()) pieces_.resize(id + 1);
      pieces_[id] = word;
    }
  }

  // UTF-8, but for a transcript that was cut off inside a character.
  std::string operator()(const std::vector<int64_t>& tokens) const {
    std::string text;
    for (const auto token : tokens)
      if (token >= 0 && static_cast<size_t>(token) < pieces_.size()) text += pieces_[static_cast<size_t>(token)];
    const char* blank = " \t\n\v\f\r";
    const auto first = text.find_first_not_of(blank), last = text.find_last_not_of(blank);
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
  }

 private:
  // The code point at a place in UTF-8 of at most two bytes, which is all that the alphabet has; moves the place on.
  static uint32_t character(const std::string& text, size_t& at) {
    const auto lead = static_cast<unsigned char>(text[at++]);
    if (lead < 0x80) return lead;
    if ((lead & 0xE0) == 0xC0 && at < text.size())
      return ((lead & 0x1Fu) << 6) | (static_cast<unsigned char>(text[at++]) & 0x3Fu);
    return UINT32_MAX;
  }

  std::vector<std::string> pieces_;
};
