// SPDX-License-Identifier: Apache-2.0
// The system calls that a static glibc program with GoogleTest and libgomp makes: console output,
// memory, clock. There are no files, threads or signals.
#include "machine.h"

#include <asm/unistd.h>
#include <errno.h>

enum { kMapFixed = 0x10, kMapAnonymous = 0x20, kRemapMayMove = 1 };
enum { kSetFs = 0x1002, kSetGs = 0x1001, kGetXcompSupported = 0x1021, kGetXcompPermitted = 0x1022 };
enum { kRlimitStack = 3 };
static const uint64_t kEpoch = 1700000000;  // any plausible wall-clock time
static const uint64_t kHugeBytes = 2ul << 20;

static uint64_t heap_begin, heap_end, map_begin, start_tsc, xcr0;

void init_syscalls(uint64_t heap, uint64_t enabled_xcr0) {
  heap_begin = heap_end = heap;
  map_begin = kKernelBase - kStackBytes;
  start_tsc = read_tsc();
  xcr0 = enabled_xcr0;
}

static int64_t write_bytes(uint64_t fd, const char* bytes, uint64_t count) {
  if (fd != 1 && fd != 2) return -EBADF;
  for (uint64_t i = 0; i < count; ++i) put_char(bytes[i]);
  return (int64_t)count;
}

static int64_t write_vectors(uint64_t fd, const uint64_t (*vectors)[2], uint64_t count) {
  int64_t total = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const int64_t written = write_bytes(fd, (const char*)vectors[i][0], vectors[i][1]);
    if (written < 0) return written;
    total += written;
  }
  return total;
}

static int64_t set_break(uint64_t end) {
  if (end >= heap_begin && end < map_begin) {
    if (end > heap_end) memset((void*)heap_end, 0, end - heap_end);
    heap_end = end;
  }
  return (int64_t)heap_end;
}

// Nothing is ever unmapped: a test run fits into the emulated gigabyte.
static int64_t map_memory(uint64_t address, uint64_t bytes, uint64_t flags) {
  bytes = (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
  if (!(flags & kMapAnonymous)) return -ENODEV;
  if (!(flags & kMapFixed)) {
    if (bytes > map_begin - heap_end) return -ENOMEM;
    address = (map_begin - bytes) & ~((bytes >= kHugeBytes ? kHugeBytes : kPageBytes) - 1);
    if (address < heap_end) return -ENOMEM;
    map_begin = address;
  }
  memset((void*)address, 0, bytes);
  return (int64_t)address;
}

static int64_t remap_memory(uint64_t from, uint64_t old_bytes, uint64_t bytes, uint64_t flags) {
  if (!(flags & kRemapMayMove)) return -ENOMEM;
  const int64_t to = map_memory(0, bytes, kMapAnonymous);
  if (to > 0) memcpy((void*)to, (const void*)from, old_bytes < bytes ? old_bytes : bytes);
  return to;
}

// Every file descriptor is a terminal.
static int64_t describe_terminal(uint8_t* stat) {
  memset(stat, 0, 144);
  *(uint32_t*)(stat + 24) = 0020620;  // st_mode: character device
  *(uint64_t*)(stat + 56) = 1024;     // st_blksize
  return 0;
}

static int64_t architecture_control(uint64_t code, uint64_t value) {
  switch (code) {
    case kSetFs: write_msr(0xc0000100, value); return 0;
    case kSetGs: write_msr(0xc0000101, value); return 0;
    case kGetXcompSupported:
    case kGetXcompPermitted: *(uint64_t*)value = xcr0; return 0;
  }
  return -EINVAL;
}

static int64_t read_clock(uint64_t clock, uint64_t* seconds_and_nanoseconds) {
  const uint64_t elapsed = read_tsc() - start_tsc;
  seconds_and_nanoseconds[0] = elapsed / 1000000000 + (clock == 0 ? kEpoch : 0);
  seconds_and_nanoseconds[1] = elapsed % 1000000000;
  return 0;
}

static int64_t read_limit(uint64_t resource, uint64_t* soft_and_hard) {
  if (soft_and_hard)
    soft_and_hard[0] = soft_and_hard[1] = resource == kRlimitStack ? kStackBytes : ~0ul;
  return 0;
}

static int64_t fill_random(uint8_t* bytes, uint64_t count) {
  for (uint64_t i = 0; i < count; ++i) bytes[i] = (uint8_t)(read_tsc() * 2654435761u >> 13);
  return (int64_t)count;
}

static int64_t name_system(char* names) {
  enum { kFieldBytes = 65, kFields = 6 };
  memset(names, 0, kFieldBytes * kFields);
  memcpy(names, "Linux", 6);
  memcpy(names + 2 * kFieldBytes, "6.1.0", 6);
  memcpy(names + 4 * kFieldBytes, "x86_64", 7);
  return 0;
}

static int64_t one_processor(uint64_t bytes, uint8_t* mask) {
  memset(mask, 0, bytes);
  mask[0] = 1;
  return 8;
}

// Called by boot.S with the system call's number and arguments.
int64_t handle_syscall(uint64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
  switch (number) {
    case __NR_write: return write_bytes(a, (const char*)b, c);
    case __NR_writev: return write_vectors(a, (const uint64_t (*)[2])b, c);
    case __NR_brk: return set_break(a);
    case __NR_mmap: return map_memory(a, b, d);
    case __NR_mremap: return remap_memory(a, b, c, d);
    case __NR_fstat: return describe_terminal((uint8_t*)b);
    case __NR_newfstatat: return *(const char*)b ? -ENOENT : describe_terminal((uint8_t*)c);
    case __NR_arch_prctl: return architecture_control(a, b);
    case __NR_clock_gettime: return read_clock(a, (uint64_t*)b);
    case __NR_time: return (int64_t)kEpoch;
    case __NR_prlimit64: return read_limit(b, (uint64_t*)d);
    case __NR_getrlimit: return read_limit(a, (uint64_t*)b);
    case __NR_getrandom: return fill_random((uint8_t*)a, b);
    case __NR_uname: return name_system((char*)a);
    case __NR_sched_getaffinity: return one_processor(b, (uint8_t*)c);
    case __NR_getcwd: memcpy((void*)a, "/", 2); return 2;
    case __NR_set_tid_address:
    case __NR_getpid:
    case __NR_gettid: return 1;
    case __NR_exit:
    case __NR_exit_group: power_off((int)a);
    case __NR_kill:
    case __NR_tkill: power_off(128 + (int)b);
    case __NR_tgkill: power_off(128 + (int)c);
    case __NR_open:
    case __NR_openat:
    case __NR_access:
    case __NR_faccessat:
    case __NR_stat:
    case __NR_readlink:
    case __NR_readlinkat: return -ENOENT;
    case __NR_lseek: return -ESPIPE;
    case __NR_ioctl: return -ENOTTY;
    case __NR_rseq:
    case __NR_clone:
    case __NR_clone3:
    case __NR_fork: return -ENOSYS;
    case __NR_read:  // end of file
    case __NR_close:
    case __NR_munmap:
    case __NR_mprotect:
    case __NR_madvise:
    case __NR_rt_sigaction:
    case __NR_rt_sigprocmask:
    case __NR_sigaltstack:
    case __NR_futex:
    case __NR_sched_yield:
    case __NR_set_robust_list: return 0;
  }
  put_string("\nunknown system call ");
  put_hex(number);
  put_char('\n');
  return -ENOSYS;
}
