// The convolutions forward on a CPU; see conv.h. Compiled once per instruction set.
//
// A task is a chunk of the grid of outputs, or of low-resolution samples where a source is upsampled. Plain sources keep a
// ring of normalised input rows and multiply one row of outputs by one block of output channels at a time, from registers
// to a row buffer to memory.
#include "ops/conv/forward_upsampled_cpu.h"
#include "platform/kernel_table.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

template <typename Stored>
struct Forward : UpsampledForward<Stored> {
  using Base = UpsampledForward<Stored>;
  using typename Base::Element, typename Base::Real, typename Base::Prepared, typename Base::Scratch, typename Base::Piece,
      typename Base::Task;
  using Base::p, Base::sources, Base::up, Base::paired, Base::winograd, Base::wide, Base::strided, Base::blocks, Base::padded,
      Base::inputs, Base::tiled, Base::tiled_source, Base::product_planes,
      Base::grid_height, Base::grid_width, Base::chunk_rows, Base::chunk_columns, Base::row_chunks, Base::column_chunks,
      Base::bias, Base::chunk_mean, Base::chunk_m2, Base::low, Base::rows_map, Base::columns_map,
      Base::weight_planes, Base::vectors_of, Base::scratch_of, Base::add_plain, Base::store_row, Base::clear_moments,
      Base::piece_of, Base::transform_row, Base::tile_rows, Base::tile_side, Base::winograd_planes, Base::fill_map,
      Base::run_up, Base::run_paired, Base::block_parts, Base::task_of;
  using Base::Base;

  static constexpr ConvKernels kernels() {
    return {[](const dipengine_conv_params& params) {
              dipengine_conv_params sized = params;
              sized.workspace = nullptr;
              return Forward(sized).bytes;
            },
            [](const dipengine_conv_params& params) { Forward(params).run(); }};
  }

  void run() {
    for (int i = 0; i < p.sources_count; ++i) sources[i].prologue.fill(*sources[i].source, sources[i].padded);
    for (int64_t c = 0; c < padded; ++c) {
      bias[c] = p.bias != nullptr && c < p.channels ? static_cast<const Real*>(p.bias)[c] : Real(0);
    }
    run_tasks(p.pool, static_cast<int64_t>(blocks) * p.sources_count, [&](int64_t task) {
      const int block = static_cast<int>(task % blocks);
      const Prepared& s = sources[task / blocks];
      if (tiled() && &s == &tiled_source()) return;
      int order[kMaxSegments];
      for (int k = 0; k < kMaxSegments; ++k) order[k] = k;
      pack_weights<Element, Real>(p.channels, static_cast<const Real*>(p.weight), weight_planes(s), order, s.first, s.source->channels,
                                  inputs, block, vectors_of(block), s.panels + block * s.panel_size);
    });
    if (paired) pack_tiled<PairedWeights>();
    else if (strided) pack_tiled<StridedWeights>();
    else if (wide) pack_tiled<WideWeights>();
    else if (winograd) pack_tiled<WinogradWeights>();
    if (up != nullptr && !paired) {
      run_tasks(p.pool, grid_height, [&](int64_t y) {
        load_row<Real, Stored>(*up->source, up->prologue, p.padding, y, 0, grid_width, 1, low + y * grid_width * up->padded,
                               side_by_side<Real>(up->padded));
      });
    }
    if (up != nullptr && !paired) {
      fill_map(rows_map, grid_height);
      fill_map(columns_map, grid_width);
      run_tasks_with_scratch(p.pool, row_chunks * column_chunks * blocks,
                             [&](int64_t task, int slot) { run_up(task / blocks, static_cast<int>(task % blocks), slot); });
    } else if (tiled()) {
      const int parts = block_parts();
      run_tasks_with_scratch(p.pool, row_chunks * column_chunks * parts, [&](int64_t index, int slot) {
        const Task task = task_of(index, parts);
        paired    ? run_paired(task, slot)
        : strided ? run_strided(task, slot)
        : wide    ? run_wide(task, slot)
                  : run_winograd(task, slot);
      });
    } else {
      run_tasks_with_scratch(p.pool, row_chunks * column_chunks, [&](int64_t chunk, int slot) { run_plain(chunk, slot); });
    }
    if (p.mean != nullptr) finish_moments();
  }

