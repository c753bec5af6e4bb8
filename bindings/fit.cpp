// Fits: whole iterations in the core, Python asked only for signals and, where it wishes, after each iteration.
#include <pybind11/stl.h>

#include <chrono>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dipengine/fit.h"
#include "place.h"
#include "platform/cuda/stream.h"

namespace dipengine_python {
namespace {

template <typename T>
void read(const py::dict& from, const char* key, T& to) {
  to = from[key].cast<T>();
}

void read_levels(const py::dict& from, const char* key, int32_t* to) {
  const auto values = from[key].cast<std::vector<int32_t>>();
  if (values.size() > DIPENGINE_MAX_LEVELS) raise("InputError", "A generator has at most %d levels.", DIPENGINE_MAX_LEVELS);
  for (size_t i = 0; i < values.size(); ++i) to[i] = values[i];
}

dipengine_generator generator_of(const py::dict& d) {
  dipengine_generator g{};
  read(d, "levels", g.levels);
  read(d, "input_depth", g.input_depth);
  read(d, "output_channels", g.output_channels);
  read_levels(d, "channels_down", g.channels_down);
  read_levels(d, "channels_up", g.channels_up);
  read_levels(d, "channels_skip", g.channels_skip);
  read_levels(d, "kernel_down", g.kernel_down);
  read_levels(d, "upsample", g.upsample);
  read(d, "downsample", g.downsample);
  read(d, "one_by_one_up", g.one_by_one_up);
  read(d, "padding", g.padding);
  read(d, "negative_slope", g.negative_slope);
  return g;
}

// What `dipengine_fit_params` holds, by the same names; operators' arrays apart.
struct Settings {
  dipengine_fit_params params{};
  std::vector<double> taps, kernel;

  Settings(const py::dict& generator, const py::dict& d) {
    dipengine_fit_params& p = params;
    p.struct_size = sizeof(p);
    p.generator = generator_of(generator);
    read(d, "device", p.device);
    read(d, "device_index", p.device_index);
    read(d, "dtype", p.dtype);
    read(d, "slots", p.slots);
    read(d, "height", p.height);
    read(d, "width", p.width);
    read(d, "operator_kind", p.operator_kind);
    read(d, "data_height", p.data_height);
    read(d, "data_width", p.data_width);
    read(d, "factor", p.factor);
    read(d, "before", p.before);
    read(d, "taps", taps);
    read(d, "kernel_height", p.kernel_height);
    read(d, "kernel_width", p.kernel_width);
    read(d, "kernel", kernel);
    read(d, "data_term", p.data_term);
    read(d, "electrons_scale", p.electrons_scale);
    read(d, "electrons_shift", p.electrons_shift);
    read(d, "read_variance", p.read_variance);
    read(d, "sigma", p.sigma);
    read(d, "code", p.code);
    read(d, "code_scale", p.code_scale);
    read(d, "perturbation", p.perturbation);
    read(d, "learning_rate", p.learning_rate);
    read(d, "average_decay", p.average_decay);
    read(d, "average_warm_up", p.average_warm_up);
    read(d, "deliver_average", p.deliver_average);
    read(d, "es_alpha", p.es_alpha);
    read(d, "rollback_db", p.rollback_db);
    read(d, "stop", p.stop);
    read(d, "iterations", p.iterations);
    read(d, "hold_out", p.hold_out);
    p.taps = taps.data();
    p.taps_count = static_cast<int32_t>(taps.size());
    p.kernel = kernel.data();
  }
};

// Too large a fit is none of the device's faults.
void check_made(dipengine_status status) {
  if (status == DIPENGINE_OUT_OF_RESOURCES) raise("OutOfMemory", "%s", dipengine_last_error());
  check(status);
}

constexpr const char* kStates[] = {"idle", "running", "done", "failed"};
constexpr const char* kReasons[] = {"", "iterations", "variance", "discrepancy", "first loss", "diverged", "held-out"};

py::dict dict_of(const dipengine_fit_progress& progress) {
  py::dict d;
  d["slot"] = progress.slot;
  d["state"] = kStates[progress.state];
  d["reason"] = kReasons[progress.reason];
  d["rolled_back"] = progress.rolled_back != 0;
  d["iteration"] = progress.iteration;
  d["delivered_iteration"] = progress.delivered_iteration;
  d["rollbacks"] = progress.rollbacks;
  d["loss"] = progress.loss;
  d["variance"] = progress.variance;
  d["learning_rate"] = progress.learning_rate;
  d["height"] = progress.height;
  d["width"] = progress.width;
  d["held_out"] = progress.held_out;
  return d;
}

// What the loop asks Python. An exception is kept until the loop has returned.
struct Listener {
  using Clock = std::chrono::steady_clock;
  py::object report;
  Clock::time_point asked = Clock::now();
  std::exception_ptr error;

