// Greedy recognition with a bundle's graphs in ONNX Runtime: frontend, encoder, then a decoder that updates its caches in place; or the one
// graph of a model with a CTC head. One clip at a time.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "graph_file.hpp"

class Recognizer {
 public:
  Recognizer(const Bundle& bundle, const std::string& precision, int threads)
      : bundle_(bundle),
        environment_(ORT_LOGGING_LEVEL_FATAL, "transcribe"),
        detokenize_(bundle.vocabulary(), bundle.added()) {
    if (bundle.ctc()) {
      ctc_ = open(bundle.graph("ctc", precision), threads);
      return;
    }
    frontend_ = open(bundle.graph("frontend", precision), threads);
    encoder_ = open(bundle.graph("encoder", precision), threads);
    step_ = open(bundle.graph("step", precision), threads);
    for (size_t i = 0; i < step_.GetInputCount(); ++i) {
      const auto name = step_.GetInputNameAllocated(i, allocator_);
      if (std::string(name.get()) != "cache_k.0") continue;
      const auto info = step_.GetInputTypeInfo(i);
      if (info.GetONNXType() != ONNX_TYPE_TENSOR) throw Error("the decoder's caches are not tensors; export the bundle again");
      const auto type = info.GetTensorTypeAndShapeInfo().GetElementType();
      if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
        throw Error("precision '" + precision + "' has fp16 caches, which this example does not support; choose another precision");
    }
  }

  std::string transcribe(std::vector<float> wave, const std::string& language) {
    const double seconds = static_cast<double>(wave.size()) / RATE;
    if (seconds > bundle_.window())
      throw Error("the clip lasts " + std::to_string(seconds) + " s; expected at most " +
                  std::to_string(static_cast<int>(bundle_.window())) + " s");
    if (bundle_.ctc()) return spelled(wave, language);
    const auto positions = static_cast<size_t>(std::ceil(std::round(bundle_.heard(seconds) * RATE) / POSITION));
    wave.resize(positions * POSITION);  // trailing silence, as in training

    const int64_t shape[] = {1, static_cast<int64_t>(wave.size())};
    auto waves = Ort::Value::CreateTensor<float>(memory_, wave.data(), wave.size(), shape, 2);
    auto features = run(frontend_, "waves", waves, {"input_features"});
    auto crossed = run(encoder_, "input_features", features[0], {"n_layer_cross_k", "n_layer_cross_v"});
    return detokenize_(written(crossed, bundle_.prompt(language), bundle_.token_limit(seconds, language)));
  }

 private:
  static constexpr int64_t MOST_CACHED = int64_t{1} << 31;  // values in all caches; Whisper large needs 37 million
  static constexpr int RATE = 16000, POSITION = 320;  // samples per second, samples per encoder position

