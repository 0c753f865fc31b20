// Transcribe recordings of at most 30 s: transcribe BUNDLE FILE.wav ... [--language en] [--precision int8] [--threads 2]

#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "bundle.hpp"
#include "recognizer.hpp"
#include "wav.hpp"

namespace {

struct Arguments {
  std::vector<std::string> places;  // the bundle, then the recordings
  std::string language = "en", precision;
  int threads = 0;
};

// Parse a number from 1 to 1024; 0 for anything else.
int number(const std::string& text) {
  const bool digits = !text.empty() && text.size() <= 4 && text.find_first_not_of("0123456789") == std::string::npos;
  const int found = digits ? std::stoi(text) : 0;
  return found <= 1024 ? found : 0;
}

// An error's message without control characters: it may quote a file.
std::string one_line(const std::exception& error) {
  std::string said = error.what();
  for (auto& c : said)
    if (static_cast<unsigned char>(c) < 32) c = ' ';
  return said;
}

Arguments parse(int count, char** given) {
  Arguments out;
  for (int i = 1; i < count; ++i) {
    const std::string name = given[i];
    if (name.rfind("--", 0) != 0) {
      out.places.push_back(name);
      continue;
    }
    if (i + 1 == count) throw Error(name + ": expected a value after it");
    const std::string value = given[++i];
    if (name == "--language") out.language = value;
    else if (name == "--precision") out.precision = value;
    else if (name == "--threads" && (out.threads = number(value)) > 0) continue;
    else throw Error(name + " " + value + ": expected --language CODE, --precision NAME or --threads N");
  }
  if (out.places.size() < 2)
    throw Error("usage: transcribe BUNDLE FILE.wav ... [--language en] [--precision int8] [--threads 2]");
  return out;
}

}  // namespace

int main(int count, char** given) {
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // before ONNX Runtime starts: disables its telemetry
  try {
    const auto arguments = parse(count, given);
    const Bundle bundle(arguments.places[0]);
    const auto precision = arguments.precision.empty() ? bundle.first_precision() : arguments.precision;
    Recognizer recognizer(bundle, precision, arguments.threads);
    int failed = 0;
    for (size_t i = 1; i < arguments.places.size(); ++i) try {
        const auto text = recognizer.transcribe(read_wav(arguments.places[i]), arguments.language);
        std::cout << arguments.places[i] << "\t" << text << std::endl;
      } catch (const std::exception& error) {  // continue with the other files
        std::cerr << "error: " << one_line(error) << std::endl;
        failed = 1;
      }
    return failed;
  } catch (const std::exception& error) {
    std::cerr << "error: " << one_line(error) << std::endl;
    return 2;
  }
}
