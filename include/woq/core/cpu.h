// SPDX-License-Identifier: Apache-2.0
// CPU features that kernels may use: what the processor has and the operating system saves and, for
// AMX, permits.
#pragma once

#include <cstdint>
#include <string>

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

enum class CpuFeature : uint8_t {
  kAvx2,
  kFma,
  kF16c,
  kAvxVnni,
  kAvx512f,
  kAvx512bw,
  kAvx512vl,
  kAvx512dq,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmxTile,
  kAmxInt8,
  kAmxBf16,
};

inline constexpr const char* kCpuFeatureNames[] = {
    "avx2",     "fma",         "f16c",        "avx_vnni", "avx512f",  "avx512bw", "avx512vl",
    "avx512dq", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"};
inline constexpr int kCpuFeatureCount = 13;

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

namespace detail {

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

inline CpuFeatureSet detect_cpu_features() {
  CpuFeatureSet set = 0;
#if WOQ_X86
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1u))
    return set;  // no OSXSAVE: no AVX state
  const uint32_t leaf1_ecx = ecx;
  uint32_t xcr0 = 0, xcr0_high = 0;
  __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(xcr0_high) : "c"(0));
  const bool saves_ymm = (xcr0 & 0x06u) == 0x06u, saves_zmm = (xcr0 & 0xe6u) == 0xe6u;
  const bool saves_tiles = (xcr0 & 0x60000u) == 0x60000u;
  const auto add = [&set](bool present, CpuFeature feature) {
    if (present) set |= features(feature);
  };
  if (!saves_ymm) return set;
  add(leaf1_ecx >> 12 & 1u, CpuFeature::kFma);
  add(leaf1_ecx >> 29 & 1u, CpuFeature::kF16c);
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return set;
  const uint32_t subleaves = eax;
  add(ebx >> 5 & 1u, CpuFeature::kAvx2);
  if (saves_zmm) {
    add(ebx >> 16 & 1u, CpuFeature::kAvx512f);
    add(ebx >> 17 & 1u, CpuFeature::kAvx512dq);
    add(ebx >> 30 & 1u, CpuFeature::kAvx512bw);
    add(ebx >> 31 & 1u, CpuFeature::kAvx512vl);
    add(ecx >> 11 & 1u, CpuFeature::kAvx512Vnni);
  }
  if (saves_tiles && (edx >> 24 & 1u) && request_tiles()) {
    add(true, CpuFeature::kAmxTile);
    add(edx >> 25 & 1u, CpuFeature::kAmxInt8);
    add(edx >> 22 & 1u, CpuFeature::kAmxBf16);
  }
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
    add(eax >> 4 & 1u, CpuFeature::kAvxVnni);
    add(saves_zmm && (eax >> 5 & 1u), CpuFeature::kAvx512Bf16);
  }
#endif
  return set;
}

}  // namespace detail

inline CpuFeatureSet cpu_features() {
  static const CpuFeatureSet set = detail::detect_cpu_features();
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