  static int on_report(void* user, const dipengine_fit_progress* progress) {
    auto& self = *static_cast<Listener*>(user);
    py::gil_scoped_acquire locked;
    try {
      return py::bool_(self.report(dict_of(*progress))) ? 1 : 0;
    } catch (...) {
      self.error = std::current_exception();
      return 1;
    }
  }

  // Signals (Ctrl-C), some twenty times a second.
  static int on_poll(void* user) {
    auto& self = *static_cast<Listener*>(user);
    const Clock::time_point now = Clock::now();
    if (now - self.asked < std::chrono::milliseconds(50)) return 0;
    self.asked = now;
    py::gil_scoped_acquire locked;
    if (PyErr_CheckSignals() == 0) return 0;
    try {
      throw py::error_already_set();
    } catch (...) {
      self.error = std::current_exception();
    }
    return 1;
  }
};

class Fit {
 public:
  using Size = std::pair<int64_t, int64_t>;  // height, width

  Fit(py::object pool, const py::dict& generator, const py::dict& settings) : pool_(std::move(pool)) {
    Settings s(generator, settings);
    s.params.pool = pool_of(pool_);
    check_made(dipengine_fit_create(&s.params, &fit_));
    const dipengine_generator& g = s.params.generator;
    height_ = s.params.height;
    width_ = s.params.width;
    data_height_ = s.params.data_height;
    data_width_ = s.params.data_width;
    identity_ = s.params.operator_kind == DIPENGINE_OPERATOR_IDENTITY;
    channels_ = g.output_channels;
    depth_ = g.input_depth;
    parameters_ = dipengine_generator_parameters(&g);
    slots_ = s.params.slots;
    if (s.params.device == DIPENGINE_DEVICE_CUDA) device_ = s.params.device_index;
  }
  ~Fit() { dipengine_fit_destroy(fit_); }
  Fit(const Fit&) = delete;
  Fit& operator=(const Fit&) = delete;

  size_t bytes() const { return dipengine_fit_arena_bytes(fit_); }

  // image, data: (height, width) of the slot's own, where they are not the fit's.
  void start(int slot, uint64_t seed, py::handle target, py::handle mask, py::handle code, bool keep_weights,
             std::optional<Size> image, std::optional<Size> data) {
    dipengine_fit_start_params p{};
    p.struct_size = sizeof(p);
    p.seed = seed;
    std::tie(p.height, p.width) = checked(image.value_or(Size{height_, width_}));
    const Size own{p.height, p.width}, fits{data_height_, data_width_};
    std::tie(p.data_height, p.data_width) = identity_ ? own : checked(data.value_or(fits));
    const int64_t count = p.data_height * p.data_width;
    p.target = image_of(target, "target", count * channels_, Access::read);
    p.mask = mask.is_none() ? nullptr : image_of(mask, "mask", count, Access::read);
    p.code = code.is_none() ? nullptr : floats(code, "code", p.height * p.width * depth_);
    p.keep_weights = keep_weights;
    py::gil_scoped_release unlocked;
    const dipengine_status status = dipengine_fit_start(fit_, slot, &p);
    py::gil_scoped_acquire locked;
    check(status);
  }

  // slots: those that run; all where it is not given.
  bool run(int64_t iterations, const std::optional<std::vector<int>>& slots, py::handle losses, py::handle variances,
           py::object report, py::handle step_seconds) {
    std::vector<uint8_t> active(static_cast<size_t>(slots_), slots ? 0 : 1);
    for (int slot : slots.value_or(std::vector<int>{})) {
      if (slot < 0 || slot >= slots_) {
        raise("InputError", "There is no slot %d; this fit has %lld.", slot, static_cast<long long>(slots_));
      }
      active[static_cast<size_t>(slot)] = 1;
    }
    Listener listener;
    listener.report = std::move(report);
    dipengine_fit_run_params r{};
    r.struct_size = sizeof(r);
    r.iterations = iterations;
    r.active = active.data();
    r.losses = doubles(losses, "losses", slots_ * iterations);
    r.variances = doubles(variances, "variances", slots_ * iterations);
    r.step_seconds = doubles(step_seconds, "step_seconds", dipengine_fit_steps(fit_));
    r.report = listener.report.is_none() ? nullptr : Listener::on_report;
    r.poll = Listener::on_poll;
    r.user = &listener;
    dipengine_status status;
    {
      py::gil_scoped_release unlocked;
      status = dipengine_fit_run(fit_, &r);
    }
    if (listener.error) std::rethrow_exception(listener.error);
    check(status);
    return r.stopped != 0;
  }

  py::dict progress(int slot) const {
    dipengine_fit_progress p{};
    p.struct_size = sizeof(p);
    check(dipengine_fit_get_progress(fit_, slot, &p));
    return dict_of(p);
  }

