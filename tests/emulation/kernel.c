// SPDX-License-Identifier: Apache-2.0
// A mini kernel that boots one static, non-PIE, single-threaded program and gives it every vector
// register that the emulated CPU has. The boot loader (multiboot 1) hands the program over as a
// module, with its command line.
#include "machine.h"

#include <elf.h>

// boot.S
extern uint64_t exception_stubs[32];
extern uint64_t gdt[];
extern char exception_stack_top[];
void syscall_entry(void);
_Noreturn void enter_user(uint64_t entry, uint64_t stack);

struct Module {
  uint32_t begin, end, command_line, reserved;
};

struct ExceptionFrame {
  uint64_t vector, error, rip, cs, rflags, rsp;
};

void* memset(void* to, int value, uint64_t bytes) {
  void* cursor = to;
  asm volatile("rep stosb" : "+D"(cursor), "+c"(bytes) : "a"(value) : "memory");
  return to;
}

void* memcpy(void* to, const void* from, uint64_t bytes) {
  void* cursor = to;
  asm volatile("rep movsb" : "+D"(cursor), "+S"(from), "+c"(bytes) : : "memory");
  return to;
}

// Port 0xe9 is the emulator's own debug console: no driver, no baud rate.
void put_char(char c) {
  out8(0xe9, (uint8_t)c);
}

void put_string(const char* text) {
  while (*text) put_char(*text++);
}

void put_hex(uint64_t value) {
  for (int shift = 60; shift >= 0; shift -= 4) put_char("0123456789abcdef"[value >> shift & 15]);
}

void power_off(int status) {
  put_string(kEndMark);
  put_hex((uint64_t)status & 255);
  put_string(" after ");
  put_hex(read_tsc());
  put_char('\n');
  for (const char* c = "Shutdown"; *c; ++c) out8(0x8900, (uint8_t)*c);  // bochs' and QEMU's port
  for (;;) asm volatile("cli; hlt");
}

// Called by boot.S; a fault ends the program like a signal would, with 128 + the vector.
void report_exception(const struct ExceptionFrame* frame) {
  uint64_t address;
  asm volatile("mov %%cr2, %0" : "=r"(address));
  put_string("\nexception ");
  put_hex(frame->vector);
  put_string(" rip ");
  put_hex(frame->rip);
  put_string(" rsp ");
  put_hex(frame->rsp);
  put_string(" address ");
  put_hex(address);
  power_off(128 + (int)frame->vector);
}

// All state components that CPUID offers (x87, SSE, AVX, AVX-512, ...).
static uint64_t enable_vector_state(void) {
  uint32_t low = 0xd, high, ebx, count = 0;
  asm volatile("cpuid" : "+a"(low), "=b"(ebx), "+c"(count), "=d"(high));
  asm volatile("xsetbv" : : "a"(low), "d"(0), "c"(0));
  return low;
}

static void load_exception_table(void) {
  static uint64_t table[2 * 32] __attribute__((aligned(16)));
  for (int i = 0; i < 32; ++i) {
    const uint64_t stub = exception_stubs[i];
    table[2 * i] = (stub & 0xffff) | 0x8ul << 16 | 0x8e00ul << 32 | (stub >> 16 & 0xffff) << 48;
    table[2 * i + 1] = stub >> 32;
  }
  const struct __attribute__((packed)) {
    uint16_t limit;
    uint64_t base;
  } descriptor = {sizeof table - 1, (uint64_t)table};
  asm volatile("lidt %0" : : "m"(descriptor));
}

// The task state segment only names the stack on which exceptions from user mode run.
static void load_task_state(void) {
  static uint32_t state[26] __attribute__((aligned(16)));
  const uint64_t base = (uint64_t)state;
  *(uint64_t*)&state[1] = (uint64_t)exception_stack_top;
  gdt[6] = (sizeof state - 1) | (base & 0xffffff) << 16 | 0x89ul << 40 | (base >> 24 & 0xff) << 56;
  gdt[7] = base >> 32;
  asm volatile("ltr %w0" : : "r"(0x30));
}

static void enable_syscalls(void) {
  write_msr(0xc0000081, 0x08ul << 32 | 0x18ul << 48);  // STAR: kernel and user selectors
  write_msr(0xc0000082, (uint64_t)syscall_entry);      // LSTAR
  write_msr(0xc0000084, 0x700);                        // FMASK: trap, interrupt, direction flags
}

