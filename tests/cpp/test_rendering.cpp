// What painting checks before a runtime is opened: metadata, the ONNX file's protobuf, z, regions.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "dipengine/render.h"
#include "ops/philox/philox.h"
#include "rendering/json.h"
#include "rendering/model.h"
#include "rendering/onnx_file.h"
#include "rendering/unusable.h"

using dipengine::Json;

namespace {

template <typename Work>
bool refuses(const Work& work) {
  try {
    work();
  } catch (const std::invalid_argument&) {
    return true;
  } catch (const dipengine::Unusable&) {
    return true;
  }
  return false;
}

// ---- protobuf, as onnx.proto numbers it -----------------------------------------------------------------------------

std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 128; value >>= 7) bytes += static_cast<char>(value | 128);
  return bytes + static_cast<char>(value);
}
std::string number(uint64_t field, uint64_t value) { return varint(field << 3) + varint(value); }
std::string text(uint64_t field, const std::string& content) { return varint(field << 3 | 2) + varint(content.size()) + content; }

const char* const kAbout =
    R"({"format": 1, "version": "0.1.0", "task": "den\u00f6ise", "width": 7, "height": 5, "channels": 1, "dtype": "uint8",
        "values": {"low": 0.0, "high": 255.0}, "canvas": [8, 8], "origin": [1, 0],
        "generator": {"kind": "hourglass", "input_depth": 5, "output_channels": 1, "channels_down": [2, 2], "channels_up": [2, 2],
        "channels_skip": [1, 0], "kernel_down": [3, 3], "kernel_up": [3, 3], "upsample": ["nearest", "bilinear"],
        "downsample": "stride", "one_by_one_up": true, "padding": "reflection", "negative_slope": 0.2},
        "precision": "fp32", "z": "seed", "code": {"kind": "noise", "depth": 5, "seed": 18446744073709551615, "scale": 0.1},
        "psnr": null})";

std::string tensor(const std::string& name, const std::vector<uint64_t>& dims, const std::string& raw) {
  std::string bytes;
  for (uint64_t length : dims) bytes += number(1, length);
  return bytes + number(2, 2) + text(8, name) + text(9, raw);
}

std::string node(const std::string& kind, const std::vector<std::string>& inputs, const std::string& output,
                 const std::string& more = "") {
  std::string bytes;
  for (const std::string& input : inputs) bytes += text(1, input);
  return text(1, bytes + text(2, output) + text(4, kind) + more);
}
std::string setting(const std::string& name, uint64_t value) { return text(5, text(1, name) + number(3, value) + number(20, 2)); }
std::string settings(const std::string& name, const std::vector<uint64_t>& values) {
  std::string bytes = text(1, name) + number(20, 7);
  for (uint64_t value : values) bytes += number(8, value);
  return text(5, bytes);
}

std::string model(const std::string& more_graph, const std::string& about = kAbout, uint64_t opset = 17) {
  const std::string graph = node("LeakyRelu", {"z"}, "first", text(5, text(1, "alpha") + number(20, 1))) + text(11, text(1, "z")) +
                            text(11, text(1, "crop")) + text(12, text(1, "image"));
  return number(1, 8) + text(7, graph + more_graph) + text(8, number(2, opset)) + text(14, text(1, "dipengine") + text(2, about));
}

// int64 [values]
std::string whole_numbers(const std::string& name, const std::vector<int64_t>& values) {
  std::string raw(8 * values.size(), '\0');
  std::memcpy(raw.data(), values.data(), raw.size());
  return text(5, number(1, values.size()) + number(2, 7) + text(8, name) + text(9, raw));
}

dipengine::GeneratorModel read(const std::string& bytes) { return dipengine::read_model("it", bytes.data(), bytes.size()); }

std::string replaced(std::string about, const std::string& from, const std::string& to) {
  return about.replace(about.find(from), from.size(), to);
}

}  // namespace

