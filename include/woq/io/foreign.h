// SPDX-License-Identifier: Apache-2.0
// Quantized weights as other libraries' checkpoints keep them, to the hub. Each function takes the
// tensors of one linear layer by the names that they have behind the layer's, and N = out_features
// and K = in_features of its weight; it looks at no file. The values are those of the checkpoint,
// bit for bit: codes stay as they are, scales keep their type.
//
// Throws InvalidArgument for tensors that are missing or have another type or shape than the format
// says, and Unsupported for what is well-formed and has no place in the hub.
//
// The bodies are in src/io/foreign.cc: these functions need the library woq::woq.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "woq/core/tensor.h"
#include "woq/io/packed_words.h"
#include "woq/quant/quantized_matrix.h"

namespace woq::io {

using ForeignTensors = std::map<std::string, TensorView>;

// What a GPTQ checkpoint stores for a zero point z: kV1 ("gptq") z - 1, kV2 ("gptq_v2") z.
// kV1Borrowed is kV1 as GPTQModel writes it for 2, 4 and 8 bits: 1 is subtracted from each code of
// a word at once, so that a z of 0 borrows from the next code.
enum class GptqZeros : uint8_t { kV1, kV2, kV1Borrowed };

struct GptqOptions {
  int bits = 4;
  int64_t group_size = 128;  // -1: one group a row
  bool sym = true;           // what the settings say; see read_gptq
  GptqZeros zeros = GptqZeros::kV1;
  WordLayout layout = WordLayout::kStream;
};

// GPTQ (AutoGPTQ, GPTQModel) and AutoRound: qweight int32 [ceil(K * bits / 32), N], codes packed
// along K; qzeros int32 [G, ceil(N * bits / 32)], packed along N; scales [G, N]; optionally g_idx
// int32 [K], the group of each column. W[n, k] = scales[g, n] * (q[n, k] - z[g, n]).
//
// Labels lie: files that are said to be v1 and hold v2's zero points exist. So where the settings
// say sym, and all stored zero points are one and the same 2^(bits - 1) (v2) or 2^(bits - 1) - 1
// (v1), that decides, and the matrix is symmetric. Else `zeros` decides. `rule`, if given, receives
// a sentence about which of these it was.
QuantizedMatrix read_gptq(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                          const GptqOptions& options, std::string* rule = nullptr);

// AWQ (AutoAWQ, "gemm"): qweight int32 [K, ceil(N * bits / 32)], each line a stream of bits whose
// code i is that of row {0, 2, 4, 6, 1, 3, 5, 7}[i] of its eight; qzeros int32 [G, ...] likewise;
// scales [G, N]. Without qzeros the zero points are 2^(bits - 1). AutoAWQ has 4 bits only;
// AutoRound packs others so, too.
QuantizedMatrix read_awq(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                         int64_t group_size, int bits = 4);

// compressed-tensors "pack-quantized": weight_packed int32 [N, ceil(K * bits / 32)] holds the codes
// plus 2^(bits - 1); weight_scale [N, G]; optionally weight_zero_point, packed along N as int32
// [ceil(N * bits / 32), G], or, in old files, int8 [N, G] as it is; weight_g_idx, which old files
// may have, int32 [K].
QuantizedMatrix read_compressed_packed(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                       int bits, int64_t group_size);

// compressed-tensors "int-quantized": weight int8 [N, K], weight_scale [N, G] or [1], optionally
// weight_zero_point int8 of the same shape.
QuantizedMatrix read_compressed_int(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                    int64_t group_size);

// What the scales of 4-bit floats are stored as: a power of 2 (OCP MXFP4), or an 8-bit float
// (NVFP4), and what all of them are multiplied by and divided by.
struct Fp4Options {
  ScaleEncoding scales = ScaleEncoding::kE8M0;  // or kE4M3
  int64_t group_size = 32;
  ScaleFactor factor;
};

// compressed-tensors "nvfp4-pack-quantized" (the scales are divided by a number of the matrix) and
// "mxfp4-pack-quantized", and NVFP4 of NVIDIA's ModelOpt (multiplied by one): weight uint8
// [N, K / 2], e2m1 codes, that of the even column in the low nibble; weight_scale, the scales' bits
// as uint8 [N, G]. gpt-oss's experts are such matrices one after the other: <product>_blocks uint8
// [experts, N, K / 32, 16] and <product>_scales [experts, N, K / 32].
QuantizedMatrix read_fp4(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                         const Fp4Options& options);

struct BitsandbytesOptions {
  bool nf4 = true;  // else fp4
  int64_t block_size = 64;
  float nested_offset = 0;  // with nested_absmax
};

// bitsandbytes, 4 bits: weight uint8 [N * K / 2, 1], the high nibble first; absmax float32
// [N * K / block_size]; or, nested, absmax uint8, nested_absmax float32 and nested_quant_map
// float32 [256]. Blocks that cross rows (K not a multiple of block_size) are Unsupported.
QuantizedMatrix read_bitsandbytes4(const ForeignTensors& tensors, int64_t rows, int64_t cols,
                                   const BitsandbytesOptions& options);

// bitsandbytes, 8 bits: weight int8 [N, K] and SCB float32 [N]: W = weight * (SCB / 127).
QuantizedMatrix read_bitsandbytes8(const ForeignTensors& tensors, int64_t rows, int64_t cols);

// HQQ along rows ("axis 1"): the G = N * K / group_size groups of codes, one after the other, are
// lines [G, group_size] that are cut into as many parts as an element of W_q holds codes; an
// element has one code of each part, that of the first part in the highest bits. 5 to 8 bits:
// uint8, one part; 4 and 2: uint8, 2 and 4; 3: int32, 10, whose two highest bits are unused and
// whose last part may be short. scale and zero [G, 1] are numbers: W = scale * (code - zero).
QuantizedMatrix read_hqq(const ForeignTensors& tensors, int64_t rows, int64_t cols, int bits,
                         int64_t group_size);

}  // namespace woq::io
