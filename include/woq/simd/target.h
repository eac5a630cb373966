// SPDX-License-Identifier: Apache-2.0
// Targets: sets of CPU features with a priority. Where a target runs, the code of every target
// whose features it includes runs too, so each adds only what it does better.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "woq/core/check.h"
#include "woq/simd/cpu.h"

namespace woq {

// What the compiler may use in each target's region; a CPU must have all of it (WOQ_CPU_FEATURES).
#define WOQ_AVX2_OPTIONS "avx2,fma,f16c"
#define WOQ_AVX512_OPTIONS WOQ_AVX2_OPTIONS ",avx512f,avx512bw,avx512vl,avx512dq"
#define WOQ_AVX512_VNNI_OPTIONS WOQ_AVX512_OPTIONS ",avx512vnni"
#define WOQ_AVX512_BF16_OPTIONS WOQ_AVX512_VNNI_OPTIONS ",avx512bf16"
#define WOQ_AMX_OPTIONS WOQ_AVX512_BF16_OPTIONS ",amx-tile,amx-int8,amx-bf16"

// The one list of targets, in ascending priority, a row each: name, enumerator, bits of a register,
// whether 8-bit dot products are one instruction (VNNI), whether bfloat16 ones are, the compiler's
// options, and for another engine (TargetTraits) why it is not the default.
// clang-format off
#define WOQ_TARGETS(X)                                                           \
  X(ref,         kRef,        128, 0, 0, "",                            nullptr) \
  X(avx2,        kAvx2,       256, 0, 0, WOQ_AVX2_OPTIONS,              nullptr) \
  X(avx_vnni,    kAvxVnni,    256, 1, 0, WOQ_AVX2_OPTIONS ",avxvnni",   nullptr) \
  X(avx512,      kAvx512,     512, 0, 0, WOQ_AVX512_OPTIONS,            nullptr) \
  X(avx512_vnni, kAvx512Vnni, 512, 1, 0, WOQ_AVX512_VNNI_OPTIONS,       nullptr) \
  X(avx512_bf16, kAvx512Bf16, 512, 1, 1, WOQ_AVX512_BF16_OPTIONS,       nullptr) \
  X(amx,         kAmx,        512, 1, 1, WOQ_AMX_OPTIONS,               nullptr) \
  X(onednn,      kOneDnn,     512, 1, 1, WOQ_AVX512_BF16_OPTIONS,                \
    "measured slower or hardly faster, see docs/performance.md")
// clang-format on

#define WOQ_ROW(name, enumerator, ...) enumerator,
enum class Target : uint8_t { WOQ_TARGETS(WOQ_ROW) };
#undef WOQ_ROW

struct TargetTraits {
  Target target;
  const char* name;
  CpuFeatureSet required;
  bool has_bf16;  // dot products of bfloat16 are one instruction
  // Not an instruction set but another engine: taken only when forced by name, and then in place of
  // what would be taken otherwise, which stays in use for what the engine lacks. The text says why
  // it is not the default; nullptr for all others.
  const char* only_when_forced;
};

#define WOQ_ROW(name, enumerator, bits, vnni, bf16, options, why) \
  {Target::enumerator, #name, simd::features_of_options(options), bf16 != 0, why},
inline constexpr TargetTraits kTargets[] = {WOQ_TARGETS(WOQ_ROW)};
#undef WOQ_ROW

namespace simd {

// Whether what a row says of its instructions is what its options enable.
constexpr bool says_so(CpuFeatureSet set, int bits, bool vnni, bool bf16) {
  const auto has = [set](CpuFeature feature) { return (set & features(feature)) != 0; };
  const int widest = has(CpuFeature::kAvx512f) ? 512 : has(CpuFeature::kAvx2) ? 256 : 128;
  return bits == widest && bf16 == has(CpuFeature::kAvx512Bf16) &&
         vnni == (has(CpuFeature::kAvx512Vnni) || has(CpuFeature::kAvxVnni));
}

}  // namespace simd

#define WOQ_ROW(name, enumerator, bits, vnni, bf16, options, why)                              \
  static_assert(simd::says_so(simd::features_of_options(options), bits, vnni != 0, bf16 != 0), \
                #name);
WOQ_TARGETS(WOQ_ROW)
#undef WOQ_ROW

constexpr const TargetTraits& traits_of(Target target) {
  return kTargets[static_cast<int>(target)];
}
inline const char* name_of(Target target) {
  return traits_of(target).name;
}

inline Target parse_target(std::string_view text) {
  std::string known;
  for (const auto& traits : kTargets) {
    if (text == traits.name) return traits.target;
    known += concat(known.empty() ? "" : ", ", traits.name);
  }
  fail("unknown target '", text, "'; known: ", known);
}

inline bool runs_on(Target target, CpuFeatureSet available) {
  return (traits_of(target).required & ~available) == 0;
}

// The features that selection may use: the CPU's, capped to those of `forced` (a target's name;
// empty: no cap). An engine that is only used when forced caps nothing.
inline CpuFeatureSet usable_features(std::string_view forced,
                                     CpuFeatureSet available = cpu_features()) {
  if (forced.empty()) return available;
  const TargetTraits& traits = traits_of(parse_target(forced));
  const CpuFeatureSet missing = traits.required & ~available;
  if (missing != 0) {
    fail<Unsupported>(
        "target '", traits.name, "' was forced, but this CPU lacks: ", names_of(missing),
        "; unset WOQ_FORCE_TARGET or name a target that `targets()` lists as available");
  }
  return traits.only_when_forced != nullptr ? available : traits.required;
}

// WOQ_FORCE_TARGET, read anew at each call so that tests and long-lived processes can change it
// between layers.
inline std::string forced_target() {
  const char* value = std::getenv("WOQ_FORCE_TARGET");
  return value != nullptr ? value : "";
}

// Whether a target that may run here multiplies bfloat16 by an instruction of its own. Then bf16
// products are the fastest; elsewhere they are emulated in fp32, and fp32 itself is faster.
inline bool has_bf16_products() {
  const CpuFeatureSet usable = usable_features(forced_target());
  for (const TargetTraits& traits : kTargets) {
    if (traits.has_bf16 && runs_on(traits.target, usable)) return true;
  }
  return false;
}

namespace simd {

// An implementation, and the target that it is compiled for.
template <class Code>
struct Choice {
  Target target;
  Code code;
};

// The last of `choices`, which are in ascending priority, that runs here; WOQ_FORCE_TARGET caps it,
// as it caps the kernels. The first one runs on every CPU.
template <class Code, size_t kCount>
const Choice<Code>& select(const Choice<Code> (&choices)[kCount],
                           CpuFeatureSet usable = usable_features(forced_target())) {
  size_t i = kCount - 1;
  while (i > 0 && !runs_on(choices[i].target, usable)) --i;
  return choices[i];
}

}  // namespace simd

}  // namespace woq