  // The weights of the tiles' products.
  template <template <typename> class Transform>
  void pack_tiled() const {
    const Prepared& s = tiled_source();
    const int64_t tap = inputs * p.channels;
    const WeightView<Real> weights{static_cast<const Real*>(p.weight) + s.first * p.channels, tap, p.channels, s.source->channels,
                                   p.channels, false};
    int places[kWidePlanes];
    for (int k = 0; k < product_planes(); ++k) places[k] = k;
    if (strided) paired_gradient_places(places);
    run_tasks(p.pool, blocks * ceil_divide(s.groups, kPackedGroups), [&](int64_t task) {
      const int block = static_cast<int>(task % blocks);
      pack_tiles<Transform, Element, Real>(weights, block, vectors_of(block), task / blocks * kPackedGroups, places,
                                           s.panels + block * s.panel_size);
    });
  }

  // What output row r needs and is not in the ring.
  void fetch_row(Fetch& fetch, int64_t r, int64_t left, int64_t right) const {
    fetch.count = 0;
    if (r == p.height) return;
    for (int i = 0; i < p.sources_count; ++i) {
      const dipengine_conv_source& s = *sources[i].source;
      for (int64_t y = r * p.stride; y < least((r + 1) * p.stride, s.height); ++y) {
        fetch.add(s.x, sizeof(Stored), y, left * p.stride, least(right * p.stride, s.width));
      }
    }
    fetch.add(p.raw, p.raw_dtype == p.dtype ? sizeof(Stored) : sizeof(Real), r, left, right);
  }

  void run_plain(int64_t chunk, int slot) const {
    Scratch area = scratch_of(slot);
    clear_moments(chunk, 0, padded);
    const Piece piece = piece_of(chunk);
    const int64_t columns = piece.right - piece.left;
    for (int64_t r = piece.top; r < piece.bottom; ++r) {
      if (fetches(p)) fetch_row(area.fetch, r + 1, piece.left, piece.right);
      for (int block = 0; block < blocks; ++block) {
        for (int i = 0; i < p.sources_count; ++i) add_plain(i, area, r, piece.left, columns, block, i > 0, area.sums);
        store_row(area.sums, r, piece.left, columns, block, (r - piece.top) * columns, chunk);
      }
    }
  }

  // ---- Winograd -----------------------------------------------------------------------------------------------------

  void run_winograd(const Task& task, int slot) const {
    run_tiles<kWinogradPlanes>(
        task, slot, [&](int64_t r, int64_t left, auto& planes) { transform_row(sources[0], r, left, planes); },
        [&](const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size) {
          winograd_outputs(products, size, tiles, vectors, rows, rows + row_size);
        });
  }

  void run_wide(const Task& task, int slot) const {
    run_tiles<kWidePlanes>(
        task, slot,
        [&](int64_t r, int64_t left, auto& planes) {
          with_samples<Real, Stored, 6>(*sources[0].source, sources[0].prologue, p.padding, r, left - 1, left + 4 * planes.tiles + 1,
                                        [&](const auto& samples) {
            wide_input<Real>(samples, [&](int64_t t) { return left + 4 * t - 1; }, planes.tiles, sources[0].padded, planes);
          });
        },
        [&](const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size) {
          wide_outputs(products, size, tiles, vectors, rows, row_size, [](int64_t t) { return 4 * t; });
        });
  }

