#include "fit/arena.h"

#include <algorithm>
#include <numeric>

namespace dipengine {

int Arena::add_once(size_t bytes) {
  buffers_.push_back({aligned(bytes), INT32_MAX, -1, false, 0});
  return static_cast<int>(buffers_.size()) - 1;
}

int Arena::add_permanent(size_t bytes) {
  const int buffer = add(bytes);
  buffers_.back().permanent = true;
  return buffer;
}

void Arena::use(int buffer, int step) {
  Buffer& b = buffers_[static_cast<size_t>(buffer)];
  b.first = std::min(b.first, step);
  b.last = std::max(b.last, step);
}

bool Arena::together(const Buffer& a, const Buffer& b) {
  if (a.permanent || b.permanent) return true;
  return a.first <= b.last && b.first <= a.last;
}

void Arena::pack() {
  std::vector<size_t> order(buffers_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Buffer &x = buffers_[a], &y = buffers_[b];
    return x.permanent != y.permanent ? x.permanent : x.bytes > y.bytes;
  });
  bytes_ = 0;
  std::vector<const Buffer*> placed;  // by offset
  for (size_t index : order) {
    Buffer& b = buffers_[index];
    if (!b.permanent && b.last < b.first) continue;  // never used
    size_t at = 0;
    for (const Buffer* other : placed) {
      if (!together(b, *other)) continue;
      if (other->offset >= at + b.bytes) break;
      at = std::max(at, other->offset + other->bytes);
    }
    b.offset = at;
    bytes_ = std::max(bytes_, at + b.bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &b,
                                   [](const Buffer* x, const Buffer* y) { return x->offset < y->offset; }),
                  &b);
  }
}

size_t Arena::largest_sum() const {
  int steps = 0;
  for (const Buffer& b : buffers_) steps = std::max(steps, b.last + 1);
  size_t largest = 0;
  for (int step = 0; step < steps; ++step) {
    size_t sum = 0;
    for (size_t i = 0; i < buffers_.size(); ++i) sum += alive(static_cast<int>(i), step) ? buffers_[i].bytes : 0;
    largest = std::max(largest, sum);
  }
  return largest;
}

bool Arena::alive(int buffer, int step) const {
  const Buffer& b = buffers_[static_cast<size_t>(buffer)];
  return b.permanent || (b.first <= step && step <= b.last);
}

bool Arena::apart(int a, int b) const {
  const Buffer &x = buffers_[static_cast<size_t>(a)], &y = buffers_[static_cast<size_t>(b)];
  return !together(x, y) || x.offset + x.bytes <= y.offset || y.offset + y.bytes <= x.offset;
}

}  // namespace dipengine
