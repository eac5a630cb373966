// SPDX-License-Identifier: Apache-2.0
// Threads: one OpenMP team per call, calls from several threads one after the other. OpenMP,
// because a process that also runs torch then has one pool of threads (both use the libgomp.so.1
// that is loaded).
#pragma once

#if !defined(_OPENMP)
#error "woq needs OpenMP: compile and link with -fopenmp (CMake: link woq::woq, which brings it)"
#endif

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace woq {

namespace detail {

// After fork() the child has none of the pool's threads, and libgomp would wait for them for ever.
// A child therefore runs everything on its one thread; explain() and cpu_info() say so.
inline std::atomic<bool>& forked_flag() {
  static std::atomic<bool> forked{false};
#if !defined(_WIN32)
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forked_flag().store(true); });
  (void)registered;
#endif
  return forked;
}

// Two teams at once would oversubscribe the cores.
inline std::mutex& team_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace detail

inline bool in_forked_child() {
  return detail::forked_flag().load(std::memory_order_relaxed);
}

// Whether a call must stay on its thread: in a forked child, or inside a parallel region, be it a
// team of one.
inline bool must_run_serially() {
  return in_forked_child() || omp_get_level() > 0;
}

// Threads that a call may use: `requested`, or OpenMP's setting (OMP_NUM_THREADS,
// omp_set_num_threads, affinity).
inline int usable_threads(int requested = 0) {
  if (must_run_serially()) return 1;
  return std::max(1, requested > 0 ? requested : omp_get_max_threads());
}

// As usable_threads(), but no more than have `grain` of the work each: waking a thread costs some 5
// microseconds.
inline int useful_threads(int requested, int64_t work, int64_t grain) {
  return static_cast<int>(
      std::min<int64_t>(usable_threads(requested), std::max<int64_t>(1, work / grain)));
}

// Elements of a matrix that are worth a thread when each is looked at a few times.
inline constexpr int64_t kElementGrain = int64_t{1} << 15;

// One member of a team.
struct TeamMember {
  int index = 0, size = 1;

  void barrier() const {
    if (size > 1) {
#pragma omp barrier
    }
  }

  // This member's share of n items, in whole multiples of `unit`: stable, so that the same thread
  // meets the same items at every call.
  void share(int64_t n, int64_t unit, int64_t* begin, int64_t* end) const {
    const int64_t units = (n + unit - 1) / unit;
    *begin = std::min(n, units * index / size * unit);
    *end = std::min(n, units * (index + 1) / size * unit);
  }
};

// Runs body(TeamMember) on `threads` threads. The first exception of any member is rethrown; a body
// that uses barrier() must not throw before it.
template <class Body>
void run_team(int threads, const Body& body) {
  if (threads <= 1 || must_run_serially()) {
    body(TeamMember{});
    return;
  }
  std::exception_ptr error;
  std::mutex error_mutex;
  {
    const std::lock_guard<std::mutex> one_team(detail::team_mutex());
#pragma omp parallel num_threads(threads)
    {
      try {
        body(TeamMember{omp_get_thread_num(), omp_get_num_threads()});
      } catch (...) {
        const std::lock_guard<std::mutex> guard(error_mutex);
        if (!error) error = std::current_exception();
      }
    }
  }
  if (error) std::rethrow_exception(error);
}

// Splits [0, n) over the team; body(begin, end).
template <class Body>
void parallel_for(int64_t n, int threads, const Body& body) {
  run_team(static_cast<int>(std::min<int64_t>(threads, std::max<int64_t>(n, 1))),
           [&](const TeamMember& member) {
             int64_t begin = 0, end = 0;
             member.share(n, 1, &begin, &end);
             if (begin < end) body(begin, end);
           });
}

}  // namespace woq
