// SPDX-License-Identifier: Apache-2.0
// What the mini kernel's files share: memory map, port and register access, console, shutdown.
#pragma once

#include <stdint.h>

// Physical memory is mapped one to one. The program lives below the kernel: its segments at their
// linked addresses, then the heap upwards; the stack and mmap's blocks downwards from kKernelBase
// (kernel.ld and the emulator's memory size agree with it).
#define kKernelBase 0x30000000ul
#define kStackBytes (16ul << 20)
#define kPageBytes 4096ul

// The runner (run.py) cuts the program's output out between these two lines.
#define kBeginMark "\n[emulation begins]\n"
#define kEndMark "\n[emulation ends] "

static inline void out8(uint16_t port, uint8_t value) {
  asm volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void write_msr(uint32_t msr, uint64_t value) {
  asm volatile("wrmsr" : : "c"(msr), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

// Counts emulated instructions; the clock takes one for a nanosecond.
static inline uint64_t read_tsc(void) {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return (uint64_t)high << 32 | low;
}

void* memset(void* to, int value, uint64_t bytes);
void* memcpy(void* to, const void* from, uint64_t bytes);

void put_char(char c);
void put_string(const char* text);
void put_hex(uint64_t value);

// Ends the emulation with the program's exit status.
_Noreturn void power_off(int status);

// The first address after the program's segments, where its heap begins; called once.
void init_syscalls(uint64_t heap_begin, uint64_t enabled_xcr0);
