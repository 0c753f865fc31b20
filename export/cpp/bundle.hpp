// A bundle's manifest (bundle.json), and detokenization.
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

// Bundles and recordings are untrusted: every value is checked before it is used to count, allocate or index.
constexpr int64_t MOST_TOKENS = 1 << 20, MOST_WRITTEN = 4096, LONGEST_PROMPT = 16;
constexpr uint64_t MOST_JSON = 64u << 20;  // bytes

// Check that a path is a regular file of bounded size; pipes and devices may never end.
inline void check_regular(const std::filesystem::path& path, uint64_t most, const char* remedy) {
  std::error_code failed;
  const auto status = std::filesystem::status(path, failed);
  if (!std::filesystem::exists(status)) throw Error(path.string() + ": no such file" + remedy);
  if (std::filesystem::is_directory(status)) throw Error(path.string() + ": cannot be read (Is a directory)");
  if (!std::filesystem::is_regular_file(status)) throw Error(path.string() + ": is not a regular file; save it as one first");
  const auto size = std::filesystem::file_size(path, failed);
  if (failed || size > most)
    throw Error(path.string() + ": has " + std::to_string(size) + " bytes; expected at most " + std::to_string(most));
}

inline nlohmann::json read_json(const std::filesystem::path& path) {
  check_regular(path, MOST_JSON, "; expected the folder that `workbench export` wrote");
  std::ifstream file(path);
  auto content = nlohmann::json::parse(file, nullptr, false);
  if (content.is_discarded()) throw Error(path.string() + ": not valid JSON; copy the bundle again");
  if (!content.is_object()) throw Error(path.string() + ": is not a JSON object; export the bundle again");
  return content;
}

// Access to the fields of a JSON object, with bounds checks.
class Fields {
 public:
  Fields(const nlohmann::json& content, const std::string& where) : content_(content), where_(where) {
    if (!content.is_object()) refuse("is not an object");
  }

  [[noreturn]] void refuse(const std::string& what) const { throw Error(where_ + " " + what + "; export the bundle again"); }

  bool has(const std::string& name) const { return content_.contains(name) && !content_.at(name).is_null(); }

  const nlohmann::json& at(const std::string& name) const {
    if (!has(name)) refuse("has no field '" + name + "'");
    return content_.at(name);
  }

  Fields inside(const std::string& name) const { return Fields(at(name), where_ + " '" + name + "'"); }

  std::string text(const std::string& name) const {
    const auto& value = at(name);
    if (!value.is_string()) refuse("field '" + name + "' is not a string");
    return value.get<std::string>();
  }

  double number(const std::string& name, double least, double most) const {
    const auto& value = at(name);
    const double found = value.is_number() ? value.get<double>() : least - 1;
    if (!(found >= least && found <= most))
      refuse("field '" + name + "' is not a number from " + std::to_string(least) + " to " + std::to_string(most));
    return found;
  }

  int64_t whole(const std::string& name, int64_t least, int64_t most) const { return whole(at(name), name, least, most); }

  int64_t whole(const nlohmann::json& value, const std::string& name, int64_t least, int64_t most) const {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(INT64_MAX));
    const int64_t found = fits ? value.get<int64_t>() : 0;
    if (!fits || found < least || found > most)
      refuse("field '" + name + "' is not an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return found;
  }

  auto entries() const { return content_.items(); }
  size_t size() const { return content_.size(); }

 private:
  const nlohmann::json& content_;
  std::string where_;
};

