// One block of memory, laid out before it exists: buffers that are alive at different steps share addresses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace dipengine {

class Arena {
 public:
  static constexpr size_t kAlign = 64;
  static size_t aligned(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

  // `copies`: of every buffer but add_once's, one behind the other: for fits that run at once.
  explicit Arena(int64_t copies = 1) : copies_(static_cast<size_t>(copies)) {}

  // A buffer of `bytes` (a copy), without a life until it is used.
  int add(size_t bytes) { return add_once(aligned(bytes) * copies_); }
  int add_once(size_t bytes);
  // A buffer that is always alive.
  int add_permanent(size_t bytes);
  // The buffer holds something at `step`; between its first and its last use it keeps its place for itself.
  void use(int buffer, int step);
  // Decide every offset. Larger buffers first, each at the lowest offset free during its life: a few percent above the
  // largest sum of what lives at one step, in practice.
  void pack();

  size_t bytes() const { return bytes_; }                       // after pack()
  size_t largest_sum() const;                                   // of what lives at any one step: no layout needs less
  bool alive(int buffer, int step) const;
  size_t offset(int buffer) const { return buffers_[static_cast<size_t>(buffer)].offset; }
  size_t size(int buffer) const { return buffers_[static_cast<size_t>(buffer)].bytes; }
  size_t stride(int buffer) const { return size(buffer) / copies_; }  // from a copy to the next
  bool apart(int a, int b) const;                                     // in address or in time

 private:
  struct Buffer {
    size_t bytes;
    int first, last;
    bool permanent;
    size_t offset;
  };
  static bool together(const Buffer& a, const Buffer& b);

  std::vector<Buffer> buffers_;
  size_t copies_, bytes_ = 0;
};

}  // namespace dipengine
