// float16 as CUDA names it, which rounds as the CPU's kernels do.
#pragma once

struct __half {
  unsigned short bits;
};
float __half2float(__half x);
__half __float2half_rn(float x);
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