class Bundle {
 public:
  explicit Bundle(const std::filesystem::path& folder) : folder_(folder), content_(read_json(folder / "bundle.json")) {
    const auto all = fields();
    if (const auto format = all.whole("format", INT64_MIN, INT64_MAX); format != 2)
      throw Error((folder / "bundle.json").string() + ": field 'format' is " + std::to_string(format) +
                  "; this program reads format 2");
    if (!all.inside("precisions").size()) all.refuse("has no precisions");
    const auto length = all.text("length");
    if (length != "true" && length != "padded") all.refuse("field 'length' is neither true nor padded");
    padded_ = length == "padded";
    window_ = all.number("window_seconds", 1, 30);
    margin_ = all.number("margin_seconds", 0, 30);
    if (all.has("sample_rate")) all.whole("sample_rate", 16000, 16000);
    const auto tokens = all.inside("tokens");
    end_ = tokens.whole("end", 0, MOST_TOKENS - 1);
    const auto prompts = tokens.inside("prompts");
    if (!prompts.size()) tokens.refuse("has no prompts");
    for (const auto& entry : prompts.entries()) {
      const auto& prompt = entry.value();
      if (!prompt.is_array() || prompt.empty() || prompt.size() > static_cast<size_t>(LONGEST_PROMPT))
        prompts.refuse("holds a prompt that is not an array of 1 to " + std::to_string(LONGEST_PROMPT) + " tokens");
      auto& ids = prompts_[entry.key()];
      for (const auto& id : prompt) ids.push_back(prompts.whole(id, entry.key(), 0, MOST_TOKENS - 1));
    }
    if (tokens.has("added"))
      for (const auto& entry : tokens.inside("added").entries()) {
        const auto& id = entry.key();
        if (id.empty() || id.size() > 7 || id.find_first_not_of("0123456789") != std::string::npos ||
            std::stol(id) >= MOST_TOKENS || !entry.value().is_string())
          tokens.refuse("adds a word that is not a string, or whose id is not below " + std::to_string(MOST_TOKENS));
        added_[static_cast<size_t>(std::stol(id))] = entry.value().get<std::string>();
      }
    ctc_ = all.text("family") == "ctc";
    if (ctc_ != all.has("ctc")) all.refuse("has a field 'ctc' and another family, or the reverse");
    if (ctc_) {
      const auto ctc = all.inside("ctc");
      blank_ = ctc.whole("blank", 0, MOST_TOKENS - 1);
      vocabulary_ = ctc.text("pieces");
      if (ctc.has("lower") && ctc.at("lower") != false) ctc.refuse("has 'lower', which this example does not support");
    }
    const auto caps = all.inside("decoding");
    least_ = caps.whole("tokens_at_least", 1, MOST_WRITTEN);
    most_ = caps.whole("most_tokens", 1, MOST_WRITTEN);
    rate_ = caps.number("tokens_per_second", 0, 1000);
    if (caps.has("tokens_per_second_of")) {
      const auto rates = caps.inside("tokens_per_second_of");
      for (const auto& entry : rates.entries()) rates_[entry.key()] = rates.number(entry.key(), 0, 1000);
    }
    const auto files = all.inside("files");
    for (const auto& entry : files.entries()) {
      const auto digest = files.text(entry.key());
      if (digest.size() != 64 || digest.find_first_not_of("0123456789abcdef") != std::string::npos)
        files.refuse("holds a SHA-256 that is not 64 hexadecimal digits");
    }
  }

  std::string first_precision() const { return content_.at("precisions").begin().key(); }

  std::filesystem::path graph(const std::string& part, const std::string& precision) const {
    const auto known = fields().inside("precisions");
    if (!known.has(precision)) {
      std::string names;
      for (const auto& one : known.entries()) names += (names.empty() ? "" : ", ") + one.key();
      throw Error(folder_.string() + ": no precision '" + precision + "'; it has " + names);
    }
    const auto name = known.inside(precision).text(part);
    const auto found = path(name);
    if (found.extension() != ".onnx") throw Error(found.string() + ": is not an .onnx file; export the bundle again");
    return found;
  }

  // Path of a file that the manifest lists; files outside the bundle, links and pipes are rejected.
  std::filesystem::path path(const std::string& name) const {
    const std::filesystem::path inside(name);
    auto place = folder_;
    bool outside = inside.is_absolute() || inside.has_root_name() || inside.empty();
    for (const auto& part : inside) outside = outside || part == "..";
    if (outside) throw Error((folder_ / "bundle.json").string() + ": '" + name + "' points outside the bundle");
    for (const auto& part : inside) {
      place /= part;
      std::error_code failed;
      if (std::filesystem::is_symlink(std::filesystem::symlink_status(place, failed)))
        throw Error(place.string() + ": is a symbolic link, which may point outside the bundle");
    }
    check_regular(place, INT64_MAX, ", though bundle.json names it; copy the whole folder again");
    if (!fields().inside("files").has(name)) throw Error(place.string() + ": bundle.json does not list it; export the bundle again");
    return place;
  }

