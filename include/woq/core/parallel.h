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
#include <chrono>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace woq {

namespace detail {

// After fork() the child has none of the pool's threads, and libgomp would wait for them for ever.
// A child therefore runs everything on its one thread; explain() and cpu_info() say so.
inline std::atomic<bool> forked{false};

#if !defined(_WIN32)
// Registered when the program or library with this header is loaded, not at the first call: the
// parent's pool may be another library's, and the child the first of the two that calls.
inline const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif

// Two teams at once would oversubscribe the cores.
inline std::mutex& team_mutex() {
  static std::mutex mutex;
  return mutex;
}

}  // namespace detail

inline bool in_forked_child() {
  return detail::forked.load(std::memory_order_relaxed);
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

// How many threads brief teams may have on a machine that other programs use as well. A team ends
// with its last member. Where the system has given that member's core to another program, the
// others wait for up to a time slice, some 4 ms, and a layer at one token is 0.1 ms of work: a team
// is then many times slower than one thread. So this adds up by how much longer than one thread
// teams took, and halves them for a while when that is too much.
class TeamLimit {
 public:
  using Clock = std::chrono::steady_clock;

  // More than one time slice, so that a single one does not count: a team earns it back in 50
  // layers. The pause grows while what follows it is no better: trying costs 1 % of the longest.
  static constexpr std::chrono::nanoseconds kPatience = std::chrono::milliseconds(5);
  static constexpr std::chrono::nanoseconds kLargestCredit = std::chrono::microseconds(200);
  static constexpr std::chrono::nanoseconds kShortestPause = std::chrono::milliseconds(100);
  static constexpr std::chrono::nanoseconds kLongestPause = std::chrono::milliseconds(1600);

  // How many of `wanted` threads a team may have now.
  int allowed(int wanted, Clock::time_point now) {
    const std::lock_guard<std::mutex> guard(mutex_);
    if (limit_ < wanted && now >= end_of_pause_) {
      limit_ *= 2;
      if (limit_ >= wanted) {
        limit_ = std::numeric_limits<int>::max();
      } else {
        end_of_pause_ = now + pause_;
      }
    }
    return std::min(wanted, limit_);
  }

  // A team of `size` has ended: its first member has worked for `work`, then waited for `wait`.
  // With one thread it would have been (size - 1) * work instead of the wait. Credit is bounded,
  // because work may be long only since the first member's core, too, was given away. The widest
  // team is halved, not the last one: small layers have small teams.
  void ended(int size, std::chrono::nanoseconds work, std::chrono::nanoseconds wait,
             Clock::time_point now) {
    const std::lock_guard<std::mutex> guard(mutex_);
    debt_ += std::max(wait - (size - 1) * work, -(size - 1) * kLargestCredit);
    debt_ = std::max(debt_, debt_.zero());
    widest_ = std::max(widest_, size);
    if (debt_ <= kPatience) return;
    const bool again = now - end_of_pause_ < pause_;
    pause_ = again ? std::min(2 * pause_, kLongestPause) : kShortestPause;
    end_of_pause_ = now + pause_;
    limit_ = std::max(1, widest_ / 2);
    widest_ = 0;
    debt_ = debt_.zero();
  }

  // Forgets what it has seen, for tests and benchmarks of teams of a certain size.
  void reset() {
    const std::lock_guard<std::mutex> guard(mutex_);
    limit_ = std::numeric_limits<int>::max();
    widest_ = 0;
    debt_ = pause_ = debt_.zero();
    end_of_pause_ = {};
  }

 private:
  std::mutex mutex_;
  int limit_ = std::numeric_limits<int>::max();
  int widest_ = 0;  // since the limit was set
  std::chrono::nanoseconds debt_{0}, pause_{0};
  Clock::time_point end_of_pause_{};
};

// The one of this process.
inline TeamLimit& team_limit() {
  static TeamLimit limit;
  return limit;
}

// As run_team(), for work that is often less than a time slice: on fewer threads than it may have,
// while TeamLimit says so.
template <class Body>
void run_brief_team(int threads, const Body& body) {
  using Clock = TeamLimit::Clock;
  if (threads > 1) threads = team_limit().allowed(threads, Clock::now());
  if (threads <= 1 || must_run_serially()) {
    body(TeamMember{});
    return;
  }
  int size = 1;
  Clock::time_point began, worked;
  run_team(threads, [&](const TeamMember& member) {
    // Not before: another caller's team is not this one's wait.
    if (member.index == 0) began = Clock::now();
    body(member);
    if (member.index != 0) return;
    worked = Clock::now();
    size = member.size;
  });
  const Clock::time_point ended = Clock::now();
  team_limit().ended(size, worked - began, ended - worked, ended);
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