TEST(rendering_json_reads_what_python_writes) {
  const Json json = Json::parse(R"( {"a": [1, -2.5e3, true, null], "b": {"c": "x\n\"\u00e9\ud83d\ude00"}, "a2": "", "b2": 18446744073709551615} )");
  CHECK(json.at("a").array().size() == 4 && json.at("a").items[0].whole(0, 1) == 1 && json.at("a").items[1].number() == -2500);
  CHECK(json.at("a").items[2].boolean() && json.at("a").items[3].kind == Json::Kind::null);
  CHECK(json.at("b").at("c").string() == "x\n\"\xC3\xA9\xF0\x9F\x98\x80");
  CHECK(json.at("b2").unsigned_whole() == UINT64_MAX && json.find("absent") == nullptr);
  for (const char* wrong : {"", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "\"a", "\"\\x\"", "\"\\u12\"", "[1e]", "NaN", "-", "{\"a\":1,}", "\"\n\""}) {
    CHECK(refuses([&] { Json::parse(wrong); }));
  }
  CHECK(refuses([] { Json::parse(std::string(100000, '[')); }));
  CHECK(refuses([&] { json.at("b2").whole(0, INT64_MAX); }) && refuses([] { Json::parse("1e999").number(); }));
  CHECK(refuses([] { Json::parse("1.5").whole(0, 9); }) && refuses([] { Json::parse("-1").unsigned_whole(); }));
}

TEST(rendering_reads_a_generator_and_refuses_every_cut_of_it) {
  const std::string whole = model(text(5, tensor("w", {3, 4}, std::string(12, 'x'))));
  const auto found = read(whole);
  CHECK(found.height == 5 && found.width == 7 && found.top == 1 && found.task == "den\xC3\xB6ise" && found.seed == UINT64_MAX);
  for (size_t length = 0; length < whole.size(); ++length) {
    const std::vector<char> cut(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length));  // its end is a sanitizer's
    CHECK(refuses([&] { dipengine::read_model("it", cut.data(), cut.size()); }));
  }
  check::Numbers numbers(1);
  for (int i = 0; i < 20000; ++i) {  // bytes changed at random: read or refused, nothing else
    std::string changed = whole;
    for (int k = 0; k < 3; ++k) {
      const double place = (numbers.next() + 1) / 2 * static_cast<double>(changed.size());
      changed[std::min(changed.size() - 1, static_cast<size_t>(place))] = static_cast<char>(numbers.next() * 127);
    }
    refuses([&] { read(changed); });
  }
}

TEST(rendering_refuses_graphs_that_are_no_generators) {
  CHECK(!refuses([] { read(model("")); }));
  const std::string cases[] = {
      text(1, text(4, "If")),                                                            // an operator of others
      node("Sigmoid", {"z"}, "y", text(7, "com.microsoft")),                             // of another domain
      node("Sigmoid", {"z"}, "y", text(5, text(1, "alpha") + text(6, ""))),              // a graph in an attribute
      node("Sigmoid", {"z"}, "y", text(5, text(1, "alpha") + text(5, ""))),              // a tensor in one
      text(5, tensor("w", {1u << 20}, "")),                                              // more weights than the network has
      text(5, tensor("w", {UINT64_MAX}, "")),                                            // a negative side
      text(5, number(14, 1) + text(8, "w")), text(5, text(13, "") + text(8, "w")),       // outside the file
      text(5, number(14, (uint64_t{1} << 32) + 1) + text(8, "w")), text(5, varint((uint64_t{1} << 32) + (13 << 3 | 2)) + varint(0)),
      text(15, ""),                                                                      // sparse weights
      text(11, text(1, "more")), text(12, text(1, "more")),                              // other inputs and outputs
      text(5, tensor("z", {1, 5, 8, 8}, std::string(319, 'z'))),                         // z cut off
      text(5, tensor("z", {1, 5, 8, 4}, std::string(160, 'z'))),                         // of another shape
      text(5, tensor("z", {1, 5, 8, 8}, std::string(320, 'z'))) + text(5, tensor("z", {1, 5, 8, 8}, std::string(320, 'z'))),
  };
  for (const std::string& more : cases) CHECK(refuses([&] { read(model(more)); }));
  CHECK(refuses([] { read(model("") + text(25, "")); }));  // functions
  const std::pair<const char*, const char*> lies[] = {
      {"[8, 8]", "[8, 10]"}, {"[8, 8]", "[1099511627776, 1099511627776]"}, {"[1, 0]", "[4, 0]"}, {"\"seed\",", "\"stored\","},
      {"\"noise\"", "\"image\""}, {"\"depth\": 5", "\"depth\": 4"}, {"255.0", "0.0"}, {"[3, 3]", "[3]"}, {"0.2", "1.0"},
      {"\"kind\": \"hourglass\"", "\"kind\": \"tower\""}, {"\"task\"", "\"tusk\""}, {"[1, 0]", "[1e3, 0]"}};
  for (const auto& [from, to] : lies) CHECK(refuses([&] { read(model("", replaced(kAbout, from, to))); }));
}

