// SPDX-License-Identifier: Apache-2.0
// Everything public: quantize a matrix, pack it, multiply with it.
#pragma once

#define WOQ_VERSION "0.1.0"

#include "woq/core/dtype.h"
#include "woq/io/stored_matrix.h"
#include "woq/linear.h"
#include "woq/ops/attention.h"
#include "woq/pack/gather.h"
#include "woq/quant/awq.h"
#include "woq/quant/dequantize.h"
#include "woq/quant/error.h"
#include "woq/quant/gptq.h"
#include "woq/quant/hessian.h"
#include "woq/quant/hqq.h"
#include "woq/quant/layer_error.h"
#include "woq/quant/make.h"
#include "woq/quant/quantized_matrix.h"
#include "woq/quant/rounding.h"
#include "woq/quant/rtn.h"
#include "woq/quant/scheme.h"
#include "woq/quant/teq.h"
#include "woq/quant/validate.h"
#include "woq/simd/cpu.h"
#include "woq/simd/target.h"
