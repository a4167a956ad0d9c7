// bfloat16 as CUDA names it. It rounds as the CPU's kernels do, whose header has names of its own.
#pragma once

struct __nv_bfloat16 {
  unsigned short bits;
};
__nv_bfloat16 __float2bfloat16_rn(float x);
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(x.bits << 16); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