  void run_strided(const Task& task, int slot) const {
    run_tiles<kStridedPlanes>(
        task, slot,
        [&](int64_t r, int64_t left, auto& planes) {
          with_samples<Real, Stored, 5>(*sources[0].source, sources[0].prologue, p.padding, 2 * r, 2 * left - 1, 2 * left + 4 * planes.tiles,
                                        [&](const auto& samples) {
            strided_input<Real>(samples, 2 * left - 1, planes.tiles, sources[0].padded, planes);
          });
        },
        [&](const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size) {
          paired_gradient_rows(products, size, tiles, vectors, rows, rows + row_size);
        });
  }

  // A chunk tile by tile: transform(r, left, planes) fills a row of tiles whose outputs begin at row r and column `left`,
  // outputs(products, size, tiles, vectors, rows, row_size) makes one block of their rows.
  template <int kPlanes, typename Transform, typename Outputs>
  void run_tiles(const Task& task, int slot, const Transform& transform, const Outputs& outputs) const {
    Scratch area = scratch_of(slot);
    const Piece piece = piece_of(task.chunk);
    const int64_t side = tile_side(), columns = piece.right - piece.left, tiles = columns / side, row_size = columns * kBlock<Real>;
    clear_moments(task);
    for (int64_t r = piece.top; r < piece.bottom; r += side * tile_rows()) {
      const int64_t rows = least(tile_rows(), (piece.bottom - r) / side);
      TilePlanes<Element, kPlanes> planes(area.tiles, nullptr, tiles, rows, sources[0].padded);
      for (int64_t i = 0; i < rows; ++i) {
        planes.begin_row(i);
        transform(r + side * i, piece.left, planes);
      }
      each_tile_row(area, piece, task, r, rows, planes, [&](int block, const Real* products, int64_t size) {
        outputs(products, size, tiles, vectors_of(block), area.sums, row_size);
      });
    }
  }

  // Takes the products of `rows` rows of tiles, lets outputs(block, a row's products, size) put rows of sums together from
  // them and stores those from output row `top` on.
  template <typename Planes, typename Outputs>
  void each_tile_row(Scratch& area, const Piece& piece, const Task& task, int64_t top, int64_t rows, const Planes& planes,
                     const Outputs& outputs) const {
    const Prepared& s = sources[0];
    const int64_t columns = piece.right - piece.left, side = tile_side();
    for (int block = task.first; block < task.last; ++block) {
      const Element* panel = s.panels + block * s.panel_size;
      if (strided) {
        multiply_paired_gradient(planes.rows, planes.plane, planes.total, s.groups, panel, vectors_of(block), area.products);
      } else {
        multiply_planes(winograd_planes(), planes.rows, planes.plane, planes.total, s.groups, panel, vectors_of(block), area.products);
      }
      for (int64_t i = 0; i < rows; ++i) {
        outputs(block, area.products + i * planes.pitch(planes.tiles) * kBlock<Real>, planes.total * kBlock<Real>);
        for (int64_t y = 0; y < side; ++y) {
          const int64_t r = top + side * i + y;
          store_row(area.sums + y * columns * kBlock<Real>, r, piece.left, columns, block, (r - piece.top) * columns, task.chunk);
        }
      }
    }
  }

  void finish_moments() const {
    const int64_t scale = up != nullptr ? 4 : 1;
    for (int64_t c = 0; c < p.channels; ++c) {
      double mean = 0, m2 = 0, count = 0;
      for (int64_t chunk = 0; chunk < row_chunks * column_chunks; ++chunk) {
        const int64_t height = least(chunk_rows, grid_height - chunk / column_chunks * chunk_rows);
        const int64_t width = least(chunk_columns, grid_width - chunk % column_chunks * chunk_columns);
        const double pixels = static_cast<double>(height * width * scale);
        merge_moments(count, &mean, &m2, pixels, chunk_mean[chunk * padded + c], chunk_m2[chunk * padded + c]);
        count += pixels;
      }
      p.mean[c] = mean;
      p.variance[c] = m2 / count;
    }
  }
};

}  // namespace

extern const ConvTable conv_forward_kernels;
const ConvTable conv_forward_kernels = kernel_table<ConvTable, Forward>();

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
