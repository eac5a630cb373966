// SPDX-License-Identifier: Apache-2.0
// What this machine can do at most: the read bandwidth of its memory and the multiply-add peaks of
// its instruction sets. Kernels are judged as a share of these, measured in the same run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace woq::bench {

enum class Limit { kRead, kFp32, kBf16, kInt8 };
inline constexpr const char* kLimitNames[] = {"read", "fp32", "bf16", "int8"};

// The instructions that a limit is measured with. avx2's int8 is vpmaddubsw, vpmaddwd, vpaddd.
enum class Isa { kAvx2, kAvx512, kAmx };
inline constexpr const char* kIsaNames[] = {"avx2", "avx512", "amx"};

// Whether the CPU has the instructions of a limit (avx2 has no bf16, amx no fp32).
bool has_limit(Limit limit, Isa isa);

// Bytes per second (kRead), or operations per second, two for a multiply-add, on `threads` threads.
// Takes about `seconds`. kRead streams a buffer of more than four last-level caches.
double measure(Limit limit, Isa isa, int threads, double seconds);

int64_t last_level_cache_bytes();

// Seconds on the monotonic clock.
double now();

double median(std::vector<double> values);

// "CPU, compiler, targets": what a table of figures is about.
std::string machine_description();

}  // namespace woq::bench
