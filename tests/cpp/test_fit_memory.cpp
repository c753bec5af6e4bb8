// Memory of fits: the arena's layout, the lives of its buffers, and that no iteration allocates.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>

#include "allocations.h"
#include "fit/cpu_plan.h"
#include "fit/fit.h"
#include "fit_problems.h"

using check::FitProblem;
using check::Size;
using dipengine::Arena;
using dipengine::Graph;
using dipengine::SlotArrays;
using dipengine::Step;
using dipengine::StepKind;
using dipengine::Unit;

namespace {

struct Life {
  size_t bytes;
  int first, last;
  bool permanent;
};

// Units of 64 bytes, each with the last buffer that was written there.
class Owners {
 public:
  explicit Owners(const Arena& arena) : arena_(arena), owners_(arena.bytes() / Arena::kAlign, -1) {}
  void write(int buffer) {
    if (buffer >= 0) std::fill_n(owners_.begin() + first(buffer), arena_.size(buffer) / Arena::kAlign, buffer);
  }
  bool holds(int buffer) const {
    return std::all_of(owners_.begin() + first(buffer), owners_.begin() + first(buffer) + arena_.size(buffer) / Arena::kAlign,
                       [&](int owner) { return owner == buffer; });
  }

 private:
  std::ptrdiff_t first(int buffer) const { return static_cast<std::ptrdiff_t>(arena_.offset(buffer) / Arena::kAlign); }
  const Arena& arena_;
  std::vector<int> owners_;
};

// What a step takes in and leaves behind, by what it computes.
struct Traffic {
  std::vector<int> reads, writes;
};

Traffic traffic(const Graph& g, const Step& step) {
  Traffic t;
  const Unit* unit = step.unit < 0 ? nullptr : &g.units[static_cast<size_t>(step.unit)];
  const auto node = [&](int index) -> const dipengine::Node& { return g.nodes[static_cast<size_t>(index)]; };
  const auto read_parts = [&] { for (const auto& part : unit->parts) t.reads.push_back(node(part.node).raw); };
  switch (step.kind) {
    case StepKind::perturb: t.writes = {step.name == "perturb" ? g.nodes[0].raw : g.nodes[0].raw_again}; break;
    case StepKind::merge: read_parts(); break;
    case StepKind::forward:
      read_parts();
      t.writes = {unit->node < 0 ? g.logits : node(unit->node).raw, unit->wide_weight};
      break;
    case StepKind::loss: t = {{g.logits}, {g.d_logits}}; break;
    case StepKind::image: t = {{g.logits}, {g.image}}; break;
    case StepKind::measure: t = {{g.image}, {g.measured}}; break;
    case StepKind::data_term: t = g.measured < 0 ? Traffic{{g.image}, {g.d_image}} : Traffic{{g.measured}, {g.d_measured}}; break;
    case StepKind::measure_backward: t = {{g.d_measured}, {g.d_image}}; break;
    case StepKind::image_backward: t = {{g.image, g.d_image}, {g.d_logits}}; break;
    case StepKind::backward:
      for (const auto& part : unit->parts) t.reads.push_back(node(part.node).raw_again);
      if (unit->node >= 0) t.reads.push_back(node(unit->node).raw);
      t.reads.push_back(unit->node < 0 || step.unit == g.forms ? g.d_logits : node(unit->node).gradient);
      if (unit->wide_weight >= 0) t.reads.push_back(unit->wide_weight);
      t.writes = {unit->wide_gradient};
      for (const auto& part : unit->parts) {
        if (part.accumulate && part.node > 0) t.reads.push_back(node(part.node).gradient);  // z has none
        t.writes.push_back(node(part.node).gradient);
      }
      break;
    case StepKind::merge_backward:
      read_parts();
      for (const auto& part : unit->parts) t.reads.push_back(node(part.node).gradient);
      break;
    case StepKind::adam: break;
    case StepKind::inspect: t.writes = {g.inspected}; break;
  }
  t.writes.push_back(step.workspace);
  return t;
}

// An iteration's steps over memory of the test's own, which can be filled with NaN.
class BarePlan {
 public:
  // `apart`: every buffer has a place for itself all the time.
  BarePlan(const FitProblem& problem, bool apart)
      : params_(problem.params),
        graph_(dipengine::make_graph(params_)),
        layout_(params_, graph_),
        plan_(params_, graph_, layout_) {
    slots_ = graph_.arena.add_permanent(layout_.bytes());
    if (apart) {
      const int buffers = slots_, last = static_cast<int>(graph_.steps.size());
      for (int buffer = 0; buffer < buffers; ++buffer) {
        graph_.arena.use(buffer, 0);
        graph_.arena.use(buffer, last);
      }
    }
    CHECK(plan_.size() == DIPENGINE_OK);
    memory_.reset(static_cast<char*>(std::aligned_alloc(Arena::kAlign, bytes())));
    memset(memory_.get(), 0xff, bytes());
    new (memory_.get() + graph_.arena.offset(slots_)) dipengine::SlotState{};
    plan_.bind(memory_.get());
  }

