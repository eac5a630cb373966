// SPDX-License-Identifier: Apache-2.0
// AMX in software, for a CPU with AVX-512 but without AMX: preloaded into a test program, it
// catches the illegal instructions (SIGILL), does what AMX-TILE, AMX-INT8 and AMX-BF16 define, and
// goes on behind them. Everything else runs natively. A trap takes some 20 microseconds.
//
// The program's CPUID and XGETBV would tell the truth; run_amx.py replaces them in a copy of the
// program by the two illegal instructions below, which report what a CPU with AMX would. The
// system call that asks for permission is answered here too, and tile instructions before it fail
// as they would without.
//
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2 (instructions) and volume
// 1, chapter 18 (tile architecture). A violated rule ends the program with a message.
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

// ---- Tile registers: of a thread, as on the real machine. ----

enum { kRegisters = 8, kRows = 16, kRowBytes = 64 };

struct Tiles {
  uint8_t palette, start_row;
  uint16_t row_bytes[kRegisters];
  uint8_t rows[kRegisters];
  uint8_t data[kRegisters][kRows][kRowBytes];
};
static __thread struct Tiles tiles __attribute__((tls_model("initial-exec")));

static int permitted;
static unsigned long instruction_count;  // of all threads
static struct sigaction previous_action;

static _Noreturn void violation(const char* rule, const uint8_t* instruction) {
  char text[200];
  const int length =
      snprintf(text, sizeof text, "AMX emulation: %s, at %p (%02x %02x %02x %02x %02x)\n", rule,
               (const void*)instruction, instruction[0], instruction[1], instruction[2],
               instruction[3], instruction[4]);
  if (write(STDERR_FILENO, text, (size_t)length) < 0) _exit(126);
  _exit(125);
}

static int is_configured(int t) {
  return tiles.palette == 1 && t < kRegisters && tiles.rows[t] != 0 && tiles.row_bytes[t] % 4 == 0;
}

// Null, or the rule that the 64 bytes violate.
static const char* load_configuration(const uint8_t* memory) {
  struct Tiles loaded = {.palette = memory[0], .start_row = memory[1]};
  if (loaded.palette > 1) return "LDTILECFG: unknown palette";
  for (int i = 0; loaded.palette == 1 && i < 64; ++i) {
    const int reserved = (i >= 2 && i < 16) || (i >= 32 && i < 48) || i >= 56;
    if (reserved && memory[i] != 0) return "LDTILECFG: reserved bytes are not 0";
  }
  for (int t = 0; loaded.palette == 1 && t < kRegisters; ++t) {
    memcpy(&loaded.row_bytes[t], memory + 16 + 2 * t, 2);
    loaded.rows[t] = memory[48 + t];
    if (loaded.rows[t] > kRows || loaded.row_bytes[t] > kRowBytes ||
        (loaded.rows[t] == 0) != (loaded.row_bytes[t] == 0)) {
      return "LDTILECFG: bad shape";
    }
  }
  tiles = loaded;
  return NULL;
}

static void store_configuration(uint8_t* memory) {
  memset(memory, 0, 64);
  memory[0] = tiles.palette;
  memory[1] = tiles.start_row;
  memcpy(memory + 16, tiles.row_bytes, sizeof tiles.row_bytes);
  memcpy(memory + 48, tiles.rows, sizeof tiles.rows);
}

static void load_tile(int t, const uint8_t* base, uint64_t stride) {
  if (tiles.start_row == 0) memset(tiles.data[t], 0, sizeof tiles.data[t]);
  for (int r = tiles.start_row; r < tiles.rows[t]; ++r) {
    memset(tiles.data[t][r], 0, kRowBytes);
    memcpy(tiles.data[t][r], base + (uint64_t)r * stride, tiles.row_bytes[t]);
  }
  tiles.start_row = 0;
}

