// JSON (RFC 8259) as far as a generator's metadata needs it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dipengine {

class Json {
 public:
  enum class Kind { null, boolean, number, string, array, object };

  // Throws std::invalid_argument, as do all below, with a few words on what is wrong.
  static Json parse(const std::string& text);

  Kind kind = Kind::null;
  std::string text;  // of a string, decoded; of a number, as it stands there; "true" or "false"
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  const Json* find(const std::string& key) const;  // nullptr where there is none; the last of several
  const Json& at(const std::string& key) const;
  const std::string& string() const;
  double number() const;  // finite
  bool boolean() const;
  int64_t whole(int64_t least, int64_t most) const;
  uint64_t unsigned_whole() const;
  const std::vector<Json>& array() const;
};

}  // namespace dipengine
