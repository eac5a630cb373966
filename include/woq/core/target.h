// SPDX-License-Identifier: Apache-2.0
// Kernel targets: sets of CPU features with a priority. A target may also run the kernels of every
// target whose features it includes, so each adds only what it does better.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "woq/core/check.h"
#include "woq/core/cpu.h"

namespace woq {

// In ascending priority.
enum class Target : uint8_t {
  kRef,
  kAvx2,
  kAvxVnni,
  kAvx512,
  kAvx512Vnni,
  kAvx512Bf16,
  kAmx,
  kOneDnn
};

struct TargetTraits {
  Target target;
  const char* name;
  CpuFeatureSet required;
  // Not an instruction set but another engine: taken only when forced by name, and then in place of
  // what would be taken otherwise, which stays in use for what the engine lacks. The text says why
  // it is not the default; nullptr for all others.
  const char* only_when_forced = nullptr;
};

inline constexpr CpuFeatureSet kAvx2Features =
    features(CpuFeature::kAvx2, CpuFeature::kFma, CpuFeature::kF16c);
inline constexpr CpuFeatureSet kAvx512Features =
    kAvx2Features | features(CpuFeature::kAvx512f, CpuFeature::kAvx512bw, CpuFeature::kAvx512vl,
                             CpuFeature::kAvx512dq);
inline constexpr CpuFeatureSet kAvx512VnniFeatures =
    kAvx512Features | features(CpuFeature::kAvx512Vnni);
inline constexpr CpuFeatureSet kAvx512Bf16Features =
    kAvx512VnniFeatures | features(CpuFeature::kAvx512Bf16);
inline constexpr CpuFeatureSet kAmxFeatures =
    kAvx512Bf16Features |
    features(CpuFeature::kAmxTile, CpuFeature::kAmxInt8, CpuFeature::kAmxBf16);

inline constexpr TargetTraits kTargets[] = {
    {Target::kRef, "ref", 0},
    {Target::kAvx2, "avx2", kAvx2Features},
    {Target::kAvxVnni, "avx_vnni", kAvx2Features | features(CpuFeature::kAvxVnni)},
    {Target::kAvx512, "avx512", kAvx512Features},
    {Target::kAvx512Vnni, "avx512_vnni", kAvx512VnniFeatures},
    {Target::kAvx512Bf16, "avx512_bf16", kAvx512Bf16Features},
    {Target::kAmx, "amx", kAmxFeatures},
    {Target::kOneDnn, "onednn", kAvx512Bf16Features,
     "measured slower or hardly faster, see docs/performance.md"},
};

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

}  // namespace woq