  int64_t deliver(int slot, py::handle image, py::handle parameters) {
    int64_t iteration = 0;
    check(dipengine_fit_deliver(fit_, slot, image.is_none() ? nullptr : painted(slot, image, "image"),
                                parameters.is_none() ? nullptr : floats(parameters, "parameters", parameters_, Access::write),
                                &iteration));
    return iteration;
  }
  void average(int slot, py::handle out) const { check(dipengine_fit_average(fit_, slot, painted(slot, out, "out"))); }
  void render(int slot, py::handle out) { check(dipengine_fit_render(fit_, slot, painted(slot, out, "out"))); }
  void get_parameters(int slot, py::handle out) const {
    check(dipengine_fit_get_parameters(fit_, slot, floats(out, "out", parameters_, Access::write)));
  }
  void set_parameters(int slot, py::handle values) { check(dipengine_fit_set_parameters(fit_, slot, floats(values, "values", parameters_))); }
  void set_code_seed(int slot, uint64_t seed) { check(dipengine_fit_set_code_seed(fit_, slot, seed)); }
  void set_sigma(int slot, double sigma) { check(dipengine_fit_set_sigma(fit_, slot, sigma)); }
  void set_patience(int slot, int64_t patience) { check(dipengine_fit_set_patience(fit_, slot, patience)); }
  void statistics(int slot, py::handle out) { check(dipengine_fit_statistics(fit_, slot, floats(out, "out", parameters_, Access::write))); }
  void get_gradients(py::handle out) const { check(dipengine_fit_get_gradients(fit_, floats(out, "out", parameters_, Access::write))); }

  py::bytes save_state(int slot) const {
    const size_t bytes = dipengine_fit_state_bytes(fit_, slot);
    // Written where Python keeps it: a copy of it would be as large as the slot.
    PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(bytes));
    if (object == nullptr) throw py::error_already_set();
    const auto state = py::reinterpret_steal<py::bytes>(object);
    check(dipengine_fit_save_state(fit_, slot, PyBytes_AS_STRING(object), bytes));
    return state;
  }
  // image: (height, width) that the state has to be of, where that matters.
  void load_state(int slot, const py::buffer& state, std::optional<Size> image) {
    const py::buffer_info info = state.request();
    if (info.ndim != 1 || info.strides[0] != info.itemsize) raise("InputError", "A state is one run of bytes; hand it over whole.");
    const auto bytes = static_cast<size_t>(info.size * info.itemsize);
    Size found;
    check(dipengine_fit_state_image(info.ptr, bytes, &found.first, &found.second));
    if (image && *image != found) {
      raise("InputError",
            "The state is that of a fit with other params: its image is %lld x %lld and this one's %lld x %lld; load it into a fit "
            "of its own image.",
            static_cast<long long>(found.first), static_cast<long long>(found.second), static_cast<long long>(image->first),
            static_cast<long long>(image->second));
    }
    check(dipengine_fit_load_state(fit_, slot, info.ptr, bytes));
  }

  std::vector<std::string> steps() const {
    std::vector<std::string> names;
    for (int32_t i = 0; i < dipengine_fit_steps(fit_); ++i) names.emplace_back(dipengine_fit_step_name(fit_, i));
    return names;
  }

 private:
  // So that no product of two sides overflows; the core refuses what is too large for the fit.
  static Size checked(Size size) {
    constexpr int64_t kMost = int64_t{1} << 24;
    if (size.first < 1 || size.second < 1 || size.first > kMost || size.second > kMost) {
      raise("InputError", "An image of %lld x %lld cannot be fitted; a side is 1 to 2^24.", static_cast<long long>(size.first),
            static_cast<long long>(size.second));
    }
    return size;
  }
  // An array of the size of the slot's image.
  float* painted(int slot, py::handle object, const char* name) const {
    dipengine_fit_progress p{};
    p.struct_size = sizeof(p);
    check(dipengine_fit_get_progress(fit_, slot, &p));
    const int64_t pixels = p.height > 0 ? p.height * p.width : height_ * width_;  // never started: refused by the core
    return image_of(object, name, pixels * channels_, Access::write);
  }
  // In the host's memory or, of a fit on a CUDA device, in that device's: there behind all that its library has queued.
  float* image_of(py::handle object, const char* name, int64_t count, Access access) const {
    const Place place(object, name, py::none());
    if (!place.cuda()) return floats(object, name, count, access);
    if (place.device() != device_) {
      raise("DeviceError", "The tensor '%s' is on CUDA device %d and the fit %s; move it there.", name, place.device(),
            device_ < 0 ? "in CPU memory" : ("on device " + std::to_string(device_)).c_str());
    }
    const Tensor tensor(object, name, access, place);
    auto* const data = static_cast<float*>(tensor.flat(count, DIPENGINE_FLOAT32));
    py::gil_scoped_release unlocked;
    const dipengine_status status = dipengine::cuda::wait(place.stream());
    py::gil_scoped_acquire locked;
    check(status);
    return data;
  }
  static float* floats(py::handle object, const char* name, int64_t count, Access access = Access::read) {
    return static_cast<float*>(Tensor(object, name, access).flat(count, DIPENGINE_FLOAT32));
  }
  static double* doubles(py::handle object, const char* name, int64_t count) {
    if (object.is_none()) return nullptr;
    return static_cast<double*>(Tensor(object, name, Access::write).flat(count, DIPENGINE_FLOAT64));
  }

