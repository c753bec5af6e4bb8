// dipengine.hpp from an installed package: render RUNTIME MODEL OUT units|uint8|uint16|float32|float64 THREADS [X Y W H]
// Writes the raw pixels to OUT; the model is given by its bytes where its name begins with '@'. RENDER_PROVIDER: and no other.
#include <dipengine/dipengine.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

namespace {

template <typename Sample>
void write(const char* path, const std::vector<Sample>& pixels) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(pixels.data()),
                                              static_cast<std::streamsize>(pixels.size() * sizeof(Sample)));
}

std::string contents(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void paint(const dipengine::Renderer& renderer, const char* out, const std::string& kind, const dipengine::Region& region) {
  if (kind == "units") write(out, renderer.units(region));
  if (kind == "uint8") write(out, renderer.image<uint8_t>(region));
  if (kind == "uint16") write(out, renderer.image<uint16_t>(region));
  if (kind == "float32") write(out, renderer.image<float>(region));
  if (kind == "float64") {  // the whole image
    const auto info = renderer.info();
    std::vector<double> pixels(static_cast<size_t>(info.width * info.height * info.channels));
    renderer.paint(DIPENGINE_UNITS_DATA, DIPENGINE_FLOAT64, {pixels.data(), info.width * info.channels, info.channels}, region);
    write(out, pixels);
  }
  if (kind == "at once") {  // by two threads; the same pixels are expected from both
    std::vector<float> first, second;
    std::thread other([&] { first = renderer.units(region); });
    second = renderer.units(region);
    other.join();
    if (first == second) write(out, first);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6 && argc != 10) return 3;
  try {
    auto params = dipengine::Renderer::default_params();
    params.runtime = argv[1];
    std::string bytes;
    if (argv[2][0] == '@') {
      bytes = contents(argv[2] + 1);
      params.model = bytes.data();
      params.model_bytes = bytes.size();
    } else {
      params.path = argv[2];
    }
    params.threads = std::atoi(argv[5]);
    if (const char* provider = std::getenv("RENDER_PROVIDER")) {
      params.provider = provider;
      params.strict = 1;
    }
    const dipengine::Renderer renderer(params);
    bytes.clear();  // nothing of them is needed any more
    bytes.shrink_to_fit();
    dipengine::Region region;
    if (argc == 10) region = {std::atoll(argv[6]), std::atoll(argv[7]), std::atoll(argv[8]), std::atoll(argv[9])};
    paint(renderer, argv[3], argv[4], region);
    const auto info = renderer.info();
    std::cout << info.width << " " << info.height << " " << info.channels << " " << info.dtype_name << " " << info.task << " "
              << info.provider << " " << info.runtime_version << "\n";
  } catch (const dipengine::Error& error) {
    std::cerr << error.what() << "\n";
    return 10 + error.status;
  }
  return 0;
}
