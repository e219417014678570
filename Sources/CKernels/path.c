// Which instruction sets this processor has.
#include "path.h"
#include <stdlib.h>
#include <string.h>

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

int tributary_default_path(void) {
    static const char *const names[] = {"scalar", "avx2", "avx512"};
    const char *wanted = getenv("TRIBUTARY_KERNELS");
    for (int path = TRIBUTARY_SCALAR; wanted && path <= TRIBUTARY_AVX512; path++)
        if (strcmp(wanted, names[path]) == 0 && tributary_path_supported(path)) return path;
    int best = TRIBUTARY_AVX512;
    while (!tributary_path_supported(best)) best--;
    return best;
}