// z is [1, 5, 8, 8]; a network of two channels and z of five holds 2 * 5 * 40 * 40 = 16000 elements at most.
TEST(rendering_refuses_steps_that_are_no_generators) {
  const std::string pads = whole_numbers("pads", {0, 0, 3, 3, 0, 0, 3, 3}), weight = text(5, tensor("w", {2, 5, 3, 3}, ""));
  const std::string ends = whole_numbers("starts", {1, 1}) + whole_numbers("ends", {-1, -1}) + whole_numbers("axes", {2, 3});
  std::string twice_doubled = text(5, number(1, 4) + number(2, 1) + text(8, "twice") +
                                       text(9, std::string("\0\0\x80\x3f\0\0\x80\x3f\0\0\0\x40\0\0\0\x40", 16)));  // 1, 1, 2, 2
  twice_doubled += node("Resize", {"z", "", "twice"}, "d1") + node("Resize", {"d1", "", "twice"}, "d2");
  const std::string join = setting("axis", 1), block = setting("blocksize", 2);
  const std::string good[] = {
      pads + node("Pad", {"z", "pads"}, "y"), weight + node("Conv", {"z", "w"}, "y", settings("pads", {1, 1, 1, 1})),
      ends + node("Slice", {"z", "starts", "ends", "axes"}, "y"), twice_doubled, node("Concat", {"z", "z"}, "y", join),
      node("SpaceToDepth", {"z"}, "y", block) + node("DepthToSpace", {"y"}, "x", block),
      node("Cast", {"z"}, "y", setting("to", 10)),
      whole_numbers("i", {0, 1}) + node("Gather", {"crop", "i"}, "y") + node("Slice", {"z", "y", "y", "i"}, "image"),
      node("Slice", {"z", "crop", "crop", "crop"}, "y") + node("Cast", {"y"}, "image", setting("to", 1)),
  };
  for (const std::string& more : good) CHECK(!refuses([&] { read(model(more)); }));
  std::string chain, doubling;
  for (int i = 0; i < 400; ++i) {
    chain += node("Sigmoid", {i == 0 ? "z" : "s" + std::to_string(i - 1)}, "s" + std::to_string(i));
  }
  for (int i = 0; i < 60; ++i) {
    const std::string from = i == 0 ? "z" : "s" + std::to_string(i - 1);
    doubling += node("Concat", {from, from}, "s" + std::to_string(i), join);
  }
  const std::string bad[] = {
      chain, doubling, twice_doubled + node("Resize", {"d2", "", "twice"}, "d3"),
      whole_numbers("pads", {0, 0, 0, 0, 0, 0, 50, 50}) + node("Pad", {"z", "pads"}, "y"),
      whole_numbers("pads", {0, 0, 0, 0, 0, 0, INT64_MAX, INT64_MAX}) + node("Pad", {"z", "pads"}, "y"),
      whole_numbers("pads", {0, 0, 0, 0, 0, 0, -1, 0}) + node("Pad", {"z", "pads"}, "y"),
      node("Cast", {"z"}, "pads", setting("to", 7)) + node("Pad", {"z", "pads"}, "y"),      // padding that z tells
      node("Pad", {"z", "crop"}, "y"),                                                      // or the host
      weight + node("Conv", {"z", "w"}, "y", settings("pads", {0, 0, 99, 99})),
      weight + node("Conv", {"z", "w"}, "y", settings("strides", {0, 0})),
      weight + node("Conv", {"z", "w"}, "y", settings("dilations", {1, 1})),
      weight + node("Conv", {"z", "w"}, "y", setting("pads", 1)),                           // of another type
      node("AveragePool", {"z"}, "y", settings("kernel_shape", {1, 1})),
      ends + node("Slice", {"z", "starts", "axes", "ends"}, "y"),
      pads + ends + node("Slice", {"z", "crop", "ends", "axes"}, "y") + node("Pad", {"y", "pads"}, "x"),
      node("Slice", {"z", "crop", "crop", "crop"}, "image") + node("Sigmoid", {"image"}, "y"),  // a step behind the window
      node("Sigmoid", {"later"}, "y") + node("Sigmoid", {"z"}, "later"), node("Sigmoid", {}, "y"),
      node("Sigmoid", {"z"}, "z"), weight + weight, text(5, tensor("", {1}, "")),
      text(5, tensor("a", {60, 1, 1, 1}, "")) + node("Add", {"z", "a"}, "y"),
  };
  for (const std::string& more : bad) CHECK(refuses([&] { read(model(more)); }));
  CHECK(refuses([] { read(model("", kAbout, 18)); }) && refuses([] { read(model("") + text(8, number(2, 13))); }));
  CHECK(refuses([] { read(model("") + text(20, "")); }));  // training
}