static void store_tile(int t, uint8_t* base, uint64_t stride) {
  for (int r = tiles.start_row; r < tiles.rows[t]; ++r) {
    memcpy(base + (uint64_t)r * stride, tiles.data[t][r], tiles.row_bytes[t]);
  }
  tiles.start_row = 0;
}

// ---- Products: c [M][N dwords] += a [M][K dwords] b [K][N dwords]. ----

static void multiply_bytes(int c, int a, int b, int signed_a, int signed_b) {
  const int columns = tiles.row_bytes[c] / 4, depth = tiles.row_bytes[a] / 4;
  const int sign_a = signed_a ? 0x80 : 0, sign_b = signed_b ? 0x80 : 0;
  for (int m = 0; m < kRows; ++m) {
    uint32_t sums[kRowBytes / 4] = {0};
    if (m < tiles.rows[c]) memcpy(sums, tiles.data[c][m], tiles.row_bytes[c]);
    for (int k = 0; m < tiles.rows[c] && k < depth; ++k) {
      for (int i = 0; i < 4; ++i) {
        const int x = (tiles.data[a][m][4 * k + i] ^ sign_a) - sign_a;
        for (int n = 0; n < columns; ++n) {
          sums[n] += (uint32_t)(x * ((tiles.data[b][k][4 * n + i] ^ sign_b) - sign_b));
        }
      }
    }
    memcpy(tiles.data[c][m], sums, kRowBytes);
  }
}

static float from_bf16(uint16_t half) {
  const uint32_t bits = (uint32_t)half << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The even and the odd elements of pairs are accumulated apart, from 0, by fused multiply-adds;
// their sum is added to c. Nearest even, subnormal operands and results are 0, whatever MXCSR says.
static void multiply_bf16(int c, int a, int b) {
  const int columns = tiles.row_bytes[c] / 4, depth = tiles.row_bytes[a] / 4;
  const unsigned control = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // all exceptions masked, flush to zero, denormals are zeros
  for (int m = 0; m < kRows; ++m) {
    // volatile: nothing may move to where MXCSR is another.
    volatile float sums[kRowBytes / 4] = {0};
    float even[kRowBytes / 4] = {0}, odd[kRowBytes / 4] = {0};
    for (int k = 0; m < tiles.rows[c] && k < depth; ++k) {
      uint16_t x[2], y[kRowBytes / 2];
      memcpy(x, &tiles.data[a][m][4 * k], sizeof x);
      memcpy(y, tiles.data[b][k], sizeof y);
      for (int n = 0; n < columns; ++n) {
        even[n] = fmaf(from_bf16(x[0]), from_bf16(y[2 * n]), even[n]);
        odd[n] = fmaf(from_bf16(x[1]), from_bf16(y[2 * n + 1]), odd[n]);
      }
    }
    for (int n = 0; m < tiles.rows[c] && n < columns; ++n) {
      float before;
      memcpy(&before, &tiles.data[c][m][4 * n], sizeof before);
      sums[n] = even[n] + odd[n];
      sums[n] = before + sums[n];
    }
    for (int n = 0; n < kRowBytes / 4; ++n) {
      const float sum = sums[n];
      memcpy(&tiles.data[c][m][4 * n], &sum, sizeof sum);
    }
  }
  _mm_setcsr(control);
}

// ---- Instructions: VEX, three bytes, map 0F38, W0, L0. ----

// In the order of their numbers in instructions.
static const int kGeneralRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                          REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                          REG_R12, REG_R13, REG_R14, REG_R15};

struct Instruction {
  int opcode, prefix;  // prefix: 0 none, 1 66, 2 F3, 3 F2
  int reg, rm, vvvv;   // fields, extended to four bits
  int in_memory, has_sib;
  uint64_t base, index;  // of the operand in memory; index is scaled
  int length;
};

