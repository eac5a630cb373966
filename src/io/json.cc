// SPDX-License-Identifier: Apache-2.0
#include "woq/io/json.h"

#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>
#include <system_error>
#include <unordered_set>

#include "woq/io/bytes.h"

namespace woq::io {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& kind, const std::string& path,
         const std::string& mend)
      : text_(text), source_(text, kind, path, mend) {}

  Json document() {
    if (!is_utf8(text_)) fail("it is not UTF-8");
    Json result = value(0);
    skip_space();
    if (at_ < text_.size()) fail("something follows the end of the value");
    return result;
  }

 private:
  template <class... What>
  [[noreturn]] void fail(const What&... what) {
    source_.seek(at_);
    source_.fail(what...);
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool accept(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }

  void skip_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
  }

  bool accept_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json value(int depth) {
    skip_space();
    if (depth > kJsonDepth) fail("more than ", kJsonDepth, " levels of lists and objects");
    if (accept('{')) return object(depth);
    if (accept('[')) return list(depth);
    if (accept('"')) return Json(string());
    if (accept_word("true")) return Json(true);
    if (accept_word("false")) return Json(false);
    if (accept_word("null")) return Json();
    if (peek() == '-' || is_digit(peek())) return number();
    fail(at_ == text_.size() ? "it ends where a value is expected" : "a value is expected here");
  }

  Json object(int depth) {
    JsonMembers members;
    std::unordered_set<std::string> keys;
    skip_space();
    if (accept('}')) return Json(std::move(members));
    do {
      skip_space();
      if (!accept('"')) fail("a key in quotation marks is expected here");
      std::string key = string();
      if (!keys.insert(key).second) fail("the key ", io::quoted(key), " comes twice");
      skip_space();
      if (!accept(':')) fail("a colon is expected after the key ", io::quoted(key));
      members.emplace_back(std::move(key), value(depth + 1));
      skip_space();
    } while (accept(','));
    if (!accept('}')) fail("a comma or the end of the object is expected here");
    return Json(std::move(members));
  }

  Json list(int depth) {
    JsonList items;
    skip_space();
    if (accept(']')) return Json(std::move(items));
    do {
      items.push_back(value(depth + 1));
      skip_space();
    } while (accept(','));
    if (!accept(']')) fail("a comma or the end of the list is expected here");
    return Json(std::move(items));
  }

  uint32_t code_unit() {
    uint32_t unit = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      uint32_t digit = 0;
      if (is_digit(c)) {
        digit = static_cast<uint32_t>(c - '0');
      } else if (c >= 'a' && c <= 'f') {
        digit = static_cast<uint32_t>(c - 'a') + 10;
      } else if (c >= 'A' && c <= 'F') {
        digit = static_cast<uint32_t>(c - 'A') + 10;
      } else {
        fail("\\u needs four hexadecimal digits");
      }
      unit = unit * 16 + digit;
      ++at_;
    }
    return unit;
  }

  void append_utf8(std::string* out, uint32_t point) {
    const auto add = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
    if (point < 0x80) {
      add(point);
    } else if (point < 0x800) {
      add(0xc0 | point >> 6);
      add(0x80 | (point & 0x3f));
    } else if (point < 0x10000) {
      add(0xe0 | point >> 12);
      add(0x80 | (point >> 6 & 0x3f));
      add(0x80 | (point & 0x3f));
    } else {
      add(0xf0 | point >> 18);
      add(0x80 | (point >> 12 & 0x3f));
      add(0x80 | (point >> 6 & 0x3f));
      add(0x80 | (point & 0x3f));
    }
  }

  void escape(std::string* out) {
    const char c = peek();
    ++at_;
    switch (c) {
      case '"':
      case '\\':
      case '/': out->push_back(c); return;
      case 'b': out->push_back('\b'); return;
      case 'f': out->push_back('\f'); return;
      case 'n': out->push_back('\n'); return;
      case 'r': out->push_back('\r'); return;
      case 't': out->push_back('\t'); return;
      case 'u': break;
      default: --at_; fail("an unknown escape in a text");
    }
    uint32_t point = code_unit();
    if (point >= 0xdc00 && point < 0xe000) fail("half of a surrogate pair");
    if (point >= 0xd800 && point < 0xdc00) {
      if (!accept_word("\\u")) fail("half of a surrogate pair");
      const uint32_t low = code_unit();
      if (low < 0xdc00 || low >= 0xe000) fail("half of a surrogate pair");
      point = 0x10000 + (point - 0xd800) * 0x400 + (low - 0xdc00);
    }
    append_utf8(out, point);
  }

  // Behind the opening quotation mark.
  std::string string() {
    std::string out;
    for (;;) {
      if (at_ == text_.size()) fail("it ends within a text");
      const char c = text_[at_];
      if (static_cast<uint8_t>(c) < 0x20) fail("a control character in a text");
      ++at_;
      if (c == '"') return out;
      if (c != '\\') {
        out.push_back(c);
      } else {
        escape(&out);
      }
    }
  }

  void digits() {
    if (!is_digit(peek())) fail("a digit is expected here");
    while (is_digit(peek())) ++at_;
  }

  Json number() {
    const size_t begin = at_;
    accept('-');
    if (!accept('0')) digits();  // no leading zeros
    bool whole = true;
    if (accept('.')) {
      whole = false;
      digits();
    }
    if (accept('e') || accept('E')) {
      whole = false;
      if (!accept('+')) accept('-');
      digits();
    }
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    int64_t integer = 0;
    if (whole && std::from_chars(first, last, integer).ec == std::errc()) return Json(integer);
    // Not from_chars, which needs parts of libstdc++ that do not run on older systems.
    std::istringstream source(std::string(first, last));
    source.imbue(std::locale::classic());
    double real = 0;
    source >> real;
    if (source.fail() || !std::isfinite(real)) {
      at_ = begin;
      fail("a number that does not fit");
    }
    return Json(real);
  }

  std::string_view text_;
  size_t at_ = 0;
  ByteReader source_;  // for its messages
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto* const members = as<JsonMembers>();
  if (members == nullptr) return nullptr;
  for (const auto& [name, value] : *members) {
    if (name == key) return &value;
  }
  return nullptr;
}

Json parse_json(std::string_view text, const std::string& kind, const std::string& path,
                const std::string& mend) {
  return Parser(text, kind, path, mend).document();
}

}  // namespace woq::io