TEST(rendering_draws_any_window_of_z_as_the_fit_draws_it) {
  const auto found = read(model(""));
  std::vector<uint8_t> flat(8 * 8 * 5);
  dipengine_philox_params params{};
  params.struct_size = sizeof(params);
  params.seed = UINT64_MAX;
  params.count = static_cast<int64_t>(flat.size());
  params.out = flat.data();
  CHECK(dipengine_philox_bytes(&params) == DIPENGINE_OK);
  const auto part = found.z_window({2, 7}, {3, 8});
  CHECK(part.size() == 5 * 5 * 5);
  for (size_t c = 0; c < 5; ++c) {
    for (size_t y = 0; y < 5; ++y) {
      for (size_t x = 0; x < 5; ++x) CHECK(part[(c * 5 + y) * 5 + x] == flat[((y + 2) * 8 + x + 3) * 5 + c]);
    }
  }
}

TEST(rendering_windows_reach_as_far_as_the_design_says) {
  dipengine::Hourglass h{};
  h.generator.levels = 5;
  for (int i = 0; i < 5; ++i) {
    h.generator.kernel_down[i] = h.kernel_up[i] = 3;
    h.generator.channels_skip[i] = 4;
  }
  for (const auto& [mode, halo] : {std::pair<int32_t, int64_t>{1, 155}, {2, 186}}) {  // nearest, bilinear; design 6
    for (int32_t& upsample : h.generator.upsample) upsample = mode;
    int64_t reach = 0;
    for (int64_t place = 0; place < 32; ++place) {
      const auto [first, last] = dipengine::needed(h, {place, place});
      reach = std::max({reach, place - first, last - place});
    }
    CHECK(reach == halo);
  }
  const auto span = dipengine::window(h, {500, 500}, 1024);
  CHECK(span.first % 32 == 0 && span.last % 32 == 0 && span.first <= 500 - 155 && span.last > 500 && span.last <= 1024);
}

TEST(rendering_c_interface_refuses_what_it_cannot_use) {
  dipengine_renderer* renderer = nullptr;
  dipengine_renderer_params params{};
  CHECK(dipengine_renderer_create(&params, nullptr) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_renderer_create(nullptr, &renderer) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_renderer_create(&params, &renderer) == DIPENGINE_STRUCT_SIZE);
  params.struct_size = sizeof(params);
  CHECK(dipengine_renderer_create(&params, &renderer) == DIPENGINE_INVALID_ARGUMENT);
  params.runtime = "libonnxruntime.so";
  CHECK(dipengine_renderer_create(&params, &renderer) == DIPENGINE_INVALID_ARGUMENT);
  const std::string bytes = model("");
  params.model = bytes.data();
  params.model_bytes = bytes.size();
  CHECK(dipengine_renderer_create(&params, &renderer) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(std::string(dipengine_last_error()).find("whole path") != std::string::npos);
  params.options_count = 1;
  CHECK(dipengine_renderer_create(&params, &renderer) == DIPENGINE_INVALID_ARGUMENT && renderer == nullptr);
  CHECK(dipengine_renderer_get_info(nullptr, nullptr) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_renderer_paint(nullptr, nullptr) == DIPENGINE_INVALID_ARGUMENT);
  dipengine_renderer_destroy(nullptr);
}
