// Rejects ONNX files that must not be run from an untrusted bundle, as edge/bundle/graph_file.py does: loops, functions, weights in other
// files, operators that load code. The protobuf messages are parsed one by one; weights are skipped.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include "bundle.hpp"

class GraphFile {
 public:
  // Throws an Error if the graph must not be run.
  static void check(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    const auto size = std::filesystem::file_size(path);
    if (!size || size > LARGEST) throw Error(path.string() + ": its size is " + std::to_string(size) + " bytes");
    std::string bytes(static_cast<size_t>(size), '\0');
    if (!file.read(&bytes[0], static_cast<std::streamsize>(size))) throw Error(path.string() + ": cannot be read");
    try {
      GraphFile(bytes).model();
    } catch (const Error& error) {
      throw Error(path.string() + ": " + error.what());
    }
  }

 private:
  // field numbers of onnx.proto
  enum Model { GRAPH = 7, TRAINING = 20, FUNCTIONS = 25 };
  enum Graph { NODE = 1, INITIALIZER = 5, SPARSE = 15 };
  enum Node { OP_TYPE = 4, ATTRIBUTE = 5, DOMAIN_NAME = 7 };
  enum Attribute { TENSOR = 5, SUBGRAPH = 6, TENSORS = 10, SUBGRAPHS = 11, SPARSE_TENSOR = 22, SPARSE_TENSORS = 23 };
  enum Tensor { EXTERNAL = 13, LOCATION = 14 };
  static constexpr uint64_t LARGEST = 0x7FFFFFFF, MOST_FIELDS = 4000000;
  static constexpr int DEEPEST = 4;

  struct Field {
    uint64_t number, wire, value;  // of a varint
    size_t begin, end;             // of anything else
  };

  explicit GraphFile(const std::string& bytes) : bytes_(bytes) {}

  void model() {
    bool found = false;
    for (size_t at = 0; at < bytes_.size();) {
      const auto field = next(at, bytes_.size());
      if (field.number == FUNCTIONS || field.number == TRAINING) throw Error("it has functions or a training graph");
      if (field.number != GRAPH || field.wire != 2) continue;
      found = true;
      graph(field, 0);
    }
    if (!found) throw Error("it is not an ONNX model; copy the bundle again");
  }

  void graph(const Field& message, int depth) {
    if (depth > DEEPEST) throw Error("its branches are nested more than " + std::to_string(DEEPEST) + " deep");
    for (size_t at = message.begin; at < message.end;) {
      const auto field = next(at, message.end);
      if (field.wire != 2) continue;
      if (field.number == NODE) node(field, depth);
      if (field.number == INITIALIZER) tensor(field);
      if (field.number == SPARSE) sparse(field);
    }
  }

  void node(const Field& message, int depth) {
    static const std::set<std::string> refused = {"Loop",         "Scan",     "SequenceMap", "BeamSearch", "WhisperBeamSearch",
                                                  "GreedySearch", "Sampling", "EPContext",   "Snpe",       "PythonOp",
                                                  "PyOp"};
    static const std::set<std::string> domains = {"", "ai.onnx", "com.microsoft", "com.ms.internal.nhwc"};
    for (size_t at = message.begin; at < message.end;) {
      const auto field = next(at, message.end);
      if (field.wire != 2) continue;
      const auto text = bytes_.substr(field.begin, std::min<size_t>(field.end - field.begin, 80));
      if (field.number == OP_TYPE && refused.count(text)) throw Error("it has the operator " + text + ", which is not allowed");
      if (field.number == DOMAIN_NAME && !domains.count(text)) throw Error("it has an operator of an unknown domain");
      if (field.number == ATTRIBUTE) attribute(field, depth);
    }
  }

  void attribute(const Field& message, int depth) {
    for (size_t at = message.begin; at < message.end;) {
      const auto field = next(at, message.end);
      if (field.wire != 2) continue;
      if (field.number == SUBGRAPH || field.number == SUBGRAPHS) graph(field, depth + 1);
      if (field.number == TENSOR || field.number == TENSORS) tensor(field);
      if (field.number == SPARSE_TENSOR || field.number == SPARSE_TENSORS) sparse(field);
    }
  }

  void sparse(const Field& message) {
    for (size_t at = message.begin; at < message.end;) {
      const auto field = next(at, message.end);
      if (field.wire == 2 && (field.number == 1 || field.number == 2)) tensor(field);  // values and indices
    }
  }

  void tensor(const Field& message) {
    for (size_t at = message.begin; at < message.end;) {
      const auto field = next(at, message.end);
      if (field.number == EXTERNAL || (field.number == LOCATION && (field.wire != 0 || field.value)))
        throw Error("its weights are in an external file, which `workbench export` never writes");
    }
  }

  Field next(size_t& at, size_t end) {
    if (++read_ > MOST_FIELDS) throw Error("it has more than " + std::to_string(MOST_FIELDS) + " fields");
    const auto key = varint(at, end) & 0xFFFFFFFF;  // protobuf ignores a tag's bits beyond 32
    Field field{key >> 3, key & 7, 0, 0, 0};
    uint64_t size = 0;
    if (field.wire == 0) field.value = varint(at, end);
    else if (field.wire == 1) size = 8;
    else if (field.wire == 5) size = 4;
    else if (field.wire == 2) size = varint(at, end);
    else throw Error("it is not an ONNX model; copy the bundle again");
    if (size > end - at) throw Error("it ends too early; copy the bundle again");
    field.begin = at;
    field.end = at += static_cast<size_t>(size);
    return field;
  }

  uint64_t varint(size_t& at, size_t end) {
    uint64_t value = 0;
    for (int shift = 0; shift < 70 && at < end; shift += 7) {
      const auto byte = static_cast<unsigned char>(bytes_[at++]);
      if (shift < 64) value |= static_cast<uint64_t>(byte & 0x7Fu) << shift;
      if (byte < 0x80) return value;
    }
    throw Error("it ends too early; copy the bundle again");
  }

  const std::string& bytes_;
  uint64_t read_ = 0;
};