  const std::vector<int64_t>& prompt(const std::string& language) const {
    const auto found = prompts_.find(language);
    if (found == prompts_.end()) throw Error(folder_.string() + ": does not support language '" + language + "'");
    return found->second;
  }

  // Words added to the tokenizer, by id; vocab.json lacks them.
  const std::map<size_t, std::string>& added() const { return added_; }

  int64_t end() const { return end_; }

  // Whether the model has a CTC head instead of a decoder, and then the token that stands for nothing.
  bool ctc() const { return ctc_; }
  int64_t blank() const { return blank_; }

  // The file that says what bytes each token stands for.
  std::filesystem::path vocabulary() const { return path(vocabulary_); }

  double window() const { return window_; }

  // Seconds of input for a clip: the clip plus a margin of silence, or the full window.
  double heard(double seconds) const { return padded_ ? window_ : std::min(seconds + margin_, window_); }

  // Maximum number of tokens in a transcript of a clip in a language.
  size_t token_limit(double seconds, const std::string& language) const {
    const auto found = rates_.find(language);
    const double rate = found == rates_.end() ? rate_ : found->second;
    return static_cast<size_t>(std::min(least_ + static_cast<int64_t>(rate * seconds), most_));
  }

 private:
  Fields fields() const { return Fields(content_, (folder_ / "bundle.json").string() + ":"); }

  std::filesystem::path folder_;
  nlohmann::json content_;
  bool padded_ = false, ctc_ = false;
  int64_t blank_ = 0;
  std::string vocabulary_ = "vocab.json";
  double window_ = 0, margin_ = 0, rate_ = 0;
  int64_t end_ = 0, least_ = 0, most_ = 0;
  std::map<std::string, std::vector<int64_t>> prompts_;
  std::map<std::string, double> rates_;
  std::map<size_t, std::string> added_;
};

// Byte-level BPE: every character of a token stands for one byte: itself if printable, else shifted.
class Detokenizer {
 public:
  Detokenizer(const std::filesystem::path& vocabulary, const std::map<size_t, std::string>& added) {
    std::map<uint32_t, char> bytes;
    uint32_t shifted = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      bytes[printable ? byte : shifted++] = static_cast<char>(byte);
    }
    const auto content = read_json(vocabulary);
    const Fields entries(content, vocabulary.string() + ":");
    for (const auto& entry : entries.entries()) {
      std::string piece;
      bool plain = true;
      for (size_t at = 0; at < entry.key().size() && plain;) {
        const auto found = bytes.find(character(entry.key(), at));
        plain = found != bytes.end();
        if (plain) piece += found->second;
      }
      const auto id = static_cast<size_t>(entries.whole(entry.value(), entry.key().substr(0, 80), 0, MOST_TOKENS - 1));
      if (id >= pieces_.size()) pieces_.resize(id + 1);
      if (plain) pieces_[id] = piece;  // special tokens have no text
    }
    for (const auto& [id, word] : added) {
      if (id >= pieces_.size()) pieces_.resize(id + 1);
      pieces_[id] = word;
    }
  }

  // Valid UTF-8, unless the transcript was cut off within a character.
  std::string operator()(const std::vector<int64_t>& tokens) const {
    std::string text;
    for (const auto token : tokens)
      if (token >= 0 && static_cast<size_t>(token) < pieces_.size()) text += pieces_[static_cast<size_t>(token)];
    const char* blank = " \t\n\v\f\r";
    const auto first = text.find_first_not_of(blank), last = text.find_last_not_of(blank);
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
  }

 private:
  // The code point at a position, advancing it; UTF-8 of at most two bytes, enough for the byte alphabet.
  static uint32_t character(const std::string& text, size_t& at) {
    const auto lead = static_cast<unsigned char>(text[at++]);
    if (lead < 0x80) return lead;
    if ((lead & 0xE0) == 0xC0 && at < text.size())
      return ((lead & 0x1Fu) << 6) | (static_cast<unsigned char>(text[at++]) & 0x3Fu);
    return UINT32_MAX;
  }

  std::vector<std::string> pieces_;
};
