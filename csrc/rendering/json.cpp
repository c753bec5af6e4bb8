#include "rendering/json.h"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace dipengine {
namespace {

constexpr int kDeepest = 32;

class Parser {
 public:
  explicit Parser(const std::string& text) : text_(text) {}

  Json whole() {
    Json value = any(0);
    space();
    if (at_ != text_.size()) wrong();
    return value;
  }

 private:
  [[noreturn]] static void wrong() { throw std::invalid_argument("its metadata is no JSON"); }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  void space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }
  bool take(char byte) {
    space();
    if (peek() != byte) return false;
    ++at_;
    return true;
  }
  void need(char byte) {
    if (!take(byte)) wrong();
  }
  bool word(const char* letters) {
    const std::string expected = letters;
    if (text_.compare(at_, expected.size(), expected) != 0) return false;
    at_ += expected.size();
    return true;
  }

  Json any(int depth) {
    if (depth > kDeepest) wrong();
    space();
    Json value;
    if (peek() == '{') return object(depth);
    if (peek() == '[') return array(depth);
    if (peek() == '"') {
      value.kind = Json::Kind::string;
      value.text = quoted();
    } else if (word("true")) {
      value.kind = Json::Kind::boolean;
      value.text = "true";
    } else if (word("false")) {
      value.kind = Json::Kind::boolean;
      value.text = "false";
    } else if (!word("null")) {
      value.kind = Json::Kind::number;
      value.text = digits();
    }
    return value;
  }

  Json object(int depth) {
    Json value;
    value.kind = Json::Kind::object;
    need('{');
    if (take('}')) return value;
    do {
      space();
      std::string key = quoted();
      need(':');
      value.members.emplace_back(std::move(key), any(depth + 1));
    } while (take(','));
    need('}');
    return value;
  }

  Json array(int depth) {
    Json value;
    value.kind = Json::Kind::array;
    need('[');
    if (take(']')) return value;
    do value.items.push_back(any(depth + 1));
    while (take(','));
    need(']');
    return value;
  }

  std::string digits() {
    const size_t start = at_;
    const auto run = [&] {
      const size_t first = at_;
      while (peek() >= '0' && peek() <= '9') ++at_;
      if (at_ == first) wrong();
    };
    if (peek() == '-') ++at_;
    run();
    if (peek() == '.') {
      ++at_;
      run();
    }
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      run();
    }
    return text_.substr(start, at_ - start);
  }

  std::string quoted() {
    if (peek() != '"') wrong();
    ++at_;
    std::string value;
    while (at_ < text_.size() && text_[at_] != '"') {
      if (static_cast<unsigned char>(text_[at_]) < 0x20) wrong();
      if (text_[at_] == '\\') {
        ++at_;
        escaped(value);
      } else {
        value += text_[at_++];
      }
    }
    if (at_ == text_.size()) wrong();
    ++at_;
    return value;
  }

  void escaped(std::string& value) {
    const char byte = peek();
    ++at_;
    switch (byte) {
      case '"': case '\\': case '/': value += byte; return;
      case 'b': value += '\b'; return;
      case 'f': value += '\f'; return;
      case 'n': value += '\n'; return;
      case 'r': value += '\r'; return;
      case 't': value += '\t'; return;
      case 'u': break;
      default: wrong();
    }
    uint32_t point = unit();
    if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
      const uint32_t low = unit();
      if (low < 0xDC00 || low > 0xDFFF) wrong();
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }
    utf8(point, value);
  }

  uint32_t unit() {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) wrong();
      value = 16 * value + static_cast<uint32_t>(digit);
    }
    return value;
  }

  static void utf8(uint32_t point, std::string& value) {
    const auto add = [&](uint32_t byte) { value += static_cast<char>(static_cast<unsigned char>(byte)); };
    if (point < 0x80) return add(point);
    if (point < 0x800) {
      add(0xC0 | point >> 6);
    } else {
      if (point < 0x10000) {
        add(0xE0 | point >> 12);
      } else {
        add(0xF0 | point >> 18);
        add(0x80 | (point >> 12 & 63));
      }
      add(0x80 | (point >> 6 & 63));
    }
    add(0x80 | (point & 63));
  }

  const std::string& text_;
  size_t at_ = 0;
};

[[noreturn]] void refuse(const std::string& text, const char* wanted) {
  throw std::invalid_argument("'" + text.substr(0, 40) + "' stands where " + wanted + " should");
}

}  // namespace

Json Json::parse(const std::string& text) { return Parser(text).whole(); }

const Json* Json::find(const std::string& key) const {
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->first == key) return &member->second;
  }
  return nullptr;
}

const Json& Json::at(const std::string& key) const {
  const Json* found = find(key);
  if (found == nullptr) throw std::invalid_argument("its metadata lacks " + key);
  return *found;
}

const std::string& Json::string() const {
  if (kind != Kind::string) refuse(text, "a text");
  return text;
}

double Json::number() const {
  if (kind != Kind::number) refuse(text, "a number");
  // Not strtod, which follows the host's locale.
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  if (stream.fail() || !std::isfinite(value)) refuse(text, "a finite number");
  return value;
}

bool Json::boolean() const {
  if (kind != Kind::boolean) refuse(text, "true or false");
  return text == "true";
}

int64_t Json::whole(int64_t least, int64_t most) const {
  if (kind != Kind::number || text.find_first_of(".eE") != std::string::npos) refuse(text, "a whole number");
  errno = 0;
  const long long value = std::strtoll(text.c_str(), nullptr, 10);
  if (errno != 0 || value < least || value > most) refuse(text, "another whole number");
  return value;
}

uint64_t Json::unsigned_whole() const {
  if (kind != Kind::number || text.find_first_of("-.eE") != std::string::npos) refuse(text, "a whole number of at least 0");
  errno = 0;
  const unsigned long long value = std::strtoull(text.c_str(), nullptr, 10);
  if (errno != 0) refuse(text, "a whole number below 2^64");
  return value;
}

const std::vector<Json>& Json::array() const {
  if (kind != Kind::array) refuse(text, "a list");
  return items;
}

}  // namespace dipengine