  py::object pool_;  // outlives the fit
  dipengine_fit* fit_ = nullptr;
  int64_t height_ = 0, width_ = 0, data_height_ = 0, data_width_ = 0, channels_ = 0, depth_ = 0, parameters_ = 0, slots_ = 0;
  int device_ = -1;  // of CUDA's
  bool identity_ = true;
};

size_t memory(const py::dict& generator, const py::dict& settings, py::handle pool) {
  Settings s(generator, settings);
  s.params.pool = pool_of(pool);
  size_t bytes = 0;
  check_made(dipengine_fit_memory(&s.params, &bytes));
  return bytes;
}

py::dict stop_rule(int64_t iterations, double average_decay) {
  dipengine_stop_rule rule{};
  dipengine_fit_stop_rule(iterations, average_decay, &rule);
  py::dict d;
  d["ceiling"] = rule.ceiling;
  d["patience"] = rule.patience;
  d["warm_up"] = rule.warm_up;
  d["lag"] = rule.lag;
  return d;
}

}  // namespace

void bind_fit(py::module_& module) {
  py::class_<Fit>(module, "Fit", py::module_local(),
                  "Fits on one canvas, whole iterations at a time (csrc/include/dipengine/fit.h).")
      .def(py::init<py::object, const py::dict&, const py::dict&>(), py::arg("pool"), py::arg("generator"), py::arg("settings"))
      .def_property_readonly("bytes", &Fit::bytes)
      .def("start", &Fit::start, py::arg("slot"), py::kw_only(), py::arg("seed"), py::arg("target"), py::arg("mask") = py::none(),
           py::arg("code") = py::none(), py::arg("keep_weights") = false, py::arg("image") = py::none(),
           py::arg("data") = py::none())
      .def("run", &Fit::run, py::arg("iterations"), py::kw_only(), py::arg("slots") = py::none(),
           py::arg("losses") = py::none(), py::arg("variances") = py::none(), py::arg("report") = py::none(),
           py::arg("step_seconds") = py::none())
      .def("progress", &Fit::progress, py::arg("slot"))
      .def("deliver", &Fit::deliver, py::arg("slot"), py::arg("image"), py::arg("parameters"))
      .def("average", &Fit::average, py::arg("slot"), py::arg("out"))
      .def("render", &Fit::render, py::arg("slot"), py::arg("out"))
      .def("get_parameters", &Fit::get_parameters, py::arg("slot"), py::arg("out"))
      .def("set_parameters", &Fit::set_parameters, py::arg("slot"), py::arg("values"))
      .def("set_code_seed", &Fit::set_code_seed, py::arg("slot"), py::arg("seed"))
      .def("set_sigma", &Fit::set_sigma, py::arg("slot"), py::arg("sigma"))
      .def("set_patience", &Fit::set_patience, py::arg("slot"), py::arg("patience"))
      .def("statistics", &Fit::statistics, py::arg("slot"), py::arg("out"))
      .def("get_gradients", &Fit::get_gradients, py::arg("out"))
      .def("save_state", &Fit::save_state, py::arg("slot"))
      .def("load_state", &Fit::load_state, py::arg("slot"), py::arg("state"), py::kw_only(), py::arg("image") = py::none())
      .def("steps", &Fit::steps);
  module.def("fit_stop_rule", &stop_rule, py::arg("iterations"), py::arg("average_decay"),
             "The thresholds of stop=auto: ceiling, patience, warm_up, lag.");
  module.def(
      "generator_canvas",
      [](const py::dict& generator, int64_t side) {
        const dipengine_generator g = generator_of(generator);
        return dipengine_generator_canvas(&g, side);
      },
      py::arg("generator"), py::arg("side"), "The side of the grid that an image of `side` pixels is fitted on.");
  module.def(
      "generator_parameters",
      [](const py::dict& generator) {
        const dipengine_generator g = generator_of(generator);
        return dipengine_generator_parameters(&g);
      },
      py::arg("generator"), "Number of parameters.");
  module.def("fit_memory", &memory, py::arg("generator"), py::arg("settings"), py::arg("pool") = py::none(),
             "Bytes that a Fit would hold.");
}

}  // namespace dipengine_python
