// SPDX-License-Identifier: Apache-2.0
#include "woq/core/parallel.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/child.h"
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

// A clock of our own, and teams of 0.1 ms of work.
struct TeamLimitTest : ::testing::Test {
  using Clock = TeamLimit::Clock;
  static constexpr std::chrono::nanoseconds kWork = std::chrono::microseconds(100);
  static constexpr std::chrono::nanoseconds kSlice = std::chrono::milliseconds(4);

  int allowed(int wanted) { return limit.allowed(wanted, now); }
  void team(int size, std::chrono::nanoseconds wait) {
    now += kWork + wait;
    limit.ended(size, kWork, wait, now);
  }

  TeamLimit limit;
  Clock::time_point now = Clock::time_point(std::chrono::hours(1));
};

TEST_F(TeamLimitTest, TeamsThatWaitLessThanOneThreadWouldWorkKeepTheirThreads) {
  for (int i = 0; i < 1000; ++i) team(2, kWork * 9 / 10);
  EXPECT_EQ(allowed(2), 2);
  for (int i = 0; i < 1000; ++i) team(16, kWork * 14);
  EXPECT_EQ(allowed(16), 16);
}

TEST_F(TeamLimitTest, ATimeSliceNowAndThenDoesNotCount) {
  for (int i = 0; i < 2000; ++i) team(2, i % 50 == 0 ? kSlice : kWork / 20);
  EXPECT_EQ(allowed(2), 2);
}

TEST_F(TeamLimitTest, TwoTimeSlicesInARowHalveTeams) {
  team(8, kSlice);
  EXPECT_EQ(allowed(8), 8);
  team(8, kSlice);
  EXPECT_EQ(allowed(8), 4);
  EXPECT_EQ(allowed(2), 2);
  team(4, kSlice);
  team(4, kSlice);
  EXPECT_EQ(allowed(8), 2);
}

TEST_F(TeamLimitTest, TriesAgainAfterPausesThatGrow) {
  std::chrono::nanoseconds pause = TeamLimit::kShortestPause;
  for (int i = 0; i < 8; ++i) {
    team(2, kSlice);
    team(2, kSlice);
    now += pause - std::chrono::nanoseconds(1);
    ASSERT_EQ(allowed(2), 1) << "after failure " << i;
    now += std::chrono::nanoseconds(1);
    ASSERT_EQ(allowed(2), 2) << "after failure " << i;
    pause = std::min(2 * pause, TeamLimit::kLongestPause);
  }
  // What went well for as long as the last pause starts from the shortest.
  now += TeamLimit::kLongestPause;
  team(2, kSlice);
  team(2, kSlice);
  now += TeamLimit::kShortestPause;
  EXPECT_EQ(allowed(2), 2);
}

TEST_F(TeamLimitTest, LargeTeamsGrowAgainByHalves) {
  for (int size = 8; size > 1; size /= 2) {
    team(size, 8 * kSlice);
    EXPECT_EQ(allowed(8), size / 2);
  }
  for (const int size : {2, 4, 8}) {
    now += TeamLimit::kLongestPause;
    EXPECT_EQ(allowed(8), size);
  }
}

TEST_F(TeamLimitTest, SmallTeamsDoNotSpeakForLargeOnes) {
  // Waking a thread takes longer than a small layer; what large ones gain is more.
  for (int i = 0; i < 1000; ++i) {
    team(16, kWork / 10);
    for (int small = 0; small < 4; ++small) team(2, 2 * kWork);
  }
  EXPECT_EQ(allowed(16), 16);
  team(16, kWork / 10);
  for (int i = 0; i < 3; ++i) team(2, kSlice);
  EXPECT_EQ(allowed(16), 8);
  EXPECT_EQ(allowed(2), 2);
}

TEST_F(TeamLimitTest, WorkThatLastedSinceItsOwnCoreWasGivenAwayEarnsLittle) {
  for (int i = 0; i < 2; ++i) {
    now += kSlice;
    limit.ended(2, kSlice, kWork, now);  // the first member stood still, now the second one does
    team(2, kSlice);
  }
  EXPECT_EQ(allowed(2), 1);
}

TEST(Parallel, ABriefTeamVisitsEveryItemOnceAndPassesExceptionsOn) {
  for (int threads = 1; threads <= 4; ++threads) {
    std::vector<std::atomic<int>> visits(100);
    run_brief_team(threads, [&](const TeamMember& member) {
      int64_t begin = 0, end = 0;
      member.share(100, 1, &begin, &end);
      for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
    });
    for (const auto& count : visits) EXPECT_EQ(count, 1) << threads;
    const auto fails = [](const TeamMember& member) {
      if (member.index == 0) throw std::runtime_error("item failed");
    };
    EXPECT_EQ(error_of<std::runtime_error>([&] { run_brief_team(threads, fails); }), "item failed");
  }
}

// Another library starts OpenMP's pool, as torch does, and the process forks before it calls this
// one: its child is the first that does.
[[noreturn]] void fork_before_the_first_call() {
  std::atomic<int> members{0};
#pragma omp parallel num_threads(2)
  ++members;
  const pid_t child = fork();
  if (child == 0) {
    std::atomic<int> calls{0};
    run_team(2, [&](const TeamMember& member) { calls += member.size; });
    _exit(calls == 1 && in_forked_child() ? 0 : 1);
  }
  const std::string outcome = outcome_of(child);
  std::cerr << members << " threads before the fork, the child: " << outcome << "\n";
  std::exit(outcome == "0" && members == 2 && !in_forked_child() ? 0 : 1);
}

// In a process of its own, where no other test has called anything.
TEST(ParallelDeathTest, AChildForkedBeforeTheFirstCallRunsOnItsOneThread) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(fork_before_the_first_call(), ::testing::ExitedWithCode(0), "the child: 0");
}

}  // namespace
}  // namespace woq::testing