// Copies the segments to their addresses; returns the end of the last one, page aligned.
static uint64_t load_segments(const uint8_t* image, uint64_t* headers_address) {
  const Elf64_Ehdr* elf = (const Elf64_Ehdr*)image;
  if (elf->e_type != ET_EXEC) {
    put_string("the program is position independent: link it with -static -no-pie");
    power_off(126);
  }
  const Elf64_Phdr* headers = (const Elf64_Phdr*)(image + elf->e_phoff);
  uint64_t end = 0;
  for (int i = 0; i < elf->e_phnum; ++i) {
    const Elf64_Phdr* segment = &headers[i];
    if (segment->p_type != PT_LOAD) continue;
    memcpy((void*)segment->p_vaddr, image + segment->p_offset, segment->p_filesz);
    memset((void*)(segment->p_vaddr + segment->p_filesz), 0, segment->p_memsz - segment->p_filesz);
    if (segment->p_vaddr + segment->p_memsz > end) end = segment->p_vaddr + segment->p_memsz;
    if (segment->p_offset <= elf->e_phoff && elf->e_phoff < segment->p_offset + segment->p_filesz)
      *headers_address = segment->p_vaddr + elf->e_phoff - segment->p_offset;
  }
  return (end + kPageBytes - 1) & ~(kPageBytes - 1);
}

// Lays out argc, argv, environment and auxiliary vector as the System V ABI wants them on entry.
static uint64_t build_stack(const Elf64_Ehdr* elf, uint64_t headers_address, const char* command) {
  enum { kMaxArguments = 64, kAuxWords = 40 };
  char* cursor = (char*)(kKernelBase - kPageBytes);
  uint64_t arguments[kMaxArguments];
  int argc = 0;
  uint64_t length = 0;
  while (command[length]) ++length;
  memcpy(cursor, command, length + 1);
  while (*cursor && argc < kMaxArguments) {
    while (*cursor == ' ') *cursor++ = 0;
    if (!*cursor) break;
    arguments[argc++] = (uint64_t)cursor;
    while (*cursor && *cursor != ' ') ++cursor;
  }

  static char random_bytes[16] = "not random bytes";  // stack protector's canary: any value will do
  static char environment[] = "OMP_NUM_THREADS=1";    // there are no threads
  const uint64_t words = 1 + (uint64_t)argc + 1 + 2 + kAuxWords;
  uint64_t* stack = (uint64_t*)((kKernelBase - kPageBytes - 8 * words) & ~15ul);
  uint64_t* word = stack;
  *word++ = (uint64_t)argc;
  for (int i = 0; i < argc; ++i) *word++ = arguments[i];
  *word++ = 0;
  *word++ = (uint64_t)environment;
  *word++ = 0;
  const Elf64_auxv_t aux[] = {
      {AT_PHDR, {headers_address}},
      {AT_PHENT, {elf->e_phentsize}},
      {AT_PHNUM, {elf->e_phnum}},
      {AT_PAGESZ, {kPageBytes}},
      {AT_ENTRY, {elf->e_entry}},
      {AT_UID, {0}},
      {AT_EUID, {0}},
      {AT_GID, {0}},
      {AT_EGID, {0}},
      {AT_SECURE, {0}},
      {AT_CLKTCK, {100}},
      {AT_RANDOM, {(uint64_t)random_bytes}},
      {AT_EXECFN, {arguments[0]}},
      {AT_PLATFORM, {(uint64_t)"x86_64"}},
      {AT_MINSIGSTKSZ, {4096}},
      {AT_NULL, {0}},
  };
  _Static_assert(sizeof aux <= 8 * kAuxWords, "room for the auxiliary vector");
  memcpy(word, aux, sizeof aux);
  return (uint64_t)stack;
}

// Called by boot.S in 64-bit mode with the multiboot information.
void kernel_main(const uint32_t* multiboot) {
  const uint64_t xcr0 = enable_vector_state();
  load_exception_table();
  load_task_state();
  enable_syscalls();
  put_string(kBeginMark);
  const uint32_t kModulesPresent = 8;
  if (!(multiboot[0] & kModulesPresent) || multiboot[5] == 0) {
    put_string("the boot loader passed no program");
    power_off(125);
  }
  const struct Module* module = (const struct Module*)(uint64_t)multiboot[6];
  const uint8_t* image = (const uint8_t*)(uint64_t)module->begin;
  if (module->begin < kKernelBase) {
    put_string("the boot loader put the program where its segments go");
    power_off(125);
  }
  uint64_t headers_address = 0;
  init_syscalls(load_segments(image, &headers_address), xcr0);
  const Elf64_Ehdr* elf = (const Elf64_Ehdr*)image;
  const char* command = (const char*)(uint64_t)module->command_line;
  enter_user(elf->e_entry, build_stack(elf, headers_address, command));
}
