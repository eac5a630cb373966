// SPDX-License-Identifier: Apache-2.0
// Kernel selection: once per layer, by CPU features and priority, explained.
#pragma once

#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "woq/kernels/kernel.h"
#include "woq/simd/target.h"

#if defined(WOQ_HEADER_ONLY)
#if !defined(__OPTIMIZE__) && !defined(WOQ_ALLOW_UNOPTIMIZED)
// A message, not a warning: -Werror must not stop a debug build.
#pragma message(                                                             \
    "woq: header-only kernels without -O2 are some 50 times slower; define " \
    "WOQ_ALLOW_UNOPTIMIZED if that is meant")
#endif
#include "woq/kernels/targets/ref.h"
#if WOQ_X86
#include "woq/kernels/targets/amx.h"
#include "woq/kernels/targets/avx2.h"
#include "woq/kernels/targets/avx512.h"
#include "woq/kernels/targets/avx512_bf16.h"
#include "woq/kernels/targets/avx512_vnni.h"
#include "woq/kernels/targets/avx_vnni.h"
#endif
#include "woq/kernels/targets/onednn.h"
#endif

namespace woq::kernels {

// kernels_avx2() and so on: the kernels that a target adds to those of the targets below it.
#if defined(WOQ_HEADER_ONLY) && WOQ_X86
#define WOQ_ROW(name, ...)              \
  inline KernelTable kernels_##name() { \
    return name::kTable;                \
  }
WOQ_TARGETS(WOQ_ROW)
#undef WOQ_ROW
#elif defined(WOQ_HEADER_ONLY)
inline KernelTable kernels_ref() {
  return ref::kTable;
}
#else
// Defined in src/kernels/targets/, one file each.
#define WOQ_ROW(name, ...) KernelTable kernels_##name();
WOQ_TARGETS(WOQ_ROW)
#undef WOQ_ROW
#endif

#if defined(WOQ_HEADER_ONLY)
inline std::string onednn_version() {
  return version_of_onednn();
}
#else
// Of the oneDNN in use, such as "2.6.3"; empty where this build has none.
std::string onednn_version();
#endif

// A target's table by the target; empty where this build has none.
inline KernelTable kernels_of(Target target) {
#if WOQ_X86
  switch (target) {
#define WOQ_ROW(name, enumerator, ...) \
  case Target::enumerator: return kernels_##name();
    WOQ_TARGETS(WOQ_ROW)
#undef WOQ_ROW
  }
  return {};
#else
  return target == Target::kRef ? kernels_ref() : KernelTable{};
#endif
}

// Whether this build has the target: oneDNN is optional, and all but ref are for x86-64.
inline bool is_built(Target target) {
  return kernels_of(target).size > 0;
}

// A target that was looked at, and why it was not, or was, taken.
struct ConsideredTarget {
  Target target = Target::kRef;
  std::string why;
};

struct KernelChoice {
  const Kernel* kernel = nullptr;
  std::string forced;       // the forced target, empty if none
  std::string compute_why;  // why this compute type
  std::vector<ConsideredTarget> considered;
};

struct ComputeChoice {
  ComputeType compute = ComputeType::kFp32;
  std::string why;
};

// Takes the request at its word, or chooses for an automatic one. Measured on SmolLM2-135M
// (docs/quantization.md), int8 compute adds a KL divergence of 0.002 to 0.005 to the 0.2 to 0.3 of
// weights in 4 bits, but five times the 0.0004 of weights in 8; bf16 compute adds nothing that
// shows to either. A bit less makes the weights' part four times as large: 0.006 at 6 bits, 0.0016
// at 7.
inline ComputeChoice choose_compute(ComputeRequest request, const DtypeTraits& dtype,
                                    std::string_view forced = forced_target(),
                                    CpuFeatureSet available = cpu_features()) {
  if (!request.is_automatic()) return {request.compute(), "asked for"};
  const CpuFeatureSet usable = usable_features(forced, available);
  if (!runs_on(Target::kAvx2, usable)) {
    return {ComputeType::kFp32, "auto: the reference gains nothing from shorter numbers"};
  }
  if (dtype.bits <= 6) {
    return {
        ComputeType::kInt8,
        concat("auto: fastest, and activations in 8 bits cost less than weights in ", dtype.bits)};
  }
  if (runs_on(Target::kAvx512Bf16, usable)) {
    return {ComputeType::kBf16,
            concat("auto: activations in 8 bits would cost more than weights in ", dtype.bits,
                   "; this CPU multiplies bfloat16")};
  }
  return {ComputeType::kFp32, concat("auto: activations in 8 bits would cost more than weights in ",
                                     dtype.bits, "; this CPU does not multiply bfloat16")};
}

// Why a target is passed over whatever kernels it has; empty if it is not.
inline std::string why_excluded(const TargetTraits& target, std::string_view forced,
                                CpuFeatureSet available) {
  if ((target.required & ~available) != 0)
    return concat("the CPU lacks ", names_of(target.required & ~available));
  if (target.only_when_forced != nullptr && forced != target.name) {
    return is_built(target.target) ? concat("only when asked for (WOQ_FORCE_TARGET=", target.name,
                                            "): ", target.only_when_forced)
                                   : concat("not in this build");
  }
  if ((target.required & ~usable_features(forced, available)) != 0)
    return concat("excluded, because '", forced, "' is forced");
  return {};
}

// The kernel of the highest-priority target that the features allow. Throws Unsupported, listing
// what was tried.
inline KernelChoice select_kernel(WeightKind weights, ComputeType compute,
                                  std::string_view forced = forced_target(),
                                  CpuFeatureSet available = cpu_features()) {
  KernelChoice choice;
  choice.forced = forced;
  static_cast<void>(usable_features(forced, available));  // throws for what the CPU lacks
  if (!forced.empty() && !is_built(parse_target(forced))) {
    fail<Unsupported>(
        "target '", forced, "' was forced, but this build has no kernels for it; ",
        "unset WOQ_FORCE_TARGET or name a target that `targets()` lists as available");
  }
  for (int i = static_cast<int>(std::size(kTargets)) - 1; i >= 0; --i) {
    const TargetTraits& target = kTargets[i];
    const std::string excluded = why_excluded(target, forced, available);
    if (!excluded.empty()) {
      choice.considered.push_back({target.target, excluded});
      continue;
    }
    const KernelTable table = kernels_of(target.target);
    for (int k = 0; k < table.size; ++k) {
      if (table.begin[k].weights == weights && table.begin[k].compute == compute) {
        choice.kernel = &table.begin[k];
        choice.considered.push_back(
            {target.target, "highest priority with a kernel for this weight and compute type"});
        return choice;
      }
    }
    choice.considered.push_back(
        {target.target, concat("has no kernel of its own for ", name_of(compute), " compute of ",
                               kWeightKindNames[static_cast<int>(weights)], " weights")});
  }
  std::string tried;
  for (const auto& entry : choice.considered)
    tried += concat("\n  ", name_of(entry.target), ": ", entry.why);
  fail<Unsupported>("no kernel for ", name_of(compute), " compute of ",
                    kWeightKindNames[static_cast<int>(weights)], " weights; tried:", tried);
}

}  // namespace woq::kernels

// What explain() tells.
namespace woq {

using kernels::ConsideredTarget;
using kernels::is_built;
using kernels::KernelChoice;
using kernels::onednn_version;

}  // namespace woq