  size_t bytes() const { return graph_.arena.bytes(); }
  size_t slot_bytes() const { return layout_.bytes(); }
  dipengine::Slot slot() { return {layout_, memory_.get() + graph_.arena.offset(slots_)}; }

  // NaN in everything but the slot.
  void poison() {
    const size_t from = graph_.arena.offset(slots_), to = from + layout_.bytes();
    memset(memory_.get(), 0xff, from);
    memset(memory_.get() + to, 0xff, bytes() - to);
  }

  void iterate() {
    for (int step = 0; step + 1 < static_cast<int>(graph_.steps.size()); ++step) {
      if (step == graph_.judged) ++slot().state().iteration;
      CHECK(plan_.run(step, slot()) == DIPENGINE_OK);
    }
  }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  dipengine_fit_params params_;
  Graph graph_;
  dipengine::SlotLayout layout_;
  dipengine::CpuPlan plan_;
  int slots_;
  std::unique_ptr<char, Free> memory_;
};

}  // namespace

TEST(arena_keeps_apart_what_lives_together) {
  check::Numbers numbers(1);
  const auto draw = [&](int most) { return static_cast<int>((numbers.next() + 1) / 2 * most); };
  double worst = 1;
  for (int round = 0; round < 300; ++round) {
    const int steps = 1 + draw(40), buffers = 1 + draw(60);
    Arena arena;
    std::vector<Life> lives;
    for (int i = 0; i < buffers; ++i) {
      const Life life{static_cast<size_t>(1 + draw(1 << (4 + draw(12)))), draw(steps), draw(steps), draw(12) == 0};
      const int buffer = life.permanent ? arena.add_permanent(life.bytes) : arena.add(life.bytes);
      CHECK(buffer == i);
      arena.use(buffer, life.first);
      arena.use(buffer, life.last);
      lives.push_back({life.bytes, std::min(life.first, life.last), std::max(life.first, life.last), life.permanent});
    }
    arena.pack();
    std::vector<size_t> needed(static_cast<size_t>(steps), 0);
    bool good = true;
    for (int a = 0; a < buffers; ++a) {
      const Life& x = lives[static_cast<size_t>(a)];
      good = good && arena.offset(a) % 64 == 0 && arena.size(a) >= x.bytes && arena.offset(a) + arena.size(a) <= arena.bytes();
      for (int step = 0; step < steps; ++step) {
        if (x.permanent || (x.first <= step && step <= x.last)) needed[static_cast<size_t>(step)] += arena.size(a);
      }
      for (int b = 0; b < a; ++b) {
        const Life& y = lives[static_cast<size_t>(b)];
        const bool together = x.permanent || y.permanent || (x.first <= y.last && y.first <= x.last);
        const size_t end_a = arena.offset(a) + arena.size(a), end_b = arena.offset(b) + arena.size(b);
        const bool disjoint = end_a <= arena.offset(b) || end_b <= arena.offset(a);
        good = good && (disjoint || !together) && arena.apart(a, b) == (disjoint || !together);
      }
    }
    CHECK(good);
    const size_t least = *std::max_element(needed.begin(), needed.end());
    CHECK(arena.largest_sum() == least);
    worst = std::max(worst, static_cast<double>(arena.bytes()) / static_cast<double>(least));
  }
  CHECK(worst < 1.5);
}

TEST(arena_without_buffers_is_empty) {
  Arena arena;
  arena.pack();
  CHECK(arena.bytes() == 0 && arena.largest_sum() == 0);
}