  Ort::Session open(const std::filesystem::path& path, int threads) {
    GraphFile::check(path);
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);  // 0: all cores
    // three sessions share the cores: a pool that spins after its graph is done slows the next graph
    options.AddConfigEntry("session.intra_op.allow_spinning", "0");
    return Ort::Session(environment_, path.c_str(), options);
  }

  static std::vector<Ort::Value> run(Ort::Session& session, const char* input, const Ort::Value& value,
                                     const std::vector<const char*>& outputs) {
    return session.Run(Ort::RunOptions(), &input, &value, 1, outputs.data(), outputs.size());
  }

  // Shape of a graph's float output, its rank and bounds checked, because memory is allocated and addressed by it.
  static std::vector<int64_t> shape_of(const Ort::Value& value, const char* name, const std::vector<int64_t>& most) {
    if (!value.IsTensor()) throw Error(std::string(name) + " is not a tensor; export the bundle again");
    const auto info = value.GetTensorTypeAndShapeInfo();
    const auto shape = info.GetShape();
    bool fits = info.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT && shape.size() == most.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] > 0 && shape[i] <= most[i];
    if (!fits) throw Error(std::string(name) + " has an unexpected shape or type; export the bundle again");
    return shape;
  }

  // The likeliest token at each position, repetitions once and blanks left out. The graph adds the silence.
  std::string spelled(std::vector<float>& wave, const std::string& language) {
    bundle_.prompt(language);  // refuses a language that the bundle does not name
    if (wave.empty()) throw Error("the clip has no samples");
    const int64_t shape[] = {1, static_cast<int64_t>(wave.size())};
    const auto waves = Ort::Value::CreateTensor<float>(memory_, wave.data(), wave.size(), shape, 2);
    const auto outputs = run(ctc_, "input_values", waves, {"logits"});
    const auto found = shape_of(outputs[0], "logits", {1, 3000, MOST_TOKENS});  // clips, positions, vocabulary
    const int64_t vocabulary = found[2];
    if (bundle_.blank() >= vocabulary) throw Error("the vocabulary is smaller than bundle.json's blank; export the bundle again");
    const float* scores = outputs[0].GetTensorData<float>();
    std::vector<int64_t> tokens;
    int64_t before = -1;
    for (int64_t position = 0; position < found[1]; ++position, scores += vocabulary) {
      const int64_t token = std::max_element(scores, scores + vocabulary) - scores;
      if (token != before && token != bundle_.blank()) tokens.push_back(token);
      before = token;
    }
    return single_spaced(detokenize_(tokens));
  }

  // With one space for each stretch of white space; of Unicode's, that of ASCII.
  static std::string single_spaced(const std::string& text) {
    std::string out;
    for (const char c : text) {
      const bool space = c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
      if (!space) out += c;
      else if (!out.empty() && out.back() != ' ') out += ' ';
    }
    return out.substr(0, out.find_last_not_of(' ') + 1);
  }

  // Greedy decoding until the end token or the limit; a loop that reaches the limit is cut to one repetition.
  std::vector<int64_t> written(std::vector<Ort::Value>& crossed, std::vector<int64_t> tokens, size_t limit) {
    const std::vector<int64_t> most = {64, 1, 3000, 8192};  // layers, clips, positions, width
    const auto shape = shape_of(crossed[0], "n_layer_cross_k", most);
    if (shape != shape_of(crossed[1], "n_layer_cross_v", most)) throw Error("the encoder's keys and values differ in shape");
    const int64_t layers = shape[0], positions = shape[2], width = shape[3];
    if (2 * layers * width * static_cast<int64_t>(tokens.size() + limit) > MOST_CACHED)
      throw Error("the decoder's caches would need more than " + std::to_string(MOST_CACHED) + " values");
    const int64_t cross_shape[] = {1, positions, width};
    const int64_t cache_shape[] = {1, static_cast<int64_t>(tokens.size() + limit), width};
    const auto cross_size = static_cast<size_t>(positions * width);
    const auto cache_size = static_cast<size_t>(cache_shape[1] * width);

    Ort::IoBinding binding(step_);
    std::vector<std::vector<float>> caches;
    std::vector<Ort::Value> values;  // bound values must outlive the binding
    caches.reserve(static_cast<size_t>(2 * layers));
    const auto bind = [&](const std::string& name, float* data, size_t size, const int64_t* dims) -> Ort::Value& {
      values.push_back(Ort::Value::CreateTensor<float>(memory_, data, size, dims, 3));
      binding.BindInput(name.c_str(), values.back());
      return values.back();
    };
    for (int kind = 0; kind < 2; ++kind) {
      float* states = crossed[static_cast<size_t>(kind)].GetTensorMutableData<float>();
      for (int64_t layer = 0; layer < layers; ++layer) {
        const std::string suffix = std::string(1, "kv"[kind]) + "." + std::to_string(layer);
        bind("cross_" + suffix, states + static_cast<size_t>(layer) * cross_size, cross_size, cross_shape);
        caches.emplace_back(cache_size, 0.0f);
        // one tensor is the cache before and after a step
        auto& cache = bind("cache_" + suffix, caches.back().data(), cache_size, cache_shape);
        binding.BindOutput(("next_" + suffix).c_str(), cache);
      }
    }
    binding.BindOutput("logits", memory_);
    const auto logits_at = static_cast<size_t>(2 * layers);  // outputs are in binding order

    std::vector<int64_t> found;
    int64_t offset = 0;
    while (true) {
      const int64_t ids_shape[] = {1, static_cast<int64_t>(tokens.size())}, one[] = {1};
      auto ids = Ort::Value::CreateTensor<int64_t>(memory_, tokens.data(), tokens.size(), ids_shape, 2);
      auto done = Ort::Value::CreateTensor<int64_t>(memory_, &offset, 1, one, 1);
      binding.BindInput("input_ids", ids);
      binding.BindInput("offset", done);
      step_.Run(Ort::RunOptions(), binding);
      offset += static_cast<int64_t>(tokens.size());
      const auto outputs = binding.GetOutputValues();
      const auto& logits = outputs.at(logits_at);
      const int64_t vocabulary = shape_of(logits, "logits", {1, MOST_TOKENS})[1];
      if (bundle_.end() >= vocabulary) throw Error("the decoder's vocabulary is smaller than bundle.json's end token; export the bundle again");
      const float* scores = logits.GetTensorData<float>();
      const int64_t token = std::max_element(scores, scores + vocabulary) - scores;
      if (token == bundle_.end()) return found;
      found.push_back(token);
      if (found.size() >= limit) {
        if (const auto excess = repeated(found)) {
          std::cerr << "warning: the decoder repeated itself up to its token limit; one repetition is kept" << std::endl;
          found.resize(found.size() - excess);
        }
        return found;
      }
      tokens = {token};
    }
  }

  // How many tokens at the end only repeat those before them, if there is a loop; else 0. As in edge/decoding/decoder.py.
  static size_t repeated(const std::vector<int64_t>& tokens) {
    constexpr size_t least_times = 3, least_repeated = 12;
    for (size_t unit = 1; unit <= tokens.size() / least_times; ++unit) {
      size_t same = 0;
      while (same + unit < tokens.size() && tokens[tokens.size() - 1 - same] == tokens[tokens.size() - 1 - same - unit]) ++same;
      if (same + unit >= std::max(least_times * unit, least_repeated)) return same;
    }
    return 0;
  }

  const Bundle& bundle_;
  Ort::Env environment_;
  Ort::AllocatorWithDefaultOptions allocator_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  Detokenizer detokenize_;
  Ort::Session frontend_{nullptr}, encoder_{nullptr}, step_{nullptr}, ctc_{nullptr};
};
