#include "rendering/value_map.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "rendering/json.h"

namespace dipengine {
namespace {

constexpr size_t kMostRows = size_t{1} << 16;

[[noreturn]] void damaged(const char* why) { throw std::invalid_argument(why); }

std::vector<double> numbers(const Json& from) {
  std::vector<double> values;
  for (const Json& item : from.array()) values.push_back(item.number());
  return values;
}

}  // namespace

ValueMap ValueMap::from(const Json& values) {
  ValueMap m;
  m.low = values.at("low").number();
  m.high = values.at("high").number();
  if (!(m.low < m.high) || !std::isfinite(m.high - m.low)) damaged("its range of values is empty");
  m.start = m.low;
  m.span = m.high - m.low;
  const Json *curve = values.find("curve"), *inverse = values.find("inverse");
  if (curve == nullptr && inverse != nullptr) damaged("its values have an inverse without a curve");
  if (curve == nullptr) return m;
  m.curve = DIPENGINE_CURVE_UNKNOWN;
  if (inverse == nullptr) return m;
  m.read_curve(*curve);
  m.read_table(*inverse);
  m.curve = DIPENGINE_CURVE_TABLE;
  return m;
}

void ValueMap::read_curve(const Json& from) {
  if (from.at("kind").string() != "anscombe") damaged("its curve is of an unknown kind");
  gain = from.at("gain").number();
  offset = from.at("offset").number();
  const double read_noise = from.at("read_noise").number(), deviation = gain * read_noise, variance = deviation * deviation;
  if (!(gain > 0) || !(read_noise >= 0) || !std::isfinite(variance)) damaged("its curve is that of no sensor");
  const auto stabilised = [&](double data) { return 2 * std::sqrt(std::max((data - offset) * gain + 3.0 / 8 + variance, 0.0)); };
  start = stabilised(low);
  span = stabilised(high) - start;
  limit = -1.0 / 8 - variance;
  if (!(span > 0) || !std::isfinite(span)) damaged("its range of values is empty behind its curve");
}

void ValueMap::read_table(const Json& from) {
  means = numbers(from.at("means"));
  rests = numbers(from.at("rests"));
  if (means.size() < 2 || means.size() > kMostRows || rests.size() != means.size()) damaged("its inverse has another number of rows");
  if (means.front() < 0 || means.back() <= means.front() || !std::is_sorted(means.begin(), means.end())) {
    damaged("the means of its inverse do not rise");
  }
  // Between equal means the slope is no number, and no value falls.
  for (size_t i = 0; i + 1 < means.size(); ++i) slopes.push_back((rests[i + 1] - rests[i]) / (means[i + 1] - means[i]));
}

double ValueMap::uncurved(double stabilised) const {
  const double d = std::max(stabilised, means.front()), end = means.back();  // not a number stays none
  double rest;
  if (d < end) {
    const auto i = static_cast<size_t>(std::upper_bound(means.begin(), means.end(), d) - means.begin() - 1);
    rest = rests[i] + (d - means[i]) * slopes[i];
  } else {
    const double s = end / d;
    rest = limit + (rests.back() - limit) * (s * s);
  }
  return (d * d / 4 + rest) / gain + offset;
}

}  // namespace dipengine
