// SPDX-License-Identifier: Apache-2.0
#include "woq/core/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/errors.h"

namespace woq::testing {
namespace {

TEST(Parallel, SharesCoverEveryItemOnceInOrder) {
  for (const int64_t n : {0, 1, 2, 7, 8, 9, 63, 64, 65, 1000}) {
    for (const int64_t unit : {1, 8, 16}) {
      for (const int size : {1, 2, 3, 4, 7, 64}) {
        int64_t expected_begin = 0;
        for (int index = 0; index < size; ++index) {
          int64_t begin = -1, end = -1;
          TeamMember{index, size}.share(n, unit, &begin, &end);
          EXPECT_EQ(begin, expected_begin) << n << " items, unit " << unit << ", team " << size;
          EXPECT_LE(begin, end);
          EXPECT_TRUE(begin % unit == 0 || begin == n);
          expected_begin = end;
        }
        EXPECT_EQ(expected_begin, n);
      }
    }
  }
}

TEST(Parallel, SharesAreBalanced) {
  for (int index = 0; index < 4; ++index) {
    int64_t begin = 0, end = 0;
    TeamMember{index, 4}.share(1001, 1, &begin, &end);
    EXPECT_GE(end - begin, 250);
    EXPECT_LE(end - begin, 251);
  }
}

TEST(Parallel, ParallelForVisitsEveryItemOnce) {
  for (const int64_t n : {0, 1, 3, 100}) {
    for (int threads = 1; threads <= 4; ++threads) {
      std::vector<std::atomic<int>> visits(static_cast<size_t>(n));
      parallel_for(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      for (const auto& count : visits) EXPECT_EQ(count, 1) << n << " items, " << threads;
    }
  }
}

TEST(Parallel, BarrierSeparatesPhases) {
  for (int repetition = 0; repetition < 50; ++repetition) {
    std::atomic<int> arrived{0}, wrong{0};
    run_team(3, [&](const TeamMember& member) {
      ++arrived;
      member.barrier();
      if (arrived != member.size) ++wrong;
    });
    ASSERT_EQ(wrong, 0);
  }
}

TEST(Parallel, AnExceptionOfAnyMemberReachesTheCaller) {
  for (const int64_t thrower : {0, 57, 99}) {
    const std::string message = error_of<std::runtime_error>([&] {
      parallel_for(100, 4, [&](int64_t begin, int64_t end) {
        if (begin <= thrower && thrower < end) throw std::runtime_error("item failed");
      });
    });
    EXPECT_EQ(message, "item failed");
  }
  std::atomic<int64_t> sum{0};
  parallel_for(10, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sum += i;
  });
  EXPECT_EQ(sum, 45) << "the team must be usable afterwards";
}

TEST(Parallel, NestedCallsRunOnTheirOwnThread) {
  // Also in a team of one, which is what OpenMP may grant.
  for (const int granted : {1, 2}) {
    std::atomic<int> widest{0}, bodies{0};
    run_team(2, [&](const TeamMember&) {
      widest = std::max(widest.load(), usable_threads(4));
      run_team(3, [&](const TeamMember& inner) {
        ++bodies;
        if (inner.size != 1) widest = inner.size;
      });
    });
#pragma omp parallel num_threads(granted)
    run_team(3, [&](const TeamMember& inner) {
      if (inner.size != 1) widest = inner.size;
    });
    EXPECT_EQ(widest, 1);
    EXPECT_TRUE(bodies == 2 || omp_get_thread_limit() == 1);
  }
}

TEST(Parallel, UsableThreadsFollowsTheRequestAndOpenMp) {
  EXPECT_EQ(usable_threads(3), 3);
  EXPECT_EQ(usable_threads(0), omp_get_max_threads());
  EXPECT_EQ(usable_threads(-1), omp_get_max_threads());
  const int before = omp_get_max_threads();
  omp_set_num_threads(5);
  EXPECT_EQ(usable_threads(0), 5);
  omp_set_num_threads(before);
}

TEST(Parallel, ConcurrentCallersAreServedOneAfterTheOther) {
  std::atomic<int> teams_inside{0}, overlaps{0};
  std::atomic<int64_t> sum{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int repetition = 0; repetition < 20; ++repetition) {
        run_team(2, [&](const TeamMember& member) {
          if (member.index == 0 && teams_inside++ != 0) ++overlaps;
          member.barrier();
          ++sum;
          member.barrier();
          if (member.index == 0) --teams_inside;
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(overlaps, 0);
  EXPECT_GE(sum, 80);
}

}  // namespace
}  // namespace woq::testing
