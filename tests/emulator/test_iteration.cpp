// What stands between the ops of an iteration, on the emulated device: decisions against the same functions on the host, copies and
// zeros against plain loops.
#include "fit/iteration_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

constexpr LoopRules kByVariance{{60, 12, 5, 10}, 3.0, 60, 1, 0, 0}, kByNoise{{60, 12, 5, 10}, 3.0, 60, 1, 1, 0},
    kByPixelsHeldOut{{60, 12, 5, 10}, 3.0, 60, 1, 0, 1};

// Fits at every stage of their lives.
std::vector<SlotState> some_states(int64_t fits, bool hold_out) {
  check::Numbers numbers(static_cast<uint64_t>(fits));
  const auto below = [&](int64_t n) { return static_cast<int64_t>((numbers.next() + 1) / 2 * static_cast<double>(n)); };
  std::vector<SlotState> states(static_cast<size_t>(fits));
  for (SlotState& s : states) {
    s.seed = s.code_seed = static_cast<uint64_t>(below(1000));
    s.iteration = below(60);
    s.step = below(60);
    s.learning_rate = 0.01;
    s.outputs = {0.1, below(60)};
    s.snapshot_step = below(60);
    s.snapshot_outputs = {0.2, below(60)};
    s.watch = below(2) != 0 ? VarianceWatch::begin() : VarianceWatch{0.05, below(60), below(60)};
    s.rollback = below(4) == 0 ? Rollback::begin() : Rollback{0.1, 0.1, below(22), below(40), 1};
    s.patience = 12;
    s.noise_variance = 0.2 + 0.02 * static_cast<double>(below(6));
    s.at_noise = below(3) == 0 ? below(60) : 0;
    s.known = 100;
    if (hold_out) {
      s.held_out = below(4) == 0 ? 0 : 70;
      s.shown = s.held_out > 0 && below(3) == 0 ? std::max<int64_t>(1, s.iteration - below(8)) : 0;
      s.best_iteration = s.shown == 0 && s.watch.minimum > 0 && below(2) == 0 ? s.watch.minimum + 5 : 0;
    }
    s.extent = {below(9), below(9), below(9), below(9)};
    s.status = below(4) == 0 ? DIPENGINE_FIT_DONE : DIPENGINE_FIT_RUNNING;
  }
  return states;
}

template <typename T>
bool same(const char* what, int64_t fit, T got, T expected) {
  return std::memcmp(&got, &expected, sizeof(T)) == 0 || emulator::wrong("%s of fit %lld", what, static_cast<long long>(fit));
}