// Whether the bytes are one of the opcodes.
static int decode(const uint8_t* bytes, const greg_t* registers, struct Instruction* out) {
  if (bytes[0] != 0xc4 || (bytes[1] & 0x1f) != 2 || (bytes[2] & 0x84) != 0) return 0;
  const int extend_reg = bytes[1] & 0x80 ? 0 : 8, extend_index = bytes[1] & 0x40 ? 0 : 8;
  const int extend_base = bytes[1] & 0x20 ? 0 : 8, mode = bytes[4] >> 6, low = bytes[4] & 7;
  *out = (struct Instruction){
      .opcode = bytes[3],
      .prefix = bytes[2] & 3,
      .reg = (bytes[4] >> 3 & 7) | extend_reg,
      .rm = low | extend_base,
      .vvvv = ~bytes[2] >> 3 & 15,
      .in_memory = mode != 3,
      .length = 5,
  };
  if (out->opcode != 0x49 && out->opcode != 0x4b && out->opcode != 0x5c && out->opcode != 0x5e) {
    return 0;
  }
  if (!out->in_memory) return 1;
  int base = low;
  if (low == 4) {
    const uint8_t sib = bytes[out->length++];
    const int index = (sib >> 3 & 7) | extend_index;
    out->has_sib = 1;
    base = sib & 7;
    if (index != 4) out->index = (uint64_t)registers[kGeneralRegisters[index]] << (sib >> 6);
  }
  const int no_base = mode == 0 && base == 5;
  int64_t displacement = 0;
  if (mode == 1) {
    displacement = (int8_t)bytes[out->length++];
  } else if (mode == 2 || no_base) {
    int32_t value;
    memcpy(&value, bytes + out->length, sizeof value);
    displacement = value;
    out->length += 4;
  }
  if (!no_base) {
    out->base = (uint64_t)registers[kGeneralRegisters[base | extend_base]];
  } else if (!out->has_sib) {
    out->base = (uint64_t)(bytes + out->length);  // relative to the next instruction
  }
  out->base += (uint64_t)displacement;
  return 1;
}

// Null, or the rule that is violated.
static const char* configure(const struct Instruction* i) {
  if (i->vvvv != 0) return "vvvv is not 1111b";
  if (i->in_memory && i->reg == 0 && i->prefix == 0) {
    return load_configuration((const uint8_t*)(i->base + i->index));
  }
  if (i->in_memory && i->reg == 0 && i->prefix == 1) {
    store_configuration((uint8_t*)(i->base + i->index));
    return NULL;
  }
  if (!i->in_memory && i->prefix == 0 && i->reg == 0 && i->rm == 0) {
    memset(&tiles, 0, sizeof tiles);
    return NULL;
  }
  if (i->in_memory || i->prefix != 3 || i->rm != 0) return "unknown instruction";
  if (!is_configured(i->reg)) return "TILEZERO: the register is not configured";
  memset(tiles.data[i->reg], 0, sizeof tiles.data[i->reg]);
  tiles.start_row = 0;
  return NULL;
}

static const char* move(const struct Instruction* i) {
  if (!i->in_memory || i->prefix == 0) return "unknown instruction";
  if (!i->has_sib || i->vvvv != 0) return "TILELOADD, TILESTORED: bad operand";
  if (!is_configured(i->reg)) return "TILELOADD, TILESTORED: the register is not configured";
  if (tiles.start_row >= tiles.rows[i->reg]) return "TILELOADD, TILESTORED: bad start row";
  if (i->prefix == 2) {
    store_tile(i->reg, (uint8_t*)i->base, i->index);
  } else {
    load_tile(i->reg, (const uint8_t*)i->base, i->index);
  }
  return NULL;
}

