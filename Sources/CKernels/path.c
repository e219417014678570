// Which instruction sets this processor has.
#include "path.h"

int tributary_path_supported(int path) {
    if (path == TRIBUTARY_SCALAR) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    if (path == TRIBUTARY_AVX2) return avx2 != 0;
    if (path == TRIBUTARY_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
#endif
    return 0;
}