// Two turns, of which the second is one too many.
bool turns_case(int64_t fits, const LoopRules& rules) {
  Array<unsigned char> memory(static_cast<int64_t>(fit_numbers_bytes(fits)));
  const FitNumbers of = fit_numbers_at(memory.data(), fits);
  const TurnLaunch launch{rules, of, fits, 3};
  std::vector<SlotState> expected = some_states(fits, rules.holds_out != 0);
  std::memcpy(of.states, expected.data(), expected.size() * sizeof(SlotState));
  check::Numbers numbers(static_cast<uint64_t>(fits) + 1);
  for (int64_t f = 0; f < fits; ++f) {
    of.wanted[f] = numbers.next() > -0.8;
    of.learnt[f] = 0;
  }
  *of.count = {5, 6, 40};
  if (launch_begin(launch, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    const SlotState& s = expected[static_cast<size_t>(f)];
    const bool active = of.wanted[f] != 0 && s.status == DIPENGINE_FIT_RUNNING;
    if (!same("active", f, of.active[f], static_cast<uint8_t>(active))) return false;
    if (active && !(same("seed", f, of.seeds[f], s.seed) && same("step", f, of.iterations[f], static_cast<uint32_t>(s.iteration)) &&
                    same("frames", f, of.frames[f], s.outputs.frames) && same("rows", f, of.painted[2 * f], s.extent.height) &&
                    same("row", f, of.measured[2 * f + 1], 3 * s.extent.data_width) &&
                    same("pixels", f, of.pixels[f], static_cast<double>(3 * s.extent.data_height * s.extent.data_width)))) {
      return false;
    }
    of.loss[f] = numbers.next() > 0.5 ? NAN : numbers.next() > 0.5 ? 0.9 : 0.1;
    of.es_variance[f] = 0.04 + 0.02 * numbers.next();
    of.frames[f] = s.outputs.frames + 1;
    of.residual[f] = 0.25 + 0.2 * numbers.next();
  }
  if (launch_judge(launch, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  std::vector<bool> learns(static_cast<size_t>(fits)), looks(static_cast<size_t>(fits));
  for (int64_t f = 0; f < fits; ++f) {
    const size_t i = static_cast<size_t>(f);
    SlotState& s = expected[i];
    if (of.active[f] != 0) {
      s.outputs = {of.es_variance[f], of.frames[f]};
      const Turn turn = judge(rules, s, of.loss[f]);
      learns[i] = turn == Turn::learn || turn == Turn::keep_and_learn;
      looks[i] = learns[i] && wants_residual(rules, s);
      const int32_t copies = turn == Turn::keep_and_learn ? kKeep : turn == Turn::roll_back ? kReturn : kCopyNothing;
      if (!same("copies", f, of.copies[f], copies) || !same("update", f, of.updates[f], s.step + 1)) return false;
    }
    if (!same("learns", f, of.learns[f], static_cast<uint8_t>(learns[i])) ||
        !same("looks", f, of.looks[f], static_cast<uint8_t>(looks[i])) || !same("state", f, of.states[f], s)) {
      return false;
    }
  }
  if (launch_end(launch, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    const size_t i = static_cast<size_t>(f);
    SlotState& s = expected[i];
    if (of.active[f] == 0) continue;
    Ending ending{};
    if (learns[i]) {
      ++s.step;
      ending = watch(rules, s, looks[i], looks[i] ? of.residual[f] / s.noise_variance : 0.0);
    }
    end_turn(rules, s);
    if (!same("state at the end", f, of.states[f], s) ||
        !same("copies at the end", f, of.copies[f],
              int32_t{ending.keeps_best ? kKeep : ending.returns_to_best ? kReturn : kCopyNothing}) ||
        !same("shows", f, of.shows[f], static_cast<uint8_t>(ending.shows)) ||
        !same("history", f, of.losses[f * kHistory + 5], s.loss) ||
        !same("variance", f, of.variances[f * kHistory + 5], s.outputs.es_variance) ||
        !same("learnt", f, of.learnt[f], learns[i] ? int64_t{41} : int64_t{0})) {
      return false;
    }
  }
  if (of.count->turn != 6 || of.count->total != 41) return emulator::wrong("turns are miscounted");
  if (launch_begin(launch, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    if (of.active[f] != 0) return emulator::wrong("fit %lld takes part in a turn that nobody asked for", static_cast<long long>(f));
  }
  return memory.intact() || emulator::wrong("written outside");
}

bool copies_case(int64_t fits, int64_t count, bool shows = false) {
  const int64_t room = (count + 3) / 4 * 4 + 4, stride = 6 * room;
  check::Numbers numbers(static_cast<uint64_t>(count));
  const std::vector<float> before = numbers.vector<float>(fits * stride);
  std::vector<float> expected = before;
  Array<float> blocks(before);
  std::vector<int32_t> what;
  for (int64_t f = 0; f < fits; ++f) what.push_back(static_cast<int32_t>((f + 1) % 3));
  Array<int32_t> copies(what);
  const ArrayPair pairs[] = {{0, room, count}, {3 * room, 2 * room, count / 2}};
  CopyLaunch launch{{pairs[0], pairs[1]}, 2, blocks.data(), stride, copies.data(), {}, nullptr};
  std::vector<uint8_t> shown;
  for (int64_t f = 0; f < fits; ++f) shown.push_back(shows && (f + 1) % 2 != 0 ? 1 : 0);
  Array<uint8_t> flags(shown);
  if (shows) {
    launch.shown = {4 * room, 5 * room, count};
    launch.shows = flags.data();
  }
  if (launch_copies(launch, fits, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    for (const ArrayPair& pair : pairs) {
      for (int64_t i = 0; i < pair.count && what[static_cast<size_t>(f)] != kCopyNothing; ++i) {
        const size_t live = static_cast<size_t>(f * stride + pair.live + i), kept = static_cast<size_t>(f * stride + pair.kept + i);
        const bool keep = what[static_cast<size_t>(f)] == kKeep;
        expected[keep ? kept : live] = before[keep ? live : kept];
      }
    }
  }
  for (int64_t f = 0; f < fits; ++f) {
    for (int64_t i = 0; i < count && shown[static_cast<size_t>(f)] != 0; ++i) {
      const size_t mask = static_cast<size_t>(f * stride + 4 * room + i), held = static_cast<size_t>(f * stride + 5 * room + i);
      expected[mask] = before[mask] + before[held];
    }
  }
  return emulator::same_bits("blocks", blocks.copy(), expected);
}

bool margin_case(int64_t rows, int64_t row, const std::vector<int64_t>& window) {
  const int64_t fits = 3, stride = rows * row + 7;
  check::Numbers numbers(1);
  const std::vector<float> before = numbers.vector<float>(fits * stride);
  std::vector<float> expected = before;
  Array<float> image(before);
  Array<uint8_t> active(std::vector<uint8_t>{1, 0, 1});
  Array<int64_t> sizes(window);
  for (int64_t f : {0, 2}) {
    for (int64_t i = 0; i < rows * row; ++i) {
      const int64_t height = window[static_cast<size_t>(2 * f)], width = window[static_cast<size_t>(2 * f + 1)];
      if (i / row >= height || i % row >= width) expected[static_cast<size_t>(f * stride + i)] = 0;
    }
  }
  const MarginLaunch launch{image.data(), stride, rows, row, sizes.data(), active.data()};
  if (launch_margin(launch, fits, nullptr) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  return emulator::same_bits("image", image.copy(), expected);
}

}  // namespace

SCENARIO(turns_of_one_fit) { return turns_case(1, kByVariance) && turns_case(1, kByNoise) && turns_case(1, kByPixelsHeldOut); }
SCENARIO(turns_of_many_fits) {
  return turns_case(301, kByVariance) && turns_case(300, kByNoise) && turns_case(302, kByPixelsHeldOut);
}
SCENARIO(copies_between_arrays) { return copies_case(1, 1) && copies_case(4, 1027) && copies_case(5, 2048) && copies_case(5, 1027, true); }
SCENARIO(zeros_around_an_image) { return margin_case(5, 300, {4, 277, 1, 1, 5, 12}) && margin_case(66000, 1, {65999, 1, 1, 1, 7, 1}); }
