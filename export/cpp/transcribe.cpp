// Transcribe recordings of at most 30 s: transcribe BUNDLE FILE.wav ... [--language en] [--precision int8] [--threads 2]

#include <cstdlib>
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
    else if (name == "--threads" && (out.threads = std::atoi(value.c_str())) > 0) continue;
    else throw Error(name + " " + value + ": expected --language CODE, --precision NAME or --threads N");
  }
  if (out.places.size() < 2)
    throw Error("usage: transcribe BUNDLE FILE.wav ... [--language en] [--precision int8] [--threads 2]");
  return out;
}

}  // namespace

int main(int count, char** given) {
  try {
    const auto arguments = parse(count, given);
    const Bundle bundle(arguments.places[0]);
    const auto precision = arguments.precision.empty() ? bundle.first_precision() : arguments.precision;
    Recognizer recognizer(bundle, precision, arguments.threads);
    int failed = 0;
    for (size_t i = 1; i < arguments.places.size(); ++i) try {
        const auto text = recognizer.transcribe(read_wav(arguments.places[i]), arguments.language);
        std::cout << arguments.places[i] << "\t" << text << std::endl;
      } catch (const Error& error) {  // the other files are transcribed still
        std::cerr << "error: " << error.what() << std::endl;
        failed = 1;
      }
    return failed;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << std::endl;
    return 2;
  }
}
