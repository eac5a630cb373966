// SPDX-License-Identifier: Apache-2.0
// CPU features that kernels may use: what the processor has and the operating system saves and, for
// AMX, permits.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#define WOQ_X86 1
#else
#define WOQ_X86 0
#endif
#if WOQ_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace woq {

// The one list of CPU features, a row each: enumerator, name in messages, the compiler's name in
// target options, where CPUID has its bit (leaf, subleaf, register, bit), and the state that the
// operating system must save for it.
#define WOQ_CPU_FEATURES(X)                                              \
  X(kAvx2, "avx2", "avx2", 7, 0, kEbx, 5, kYmmState)                     \
  X(kFma, "fma", "fma", 1, 0, kEcx, 12, kYmmState)                       \
  X(kF16c, "f16c", "f16c", 1, 0, kEcx, 29, kYmmState)                    \
  X(kAvxVnni, "avx_vnni", "avxvnni", 7, 1, kEax, 4, kYmmState)           \
  X(kAvx512f, "avx512f", "avx512f", 7, 0, kEbx, 16, kZmmState)           \
  X(kAvx512bw, "avx512bw", "avx512bw", 7, 0, kEbx, 30, kZmmState)        \
  X(kAvx512vl, "avx512vl", "avx512vl", 7, 0, kEbx, 31, kZmmState)        \
  X(kAvx512dq, "avx512dq", "avx512dq", 7, 0, kEbx, 17, kZmmState)        \
  X(kAvx512Vnni, "avx512_vnni", "avx512vnni", 7, 0, kEcx, 11, kZmmState) \
  X(kAvx512Bf16, "avx512_bf16", "avx512bf16", 7, 1, kEax, 5, kZmmState)  \
  X(kAmxTile, "amx_tile", "amx-tile", 7, 0, kEdx, 24, kTileState)        \
  X(kAmxInt8, "amx_int8", "amx-int8", 7, 0, kEdx, 25, kTileState)        \
  X(kAmxBf16, "amx_bf16", "amx-bf16", 7, 0, kEdx, 22, kTileState)

#define WOQ_ROW(enumerator, ...) enumerator,
enum class CpuFeature : uint8_t { WOQ_CPU_FEATURES(WOQ_ROW) };
#undef WOQ_ROW

namespace simd {

enum CpuidRegister : uint8_t { kEax, kEbx, kEcx, kEdx };

// Bits of the register XCR0: which registers the operating system saves at a thread switch.
inline constexpr uint32_t kYmmState = 0x6, kZmmState = 0xe6, kTileState = 0x60006;

struct CpuFeatureTraits {
  CpuFeature feature;
  const char* name;
  const char* option;  // in __attribute__((target)) and #pragma GCC target
  uint32_t leaf, subleaf;
  CpuidRegister place;
  int bit;
  uint32_t state;
};

#define WOQ_ROW(enumerator, ...) {CpuFeature::enumerator, __VA_ARGS__},
inline constexpr CpuFeatureTraits kCpuFeatures[] = {WOQ_CPU_FEATURES(WOQ_ROW)};
#undef WOQ_ROW

}  // namespace simd

#define WOQ_ROW(enumerator, name, ...) name,
inline constexpr const char* kCpuFeatureNames[] = {WOQ_CPU_FEATURES(WOQ_ROW)};
#undef WOQ_ROW
inline constexpr int kCpuFeatureCount = static_cast<int>(std::size(kCpuFeatureNames));

// A set of features, one bit each.
using CpuFeatureSet = uint32_t;

template <class... Features>
constexpr CpuFeatureSet features(Features... list) {
  return (CpuFeatureSet{0} | ... | (CpuFeatureSet{1} << static_cast<int>(list)));
}

inline std::string names_of(CpuFeatureSet set) {
  std::string names;
  for (int i = 0; i < kCpuFeatureCount; ++i) {
    if (set >> i & 1u) names += (names.empty() ? "" : ", ") + std::string(kCpuFeatureNames[i]);
  }
  return names;
}

namespace simd {

// The features that compiler options such as "avx2,fma" name. A constant expression of an unknown
// name does not compile.
constexpr CpuFeatureSet features_of_options(std::string_view options) {
  CpuFeatureSet set = 0;
  while (!options.empty()) {
    const size_t end = options.find(',');
    const std::string_view option = options.substr(0, end);
    CpuFeatureSet named = 0;
    for (const CpuFeatureTraits& traits : kCpuFeatures) {
      if (option == traits.option) named = features(traits.feature);
    }
    if (named == 0) throw "an option that no row of WOQ_CPU_FEATURES has";
    set |= named;
    options.remove_prefix(end == std::string_view::npos ? options.size() : end + 1);
  }
  return set;
}

// Linux gives tile registers to a process that asks for them, once for all of its threads. It
// refuses where a thread's alternate signal stack is too small for them.
inline bool request_tiles() {
#if WOQ_X86 && defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#if WOQ_X86
// A register of a CPUID leaf, 0 where the processor lacks the leaf.
inline uint32_t cpuid(uint32_t leaf, uint32_t subleaf, CpuidRegister place) {
  uint32_t registers[4] = {};
  const auto read = [&](uint32_t index) {
    return __get_cpuid_count(leaf, index, &registers[kEax], &registers[kEbx], &registers[kEcx],
                             &registers[kEdx]) != 0;
  };
  // The first subleaf says in EAX which is the last.
  if (!read(0) || (subleaf > 0 && (registers[kEax] < subleaf || !read(subleaf)))) return 0;
  return registers[place];
}
#endif

inline CpuFeatureSet detect_cpu_features() {
  CpuFeatureSet set = 0;
#if WOQ_X86
  if ((cpuid(1, 0, kEcx) >> 27 & 1u) == 0) return set;  // no OSXSAVE: no AVX state
  uint32_t xcr0 = 0, xcr0_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  for (const CpuFeatureTraits& traits : kCpuFeatures) {
    const bool saved = (xcr0 & traits.state) == traits.state;
    if (saved && (cpuid(traits.leaf, traits.subleaf, traits.place) >> traits.bit & 1u) != 0)
      set |= features(traits.feature);
  }
  const bool has_tiles = (set & features(CpuFeature::kAmxTile)) != 0;
  if (!has_tiles || !request_tiles())
    set &= ~features(CpuFeature::kAmxTile, CpuFeature::kAmxInt8, CpuFeature::kAmxBf16);
#endif
  return set;
}

}  // namespace simd

inline CpuFeatureSet cpu_features() {
  static const CpuFeatureSet set = simd::detect_cpu_features();
  return set;
}

// The processor's own name, empty where it has none.
inline std::string cpu_brand() {
  std::string brand;
#if WOQ_X86
  for (uint32_t leaf = 0x80000002u; leaf <= 0x80000004u; ++leaf) {
    uint32_t words[4] = {};
    if (!__get_cpuid(leaf, &words[0], &words[1], &words[2], &words[3])) return {};
    for (uint32_t word : words) {
      for (int byte = 0; byte < 4; ++byte) {
        const char c = static_cast<char>(word >> (8 * byte) & 0xffu);
        if (c != '\0') brand += c;
      }
    }
  }
  while (!brand.empty() && brand.back() == ' ') brand.pop_back();
#endif
  return brand;
}

}  // namespace woq