TEST(every_buffer_is_written_before_it_is_read_and_kept_until_then) {
  struct Case {
    FitProblem problem;
    bool recomputes;  // as on a device; else as on a CPU
    Size size;
  };
  std::vector<Case> cases;
  for (const FitProblem& problem : check::every_task_and_precision()) {
    cases.push_back({problem, false, Size::small});
    for (const Size size : {Size::small, Size::middle, Size::large}) cases.push_back({problem, true, size});
  }
  for (const auto& [problem, recomputes, size] : cases) {
    const check::AsOfSize as_of_size(size);
    Graph graph = dipengine::make_graph(problem.params, 1, recomputes);
    std::vector<size_t> workspaces;
    for (size_t i = 0; i < graph.steps.size(); ++i) workspaces.push_back(i * i % 5 * 700);
    graph.pack(workspaces);
    Owners owners(graph.arena);
    std::vector<bool> read(graph.steps.size() * 64, false);
    for (const Step& step : graph.steps) {
      const Traffic t = traffic(graph, step);
      for (int buffer : t.reads) CHECK(buffer >= 0 && owners.holds(buffer));
      for (int buffer : t.writes) owners.write(buffer);
      for (int buffer : t.reads) {
        // What a step reads must not share its place with what the step writes, itself excepted.
        const bool rewritten = std::find(t.writes.begin(), t.writes.end(), buffer) != t.writes.end();
        CHECK(rewritten || owners.holds(buffer));
        read[static_cast<size_t>(buffer)] = true;
      }
    }
    CHECK(read[static_cast<size_t>(graph.logits)] && read[static_cast<size_t>(graph.d_logits)]);
    CHECK(recomputes == (graph.nodes[0].raw != graph.nodes[0].raw_again));
    CHECK(graph.steps.back().kind == StepKind::inspect && graph.judged > 0);
    CHECK(graph.arena.bytes() <= graph.arena.largest_sum() * 5 / 4);
  }
}

// The outermost 1x1 unit forms the gradient behind it, and of a large image writes over its own output: nobody else has either, or reads
// that output later.
TEST(a_gradient_that_is_formed_is_nowhere_and_what_is_written_over_was_read_last) {
  for (const FitProblem& problem : check::every_task_and_precision()) CHECK(dipengine::make_graph(problem.params, 1, true).forms == -1);
  for (const Size size : {Size::middle, Size::large}) {
    int formed = 0;
    const check::AsOfSize as_of_size(size);
    for (const FitProblem& problem : check::every_task_and_precision()) {
      const Graph graph = dipengine::make_graph(problem.params, 1, true);
      const bool forms = problem.params.generator.one_by_one_up != 0 &&
                         (size == Size::large || (problem.params.dtype == DIPENGINE_BFLOAT16 && problem.params.generator.channels_up[0] % 8 == 0));
      CHECK(dipengine::make_graph(problem.params).forms == -1 && (graph.forms >= 0) == forms);
      CHECK(graph.over_raw == (forms && size == Size::large));
      if (graph.forms < 0) continue;
      ++formed;
      const Unit& unit = graph.units[static_cast<size_t>(graph.forms)];
      const dipengine::Node& out = graph.nodes[static_cast<size_t>(unit.node)];
      CHECK(unit.name == "level0.point" && unit.parts.size() == 1 && out.gradient == -1);
      CHECK((graph.nodes[static_cast<size_t>(unit.parts[0].node)].gradient == out.raw) == graph.over_raw);
      int without = 0, last = 0;
      for (const dipengine::Node& node : graph.nodes) without += node.gradient < 0;
      for (size_t i = 0; i < graph.steps.size(); ++i) {
        const Step& step = graph.steps[i];
        if (step.unit < 0) continue;
        const Unit& of = graph.units[static_cast<size_t>(step.unit)];
        bool reads = of.node == unit.node;
        for (const auto& part : of.parts) reads = reads || part.node == unit.node;
        if (reads) last = static_cast<int>(i);
      }
      CHECK(without == 2 && graph.steps[static_cast<size_t>(last)].name == "level0.point backward");
    }
    CHECK(formed > 0);
  }
  const check::AsLarge as_large;
  dipengine_fit_params params = check::small_params(DIPENGINE_BFLOAT16);
  for (int which = 0; which < 3; ++which) {  // more channels than a block has, than a head has; a head behind a 3x3 unit
    dipengine_fit_params other = params;
    if (which == 0) other.generator.channels_up[0] = 129;
    if (which == 1) other.generator.output_channels = 5;
    if (which == 2) other.generator.one_by_one_up = 0;
    CHECK(dipengine::make_graph(other, 1, true).forms == -1);
  }
}