static const char* multiply(const struct Instruction* i) {
  const int c = i->reg, a = i->rm, b = i->vvvv;
  if (i->in_memory || (i->opcode == 0x5c && i->prefix != 2)) return "unknown instruction";
  if (c == a || c == b || a == b) return "TDP: the same register twice";
  if (!is_configured(c) || !is_configured(a) || !is_configured(b)) {
    return "TDP: a register is not configured";
  }
  if (tiles.rows[c] != tiles.rows[a] || tiles.row_bytes[c] != tiles.row_bytes[b] ||
      tiles.row_bytes[a] / 4 != tiles.rows[b]) {
    return "TDP: shapes do not match";
  }
  if (i->opcode == 0x5c) {
    multiply_bf16(c, a, b);
  } else {
    multiply_bytes(c, a, b, i->prefix >= 2, i->prefix % 2 == 1);  // uu, us (66), su (F3), ss (F2)
  }
  tiles.start_row = 0;
  return NULL;
}

static const char* execute(const struct Instruction* i) {
  if (!permitted) return "no permission was asked for";
  return i->opcode == 0x49 ? configure(i) : i->opcode == 0x4b ? move(i) : multiply(i);
}

// ---- CPUID and XGETBV, see above: 06 is illegal in 64-bit mode. ----

enum { kTilesInXcr0 = 3 << 17, kAmxInLeaf7Edx = 1 << 22 | 1 << 24 | 1 << 25 };

static int identify(const uint8_t* bytes, greg_t* registers) {
  if (bytes[0] != 0x06) return 0;
  if (bytes[1] == 0xa2) {
    const unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX];
    unsigned eax, ebx, ecx, edx;
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    if (leaf == 7 && subleaf == 0) edx |= kAmxInLeaf7Edx;
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
    registers[REG_RIP] += 2;
    return 1;
  }
  if (bytes[1] == 0x01 && bytes[2] == 0xd0) {
    const unsigned which = (unsigned)registers[REG_RCX];
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(which));
    registers[REG_RAX] = which == 0 ? low | kTilesInXcr0 : low;
    registers[REG_RDX] = high;
    registers[REG_RIP] += 3;
    return 1;
  }
  return 0;
}

static void on_illegal_instruction(int number, siginfo_t* info, void* context) {
  greg_t* const registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const int saved_errno = errno;
  const uint8_t* next = (const uint8_t*)registers[REG_RIP];
  struct Instruction instruction;
  unsigned long count = 0;
  if (identify(next, registers)) return;
  // One trap for all that follow each other.
  while (decode(next, registers, &instruction)) {
    const char* rule = execute(&instruction);
    if (rule != NULL) violation(rule, next);
    next += instruction.length;
    ++count;
  }
  registers[REG_RIP] = (greg_t)next;
  __atomic_fetch_add(&instruction_count, count, __ATOMIC_RELAXED);
  errno = saved_errno;
  if (count > 0) return;
  // Not ours.
  if (previous_action.sa_flags & SA_SIGINFO) {
    previous_action.sa_sigaction(number, info, context);
  } else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN) {
    previous_action.sa_handler(number);
  } else {
    signal(SIGILL, SIG_DFL);  // it happens again, and ends the program
  }
}

// In place of libc's.
long syscall(long number, ...) {
  long arguments[6];
  va_list list;
  va_start(list, number);
  for (int i = 0; i < 6; ++i) arguments[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_arch_prctl && arguments[0] == 0x1023 && arguments[1] == 18) {
    // What the test of a refusal sets.
    if (getenv("WOQ_TEST_REFUSE_AMX") != NULL) {
      errno = EPERM;
      return -1;
    }
    permitted = 1;
    return 0;
  }
  register long r10 __asm__("r10") = arguments[3];
  register long r8 __asm__("r8") = arguments[4];
  register long r9 __asm__("r9") = arguments[5];
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(r10),
                     "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result >= 0 || result < -4095) return result;
  errno = (int)-result;
  return -1;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {.sa_sigaction = on_illegal_instruction,
                             .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigemptyset(&action.sa_mask);
  sigaction(SIGILL, &action, &previous_action);
}

__attribute__((destructor)) static void end(void) {
  printf("AMX emulation: %lu instructions\n", instruction_count);
}