// Two iterations of each task: the fit itself, steps over memory that holds NaN wherever nothing was left on purpose, and steps
// over buffers that never share a place.
TEST(an_iteration_needs_nothing_but_its_slot_and_no_buffer_disturbs_another) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    std::unique_ptr<dipengine::Fit> fit;
    CHECK(dipengine::Fit::make(problem.params, true, &fit) == DIPENGINE_OK);
    const dipengine_fit_start_params start = problem.start(11);
    CHECK(fit->start(0, start) == DIPENGINE_OK);
    BarePlan packed(problem, false), apart(problem, true);
    CHECK(packed.bytes() == fit->arena_bytes() && packed.bytes() < apart.bytes());
    memcpy(packed.slot().block(), fit->slot(0).block(), packed.slot_bytes());
    memcpy(apart.slot().block(), fit->slot(0).block(), apart.slot_bytes());
    dipengine_fit_run_params run{};
    run.iterations = 2;
    CHECK(fit->run(run) == DIPENGINE_OK);
    for (BarePlan* plan : {&packed, &apart}) {
      for (int i = 0; i < 2; ++i) {
        plan->poison();
        plan->iterate();
      }
      for (const auto name : {SlotArrays::parameters, SlotArrays::m, SlotArrays::v, SlotArrays::average, SlotArrays::es_mean}) {
        CHECK(memcmp(plan->slot().array(name), fit->slot(0).array(name),
                     static_cast<size_t>(fit->slot(0).size(name)) * sizeof(float)) == 0);
      }
    }
    CHECK(std::isfinite(fit->progress(0).loss));
  }
}

TEST(allocations_are_counted) {
  const auto counts = [](const std::function<void()>& allocate) {
    const int64_t before = check::allocations();
    allocate();
    return check::allocations() - before;
  };
  void* volatile kept = nullptr;  // so that no pair of calls is optimised away
  CHECK(counts([&] { kept = std::malloc(100); std::free(kept); }) == 1);
  CHECK(counts([&] { kept = new char[100]; delete[] static_cast<char*>(kept); }) == 1);
  CHECK(counts([&] { kept = std::calloc(10, 10); std::free(kept); }) == 1);
  CHECK(counts([&] { kept = std::aligned_alloc(64, 128); std::free(kept); }) == 1);
  CHECK(counts([&] { kept = std::realloc(nullptr, 100); std::free(kept); }) >= 1);
  CHECK(counts([&] {
          void* memory = nullptr;
          if (posix_memalign(&memory, 64, 128) != 0) std::abort();
          kept = memory;
          std::free(kept);
        }) == 1);
  CHECK(counts([&] { std::thread([&] { kept = std::malloc(100); std::free(kept); }).join(); }) >= 1);
  CHECK(counts([] {}) == 0);
}

// The first iteration included, snapshots, looks at the residual and kept states (roll-backs: see test_fit_loop.cpp).
TEST(no_iteration_allocates) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    problem.params.stop = DIPENGINE_STOP_AUTO;
    problem.params.iterations = 60;
    problem.params.sigma = problem.params.data_term == DIPENGINE_DATA_SQUARED ? 1e-3 : 0;
    for (int threads : {1, 3}) {
      check::TestPool pool(threads);
      check::TestFit fit(problem, pool.get(), 2);
      fit.start(0, problem, 1);
      fit.start(1, problem, 2);
      std::vector<double> losses(2 * 23), seconds(static_cast<size_t>(dipengine_fit_steps(fit.get())));
      int reports = 0;
      dipengine_fit_run_params run{};
      run.struct_size = sizeof(run);
      run.iterations = 23;
      run.losses = losses.data();
      run.step_seconds = seconds.data();
      run.user = &reports;
      run.report = [](void* user, const dipengine_fit_progress*) { return ++*static_cast<int*>(user) < 0 ? 1 : 0; };
      run.poll = [](void*) { return 0; };
      std::vector<float> image(static_cast<size_t>(problem.painted()));
      const int64_t before = check::allocations();
      const dipengine_status status = dipengine_fit_run(fit.get(), &run);
      const dipengine_status delivered = dipengine_fit_deliver(fit.get(), 0, image.data(), nullptr, nullptr);
      CHECK(check::allocations() == before);
      CHECK(status == DIPENGINE_OK && delivered == DIPENGINE_OK && reports > 23);
    }
  }
}

TEST(memory_is_known_before_it_is_taken) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    size_t bytes = 0;
    const int64_t before = check::allocations();
    CHECK(dipengine_fit_memory(&problem.params, &bytes) == DIPENGINE_OK);
    CHECK(check::allocations() > before);  // the counter sees this function's own small change
    check::TestFit fit(problem);
    CHECK(bytes == dipengine_fit_arena_bytes(fit.get()));
  }
  dipengine_fit_params params = check::small_params(DIPENGINE_BFLOAT16);
  params.height = params.width = 1 << 15;  // more than this machine has
  size_t bytes = 0;
  CHECK(dipengine_fit_memory(&params, &bytes) == DIPENGINE_OK && bytes > size_t{1} << 36);
}
